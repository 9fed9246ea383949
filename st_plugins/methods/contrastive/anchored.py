"""Keep a model near the one that was given while it is trained."""

from __future__ import annotations

import copy
from collections.abc import Iterable

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.losses import uses_gradient_cache
from torch import Tensor, nn
from torch.nn.functional import normalize

from st_plugins.core.host import inner_model, recorded
from st_plugins.core.loss import Features, with_term
from st_plugins.core.precision import precise
from st_plugins.core.wrappers import refuse_around
from st_plugins.core.wrapping_loss import WrappingLoss

_TERM = "anchor"


def anchor(embeddings: Tensor, given: Tensor) -> Tensor:
    """Mean squared difference of the cosines of all pairs of different texts.

    ``1 / (N (N - 1)) · Σ_{i≠j} [cos(zᵢ, zⱼ) - cos(gᵢ, gⱼ)]²``. It does not change when all embeddings are rotated
    together, or scaled. Computed in float32 (float64 if given), under autocast too.

    Args:
        embeddings: ``(..., N, d)``, such as the views of N texts.
        given: ``(N, d')``, what the given model makes of the same texts.

    Returns:
        The mean over what is before the last two dimensions, 0 for a single text.

    Example:
        >>> z = torch.eye(2)
        >>> anchor(z, torch.tensor([[1.0, 0.0], [1.0, 0.0]])).item()  # cosine 0, and 1 before
        1.0
    """
    with torch.autocast(given.device.type, enabled=False):
        new, old = (normalize(precise(rows), dim=-1) for rows in (embeddings, given))
        moved = new @ new.transpose(-1, -2) - old @ old.T
        pairs = ~torch.eye(len(given), dtype=torch.bool, device=given.device)
        return (moved.square() * pairs).sum(dim=(-1, -2)).mean() / max(int(pairs.sum()), 1)


class AnchoredLoss(WrappingLoss):
    """Add to any loss a term that keeps the similarities of different texts where the given model had them.

    The wrapped loss plus ``weight · anchor``, see :func:`~st_plugins.losses.anchor`: of all
    pairs of texts of a batch, column by column. A contrastive loss pushes all other texts away, whatever they have to
    do with each other, and a labelled set knows nothing of texts unlike its own; the term holds on to what the model
    knew. A copy of the model as it is now is kept for that, and embeds each batch too (without gradients, a sixth of
    the time of a ConSERT step). The terms are returned by name: ``anchor`` (weighted) beside those of the wrapped
    loss, or beside one with the name of its class.

    What the wrapped loss makes of the batch is what is compared, with its augmentations and dropout, so that the
    model itself runs no further time. Losses that embed a batch in parts (the host's cached ones,
    ``mini_batch_size``) are refused.

    Args:
        loss: A loss with the model at ``loss.model``.
        weight: λ, at least 0; 10 suits contrastive losses.

    Inputs:
        Those of the wrapped loss.

    Example:
        >>> from st_plugins.losses import ConSERTLoss
        >>> from st_plugins.miniature import corpus, untrained_encoder
        >>> model = untrained_encoder().train()
        >>> loss = AnchoredLoss(ConSERTLoss(model), weight=10.0)
        >>> terms = loss([model.preprocess(corpus(8))])
        >>> list(terms), bool(terms["anchor"] > 0)
        (['ConSERTLoss', 'anchor'], True)

    Reference:
        Tung & Mori, "Similarity-Preserving Knowledge Distillation" (2019), arXiv 1907.09682, equation 4, where the
        matrices are of dot products with rows scaled to length 1. Here they are of cosines, the diagonal is left out,
        and the teacher is the model itself before its training.
    """

    _paper = """
@inproceedings{tung-mori-2019-similarity,
    title = "Similarity-Preserving Knowledge Distillation",
    author = "Tung, Frederick and Mori, Greg",
    booktitle = "Proceedings of the IEEE/CVF International Conference on Computer Vision",
    year = "2019",
    eprint = "1907.09682",
    archivePrefix = "arXiv",
}
"""

    def __init__(self, loss: nn.Module, weight: float = 10.0) -> None:
        super().__init__(loss, weight)
        if uses_gradient_cache(loss) or getattr(loss, "mini_batch_size", None) is not None:
            raise ValueError(
                f"the {type(loss).__name__} embeds a batch in parts, and the similarities of all its texts are wanted "
                "here; use the loss without a cache (mini_batch_size=None)"
            )
        given: SentenceTransformer = copy.deepcopy(inner_model(self.model)).eval().requires_grad_(False)
        # No module of this one: its weights are neither trained nor stored, and no trainer exchanges it.
        self._given = (given,)

    def forward(self, sentence_features: Iterable[Features], labels: Tensor | None = None) -> dict[str, Tensor]:
        """Compute the wrapped loss and add the term."""
        columns = list(sentence_features)
        self.begin(columns, labels)
        refuse_around(self.model, type(self).__name__, "the copy of the model knows nothing of what they cut off")
        # Before the wrapped loss, which may add to the features.
        given = [self._embedded(features) for features in columns]
        with recorded(inner_model(self.model), lambda output: output["sentence_embedding"]) as found:
            value = self.loss(columns, labels)
        terms = []
        for place, embeddings in enumerate(found):
            old = given[place % len(given)]  # some losses embed all columns twice
            if len(embeddings) % len(old):
                raise ValueError(
                    f"the {type(self.loss).__name__} embedded {len(embeddings)} rows of a batch of {len(old)} texts, "
                    "so that they cannot be told apart; wrap a loss that embeds each column as a whole"
                )
            # Not in the shape of the old ones: MatryoshkaLoss inside cuts the new ones shorter.
            terms.append(anchor(embeddings.reshape(-1, len(old), embeddings.shape[-1]), old))
        if not terms:
            raise ValueError(
                f"the {type(self.loss).__name__} did not embed the batch with its model, so that nothing can be "
                "anchored; wrap a loss that calls loss.model"
            )
        return self.guarded(with_term(self.loss, value, _TERM, self.weight * torch.stack(terms).mean()))

    def _embedded(self, features: Features) -> Tensor:
        given = self._given[0].to(next(self.model.parameters()).device)
        with torch.no_grad():
            embeddings: Tensor = given(dict(features))["sentence_embedding"]
        return embeddings.detach()
