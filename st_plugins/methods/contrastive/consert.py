"""ConSERT: two augmented views of a sentence attract each other, all others in the batch repel."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from sentence_transformers import SentenceTransformer
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from st_plugins.core.precision import precise
from st_plugins.methods.contrastive.view_loss import ViewLoss, Views, check_negatives, check_temperature, read_views
from st_plugins.methods.contrastive.views import FeatureCutoff, TokenShuffle


def nt_xent(first: Tensor, second: Tensor, temperature: float = 0.1, rows: slice | None = None) -> Tensor:
    """Normalised-temperature cross-entropy between two views of N sentences.

    Of the 2N vectors each has one positive, the other view of its sentence, and 2N - 2 negatives; ``l(i, j) = -log
    exp(cos(rᵢ, rⱼ) / τ) / Σ_{k ≠ i} exp(cos(rᵢ, rₖ) / τ)`` is averaged over the 2N ordered pairs (i, j). Computed in
    float32 (float64 if given), under autocast too.

    Args:
        first: Embeddings of the first view, ``(N, d)``.
        second: Embeddings of the second view, ``(N, d)``.
        temperature: τ, above 0.
        rows: The sentences whose terms are averaged; all are candidates in any case. None averages all.

    Returns:
        The loss.

    Raises:
        ValueError: The shapes differ, the temperature is not positive, or there is one sentence, which has no
            negatives.

    Example:
        >>> a = torch.eye(3)
        >>> f"{nt_xent(a, a, temperature=0.5):.4f}"  # log(1 + (2N - 2) exp(-1 / τ)): all negatives are orthogonal
        '0.4327'

    Reference:
        Yan et al., "ConSERT: A Contrastive Framework for Self-Supervised Sentence Representation Transfer" (2021),
        arXiv 2105.11741, section 3.1. The authors' code adds the two directions instead of averaging them: it returns
        exactly twice this, and multiplies it by ``cl_rate`` (0.15), also where there is no other term. It subtracts
        1e9 on the diagonal, which float16 cannot hold.
    """
    if first.ndim != 2 or first.shape != second.shape:
        shapes = f"{tuple(first.shape)} and {tuple(second.shape)}"
        raise ValueError(f"first and second must have one shape (N, d), got {shapes}")
    check_temperature(temperature)
    count = len(first)
    check_negatives(count)
    with torch.autocast(first.device.type, enabled=False):
        # Half precision has three digits, and a division by τ would make the rest visible.
        unit = normalize(precise(torch.cat([first, second])), dim=-1)
        # Anchors are both views of the rows asked for, candidates both views of all: (2 · rows, 2N) cosines.
        own = torch.arange(count, device=first.device)[slice(None) if rows is None else rows]
        itself, partner = torch.cat([own, own + count]), torch.cat([own + count, own])
        # No vector is a candidate for itself.
        logits = (unit[itself] @ unit.T).div_(temperature)
        # l(i, j): a softmax over the partner and 2N - 2 negatives; the mean over all anchors is the paper's 1 / 2N.
        return cross_entropy(logits.scatter_(1, itself[:, None], torch.finfo(logits.dtype).min), partner)


class ConSERTLoss(ViewLoss):
    """Contrastive adaptation of an encoder to unlabelled texts.

    Each sentence of the batch is encoded twice in one forward pass, under two random augmentations of its token
    embeddings; the two embeddings are pulled together and pushed away from those of all other sentences (`nt_xent`).
    The trained model is an ordinary one: nothing of the loss is saved with it. Longer is not better here: the space
    spreads out further and further, so watch a development set or the geometry, and stop early.

    The default views and temperature are those of the published unsupervised base model, which also has
    ``encoder_dropout=False``. That is not the default: most published runs have dropout on, and so has every other
    loss of the host.

    With several text columns the losses of the columns are added, as in the reference: each column has its own
    negatives. The last batch of an epoch may be a single sentence, which has none: it counts as 0, and a warning says
    so.

    Args:
        model: The model to train. Mean pooling, as published.
        views: Two views; each a `View`, several of them in the order in which they act, their configuration, or their
            short form ("feature-cutoff:0.2").
        temperature: τ of the paper, above 0. Smaller values look at the nearest negatives only.
        gather_across_devices: Whether sentences of the other processes' batches are negatives too. The training is
            then that of one process with the whole batch; all processes need equally large parts of it.
        mini_batch_size: Sentences encoded at a time, so that large batches fit into memory, at the cost of a second
            forward pass: gradients are those of the whole batch. None encodes the batch at once.
        encoder_dropout: Whether the encoder's own dropout is on.

    Inputs:
        +-----------------------------+--------+
        | Texts                       | Labels |
        +=============================+========+
        | one column (or several)     | none   |
        +-----------------------------+--------+

    In evaluation mode and without gradients, as in the trainer's evaluation on an ``eval_dataset``, the views and
    dropout act as in training, from a fixed seed. An `AdversarialPerturbation` follows the gradient of this loss (the
    published one needs labels; this is our extension).

    Example:
        >>> from st_plugins.miniature import corpus, untrained_encoder
        >>> model = untrained_encoder().train()
        >>> loss = ConSERTLoss(model, encoder_dropout=False)
        >>> value = loss([model.preprocess(corpus(8))])
        >>> value.backward()
        >>> bool(0 < value < 3), loss.get_config_dict()["views"][0]  # all vectors equal: log(2 · 8 - 1) = 2.7
        (True, [{'view': 'feature-cutoff', 'rate': 0.2}])

    Reference:
        Yan et al., arXiv 2105.11741, sections 3.1 and 3.2. The loss is half of what the authors' code shows (see
        `nt_xent`), and there is no factor 0.15: with Adam that matters to gradient clipping only.
    """

    _paper = """
@inproceedings{yan-etal-2021-consert,
    title = "{C}on{SERT}: A Contrastive Framework for Self-Supervised Sentence Representation Transfer",
    author = "Yan, Yuanmeng and Li, Rumei and Wang, Sirui and Zhang, Fuzheng and Wu, Wei and Xu, Weiran",
    booktitle = "Proceedings of the 59th Annual Meeting of the Association for Computational Linguistics",
    year = "2021",
    eprint = "2105.11741",
    archivePrefix = "arXiv",
}
"""

    def __init__(
        self,
        model: SentenceTransformer,
        views: Sequence[Any] = (FeatureCutoff(0.2), TokenShuffle()),
        temperature: float = 0.1,
        gather_across_devices: bool = False,
        mini_batch_size: int | None = None,
        encoder_dropout: bool = True,
    ) -> None:
        super().__init__(
            model,
            two_views(views, mini_batch_size),
            temperature,
            gather_across_devices=gather_across_devices,
            mini_batch_size=mini_batch_size,
            encoder_dropout=encoder_dropout,
        )

    def compute_loss_from_embeddings(self, embeddings: list[Tensor], labels: Tensor | None = None) -> Tensor:
        """Add up `nt_xent` over the columns.

        Args:
            embeddings: For each text column ``(2, N, d)``.
            labels: Ignored.

        Returns:
            The loss.
        """
        return torch.stack([self._contrast(views) for views in embeddings]).sum()

    def _contrast(self, views: Tensor) -> Tensor:
        # (2, N, d) to (N, 2, d): processes are joined along the first dimension, and the views of a sentence with it.
        sentences, begin = self.gather(views.transpose(0, 1))
        if self.alone(len(sentences)):
            # Zero, but with a graph: the trainer calls backward on it, and other processes wait for its gradients.
            return 0.0 * torch.sum(views)
        first, second = sentences.unbind(dim=1)
        return nt_xent(first, second, self.temperature, slice(begin, begin + views.shape[1]))


def two_views(views: Sequence[Any], mini_batch_size: int | None = None) -> Views:
    """Read the two views, so that what no model could make of them is refused before there is one."""
    read = read_views(views, mini_batch_size)
    if len(read) != 2:
        raise ValueError(f"views must be two views, got {len(read)}; use NoAugmentation() for a clean one")
    return read
