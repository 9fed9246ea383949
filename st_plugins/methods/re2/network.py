"""The RE2 network: blocks of encoder, alignment and fusion, then pooling and prediction."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import cached
from typing_extensions import Self

from st_plugins.methods.re2.alignment import Alignment, Maps
from st_plugins.methods.re2.config import RE2Config
from st_plugins.methods.re2.encoder import ConvolutionalEncoder
from st_plugins.methods.re2.fusion import Fusion
from st_plugins.methods.re2.pooling import masked_max
from st_plugins.methods.re2.prediction import Prediction
from st_plugins.methods.re2.residual import AugmentedResidual

__all__ = ["RE2"]

# Tokens that a CPU computes at once: more would not fit its cache.
_ROWS = 640


class RE2(nn.Module):
    """Match two texts, given as token vectors: 2.8 million parameters in the configuration for SNLI, no transformer.

    Both texts share all parameters up to the prediction. Each block encodes the tokens of a text in their context,
    aligns them with the other text's, and fuses what was found with what was there; the tokens' own vectors are an
    input of every block. The order of the texts matters, except with ``prediction="symmetric_exact"``.

    Neither padding nor what it holds has an influence. A text without tokens is a vector of zeros.

    Args:
        config: Its shape.
        width: Width of the token vectors.
        num_labels: Number of logits.

    Raises:
        ValueError: ``width`` or ``num_labels`` is not positive.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> network = RE2(RE2Config.named("snli"), width=300, num_labels=3).eval()
        >>> round(sum(parameter.numel() for parameter in network.parameters()) / 1e6, 1)
        2.8
        >>> a, b = torch.randn(2, 7, 300), torch.randn(2, 5, 300)
        >>> tuple(network(a, torch.ones(2, 7) > 0, b, torch.ones(2, 5) > 0).shape)
        (2, 3)

    Reference:
        Yang, Zhang, Gao, Ji & Chen, "Simple and Effective Text Matching with Richer Alignment Features" (ACL 2019),
        P19-1465, section 2. Where the parts differ from the authors' code, they say so. In "parallel" blocks the
        outputs are added before pooling.
    """

    def __init__(self, config: RE2Config, width: int, num_labels: int) -> None:
        super().__init__()
        for name, value in (("width", width), ("num_labels", num_labels)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        self.config, self.width, self.num_labels = config, width, num_labels
        self.dropout = nn.Dropout(config.dropout)
        self.residual = None if config.parallel_blocks else AugmentedResidual(width, config.hidden, config.residual)
        later = width if self.residual is None else self.residual.output_width
        self.blocks = nn.ModuleList(_Block(config, later if number else width) for number in range(config.blocks))
        self.prediction = Prediction(config.hidden, num_labels, config.prediction, config.dropout)

    def forward(
        self,
        a: Tensor,
        a_mask: Tensor,
        b: Tensor,
        b_mask: Tensor,
        maps: Maps | None = None,
        a_encoded: Tensor | None = None,
        b_encoded: Tensor | None = None,
    ) -> Tensor:
        """Compute the logits of pairs.

        Args:
            a: Token vectors of the first texts, ``(B, m, width)``; ``(1, m, width)`` for one text against many.
            a_mask: Which of them are tokens, ``(B, m)`` bool.
            b: Token vectors of the second texts, ``(B, n, width)``, or ``(1, n, width)``.
            b_mask: Which of them are tokens, ``(B, n)`` bool.
            maps: A list that gets, for each block, the weights of ``b`` for each token of ``a``, ``(B, m, n)``, and
                those of ``a`` for each token of ``b``, ``(B, n, m)``.
            a_encoded: ``first_encoding(a, a_mask)``, if it is known already.
            b_encoded: ``first_encoding(b, b_mask)``, if it is known already.

        Returns:
            ``(B, num_labels)``.

        Raises:
            ValueError: A tensor has the wrong shape.
        """
        v1, v2 = self.pooled(a, a_mask, b, b_mask, maps, a_encoded, b_encoded)
        logits: Tensor = self.prediction(v1, v2)
        return logits

    def pooled(
        self,
        a: Tensor,
        a_mask: Tensor,
        b: Tensor,
        b_mask: Tensor,
        maps: Maps | None = None,
        a_encoded: Tensor | None = None,
        b_encoded: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Compute the vectors that the prediction compares; each depends on both texts.

        Args:
            a: As for `forward`.
            a_mask: As for `forward`.
            b: As for `forward`.
            b_mask: As for `forward`.
            maps: As for `forward`.
            a_encoded: As for `forward`.
            b_encoded: As for `forward`.

        Returns:
            Two tensors of shape ``(B, hidden)``.

        Raises:
            ValueError: A tensor has the wrong shape.
        """
        first, second = self._text("a", a, a_mask, a_encoded), self._text("b", b, b_mask, b_encoded)
        first, second = _matched(first, second)
        if maps is not None or torch.is_grad_enabled() or a.device.type != "cpu" or torch.compiler.is_compiling():
            return self._pooled(first, second, maps)
        pairs = max(1, len(first.tokens))
        parts = math.ceil(pairs * (first.tokens.shape[1] + second.tokens.shape[1]) / _ROWS)
        size = math.ceil(pairs / parts)
        starts = range(0, pairs, size)
        with cached():  # weights are normalised once
            found = [self._pooled(_rows(first, start, size), _rows(second, start, size)) for start in starts]
        v1, v2 = (torch.cat(vectors) for vectors in zip(*found, strict=True))
        return v1, v2

    def _pooled(self, first: _Text, second: _Text, maps: Maps | None = None) -> tuple[Tensor, Tensor]:
        pair = _Pair.of(first, second, gap=max(self.config.kernel_sizes) // 2)
        x = pair.join(self.dropout(first.tokens), self.dropout(second.tokens))
        encoded = None
        if first.encoded is not None or second.encoded is not None:
            encoded = pair.join(*(self._encoded(text) for text in (first, second)))
        outputs: list[Tensor] = []
        for block in self.blocks:
            start = self.residual(x, outputs) if outputs and self.residual is not None else x
            outputs.append(block(start, pair, encoded, maps))
            encoded = None
        last = outputs[-1] if self.residual is not None else torch.stack(outputs).sum(dim=0)
        v1, v2 = pair.split(last)
        return masked_max(v1, pair.a_mask), masked_max(v2, pair.b_mask)

    def first_encoding(self, x: Tensor, mask: Tensor) -> Tensor:
        """Encode a text by the first block's encoder, which does not depend on the other text.

        Args:
            x: Token vectors, ``(B, n, width)``.
            mask: Which of them are tokens, ``(B, n)`` bool.

        Returns:
            ``(B, n, hidden)``, for `forward`.

        Raises:
            ValueError: A tensor has the wrong shape.
        """
        return self._encoded(self._text("x", x, mask, None))

    def _encoded(self, text: _Text) -> Tensor:
        if text.encoded is not None:
            return text.encoded
        block: nn.Module = self.blocks[0]
        encoded: Tensor = block.encoder(self.dropout(text.tokens), text.mask)  # type: ignore[operator]
        return encoded

    def _text(self, name: str, tokens: Tensor, mask: Tensor, encoded: Tensor | None) -> _Text:
        """Check a text, and give it zeros where it has no token, and at least one row."""
        if tokens.ndim != 3 or tokens.shape[2] != self.width:
            raise ValueError(
                f"{name} must be token vectors of shape (batch, tokens, {self.width}), got {tuple(tokens.shape)}"
            )
        if mask.shape != tokens.shape[:2] or mask.dtype != torch.bool:
            raise ValueError(
                f"the mask of {name} must be boolean, of shape {tuple(tokens.shape[:2])}, got {mask.dtype} of shape "
                f"{tuple(mask.shape)}"
            )
        if encoded is not None and encoded.shape != (*tokens.shape[:2], self.config.hidden):
            raise ValueError(
                f"{name}_encoded must have shape {(*tokens.shape[:2], self.config.hidden)}, got "
                f"{tuple(encoded.shape)}; make it with first_encoding"
            )
        tokens = tokens.to(self.prediction.outer.bias.dtype)
        if tokens.shape[1] == 0:
            tokens, mask, encoded = (
                tokens.new_zeros(tokens.shape[0], 1, self.width),
                mask.new_zeros(mask.shape[0], 1),
                None,
            )
        if _full(mask):
            return _Text(tokens, None, encoded)
        return _Text(tokens.masked_fill(~mask[..., None], 0.0), mask, encoded)


class _Block(nn.Module):
    """Encoder, alignment and fusion; both texts of a pair in one tensor."""

    def __init__(self, config: RE2Config, inputs: int) -> None:
        super().__init__()
        hidden, dropout = config.hidden, config.dropout
        self.align_input = config.align_input
        aligned = inputs + hidden if config.align_input else hidden
        self.encoder = ConvolutionalEncoder(inputs, hidden, config.encoder_layers, config.kernel_sizes, dropout)
        self.alignment = Alignment(aligned, hidden, config.alignment, dropout)
        self.fusion = Fusion(aligned, hidden, config.fusion, dropout)

    def forward(self, x: Tensor, pair: _Pair, encoded: Tensor | None, maps: Maps | None) -> Tensor:
        if encoded is None:
            encoded = self.encoder(x, pair.mask)
        x = torch.cat([x, encoded], dim=-1) if self.align_input else encoded
        compared = pair.split(self.alignment.compared(x))
        found = self.alignment.attend(*compared, *pair.split(x), pair.a_mask, pair.b_mask, maps)
        output: Tensor = self.fusion(x, pair.join(*found))
        return output


class _Text(NamedTuple):
    tokens: Tensor
    mask: Tensor | None
    encoded: Tensor | None


class _Pair(NamedTuple):
    """Both texts of a pair as one sequence, the second after the first and a gap of zeros."""

    length: int
    gap: int
    mask: Tensor
    a_mask: Tensor | None
    b_mask: Tensor | None

    @classmethod
    def of(cls, first: _Text, second: _Text, gap: int) -> Self:
        """Return what is to be known about two texts of the same batch size, either both with a mask or none."""
        a_mask, b_mask = first.mask, second.mask
        if a_mask is None or b_mask is None:
            a_mask, b_mask = (text.tokens.new_ones(1, text.tokens.shape[1]).bool() for text in (first, second))
        between = a_mask.new_zeros(a_mask.shape[0], gap)
        mask = torch.cat([a_mask, between, b_mask], dim=1)
        return cls(first.tokens.shape[1], gap, mask, first.mask, second.mask)

    def join(self, a: Tensor, b: Tensor) -> Tensor:
        return torch.cat([a, a.new_zeros(a.shape[0], self.gap, a.shape[2]), b], dim=1)

    def split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x[:, : self.length], x[:, self.length + self.gap :]


def _full(mask: Tensor) -> bool:
    """Whether all are tokens; not asked where the answer would cost a synchronisation or fix a compiled graph."""
    return mask.device.type == "cpu" and not torch.compiler.is_compiling() and bool(mask.all())


def _matched(first: _Text, second: _Text) -> tuple[_Text, _Text]:
    """Give both texts the same batch size, and both a mask or neither."""
    sizes = first.tokens.shape[0], second.tokens.shape[0]
    if sizes[0] != sizes[1]:
        if min(sizes) != 1:
            raise ValueError(
                f"a has {sizes[0]} texts and b has {sizes[1]}; give both of each pair, or one text against many"
            )
        first, second = (_repeated(text, max(sizes)) for text in (first, second))
    if first.mask is None and second.mask is None:
        return first, second
    return _with_mask(first), _with_mask(second)


def _repeated(text: _Text, size: int) -> _Text:
    return _Text(*(None if tensor is None else tensor.expand(size, *tensor.shape[1:]) for tensor in text))  # type: ignore[arg-type]


def _rows(text: _Text, begin: int, size: int) -> _Text:
    return _Text(*(None if tensor is None else tensor[begin : begin + size] for tensor in text))  # type: ignore[arg-type]


def _with_mask(text: _Text) -> _Text:
    return text if text.mask is not None else text._replace(mask=text.tokens.new_ones(text.tokens.shape[:2]).bool())
