"""Prediction: the logits of a pair from one vector for each text."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from st_plugins.methods.re2.layers import activate, projection

__all__ = ["Prediction"]

_PARTS = {"full": 4, "symmetric": 4, "simple": 2, "symmetric_exact": 3}


class Prediction(nn.Module):
    r"""Compare the vectors ``v₁, v₂`` of two texts and give the logits, by a perceptron with one hidden layer."""

    def __init__(self, hidden: int, num_labels: int, kind: str = "full", dropout: float = 0.0) -> None:
        super().__init__()
        self.kind = kind
        self.inner = projection(_PARTS[kind] * hidden, hidden)
        self.outer = projection(hidden, num_labels, activated=False)
        self.dropout = nn.Dropout(dropout)

    def forward(self, v1: Tensor, v2: Tensor) -> Tensor:
        """Compute the logits."""
        hidden = activate(self.inner(self.dropout(self._compared(v1, v2))))
        logits: Tensor = self.outer(self.dropout(hidden))
        return logits

    def _compared(self, v1: Tensor, v2: Tensor) -> Tensor:
        if self.kind == "simple":
            return torch.cat([v1, v2], dim=-1)
        difference = v1 - v2 if self.kind == "full" else (v1 - v2).abs()
        both = [v1 + v2] if self.kind == "symmetric_exact" else [v1, v2]
        return torch.cat([*both, difference, v1 * v2], dim=-1)
