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
    """Make the input of the next block from the token vectors ``x`` and the outputs ``o⁽¹⁾, o⁽²⁾, …`` so far.

    ======== ================================================================== ==================
    kind     input of block n                                                   width
    ======== ================================================================== ==================
    "paper"  ``[x; o⁽ⁿ⁻¹⁾]`` for n = 2, then ``[x; (o⁽ⁿ⁻¹⁾ + o⁽ⁿ⁻²⁾) / √2]``      ``width + hidden``
    "code"   ``[x; rₙ]`` with ``r₂ = o⁽¹⁾`` and ``rₙ = (rₙ₋₁ + o⁽ⁿ⁻¹⁾) / √2``    ``width + hidden``
    "plain"  ``rₙ = (rₙ₋₁ + o⁽ⁿ⁻¹⁾) / √2`` with ``r₁`` a projection of ``x``      ``hidden``
    ======== ================================================================== ==================

    "paper" and "code" are the same for up to three blocks, which is as many as the published configurations have.
    From the fourth on, "code" keeps all earlier outputs, with weights that halve in square; "paper" forgets all but
    two.

    Args:
        width: Width of the token vectors.
        hidden: Width of the outputs.
        kind: ``"code"``, ``"paper"`` or ``"plain"``, an ordinary residual connection and an ablation of the paper.

    Example:
        >>> x, first, second = torch.zeros(1, 1, 1), torch.ones(1, 1, 1), 3 * torch.ones(1, 1, 1)
        >>> AugmentedResidual(1, 1)(x, [first, second]).flatten().tolist()  # (1 + 3) / √2
        [0.0, 2.8284270763397217]

    Reference:
        Yang et al. (ACL 2019), P19-1465, equation 1, and the factor of section 3.2; "code" is what the authors' code
        computes. We concatenate in the paper's order, as their TensorFlow code does; their PyTorch code has the token
        vectors last.
    """

    def __init__(self, width: int, hidden: int, kind: str = "code") -> None:
        super().__init__()
        self.kind = kind
        self.output_width = hidden if kind == "plain" else width + hidden
        self.project = projection(width, hidden, activated=False) if kind == "plain" else None

    def forward(self, x: Tensor, outputs: Sequence[Tensor]) -> Tensor:
        """Return the input of the block after those that gave ``outputs``.

        Args:
            x: Token vectors, ``(…, width)``.
            outputs: What each block gave so far, at least one, ``(…, hidden)``.

        Returns:
            ``(…, output_width)``.
        """
        if self.project is not None:
            return _running(self.project(x), outputs)
        if self.kind == "paper":
            outputs = outputs[-2:]
        return torch.cat([x, _running(outputs[0], outputs[1:])], dim=-1)


def _running(total: Tensor, outputs: Sequence[Tensor]) -> Tensor:
    for output in outputs:
        total = (total + output) * _SCALE
    return total
