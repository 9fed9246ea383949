"""Fusion: a token compared with what it found in the other text."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from st_plugins.methods.re2.layers import activate, projection

__all__ = ["Fusion"]


class Fusion(nn.Module):
    """Compare tokens ``x`` with what they found, ``x'``, by concatenation, difference and product."""

    def __init__(self, inputs: int, hidden: int, kind: str = "full", dropout: float = 0.0) -> None:
        super().__init__()
        self.inputs, self.hidden = inputs, hidden
        # Rows of G₁, G₂, G₃; weight normalisation is by row, so it is that of three layers.
        self.compare = projection(2 * inputs, hidden if kind == "simple" else 3 * hidden)
        self.combine = projection(3 * hidden, hidden) if kind == "full" else None
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, aligned: Tensor) -> Tensor:
        """Compare."""
        own, other = self.compare.weight.split(self.inputs, dim=1)
        if self.combine is None:
            return activate(linear(x, own, self.compare.bias) + linear(aligned, other))
        same, difference, product = other.split(self.hidden)
        first, second, third = own.split(self.hidden)
        found = linear(x, torch.cat([first, second + difference, third]), self.compare.bias)
        by_aligned = linear(aligned, torch.cat([same, -difference]))
        found = found + torch.cat([by_aligned, linear(x * aligned, product)], dim=-1)
        return activate(self.combine(self.dropout(activate(found))))
