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
    """Embed a batch so that activations exist for one mini-batch at a time; gradients are those of the whole batch."""
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
    """Cut a tokenized batch into mini-batches, each without the padding at its end that none of its rows needs."""
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
