"""Gradient caching: the memory of a mini-batch, the loss of the whole batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from st_plugins.core.loss import Features


def embed_in_mini_batches(
    embed: Callable[[Features], Tensor],
    embed_again: Callable[[Features], Tensor],
    features: Features,
    size: int,
) -> Tensor:
    """Embed a batch so that activations exist for one mini-batch at a time; gradients are those of the whole batch."""
    # Gao et al. (2021), arXiv 2101.06983, make three passes by hand. Here PyTorch's non-reentrant checkpoint embeds
    # each mini-batch again in the backward pass, with the random state and autocast of the first time: there is one
    # backward pass, as always, and gradient scalers, accumulation and DistributedDataParallel notice nothing.
    # `embed_again` must not go through the DistributedDataParallel wrapper, which expects no forward pass there.
    parts = []
    for part in mini_batches(features, size):
        functions = iter([embed])  # the first call is the forward pass, every further one makes it again
        parts.append(
            checkpoint(lambda p, f=functions: next(f, embed_again)(p), part, use_reentrant=False)
            if torch.is_grad_enabled()
            else embed(part)
        )
    # (views, N, d): the sentences are dimension 1.
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
        # With padding on the left the last token is a real one, and nothing is cut.
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
