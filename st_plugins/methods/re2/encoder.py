"""The encoder of a block: convolutions over the tokens of one text."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from st_plugins.methods.re2.layers import Convolution

__all__ = ["ConvolutionalEncoder"]


class ConvolutionalEncoder(nn.Module):
    """Encode tokens in their context, by a few convolutions.

    What is no token is set to zero before every convolution, so a text's encoding does not depend on its padding.

    Args:
        inputs: Width of the token vectors.
        hidden: Width of the result, divisible by the number of kernel sizes.
        layers: Number of convolutions.
        kernel_sizes: Widths of the windows in tokens, odd.
        dropout: Dropout before every layer but the first, and of the result.

    Example:
        >>> import torch
        >>> _ = torch.manual_seed(0)
        >>> encoder = ConvolutionalEncoder(8, 4).eval()
        >>> x, mask = torch.randn(1, 5, 8), torch.tensor([[True, True, True, False, False]])
        >>> bool(torch.allclose(encoder(x, mask)[:, :3], encoder(x[:, :3])))
        True

    Reference:
        Yang et al. (ACL 2019), P19-1465, section 2; dropout as in the authors' code.
    """

    def __init__(
        self, inputs: int, hidden: int, layers: int = 2, kernel_sizes: Sequence[int] = (3,), dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            Convolution(hidden if layer else inputs, hidden, kernel_sizes) for layer in range(layers)
        )
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Encode.

        Args:
            x: ``(B, n, inputs)``.
            mask: ``(B, n)`` or ``(1, n)`` bool, which of it are tokens; None if all are.

        Returns:
            ``(B, n, hidden)``; what is no token has any value.
        """
        outside = None if mask is None else ~mask[..., None]
        for number, layer in enumerate(self.layers):
            if number:
                x = self.dropout(x)
            x = layer(x if outside is None else x.masked_fill(outside, 0.0))
        x = self.dropout(x)
        return x
