"""Prediction: the logits of a pair from one vector for each text."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from st_plugins.methods.re2.layers import activate, projection

__all__ = ["Prediction"]

_PARTS = {"full": 4, "symmetric": 4, "simple": 2, "symmetric_exact": 3}


class Prediction(nn.Module):
    r"""Compare the vectors ``v₁, v₂`` of two texts and give the logits, by a perceptron with one hidden layer.

    ================= =============================================
    kind              what the perceptron reads
    ================= =============================================
    "full"            ``[v₁; v₂; v₁ - v₂; v₁ ∘ v₂]``
    "symmetric"       ``[v₁; v₂; \|v₁ - v₂\|; v₁ ∘ v₂]``
    "simple"          ``[v₁; v₂]``
    "symmetric_exact" ``[v₁ + v₂; \|v₁ - v₂\|; v₁ ∘ v₂]`` (ours)
    ================= =============================================

    The published "symmetric" still depends on the order of the texts, by its first two parts; "symmetric_exact" does
    not, and nothing is lost: sum and absolute difference determine the two values of a feature up to their order.

    Args:
        hidden: Width of the vectors and of the hidden layer.
        num_labels: Number of logits.
        kind: See above.
        dropout: Dropout before both layers.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> v1, v2 = torch.randn(1, 4), torch.randn(1, 4)
        >>> head = Prediction(4, 2, "symmetric_exact")
        >>> bool(torch.equal(head(v1, v2), head(v2, v1)))
        True

    Reference:
        Yang et al. (ACL 2019), P19-1465, equations 6 to 8.
    """

    def __init__(self, hidden: int, num_labels: int, kind: str = "full", dropout: float = 0.0) -> None:
        super().__init__()
        self.kind = kind
        self.inner = projection(_PARTS[kind] * hidden, hidden)
        self.outer = projection(hidden, num_labels, activated=False)
        self.dropout = nn.Dropout(dropout)

    def forward(self, v1: Tensor, v2: Tensor) -> Tensor:
        """Compute the logits.

        Args:
            v1: Vectors of the first texts, ``(B, hidden)``.
            v2: Vectors of the second texts, ``(B, hidden)``.

        Returns:
            ``(B, num_labels)``.
        """
        hidden = activate(self.inner(self.dropout(self._compared(v1, v2))))
        logits: Tensor = self.outer(self.dropout(hidden))
        return logits

    def _compared(self, v1: Tensor, v2: Tensor) -> Tensor:
        if self.kind == "simple":
            return torch.cat([v1, v2], dim=-1)
        difference = v1 - v2 if self.kind == "full" else (v1 - v2).abs()
        both = [v1 + v2] if self.kind == "symmetric_exact" else [v1, v2]
        return torch.cat([*both, difference, v1 * v2], dim=-1)
