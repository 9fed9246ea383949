"""R-Drop: what a model predicts should not depend on the dropout mask."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterable, Mapping
from typing import Any, Literal, cast, get_args

import torch
from sentence_transformers import CrossEncoder, SentenceTransformer
from sentence_transformers.sentence_transformer.losses import (
    CoSENTLoss,
    CosineSimilarityLoss,
    MultipleNegativesRankingLoss,
    SoftmaxLoss,
)
from sentence_transformers.util import cos_sim, pairwise_cos_sim
from torch import Tensor, nn

from st_plugins.core.dropout import dropout_probabilities
from st_plugins.core.host import recorded
from st_plugins.core.loss import Terms, as_in_training
from st_plugins.core.precision import precise
from st_plugins.core.wrappers import refuse_around
from st_plugins.core.wrapping_loss import WrappingLoss
from st_plugins.methods.rdrop.two_passes import TwoPasses, two_passes
from st_plugins.methods.rdrop.wrapped import (
    Consistency,
    check_columns,
    check_wrapped,
    classifier_of,
    consistency_of,
    inner_of,
)

logger = logging.getLogger(__name__)

Scaling = Literal["mean", "sum"]

_TERM = "r_drop"


def symmetric_kl(first: Tensor, second: Tensor) -> Tensor:
    """Return ``½ [KL(P₁‖P₂) + KL(P₂‖P₁)]`` of predicted distributions, averaged over the rows.

    Both orders added up give ``½ Σ_c (p₁ - p₂) (log p₁ - log p₂)``, summed over the classes: no term is negative, and
    equal predictions give exactly 0. Computed in float32 (float64 if given), under autocast too.

    Args:
        first: Logits of the first pass: ``(N, C)`` of a softmax, or ``(N,)`` or ``(N, 1)`` of a sigmoid.
        second: Logits of the second pass.

    Returns:
        The mean over the rows.

    Raises:
        ValueError: The shapes differ.

    Example:
        >>> one, two = torch.tensor([[0.8, 0.2]]).log(), torch.tensor([[0.5, 0.5]]).log()
        >>> f"{symmetric_kl(one, two):.4f}"  # ½ · 0.3 · log(0.8 / 0.2)
        '0.2079'
        >>> f"{symmetric_kl(one[:, 0] - one[:, 1], two[:, 0] - two[:, 1]):.4f}"  # the same as a score
        '0.2079'

    Reference:
        Liang et al., arXiv 2106.14448, section 2. In the authors' code for classification the sum over the batch is
        not divided by its size, so that their α means another thing with every batch size.
    """
    if first.shape != second.shape or not 1 <= first.ndim <= 2:
        raise ValueError(
            f"predictions must have the same shape (N, C) or (N,), got {tuple(first.shape)} and {tuple(second.shape)}"
        )
    with torch.autocast(first.device.type, enabled=False):
        one, two = (precise(logits) for logits in (first, second))
        if one.ndim == 1 or one.shape[1] == 1:
            # A logit z stands for two classes, σ(z) and 1 - σ(z), over which the sum is (σ(z₁) - σ(z₂)) (z₁ - z₂).
            return 0.5 * ((one.sigmoid() - two.sigmoid()) * (one - two)).flatten().mean()
        one, two = one.log_softmax(dim=1), two.log_softmax(dim=1)
        # Summed over classes, averaged over rows. The "mean" of torch's kl_div would divide by the classes too.
        return 0.5 * ((one.exp() - two.exp()) * (one - two)).sum(dim=1).mean()


class RDropLoss(WrappingLoss):
    """Train with a loss on two dropout passes of each batch, and pull what the passes predict together.

    Every text column goes through the model once, with each row twice, so that both copies get their own dropout
    masks. The wrapped loss is computed for the first copies and for the second ones, as if they were two batches, and
    a consistency term, the symmetric KL divergence of the two predictions averaged over the rows, is added:

        ``scaling="mean"``: ``½ (L₁ + L₂) + weight · ½ [KL(P₁‖P₂) + KL(P₂‖P₁)]``
        ``scaling="sum"``: ``(L₁ + L₂) + weight · ½ [KL(P₁‖P₂) + KL(P₂‖P₁)]``

    Both are published, and ``weight=a`` in the first is ``weight=2a`` in the second with half the learning rate. What
    is predicted depends on the loss:

    - ``"classes"``: the distribution over classes of ``SoftmaxLoss``, of `SelfExplainingLoss` and `VIRTPairLoss`, and
      of cross-encoders with ``CrossEntropyLoss`` or ``BinaryCrossEntropyLoss``.
    - ``"scores"``: the similarity of ``CosineSimilarityLoss``, ``CoSENTLoss`` and ``AnglELoss``, the score of a
      cross-encoder with ``MSELoss``. The term is the mean squared difference of the two passes instead.
    - ``"similarities"``, for all other losses on embeddings, such as ``MultipleNegativesRankingLoss``: the
      distribution of the first column's rows over the texts of the other columns in the batch, ``softmax(scale ·
      cosine)`` (with the loss's own similarity and scale where it is ``MultipleNegativesRankingLoss``); with a single
      column, over the other rows. An own construction, not the paper's.

    **Rows without a label** contribute the consistency term only: those with ``unlabeled`` in place of a class, and
    with NaN in place of a score.

    **Training mode** is needed, because without dropout the two passes are equal; in evaluation mode the loss is
    refused. Only without gradients, as in the trainer's evaluation on an ``eval_dataset``, dropout acts as in
    training, from a fixed seed, so that values at different checkpoints compare. Batch normalisation sees both copies
    as one batch.

    The terms are returned by name: ``r_drop`` (weighted) beside those of the wrapped loss, or beside one with the name
    of its class. A trainer logs each and trains on their sum. A step costs about twice as much as without.

    Args:
        loss: A loss with its model at ``loss.model`` that embeds each column in one pass: no ``Cached…`` loss, none
            that augments texts or wraps other losses (wrap the inner one).
        weight: α of the paper, at least 0.
        scaling: ``"mean"``, as in the authors' README, or ``"sum"``, as in the paper.
        consistency: What should agree; ``"auto"`` chooses by the loss, as above.
        scale: Inverse temperature of ``"similarities"``, above 0, where the loss has none.
        unlabeled: The class that marks a row without label.

    Inputs:
        Those of the wrapped loss.

    Example:
        >>> from st_plugins.miniature import corpus, untrained_encoder
        >>> model = untrained_encoder().train()
        >>> loss = RDropLoss(SoftmaxLoss(model, model.get_embedding_dimension(), num_labels=3), weight=1.0)
        >>> columns = [model.preprocess(corpus(8)), model.preprocess(corpus(8, seed=1))]
        >>> terms = loss(columns, labels=torch.tensor([0, 1, 2, 0, 1, 2, -1, -1]))  # the last two are unlabelled
        >>> list(terms), bool(0.8 < terms["SoftmaxLoss"] < 1.6), bool(0 < terms["r_drop"] < 0.1)
        (['SoftmaxLoss', 'r_drop'], True, True)

    Reference:
        Liang et al., "R-Drop: Regularized Dropout for Neural Networks" (NeurIPS 2021), arXiv 2106.14448, section 2;
        the mean squared difference for regression is in its appendix. We differ from the authors' code: the divergence
        is averaged over the batch everywhere (theirs is summed in some copies), predictions are compared in float32,
        and scores of shape (N,) and (N, 1) mean the same.
    """

    marks_missing = True
    _paper = """
@inproceedings{liang-etal-2021-r-drop,
    title = "{R-Drop}: Regularized Dropout for Neural Networks",
    author = "Liang, Xiaobo and Wu, Lijun and Li, Juntao and Wang, Yue and Meng, Qi and Qin, Tao and Chen, Wei and
              Zhang, Min and Liu, Tie-Yan",
    booktitle = "Advances in Neural Information Processing Systems",
    year = "2021",
    eprint = "2106.14448",
    archivePrefix = "arXiv",
}
"""

    def __init__(
        self,
        loss: nn.Module,
        weight: float = 1.0,
        scaling: Scaling = "mean",
        consistency: Literal["auto"] | Consistency = "auto",
        scale: float = 20.0,
        unlabeled: int = -1,
    ) -> None:
        if not 0 <= weight < float("inf"):
            raise ValueError(f"weight must be a number of at least 0, got {weight}")
        if scaling not in get_args(Scaling):
            raise ValueError(f"scaling must be 'mean' (the README's form) or 'sum' (the paper's), got {scaling!r}")
        if consistency not in ("auto", *get_args(Consistency)):
            raise ValueError(f"consistency must be 'auto' or one of {get_args(Consistency)}, got {consistency!r}")
        if not 0 < scale < float("inf"):
            raise ValueError(f"scale must be a number above 0, got {scale}")
        super().__init__(loss, weight)
        inner = check_wrapped(loss)
        self.scaling, self.scale, self.unlabeled = scaling, scale, unlabeled
        self.consistency: Consistency = consistency_of(loss) if consistency == "auto" else consistency
        embeds, head = isinstance(inner, SentenceTransformer), classifier_of(loss)
        if (self.consistency == "classes" and embeds and head is None) or (
            self.consistency == "similarities" and not embeds
        ):
            raise ValueError(
                f"consistency={consistency!r} does not suit {type(loss).__name__}: 'classes' needs a classifier, and "
                "'similarities' embeddings; choose 'auto'"
            )
        if not dropout_probabilities(inner):
            logger.warning(
                "The model has no dropout, so that both passes will be equal and R-Drop does nothing. Set dropout in "
                "the model's configuration."
            )

    def forward(
        self, sentence_features: Iterable[Any], labels: Tensor | None = None, **kwargs: Any
    ) -> dict[str, Tensor]:
        """Compute the wrapped loss for both passes, and how far their predictions differ."""
        # Losses of cross-encoders take lists of texts instead of tokenized batches, and `prompt` and `task` by name.
        columns = list(sentence_features)
        self.begin(columns, labels)
        check_columns(self.loss, len(columns))
        if isinstance(self.loss, SoftmaxLoss):
            refuse_around(
                self.model,
                "RDropLoss(SoftmaxLoss)",
                "SoftmaxLoss has a classifier for whole embeddings, which does not take shorter ones; use a loss "
                "without a classifier, or SelfExplainingLoss(model, labels, weight=0), whose classifier does",
                layers=False,
            )
        if labels is None and self.consistency != "similarities":
            raise ValueError(
                f"labels are missing: {type(self.loss).__name__} needs them; mark rows without one with "
                f"{self.unlabeled} (classes) or NaN (scores)"
            )
        if self.consistency == "scores" and labels is not None and labels.ndim > 1:
            labels = labels.flatten()  # version 6.0 of the host compares (N, 1) with itself as a matrix
        filled, missing = self._filled(labels)
        head = classifier_of(self.loss)
        recording: Any = contextlib.nullcontext([]) if head is None else recorded(head)
        with as_in_training(inner_of(self.model)), two_passes(self.loss) as passes, recording as outputs:
            terms = [self._wrapped(passes, half, None, columns, filled, kwargs) for half in (0, 1)]
            predictions = self._predictions(passes, list(outputs))
            if labels is not None and bool(missing.any()):
                # What the loss made of invented labels is thrown away; it sees the same outputs again, without them.
                rows = (~missing).nonzero().flatten()
                terms = [
                    self._wrapped(passes, half, rows, columns, labels[rows], kwargs)
                    if len(rows)
                    else Terms({name: value.new_zeros(()) for name, value in terms[half].items()})
                    for half in (0, 1)
                ]
        # Paper: CE + CE', README: half of that, with one divergence: for one optimum the paper's α is twice as large.
        found = (terms[0] + terms[1]) * (0.5 if self.scaling == "mean" else 1.0)
        found[_TERM] = self.weight * self._divergence(*predictions)
        embeddings = [both.unflatten(0, (2, -1)) for both in passes.embeddings()]
        return self.guarded(found, embeddings)

    def _filled(self, labels: Any) -> tuple[Any, Any]:
        """Return labels that the wrapped loss accepts, and which rows have none, ``(N,)``."""
        if labels is None:
            return None, None
        marks = labels.isnan() if labels.is_floating_point() else labels == self.unlabeled
        missing = marks.flatten(1).any(dim=1) if marks.ndim > 1 else marks
        return labels.masked_fill(missing.view(-1, *[1] * (labels.ndim - 1)), 0), missing

    def _wrapped(
        self,
        passes: TwoPasses,
        half: int,
        rows: Tensor | None,
        columns: list[Any],
        labels: Tensor | None,
        kwargs: dict[str, Any],
    ) -> Terms:
        """Return the terms of the wrapped loss for one pass, or for some rows of it."""
        passes.show(half, rows)
        value = self.loss(columns, labels, **kwargs)
        expected = len(columns) if isinstance(inner_of(passes.module), SentenceTransformer) else 1
        if passes.columns_shown != expected:
            raise ValueError(
                f"{type(self.loss).__name__} runs the model {passes.columns_shown} times for {expected} column(s), so "
                "that its two passes cannot be told apart; use a loss that embeds each column once"
            )
        return Terms(value if isinstance(value, Mapping) else {type(self.loss).__name__: value})

    def _predictions(self, passes: TwoPasses, outputs: list[Tensor]) -> tuple[Tensor, ...]:
        """Return what the first and the second pass predict, for all rows."""
        if isinstance(inner_of(passes.module), CrossEncoder):
            activation: Any = self.loss.activation_fn  # what the loss sees, not what predict returns
            return tuple(activation(passes.outputs[0]["scores"]).chunk(2))
        if outputs and self.consistency != "similarities":
            return tuple(outputs)
        embeddings = [precise(both).chunk(2) for both in passes.embeddings()]
        predict = self._scores if self.consistency == "scores" else self._similarities
        with torch.autocast(embeddings[0][0].device.type, enabled=False):
            return tuple(predict([column[half] for column in embeddings]) for half in (0, 1))

    def _scores(self, embeddings: list[Tensor]) -> Tensor:
        """Return the similarity of each pair as the loss sees it, ``(N,)``."""
        loss: Any = self.loss
        if isinstance(loss, CoSENTLoss):
            return cast("Tensor", loss.similarity_fct(*embeddings))
        cosines = pairwise_cos_sim(*embeddings)
        if isinstance(loss, CosineSimilarityLoss):
            return cast("Tensor", loss.cos_score_transformation(cosines))
        return cosines

    def _similarities(self, embeddings: list[Tensor]) -> Tensor:
        """Return the logits of each row of the first column over the others, ``(N, candidates)``."""
        loss: Any = self.loss
        anchors, *others = embeddings
        if not others:
            # A row's similarity with itself is the highest in both passes, and says nothing.
            alone = torch.eye(len(anchors), dtype=torch.bool, device=anchors.device)
            return (self.scale * cos_sim(anchors, anchors))[~alone].view(len(anchors), len(anchors) - 1)
        if isinstance(loss, MultipleNegativesRankingLoss):
            return loss.scale * loss.similarity_fct(anchors, torch.cat(others))
        return self.scale * cos_sim(anchors, torch.cat(others))

    def _divergence(self, first: Tensor, second: Tensor) -> Tensor:
        if self.consistency != "scores":
            return symmetric_kl(first, second)
        return (precise(first) - precise(second)).square().mean()
