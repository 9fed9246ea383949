"""One vector for a text: the largest value of each feature."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["masked_max"]


def masked_max(x: Tensor, mask: Tensor | None = None) -> Tensor:
    """Return the largest value of each feature over the tokens of a text."""
    if mask is None:
        return x.amax(dim=1)
    largest = x.masked_fill(~mask[..., None], torch.finfo(x.dtype).min).amax(dim=1)
    return largest.masked_fill(~mask.any(dim=1, keepdim=True), 0.0)
