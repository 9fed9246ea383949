"""What a block reads: the token vectors, and what the blocks before it found."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from st_plugins.methods.re2.layers import projection

__all__ = ["AugmentedResidual"]

_SCALE = math.sqrt(0.5)


class AugmentedResidual(nn.Module):
    """Make the input of the next block from the token vectors ``x`` and the outputs ``o⁽¹⁾, o⁽²⁾, …`` so far."""

    def __init__(self, width: int, hidden: int, kind: str = "code") -> None:
        super().__init__()
        self.kind = kind
        self.output_width = hidden if kind == "plain" else width + hidden
        self.project = projection(width, hidden, activated=False) if kind == "plain" else None

    def forward(self, x: Tensor, outputs: Sequence[Tensor]) -> Tensor:
        """Return the input of the block after those that gave ``outputs``."""
        if self.project is not None:
            return _running(self.project(x), outputs)
        if self.kind == "paper":
            outputs = outputs[-2:]
        return torch.cat([x, _running(outputs[0], outputs[1:])], dim=-1)


def _running(total: Tensor, outputs: Sequence[Tensor]) -> Tensor:
    for output in outputs:
        total = (total + output) * _SCALE
    return total
