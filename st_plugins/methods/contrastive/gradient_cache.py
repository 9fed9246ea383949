"""Gradient caching: the memory of a mini-batch, the loss of the whole batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

__all__ = ["embed_in_mini_batches", "mini_batches"]

Features = dict[str, Any]


def embed_in_mini_batches(
    embed: Callable[[Features], Tensor],
    embed_again: Callable[[Features], Tensor],
    features: Features,
    size: int,
) -> Tensor:
    """Embed a batch so that activations exist for one mini-batch at a time; gradients are those of the whole batch.

    The forward pass keeps the embeddings only. The backward pass embeds each mini-batch a second time, with the random
    state and autocast setting of the first, and goes on from there. This is PyTorch's non-reentrant checkpoint, one
    per mini-batch: one backward pass, as always, so gradient scalers, accumulation and DistributedDataParallel notice
    nothing.

    Args:
        embed: From the features of a mini-batch to a tensor with the sentences in dimension 1.
        embed_again: The same computation for the backward pass; it must not go through a DistributedDataParallel
            wrapper, whose bookkeeping expects no forward pass there.
        features: A tokenized batch.
        size: Sentences in a mini-batch.

    Returns:
        What ``embed`` gives for the whole batch.

    Example:
        >>> features = {"attention_mask": torch.ones(5, 4, dtype=torch.long), "x": torch.ones(5, 3)}
        >>> weight = torch.ones(3, requires_grad=True)
        >>> embed = lambda part: (part["x"] * weight).tanh()[None]
        >>> embed_in_mini_batches(embed, embed, features, 2).sum().backward()
        >>> [round(value, 4) for value in weight.grad.tolist()]  # 5 · (1 - tanh² 1)
        [2.0999, 2.0999, 2.0999]

    Reference:
        Gao et al., "Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup" (2021), arXiv 2101.06983.
        We differ: instead of three hand-written passes, autograd itself recomputes; the cost is the same.
    """
    parts = []
    for part in mini_batches(features, size):
        functions = iter([embed])  # the first call is the forward pass, every further one a recomputation
        parts.append(
            checkpoint(lambda p, f=functions: next(f, embed_again)(p), part, use_reentrant=False)
            if torch.is_grad_enabled()
            else embed(part)
        )
    return torch.cat(parts, dim=1)


def mini_batches(features: Features, size: int) -> Iterator[Features]:
    """Cut a tokenized batch into mini-batches, each without the padding at its end that none of its rows needs.

    Args:
        features: Tensors of shape ``(N, …)`` or ``(N, tokens, …)`` and other values, which are passed on.
        size: Sentences in a mini-batch.

    Yields:
        The features of the next at most ``size`` sentences.

    Raises:
        ValueError: There is no two-dimensional attention mask to tell sentences and padding apart.

    Example:
        >>> mask = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 1, 1]])
        >>> [tuple(part["attention_mask"].shape) for part in mini_batches({"attention_mask": mask}, 2)]
        [(2, 3), (1, 4)]
    """
    mask = features.get("attention_mask")
    if not isinstance(mask, Tensor) or mask.ndim != 2:
        raise ValueError(
            "mini_batch_size needs features with an attention_mask of shape (batch, tokens), got "
            f"{sorted(features)}; set mini_batch_size=None for this model"
        )
    for begin in range(0, len(mask), size):
        rows = slice(begin, begin + size)
        real = mask[rows].any(dim=0).nonzero()
        width = int(real.max()) + 1 if len(real) else mask.shape[1]
        part = {}
        for key, value in features.items():
            if isinstance(value, Tensor) and value.ndim and len(value) == len(mask):
                value = value[rows]
                if value.ndim > 1 and value.shape[1] == mask.shape[1]:
                    value = value[:, :width]
            part[key] = value
        yield part
