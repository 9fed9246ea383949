"""The RE2 network: blocks of encoder, alignment and fusion, then pooling and prediction."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import cached
from typing_extensions import Self

from st_plugins.methods.re2.config import RE2Config
from st_plugins.methods.re2.layers import (
    Alignment,
    AugmentedResidual,
    ConvolutionalEncoder,
    Fusion,
    Maps,
    Prediction,
    masked_max,
)

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
        embedding_dimension: Width d of the token vectors.
        num_labels: Number of logits.

    Raises:
        ValueError: ``embedding_dimension`` or ``num_labels`` is not positive.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> network = RE2(RE2Config.named("snli"), embedding_dimension=300, num_labels=3).eval()
        >>> round(sum(parameter.numel() for parameter in network.parameters()) / 1e6, 1)
        2.8
        >>> first, second = torch.randn(2, 7, 300), torch.randn(2, 5, 300)
        >>> tuple(network(first, torch.ones(2, 7) > 0, second, torch.ones(2, 5) > 0).shape)
        (2, 3)

    Reference:
        Yang, Zhang, Gao, Ji & Chen, "Simple and Effective Text Matching with Richer Alignment Features" (ACL 2019),
        P19-1465, section 2. Where the parts differ from the authors' code, they say so. In "parallel" blocks the
        outputs are added before pooling.
    """

    def __init__(self, config: RE2Config, embedding_dimension: int, num_labels: int) -> None:
        super().__init__()
        for name, value in (("embedding_dimension", embedding_dimension), ("num_labels", num_labels)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        self.config, self.embedding_dimension, self.num_labels = config, embedding_dimension, num_labels
        self.dropout = nn.Dropout(config.dropout)
        self.residual = (
            None
            if config.parallel_blocks
            else AugmentedResidual(embedding_dimension, config.hidden_dimension, config.residual)
        )
        later = embedding_dimension if self.residual is None else self.residual.output_width
        self.blocks = nn.ModuleList(
            _Block(config, later if number else embedding_dimension) for number in range(config.blocks)
        )
        self.prediction = Prediction(config.hidden_dimension, num_labels, config.prediction, config.dropout)

    def forward(
        self,
        first: Tensor,
        first_mask: Tensor,
        second: Tensor,
        second_mask: Tensor,
        maps: Maps | None = None,
        first_encoded: Tensor | None = None,
        second_encoded: Tensor | None = None,
    ) -> Tensor:
        """Compute the logits of pairs.

        Args:
            first: Token vectors of the first texts, ``(B, m, d)``; ``(1, m, d)`` for one text against many.
            first_mask: Which of them are tokens, ``(B, m)`` bool.
            second: Token vectors of the second texts, ``(B, n, d)``, or ``(1, n, d)``.
            second_mask: Which of them are tokens, ``(B, n)`` bool.
            maps: A list that gets, for each block, the weights of ``second`` for each token of ``first``,
                ``(B, m, n)``, and those of ``first`` for each token of ``second``, ``(B, n, m)``.
            first_encoded: ``first_encoding(first, first_mask)``, if it is known already.
            second_encoded: ``first_encoding(second, second_mask)``, if it is known already.

        Returns:
            ``(B, num_labels)``.

        Raises:
            ValueError: A tensor has the wrong shape.
        """
        pooled = self.pooled(first, first_mask, second, second_mask, maps, first_encoded, second_encoded)
        logits: Tensor = self.prediction(*pooled)
        return logits

    def pooled(
        self,
        first: Tensor,
        first_mask: Tensor,
        second: Tensor,
        second_mask: Tensor,
        maps: Maps | None = None,
        first_encoded: Tensor | None = None,
        second_encoded: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Compute the vectors that the prediction compares; each depends on both texts.

        Args:
            first: As for `forward`.
            first_mask: As for `forward`.
            second: As for `forward`.
            second_mask: As for `forward`.
            maps: As for `forward`.
            first_encoded: As for `forward`.
            second_encoded: As for `forward`.

        Returns:
            Two tensors of shape ``(B, hidden_dimension)``.

        Raises:
            ValueError: A tensor has the wrong shape.
        """
        x, y = _matched(
            self._text("first", first, first_mask, first_encoded),
            self._text("second", second, second_mask, second_encoded),
        )
        if maps is not None or torch.is_grad_enabled() or first.device.type != "cpu" or torch.compiler.is_compiling():
            return self._pooled(x, y, maps)
        pairs = max(1, len(x.tokens))
        parts = math.ceil(pairs * (x.tokens.shape[1] + y.tokens.shape[1]) / _ROWS)
        size = math.ceil(pairs / parts)
        starts = range(0, pairs, size)
        with cached():  # weights are normalised once
            found = [self._pooled(_rows(x, start, size), _rows(y, start, size)) for start in starts]
        v1, v2 = (torch.cat(vectors) for vectors in zip(*found, strict=True))
        return v1, v2

    def _pooled(self, first: _Text, second: _Text, maps: Maps | None = None) -> tuple[Tensor, Tensor]:
        pair = _Pair.of(first, second, gap=max(self.config.kernel_sizes) // 2)
        x = pair.join(self.dropout(first.tokens), self.dropout(second.tokens))
        encoded = None
        if first.encoded is not None or second.encoded is not None:
            encoded = pair.join(self._encoded(first), self._encoded(second))
        outputs: list[Tensor] = []
        for block in self.blocks:
            start = self.residual(x, outputs) if outputs and self.residual is not None else x
            outputs.append(block(start, pair, encoded, maps))
            encoded = None
        last = outputs[-1] if self.residual is not None else torch.stack(outputs).sum(dim=0)
        v1, v2 = pair.split(last)
        return masked_max(v1, pair.first_mask), masked_max(v2, pair.second_mask)

    def first_encoding(self, x: Tensor, mask: Tensor) -> Tensor:
        """Encode a text by the first block's encoder, which does not depend on the other text.

        Args:
            x: Token vectors, ``(B, n, d)``.
            mask: Which of them are tokens, ``(B, n)`` bool.

        Returns:
            ``(B, n, hidden_dimension)``, for `forward`.

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
        if tokens.ndim != 3 or tokens.shape[2] != self.embedding_dimension:
            raise ValueError(
                f"{name} must be token vectors of shape (batch, tokens, {self.embedding_dimension}), got "
                f"{tuple(tokens.shape)}"
            )
        if mask.shape != tokens.shape[:2] or mask.dtype != torch.bool:
            raise ValueError(
                f"the mask of {name} must be boolean, of shape {tuple(tokens.shape[:2])}, got {mask.dtype} of shape "
                f"{tuple(mask.shape)}"
            )
        if encoded is not None and encoded.shape != (*tokens.shape[:2], self.config.hidden_dimension):
            raise ValueError(
                f"{name}_encoded must have shape {(*tokens.shape[:2], self.config.hidden_dimension)}, got "
                f"{tuple(encoded.shape)}; make it with first_encoding"
            )
        tokens = tokens.to(self.prediction.outer.bias.dtype)
        if tokens.shape[1] == 0:
            tokens, mask, encoded = (
                tokens.new_zeros(tokens.shape[0], 1, self.embedding_dimension),
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
        hidden, dropout = config.hidden_dimension, config.dropout
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
        found = self.alignment.attend(*compared, *pair.split(x), pair.first_mask, pair.second_mask, maps)
        output: Tensor = self.fusion(x, pair.join(*found))
        return output


class _Text(NamedTuple):
    tokens: Tensor
    mask: Tensor | None
    encoded: Tensor | None


class _Pair(NamedTuple):
    """Both texts of a pair as one sequence, the second after the first and a gap of zeros."""

    # What is computed for each token is computed for both texts at once, and no window of a convolution sees both.

    length: int
    gap: int
    mask: Tensor
    first_mask: Tensor | None
    second_mask: Tensor | None

    @classmethod
    def of(cls, first: _Text, second: _Text, gap: int) -> Self:
        """Return what is to be known about two texts of the same batch size, either both with a mask or none."""
        first_mask, second_mask = first.mask, second.mask
        if first_mask is None or second_mask is None:
            first_mask, second_mask = (
                text.tokens.new_ones(1, text.tokens.shape[1]).bool() for text in (first, second)
            )
        between = first_mask.new_zeros(first_mask.shape[0], gap)
        mask = torch.cat([first_mask, between, second_mask], dim=1)
        return cls(first.tokens.shape[1], gap, mask, first.mask, second.mask)

    def join(self, first: Tensor, second: Tensor) -> Tensor:
        return torch.cat([first, first.new_zeros(first.shape[0], self.gap, first.shape[2]), second], dim=1)

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
                f"first has {sizes[0]} texts and second has {sizes[1]}; give both of each pair, or one text against "
                "many"
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
