"""Static embeddings as views need them: the host's embedding bag, taken apart into padded tokens and put together."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def unpack_bags(bag: nn.EmbeddingBag, ids: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor]:
    """Look up the tokens of each text, with padding."""
    lengths = torch.diff(offsets, append=offsets.new_tensor([len(ids)]))
    # At least one slot, so that a batch of empty texts has a width.
    width = max(1, int(lengths.max())) if len(lengths) else 1
    mask = torch.arange(width, device=ids.device) < lengths[:, None]
    embeddings = bag.weight.new_zeros(len(offsets), width, bag.embedding_dim)
    # A mask is filled row by row, and in that order the ids of all texts follow each other.
    embeddings[mask] = nn.functional.embedding(ids, bag.weight)
    return embeddings, mask


def bag_mean(embeddings: Tensor, mask: Tensor) -> Tensor:
    """Average the real tokens, as the embedding bag does; a text without tokens is the zero vector."""
    count = mask.sum(dim=1, keepdim=True).clamp(min=1)
    return (embeddings * mask[:, :, None]).sum(dim=1) / count
