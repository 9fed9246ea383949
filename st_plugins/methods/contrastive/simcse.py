"""SimCSE: a sentence and its second dropout mask attract each other, the other sentences of the batch repel."""

from __future__ import annotations

from typing import Any

import torch
from sentence_transformers import SentenceTransformer
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from st_plugins.core.headed_loss import HeadedLoss, embedding_dimension
from st_plugins.core.loss import Features
from st_plugins.core.precision import precise
from st_plugins.methods.contrastive.view_loss import ViewLoss, check_negatives, check_temperature
from st_plugins.methods.contrastive.views import NoAugmentation


def simcse_loss(
    anchors: Tensor,
    positives: Tensor,
    negatives: Tensor | None = None,
    temperature: float = 0.05,
    hard_negative_weight: float = 0.0,
    offset: int = 0,
) -> Tensor:
    """Cross-entropy of each anchor's positive among the positives and hard negatives of the whole batch.

    ``l(i) = -log exp(cos(hᵢ, pᵢ) / τ) / Σ_j [exp(cos(hᵢ, pⱼ) / τ) + exp(cos(hᵢ, nⱼ) / τ + w·[i = j])]``, averaged over
    the anchors: one direction, N candidates (2N with hard negatives). Computed in float32 (float64 if given), under
    autocast too.

    Args:
        anchors: ``(N, d)``.
        positives: ``(M, d)``, M >= N; that of anchor i is row ``offset + i``.
        negatives: ``(M, d)`` hard negatives in the same order, or None.
        temperature: τ, above 0.
        hard_negative_weight: w, added to the logit of the anchor's own hard negative.
        offset: Where the positives of these anchors begin, when the others are other processes'.

    Returns:
        The loss.

    Raises:
        ValueError: The shapes do not fit, the temperature is not positive, or there is no negative at all.

    Example:
        >>> a = torch.eye(3)
        >>> f"{simcse_loss(a, a, temperature=0.5):.4f}"  # log(1 + (N - 1) exp(-1 / τ)): the others are orthogonal
        '0.2395'

    Reference:
        Gao, Yao & Chen, "SimCSE: Simple Contrastive Learning of Sentence Embeddings" (2021), arXiv 2104.08821,
        equations 1, 4 and 5; the weight is in the authors' code.
    """
    check_temperature(temperature)
    candidates = [positives] if negatives is None else [positives, negatives]
    if anchors.ndim != 2 or any(
        c.shape != positives.shape or c.ndim != 2 or c.shape[1] != anchors.shape[1] for c in candidates
    ):
        shapes = [tuple(tensor.shape) for tensor in (anchors, *candidates)]
        raise ValueError(f"anchors (N, d), positives (M, d) and negatives (M, d) do not fit: {shapes}")
    if not 0 <= offset <= len(positives) - len(anchors):
        raise ValueError(
            f"offset {offset} and {len(anchors)} anchors point outside the {len(positives)} positives; give one "
            "positive for each anchor"
        )
    check_negatives(len(positives) * len(candidates))
    with torch.autocast(anchors.device.type, enabled=False):
        # Half precision has three digits, and a division by τ would make the rest visible.
        queries = normalize(precise(anchors), dim=-1)
        logits = queries @ normalize(torch.cat(candidates).to(queries.dtype), dim=-1).T / temperature
        target = torch.arange(len(anchors), device=anchors.device) + offset
        if negatives is not None and hard_negative_weight:
            # Added to the logit, so that w multiplies the term by exp(w). Hard negatives of other rows stay the same.
            own = target[:, None] + len(positives)
            logits = logits.scatter_add(1, own, torch.full_like(own, hard_negative_weight, dtype=logits.dtype))
        return cross_entropy(logits, target)


class SimCSELoss(ViewLoss, HeadedLoss):
    """Contrastive learning whose only augmentation is dropout, or from labelled pairs and triples.

    One text column: each sentence is encoded twice in one forward pass, and the two embeddings, which differ by the
    dropout masks, are pulled together. Two columns: anchors and positives. Three: anchors, positives and hard
    negatives, such as entailed and contradicting hypotheses of NLI. In each case the other sentences of the batch are
    negatives (`simcse_loss`). A text that is twice in one batch is pushed away from itself: remove duplicates, or use
    the host's ``BatchSamplers.NO_DUPLICATES``. The last batch of an epoch may be a single
    sentence, which has no negatives: it counts as 0, and a warning says so.

    Without labels the encoder's dropout is the method: 0.1 works, and without any the two views are identical, which
    a warning tells at construction. In evaluation mode and without gradients, as in the trainer's evaluation on an
    ``eval_dataset``, dropout acts as in training, from a fixed seed.

    Args:
        model: The model to train. [CLS] pooling, as published.
        temperature: τ of the paper, above 0.
        hard_negative_weight: Added to the logit of an anchor's own hard negative.
        gather_across_devices: Whether sentences of the other processes' batches are negatives too. The training is
            then that of one process with the whole batch; all processes need equally large parts of it.
        mini_batch_size: Sentences encoded at a time, so that large batches fit into memory, at the cost of a second
            forward pass: gradients are those of the whole batch. None encodes the batch at once.
        mlp_head: Whether the loss sees the embeddings through a layer d → d with tanh, which is trained with the
            model but is no part of it. See `HeadedLoss` for keeping it with checkpoints.

    Inputs:
        +------------------------------------------+--------+
        | Texts                                    | Labels |
        +==========================================+========+
        | sentences                                | none   |
        +------------------------------------------+--------+
        | (anchor, positive) pairs                 | none   |
        +------------------------------------------+--------+
        | (anchor, positive, negative) triples     | none   |
        +------------------------------------------+--------+

    Example:
        >>> from st_plugins.miniature import corpus, untrained_encoder
        >>> model = untrained_encoder().train()
        >>> loss = SimCSELoss(model)
        >>> value = loss([model.preprocess(corpus(8))])
        >>> value.backward()
        >>> bool(0 < value < 2.08), tuple(loss.head[0].weight.shape)  # all vectors equal: log 8 = 2.08
        (True, (64, 64))

    Reference:
        Gao, Yao & Chen, arXiv 2104.08821, sections 3 to 5. The published supervised models keep the head at test; for
        that, append ``Dense(d, d, activation_function=torch.nn.Tanh())`` to the model and give ``mlp_head=False``.
    """

    _paper = """
@inproceedings{gao-etal-2021-simcse,
    title = "{S}im{CSE}: Simple Contrastive Learning of Sentence Embeddings",
    author = "Gao, Tianyu and Yao, Xingcheng and Chen, Danqi",
    booktitle = "Proceedings of the 2021 Conference on Empirical Methods in Natural Language Processing",
    year = "2021",
    eprint = "2104.08821",
    archivePrefix = "arXiv",
}
"""

    def __init__(
        self,
        model: SentenceTransformer,
        temperature: float = 0.05,
        hard_negative_weight: float = 0.0,
        gather_across_devices: bool = False,
        mini_batch_size: int | None = None,
        mlp_head: bool = True,
    ) -> None:
        super().__init__(
            model,
            (NoAugmentation(), NoAugmentation()),
            temperature,
            gather_across_devices=gather_across_devices,
            mini_batch_size=mini_batch_size,
        )
        self.hard_negative_weight = hard_negative_weight
        self.mlp_head = mlp_head
        self._width = width = embedding_dimension(model)
        if mlp_head:
            # A new layer, as in the authors' code, not BERT's pooler, which learned whether a sentence follows.
            self.head = nn.Sequential(nn.Linear(width, width, device=model.device), nn.Tanh())
        else:
            self.head = nn.Identity()

    def check_columns(self, columns: list[Features]) -> None:
        """Raise a ValueError if there are not one, two or three columns."""
        if not 1 <= len(columns) <= 3:
            raise ValueError(
                f"SimCSELoss takes one text column (sentences), two (anchor, positive) or three (anchor, positive, "
                f"negative), but the dataset has {len(columns)}; remove the others"
            )

    def embed(self, columns: list[Features], labels: Tensor | None = None, views: Any = None) -> list[Tensor]:
        """Embed a single column twice, and several columns once each."""
        # Several columns are each other's views.
        if views is None and len(columns) > 1:
            views = self.views[:1]
        return super().embed(columns, labels, views)

    def compute_loss_from_embeddings(self, embeddings: list[Tensor], labels: Tensor | None = None) -> Tensor:
        """Compute `simcse_loss` of what the head makes of the embeddings.

        Args:
            embeddings: ``[(2, N, d)]``, or ``(1, N, d)`` for each of two or three columns.
            labels: Ignored.

        Returns:
            The loss.
        """
        views = torch.cat(embeddings)
        if self.mlp_head:
            views = self.apply_head(self.widened(views))
        # Anchors are those of this process only, candidates everybody's, (M, 1 or 2, d): hence `begin`.
        anchors, *candidates = views
        gathered, begin = self.gather(torch.stack(candidates, dim=1))
        positives, *negatives = gathered.unbind(dim=1)
        if self.alone(len(positives) * (1 + len(negatives))):
            return 0.0 * torch.sum(anchors)
        return simcse_loss(
            anchors,
            positives,
            negatives[0] if negatives else None,
            self.temperature,
            self.hard_negative_weight,
            begin,
        )
