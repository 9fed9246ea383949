"""The encoder of a block: convolutions over the tokens of one text."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from st_plugins.methods.re2.layers import Convolution

__all__ = ["ConvolutionalEncoder"]


class ConvolutionalEncoder(nn.Module):
    """Encode tokens in their context, by a few convolutions."""

    def __init__(
        self, inputs: int, hidden: int, layers: int = 2, kernel_sizes: Sequence[int] = (3,), dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            Convolution(hidden if layer else inputs, hidden, kernel_sizes) for layer in range(layers)
        )
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Encode."""
        outside = None if mask is None else ~mask[..., None]
        for number, layer in enumerate(self.layers):
            if number:
                x = self.dropout(x)
            x = layer(x if outside is None else x.masked_fill(outside, 0.0))
        x = self.dropout(x)
        return x
