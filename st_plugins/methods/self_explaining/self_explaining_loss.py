"""Losses that make span pooling say what it looked at: few spans with large weights."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal, cast

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.util import batch_to_device
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from st_plugins.core.headed_loss import ClassifierLoss, check_classes, count_classes, embedding_dimension
from st_plugins.core.host import default_prompt, evaluating, inner_model
from st_plugins.core.loss import Features, GuardedLoss, Terms, with_term
from st_plugins.core.wrappers import around, gradient_cached, refuse_around, written
from st_plugins.methods.self_explaining.span_pooling import SpanPooling

__all__ = ["SelfExplainingLoss", "SpanSharpnessRegularizer"]

_TERM = "span_sharpness"
_CITATION = """
@article{sun-etal-2020-self-explaining,
    title = "Self-Explaining Structures Improve {NLP} Models",
    author = "Sun, Zijun and Fan, Chun and Han, Qinghong and Sun, Xiaofei and Meng, Yuxian and Wu, Fei and Li, Jiwei",
    journal = "arXiv preprint arXiv:2012.01786",
    year = "2020",
}
"""


class SelfExplainingLoss(ClassifierLoss):
    """Train a classifier whose decision is a weighted sum over spans, with most of the weight on few of them.

    Cross-entropy of a linear head on the embedding, minus ``weight`` times the sharpness ``Σ α²`` of the span weights,
    averaged over the texts of the batch. The sharpness is 1 when one span has all the weight, and one over the number
    of spans when all have the same, so the loss may be negative. The two terms are returned by name,
    ``classification`` and ``span_sharpness`` (weighted, negative), so that the trainer logs each and trains on their
    sum.

    The published model is a Transformer and a `SpanPooling`; modules after it are part of what the head sees. With
    ``weight=0`` there is no second term, and any pooling will do: the same classifier to compare with.

    Pairs of texts are classified in one of two ways. ``"joint"``, as published: one text column, whose entries are
    pairs; a pair is encoded as one text, ``[CLS] A [SEP] B [SEP]``, and no span crosses the separator. Make that
    column with ``dataset.map(lambda row: {"pair": [row["premise"], row["hypothesis"]]}, remove_columns=["premise",
    "hypothesis"])``. ``"siamese"``: two text columns, encoded by themselves; the head sees ``[u; v; |u - v|]``, and
    the model is useful for similarity as well.

    Unlike the contrastive losses of this package it evaluates as models do: without dropout in evaluation mode.

    Args:
        model: The model to train, with one `SpanPooling` unless ``weight`` is 0.
        labels: Names of the classes in their order, or just their number; a row has its class as an integer from 0.
        weight: λ of the paper, at least 0.
        pairs: ``"joint"`` for one text column, of texts or of pairs; ``"siamese"`` for two.

    Inputs:
        +---------------------------------------+---------------------------+
        | Texts                                 | Labels                    |
        +=======================================+===========================+
        | texts, or pairs in one column         | class, 0 … labels - 1     |
        +---------------------------------------+---------------------------+
        | (text, text) in two columns (siamese) | class, 0 … labels - 1     |
        +---------------------------------------+---------------------------+

    The head is no part of the model: see `HeadedLoss` for keeping it. (``fit`` of sentence-transformers 6.0 does not
    train heads; its trainer does.) `predict` classifies texts, and the host's
    ``LabelAccuracyEvaluator(dataloader, softmax_model=loss)`` measures accuracy.

    Example:
        >>> from st_plugins.miniature import corpus, untrained_encoder
        >>> model = SentenceTransformer(modules=[untrained_encoder()[0], SpanPooling(64)], device="cpu").train()
        >>> loss = SelfExplainingLoss(model, labels=["neutral", "happy"])
        >>> terms = loss([model.preprocess(corpus(8))], labels=torch.arange(8) % 2)
        >>> list(terms), bool(0.3 < terms["classification"] < 1.2)  # untrained: about log 2 = 0.7
        (['classification', 'span_sharpness'], True)
        >>> bool(-0.1 < terms["span_sharpness"] < 0), tuple(loss.predict(corpus(3)).shape)  # weights nearly equal
        (True, (3, 2))

    Reference:
        Sun et al., "Self-Explaining Structures Improve NLP Models" (2020), arXiv 2012.01786, section 3.3. The paper
        adds λ Σ α² with the sign such that sharp weights lower the loss; λ = 1 in the authors' code. Theirs is the
        joint form, with one separator between the texts.
    """

    def __init__(
        self,
        model: SentenceTransformer,
        labels: Sequence[str] | int,
        weight: float = 1.0,
        pairs: Literal["joint", "siamese"] = "joint",
    ) -> None:
        super().__init__(model)
        if pairs not in ("joint", "siamese"):
            raise ValueError(f"pairs must be 'joint' or 'siamese', got {pairs!r}")
        self.labels, self.num_labels = labels, count_classes(labels)
        self.weight, self.pairs = _check_weight(weight), pairs
        if self.weight:
            SpanPooling.of(model)
        self._width = embedding_dimension(model)
        self.head = nn.Linear(self._width * (1 if pairs == "joint" else 3), self.num_labels, device=model.device)

    def check_inputs(self, columns: list[Features], labels: Tensor | None) -> None:
        """Raise a ValueError if the number of text columns is not that of ``pairs``, or a row has no class.

        Args:
            columns: One tokenized batch for each text column.
            labels: The labels, if the dataset has them.
        """
        wanted = 1 if self.pairs == "joint" else 2
        if len(columns) != wanted:
            remedy = (
                "put both texts of a pair into one column, dataset.map(lambda row: {'pair': [row[a], row[b]]}, "
                "remove_columns=[a, b]), or set pairs='siamese'"
                if wanted == 1
                else "give two texts for each row, or set pairs='joint'"
            )
            raise ValueError(
                f"SelfExplainingLoss with pairs={self.pairs!r} takes {wanted} text column(s), got {len(columns)}; "
                f"{remedy}"
            )
        check_classes(labels, self.num_labels)

    def embed(self, columns: list[Features]) -> tuple[list[Tensor], Tensor | None]:
        """Return the embeddings of the columns, and the sharpness of the spans of all their texts."""
        with SpanPooling.of(self.model).returning_spans() if self.weight else contextlib.nullcontext():
            outputs = [self.model(features) for features in columns]
        sharpness = torch.cat([output[_TERM] for output in outputs]) if self.weight else None
        return [output["sentence_embedding"] for output in outputs], sharpness

    def compute_loss_from_embeddings(
        self, embeddings: list[Tensor], labels: Tensor | None = None, sharpness: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Compute both terms.

        Args:
            embeddings: For each text column ``(N, d)``.
            labels: ``(N,)`` classes.
            sharpness: ``Σ α²`` of every text of the batch, ``(texts,)``; None leaves that term out.

        Returns:
            The terms by name.

        Raises:
            ValueError: There are no labels.
        """
        if labels is None:
            raise ValueError("labels are missing: give a class for each row")
        terms = Terms(classification=cross_entropy(self.logits(embeddings), labels))
        if sharpness is not None:
            terms[_TERM] = -self.weight * sharpness.mean()
        return terms

    def predict(self, texts: Sequence[Any], batch_size: int = 32, prompt: str | None = None) -> Tensor:
        """Classify texts with the model and the head, in evaluation mode.

        Args:
            texts: Texts, or pairs of texts.
            batch_size: Texts encoded at a time.
            prompt: What goes before each text, or the first of a joint pair; None is the model's default prompt.

        Returns:
            ``(len(texts), num_labels)`` probabilities in float32 on the CPU; ``.argmax(dim=1)`` are the classes.

        Raises:
            ValueError: A text is no pair where ``pairs="siamese"`` needs one.
        """
        if self.pairs == "siamese" and any(isinstance(text, str) or len(text) != 2 for text in texts):
            raise ValueError("texts must be pairs (text, text) for a loss with pairs='siamese'")
        model = inner_model(self.model)
        prompt = default_prompt(model) if prompt is None else prompt
        found = [torch.zeros(0, self.num_labels)]
        with torch.no_grad(), evaluating(model):
            for begin in range(0, len(texts), batch_size):
                batch = list(texts[begin : begin + batch_size])
                columns = [batch] if self.pairs == "joint" else [list(column) for column in zip(*batch, strict=True)]
                features = [model.preprocess(column, prompt=prompt) for column in columns]
                _, logits = self([batch_to_device(column, model.device) for column in features])
                found.append(logits.softmax(dim=1).cpu())
        return torch.cat(found)

    def logits(self, embeddings: list[Tensor]) -> Tensor:
        """Return the logits of the classes, ``(N, num_labels)``, in float32 at least."""
        columns = [self.widened(embedding, self._width) for embedding in embeddings]
        if self.pairs == "siamese":
            u, v = columns
            columns = [u, v, (u - v).abs()]
        logits = self.apply_head(torch.cat(columns, dim=1))
        return logits.to(torch.promote_types(logits.dtype, torch.float32))

    def get_config_dict(self) -> dict[str, Any]:
        """Return the constructor arguments, ready for JSON: ``type(loss)(model, **config)`` builds the loss again."""
        return {"labels": self.labels, "weight": self.weight, "pairs": self.pairs}

    @property
    def citation(self) -> str:
        """BibTeX entry of the paper."""
        return _CITATION


class SpanSharpnessRegularizer(GuardedLoss):
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

    def __init__(self, loss: nn.Module, weight: float) -> None:
        super().__init__()
        if not isinstance(getattr(loss, "model", None), nn.Module):
            raise TypeError(f"loss must be a loss with its model at loss.model, got {type(loss).__name__}")
        SpanPooling.of(cast("nn.Module", loss.model))
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
        self.loss = loss
        self.weight = _check_weight(weight)

    @property
    def model(self) -> nn.Module:
        """The model of the wrapped loss, where a trainer may have put a wrapper around it."""
        return cast("nn.Module", self.loss.model)

    def forward(self, sentence_features: Iterable[Features], labels: Tensor | None = None) -> dict[str, Tensor]:
        """Compute the wrapped loss and the sharpness of what it embedded.

        Args:
            sentence_features: One tokenized batch for each text column.
            labels: As for the wrapped loss.

        Returns:
            The terms by name.

        Raises:
            TypeError: The wrapped loss returned neither a tensor nor terms.
            ValueError: The wrapped loss has a term of our name, or its embeddings have no gradient while gradients
                are computed.
        """
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
        with pooling.returning_spans(), _recorded_sharpness(pooling) as sharpness:
            value = self.loss(columns, labels)
        trains = torch.is_grad_enabled() and any(parameter.requires_grad for parameter in pooling.parameters())
        if not sharpness or (trains and not all(part.requires_grad for part in sharpness)):
            raise ValueError(
                f"{type(self.loss).__name__} embeds texts without gradients (gradient caching), or not through the "
                "model's SpanPooling, so that their sharpness cannot be trained; use the form of the loss without "
                "caching, and gradient accumulation for memory"
            )
        return self.guarded(with_term(self.loss, value, _TERM, -self.weight * torch.cat(sharpness).mean()))

    def get_config_dict(self) -> dict[str, Any]:
        """Return the weight, and name and configuration of the wrapped loss."""
        inner: dict[str, Any] = getattr(self.loss, "get_config_dict", dict)()
        return {"loss": type(self.loss).__name__, "loss_config": inner, "weight": self.weight}

    @property
    def citation(self) -> str:
        """BibTeX entries of the paper and of the wrapped loss."""
        return f"{_CITATION}{getattr(self.loss, 'citation', '')}"


def _check_weight(weight: float) -> float:
    if not weight >= 0:
        raise ValueError(f"weight must be at least 0, got {weight}; sharpness is subtracted from the loss")
    return weight


@contextlib.contextmanager
def _recorded_sharpness(pooling: SpanPooling) -> Iterator[list[Tensor]]:
    """Collect the sharpness of every pass inside the block; losses hand their features to no one."""
    found: list[Tensor] = []

    def record(module: nn.Module, inputs: Any, features: Features) -> None:
        found.append(features[_TERM])

    handle = pooling.register_forward_hook(record)
    try:
        yield found
    finally:
        handle.remove()
