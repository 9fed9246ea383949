"""Alignment: what each token of one text finds in the other text."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from st_plugins.methods.re2.layers import activate, projection

__all__ = ["Alignment", "Maps"]

Maps = list[tuple[Tensor, Tensor]]


class Alignment(nn.Module):
    """Give each token of a text the mean of the other text's tokens, weighted by how well they go with it.

    With ``e_ij = τ F(a_i)ᵀ F(b_j)``, the token ``a_i`` gets ``Σ_j softmax_j(e_ij) b_j``, and ``b_j`` gets
    ``Σ_i softmax_i(e_ij) a_i``. The temperature ``τ`` is learned; the scores serve both directions. Scores and softmax
    are float32 at least, under autocast too. Where the other text has no tokens, zeros are found.

    Args:
        inputs: Width of the tokens.
        hidden: Width in which ``F`` compares them; ``τ`` starts at ``1 / √hidden``.
        kind: ``"linear"``: ``F`` is a layer with activation; ``"identity"``: tokens are compared as they are.
        dropout: Dropout before the layer.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> a, b = torch.randn(1, 3, 4), torch.randn(1, 1, 4)
        >>> for_a, for_b = Alignment(4, 8)(a, b)
        >>> bool(torch.equal(for_a, b.expand(1, 3, 4)))  # one token is all there is to find
        True

    Reference:
        Yang et al. (ACL 2019), P19-1465, section 2.2. The temperature is in the authors' code only. Their PyTorch
        code masks scores with -1e7, which half precision cannot hold.
    """

    def __init__(self, inputs: int, hidden: int, kind: str = "linear", dropout: float = 0.0) -> None:
        super().__init__()
        self.temperature = nn.Parameter(torch.tensor(1 / math.sqrt(hidden)))
        self.dropout = nn.Dropout(dropout)
        self.project = projection(inputs, hidden) if kind == "linear" else None

    def forward(
        self,
        a: Tensor,
        b: Tensor,
        a_mask: Tensor | None = None,
        b_mask: Tensor | None = None,
        maps: Maps | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Align two texts.

        Args:
            a: Tokens of the first text, finite everywhere, ``(B, m, inputs)``.
            b: Tokens of the second text, finite everywhere, ``(B, n, inputs)``.
            a_mask: ``(B, m)`` bool, which of ``a`` are tokens; None if all are.
            b_mask: ``(B, n)`` bool, the same of ``b``.
            maps: A list that gets the weights: those of ``b`` for each token of ``a``, ``(B, m, n)``, and those of
                ``a`` for each token of ``b``, ``(B, n, m)``.

        Returns:
            What was found for ``a``, ``(B, m, inputs)``, and for ``b``, ``(B, n, inputs)``.
        """
        return self.attend(self.compared(a), self.compared(b), a, b, a_mask, b_mask, maps)

    def compared(self, x: Tensor) -> Tensor:
        """Return ``F(x)``.

        Args:
            x: Tokens, ``(…, inputs)``.

        Returns:
            ``(…, hidden)``, or ``x`` if ``F`` is the identity.
        """
        return x if self.project is None else activate(self.project(self.dropout(x)))

    def attend(
        self,
        a_compared: Tensor,
        b_compared: Tensor,
        a: Tensor,
        b: Tensor,
        a_mask: Tensor | None = None,
        b_mask: Tensor | None = None,
        maps: Maps | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Do what `forward` does after ``F``.

        Args:
            a_compared: ``F(a)``.
            b_compared: ``F(b)``.
            a: As for `forward`.
            b: As for `forward`.
            a_mask: As for `forward`; both masks or neither.
            b_mask: As for `forward`.
            maps: As for `forward`.

        Returns:
            As `forward`.
        """
        dtype = torch.promote_types(a.dtype, torch.float32)
        with torch.autocast(a.device.type, enabled=False):
            scores = (a_compared.to(dtype) * self.temperature.to(dtype)) @ b_compared.to(dtype).transpose(1, 2)
            if a_mask is None or b_mask is None:
                for_a, for_b = scores.softmax(dim=2), scores.transpose(1, 2).softmax(dim=2)
            else:
                outside = ~(a_mask[:, :, None] & b_mask[:, None, :])
                scores = scores.masked_fill(outside, torch.finfo(dtype).min)
                for_a = scores.softmax(dim=2).masked_fill(outside, 0.0)
                for_b = scores.softmax(dim=1).masked_fill(outside, 0.0).transpose(1, 2)
        if maps is not None:
            maps.append((for_a, for_b))
        return for_a.to(b.dtype) @ b, for_b.to(a.dtype) @ a
