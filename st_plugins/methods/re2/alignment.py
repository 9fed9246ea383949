"""Alignment: what each token of one text finds in the other text."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from st_plugins.methods.re2.layers import activate, projection

__all__ = ["Alignment", "Maps"]

Maps = list[tuple[Tensor, Tensor]]


class Alignment(nn.Module):
    """Give each token of a text the mean of the other text's tokens, weighted by how well they go with it."""

    def __init__(self, inputs: int, hidden: int, kind: str = "linear", dropout: float = 0.0) -> None:
        super().__init__()
        self.temperature = nn.Parameter(torch.tensor(1 / math.sqrt(hidden)))
        self.dropout = nn.Dropout(dropout)
        self.project = projection(inputs, hidden) if kind == "linear" else None

    def forward(
        self,
        first: Tensor,
        second: Tensor,
        first_mask: Tensor | None = None,
        second_mask: Tensor | None = None,
        maps: Maps | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Align two texts."""
        return self.attend(self.compared(first), self.compared(second), first, second, first_mask, second_mask, maps)

    def compared(self, x: Tensor) -> Tensor:
        """Return ``F(x)``."""
        return x if self.project is None else activate(self.project(self.dropout(x)))

    def attend(
        self,
        first_compared: Tensor,
        second_compared: Tensor,
        first: Tensor,
        second: Tensor,
        first_mask: Tensor | None = None,
        second_mask: Tensor | None = None,
        maps: Maps | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Do what `forward` does after ``F``."""
        dtype = torch.promote_types(first.dtype, torch.float32)
        with torch.autocast(first.device.type, enabled=False):
            scores = (first_compared.to(dtype) * self.temperature.to(dtype)) @ second_compared.to(dtype).transpose(
                1, 2
            )
            if first_mask is None or second_mask is None:
                for_first, for_second = scores.softmax(dim=2), scores.transpose(1, 2).softmax(dim=2)
            else:
                outside = ~(first_mask[:, :, None] & second_mask[:, None, :])
                scores = scores.masked_fill(outside, torch.finfo(dtype).min)
                for_first = scores.softmax(dim=2).masked_fill(outside, 0.0)
                for_second = scores.softmax(dim=1).masked_fill(outside, 0.0).transpose(1, 2)
        if maps is not None:
            maps.append((for_first, for_second))
        return for_first.to(second.dtype) @ second, for_second.to(first.dtype) @ first
