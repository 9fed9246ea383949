"""Fusion: a token compared with what it found in the other text."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from st_plugins.methods.re2.layers import activate, projection

__all__ = ["Fusion"]


class Fusion(nn.Module):
    """Compare tokens ``x`` with what they found, ``x'``, by concatenation, difference and product.

    "full" is ``G([G₁([x; x']); G₂([x; x - x']); G₃([x; x ∘ x'])])`` and "simple" is ``G₁([x; x'])``, each ``G`` a
    layer with activation. The concatenations with ``x`` are never formed: ``W [x; y] = W_x x + W_y y``, ``W_x x`` of
    the three is one product, and ``W [x; x - x'] = (W_x + W_y) x - W_y x'``.

    Args:
        inputs: Width of the tokens.
        hidden: Width of the result.
        kind: ``"full"`` or ``"simple"``.
        dropout: Dropout before the last layer of the full form.

    Example:
        >>> fusion = Fusion(8, 4)
        >>> tuple(fusion(torch.randn(2, 5, 8), torch.randn(2, 5, 8)).shape)
        (2, 5, 4)

    Reference:
        Yang et al. (ACL 2019), P19-1465, equations 4 and 5; dropout as in the authors' code.
    """

    def __init__(self, inputs: int, hidden: int, kind: str = "full", dropout: float = 0.0) -> None:
        super().__init__()
        self.inputs, self.hidden = inputs, hidden
        # Rows of G₁, G₂, G₃; weight normalisation is by row, so it is that of three layers.
        self.compare = projection(2 * inputs, hidden if kind == "simple" else 3 * hidden)
        self.combine = projection(3 * hidden, hidden) if kind == "full" else None
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, aligned: Tensor) -> Tensor:
        """Compare.

        Args:
            x: Tokens, ``(…, inputs)``.
            aligned: What they found, ``(…, inputs)``.

        Returns:
            ``(…, hidden)``.
        """
        own, other = self.compare.weight.split(self.inputs, dim=1)
        if self.combine is None:
            return activate(linear(x, own, self.compare.bias) + linear(aligned, other))
        same, difference, product = other.split(self.hidden)
        first, second, third = own.split(self.hidden)
        found = linear(x, torch.cat([first, second + difference, third]), self.compare.bias)
        by_aligned = linear(aligned, torch.cat([same, -difference]))
        found = found + torch.cat([by_aligned, linear(x * aligned, product)], dim=-1)
        return activate(self.combine(self.dropout(activate(found))))
