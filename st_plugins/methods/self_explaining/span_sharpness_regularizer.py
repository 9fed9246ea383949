"""Keep the spans of a model sharp while it is trained for something else."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from st_plugins.core.host import inner_model, recorded
from st_plugins.core.loss import Features, with_term
from st_plugins.core.wrappers import around, gradient_cached, refuse_around, written
from st_plugins.core.wrapping_loss import WrappingLoss
from st_plugins.methods.self_explaining.self_explaining_loss import CITATION, TERM, check_weight
from st_plugins.methods.self_explaining.span_pooling import SpanPooling


class SpanSharpnessRegularizer(WrappingLoss):
    """Add to any loss of a model with `SpanPooling` a term that makes its span weights sharp.

    The wrapped loss minus ``weight`` times the sharpness ``Σ α²``, averaged over all texts that the loss embeds: every
    column, and every view of it. So embeddings trained for similarity can be explained by few spans as well. The terms
    are returned by name: ``span_sharpness`` (weighted, negative) beside those of the wrapped loss, or beside one with
    the name of its class. A trainer logs each and trains on their sum.

    Losses that embed with gradients are supported, ours with ``mini_batch_size`` too. Those that embed without
    gradients and again in the backward pass (the host's ``Cached...`` losses, ``MegaBatchMarginLoss``) are refused,
    because the term would not reach the model, and so are adversarial views, whose first pass is not trained on.

    Args:
        loss: A loss with the model at ``loss.model``, such as ``CoSENTLoss``, ``MultipleNegativesRankingLoss`` or
            `ConSERTLoss`.
        weight: λ of the paper, at least 0.

    Inputs:
        Those of the wrapped loss.

    Example:
        >>> from sentence_transformers import SentenceTransformer
        >>> from sentence_transformers.sentence_transformer.losses import CosineSimilarityLoss
        >>> from st_plugins.miniature import corpus, untrained_encoder
        >>> model = SentenceTransformer(modules=[untrained_encoder()[0], SpanPooling(64)], device="cpu").train()
        >>> loss = SpanSharpnessRegularizer(CosineSimilarityLoss(model), weight=0.5)
        >>> terms = loss([model.preprocess(corpus(4)), model.preprocess(corpus(4, seed=1))], torch.rand(4))
        >>> list(terms), bool(-0.5 < terms["span_sharpness"] < 0)
        (['CosineSimilarityLoss', 'span_sharpness'], True)

    Reference:
        Sun et al., arXiv 2012.01786, section 3.3, the second term; that it regularises other losses than the
        classifier's is our extension.
    """

    _paper = CITATION

    def __init__(self, loss: nn.Module, weight: float) -> None:
        super().__init__(loss, check_weight(weight))
        SpanPooling.of(self.model)
        if getattr(loss, "adversarial", False):
            raise ValueError(
                "SpanSharpnessRegularizer cannot wrap a loss with an AdversarialPerturbation, whose first pass is not "
                "trained on; choose other views"
            )
        if (cached := gradient_cached(loss)) is not None:
            raise ValueError(
                f"SpanSharpnessRegularizer cannot wrap {cached}, which embeds texts without gradients (gradient "
                "caching), and a second time for the gradients: their sharpness would not be trained; use the form of "
                "the loss without caching, and gradient accumulation for memory"
            )

    def forward(self, sentence_features: Iterable[Features], labels: Tensor | None = None) -> dict[str, Tensor]:
        """Compute the wrapped loss and the sharpness of what it embedded."""
        columns = list(sentence_features)
        self.begin(columns, labels)
        refuse_around(
            self.model,
            "SpanSharpnessRegularizer",
            "it runs the model's SpanPooling once for all dimensions; write "
            f"SpanSharpnessRegularizer({around(self.model).name}(model, {written(self.loss)}, …), …)",
            layers=False,
        )
        pooling = SpanPooling.of(inner_model(self.model))
        # Losses hand their features to no one; each pass overwrites what the one before wrote into them.
        with pooling.returning_spans(), recorded(pooling, lambda features: features[TERM]) as sharpness:
            value = self.loss(columns, labels)
        trains = torch.is_grad_enabled() and any(parameter.requires_grad for parameter in pooling.parameters())
        if not sharpness or (trains and not all(part.requires_grad for part in sharpness)):
            raise ValueError(
                f"{type(self.loss).__name__} embeds texts without gradients (gradient caching), or not through the "
                "model's SpanPooling, so that their sharpness cannot be trained; use the form of the loss without "
                "caching, and gradient accumulation for memory"
            )
        return self.guarded(with_term(self.loss, value, TERM, -self.weight * torch.cat(sharpness).mean()))
