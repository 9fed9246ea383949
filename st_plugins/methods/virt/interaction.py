"""The adapted interaction of VIRT: attention between the token vectors of two texts that were encoded apart."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from st_plugins.core.precision import precise
from st_plugins.core.tokens import content_tokens

# What is concatenated, as a number of vectors.
FUSIONS = {"concatenation": 2, "difference": 3, "product": 4}


def attended_means(x: Tensor, y: Tensor, x_mask: Tensor, y_mask: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean of what the tokens of each text find in the other text."""
    # x (N, m, d), or (1, m, d) for one text against many; y (N, n, d). Float32 at least, under autocast too.
    dtype = torch.promote_types(torch.promote_types(x.dtype, y.dtype), torch.float32)
    with torch.autocast(x.device.type, enabled=False):
        # Whatever padding holds must not reach a product: 0 · NaN is NaN.
        x = x.to(dtype).masked_fill(~x_mask[..., None], 0.0)
        y = y.to(dtype).masked_fill(~y_mask[..., None], 0.0)
        # einsum makes one product of it where one text meets many.
        scores = torch.einsum("bmd,bnd->bmn", x / math.sqrt(x.shape[-1]), y)
        outside = ~(x_mask[:, :, None] & y_mask[:, None, :])
        scores = scores.masked_fill(outside, torch.finfo(scores.dtype).min)
        # u, the mean of the rows of A Y, is formed without A Y: it is the mean row of A = softmax(X Yᵀ / √d) times
        # Y, and the same scores serve both directions.
        to_second = scores.softmax(dim=2).masked_fill(outside, 0.0).sum(dim=1)
        to_first = scores.softmax(dim=1).masked_fill(outside, 0.0).sum(dim=2)
        u = (to_second[:, None] @ y)[:, 0] / x_mask.sum(dim=1, keepdim=True).clamp(min=1)
        v = (to_first[:, None] @ x)[:, 0] / y_mask.sum(dim=1, keepdim=True).clamp(min=1)
    return u, v


def fuse(u: Tensor, v: Tensor, fusion: str) -> Tensor:
    """Join the two vectors of a pair."""
    check_fusion(fusion)
    return torch.cat([u, v, (u - v).abs(), u * v][: FUSIONS[fusion]], dim=-1)


def check_fusion(fusion: str) -> None:
    """Raise a ValueError if there is no such fusion."""
    if fusion not in FUSIONS:
        raise ValueError(f"fusion must be {', '.join(map(repr, FUSIONS))}, got {fusion!r}")


def pair_means(outputs: Sequence[Mapping[str, Any]], special_ids: Sequence[int]) -> Tensor:
    """Compute `attended_means` from what a model made of the two columns of a batch."""
    (x, x_mask), (y, y_mask) = (content_tokens(features, special_ids) for features in outputs)
    return torch.stack(attended_means(x, y, x_mask, y_mask), dim=1)


class PairHead(nn.Module):
    """Fusion of the two vectors of a pair, and a perceptron with one hidden layer on top."""

    def __init__(self, width: int, num_labels: int, fusion: str, hidden: int, dropout: float) -> None:
        super().__init__()
        self.fusion = fusion
        self.inner = nn.Linear(FUSIONS[fusion] * width, hidden)
        self.dropout = nn.Dropout(dropout)
        self.outer = nn.Linear(hidden, num_labels)

    def forward(self, means: Tensor) -> Tensor:
        """Compute the logits."""
        u, v = means.to(self.inner.weight.dtype).unbind(dim=1)
        hidden = nn.functional.gelu(self.inner(fuse(u, v, self.fusion)))
        logits: Tensor = self.outer(self.dropout(hidden))
        return precise(logits)
