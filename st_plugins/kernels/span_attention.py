"""Softmax over all spans of a text and the weighted sum of their vectors, without ever holding the vectors."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import pad

from st_plugins.kernels import span_attention_triton

__all__ = ["SpanAttention", "TorchSpanAttention", "span_attention", "span_reach"]

# Numbers in a block of span vectors: on a CPU few enough to stay in the cache while a chain of operations runs over
# them, and so many that starting an operation costs little beside running it.
_CPU_BLOCK, _OTHER_BLOCK = 2**19, 2**24
# A block has at most one start position more than this; every row of the ends serves all of them.
_MARGIN = 7


class SpanAttention(NamedTuple):
    """What `span_attention` returns.

    Attributes:
        pooled: ``(B, d)``, the weighted sum of span vectors.
        weights: ``(B, n, L)``; ``weights[b, i, k]`` is the weight of the span from token i to token i + k.
        sharpness: ``(B,)``, the sum of squared weights: 1 for a single span, 1 / S for S equal weights.
    """

    pooled: Tensor
    weights: Tensor
    sharpness: Tensor


def span_attention(
    start: Tensor,
    end: Tensor,
    product: Tensor | None,
    scorer: Tensor,
    mask: Tensor,
    max_span_length: int | None = None,
    *,
    segments: Tensor | None = None,
    implementation: Literal["auto", "torch", "triton"] = "auto",
) -> SpanAttention:
    """Attend over all spans (i, j), i ≤ j, of each text.

    A span has the vector ``h_ij = tanh(start_i + end_j + product_i ∘ product_j)`` and the score ``scorer · h_ij``; a
    softmax over the spans of a text gives the weights α, and ``pooled = Σ α_ij h_ij``. (A bias of the score would
    cancel in the softmax; one inside tanh belongs into ``start``.) Spans are made block by block and forgotten; the
    backward pass makes them a second time. So the memory grows with the inputs and the weights, not with spans × d.
    Gradients reach all four tensors, through all three outputs; there are no second derivatives.

    Half-precision inputs are computed in float32, under autocast too. A text without a span gets zeros, and so does
    its gradient. What masked tokens hold never matters, not even NaN.

    Args:
        start: What tokens contribute as first token of a span, ``(B, n, d)``.
        end: What they contribute as last token, ``(B, n, d)``.
        product: Factors of the multiplicative term, ``(B, n, d)``; None leaves the term out.
        scorer: Weight vector of the score, ``(d,)``.
        mask: ``(B, n)`` bool: the tokens that may be in a span. A span has no other token inside, so it never crosses
            a separator that is masked out.
        max_span_length: Longest span in tokens; None sets no limit.
        segments: ``(B, n)`` integers; a span stays where this number stays the same. None: one segment.
        implementation: ``"torch"``, ``"triton"`` (NVIDIA GPUs, float32 and half precision), or ``"auto"``: Triton
            where it can run.

    Returns:
        ``pooled`` ``(B, d)`` in the type of ``start``; ``weights`` ``(B, n, L)``, L = min(n, max_span_length), exactly
        0 where there is no span, and ``sharpness`` ``(B,)``, both float32 (float64 for float64 inputs).

    Raises:
        ValueError: A shape, type, device or ``max_span_length`` does not fit, or Triton is asked for where it cannot
            run.

    Example:
        >>> tokens = torch.eye(4)[None, :3]
        >>> mask = torch.tensor([[True, True, False]])
        >>> result = span_attention(tokens, tokens, None, torch.ones(4), mask)
        >>> [[round(value, 3) for value in row] for row in result.weights[0].tolist()]
        [[0.265, 0.469, 0.0], [0.265, 0.0, 0.0], [0.0, 0.0, 0.0]]
        >>> f"{result.sharpness.item():.3f}"
        '0.361'

    Reference:
        Sun et al., "Self-Explaining Structures Improve NLP Models" (2020), arXiv 2012.01786, section 3: the SIC and
        the interpretation layer, with the multiplicative term of the authors' code, ``(W₄hᵢ) ∘ (W₄hⱼ)``. We differ:
        spans are not enumerated in memory, and masked ones are left out instead of getting a score of -10⁶.
    """
    _check(start, end, product, scorer, mask, max_span_length, segments)
    if implementation not in ("auto", "torch", "triton"):
        raise ValueError(f"implementation must be 'auto', 'torch' or 'triton', got {implementation!r}")
    obstacle = span_attention_triton.obstacle(start)
    if implementation == "triton" and obstacle:
        raise ValueError(f"implementation='triton' cannot run here: {obstacle}; use 'auto' or 'torch'")
    function: Any = TorchSpanAttention
    if implementation != "torch" and not obstacle:
        function = span_attention_triton.TritonSpanAttention
    length = start.shape[1] if max_span_length is None else min(start.shape[1], max_span_length)
    reach = span_reach(mask, segments, length)
    kind = torch.promote_types(start.dtype, torch.float32)
    with torch.autocast(start.device.type, enabled=False):
        outside = ~mask[..., None]
        vectors = [None if x is None else x.to(kind).masked_fill(outside, 0.0) for x in (start, end, product)]
        pooled, weights = function.apply(*vectors, scorer.to(kind), reach, length)
        return SpanAttention(pooled.to(start.dtype), weights, weights.square().sum((1, 2)))


def _check(
    start: Tensor,
    end: Tensor,
    product: Tensor | None,
    scorer: Tensor,
    mask: Tensor,
    max_span_length: int | None,
    segments: Tensor | None,
) -> None:
    if start.ndim != 3 or 0 in start.shape[1:]:
        raise ValueError(f"start must have shape (texts, tokens, d), none of the last two 0, got {tuple(start.shape)}")
    if not start.is_floating_point():
        raise ValueError(f"start must be floating-point, got {start.dtype}; give token vectors, not token ids")
    expected = {"end": start.shape, "product": start.shape, "scorer": start.shape[2:]}
    for name, tensor in {"end": end, "product": product, "scorer": scorer, "mask": mask, "segments": segments}.items():
        if tensor is None:
            continue
        shape = expected.get(name, start.shape[:2])
        if tensor.shape != shape:
            raise ValueError(
                f"{name} must have shape {tuple(shape)} to go with start {tuple(start.shape)}, got {tuple(tensor.shape)}"
            )
        if tensor.device != start.device:
            raise ValueError(f"{name} is on {tensor.device}, but start is on {start.device}; move it there")
        if name in ("end", "product") and tensor.dtype != start.dtype:
            raise ValueError(f"{name} is {tensor.dtype}, but start is {start.dtype}; convert one of them")
    if mask.dtype != torch.bool:
        raise ValueError(f"mask must be bool, got {mask.dtype}; use mask.bool()")
    if max_span_length is not None and max_span_length < 1:
        raise ValueError(f"max_span_length must be at least 1 token, or None for no limit, got {max_span_length}")


def span_reach(mask: Tensor, segments: Tensor | None, length: int) -> Tensor:
    """Count the spans that begin at each token.

    Args:
        mask: ``(B, n)`` bool: the tokens that may be in a span.
        segments: ``(B, n)`` integers, or None.
        length: Longest span in tokens.

    Returns:
        ``(B, n)`` int64: the spans (i, i), …, (i, i + reach - 1) are valid, no other that begins at i.

    Example:
        >>> span_reach(torch.tensor([[True, True, True, False, True]]), None, 2)
        tensor([[2, 2, 1, 0, 1]])
    """
    tokens = mask.shape[1]
    position = torch.arange(tokens, device=mask.device)
    barrier = ~mask  # a span that began earlier ends before such a token
    if segments is not None:
        barrier = barrier | pad(segments[:, 1:] != segments[:, :-1], (1, 0))
    barriers = pad(torch.where(barrier, position, tokens)[:, 1:], (0, 1), value=tokens)
    following = barriers.flip(1).cummin(1).values.flip(1)
    return (following - position).clamp(max=length) * mask


class TorchSpanAttention(torch.autograd.Function):
    """Span attention in PyTorch, block by block, for float32 and float64; see `span_attention`.

    With g and γ the gradients of ``pooled`` and of the weights, the gradient of a score is ``δ_ij = α_ij (g · h_ij +
    γ_ij - c)``, where ``c = Σ α (g · h + γ) = g · pooled + Σ α γ`` is known beforehand. So one pass over the spans is
    enough: the gradient of the argument of tanh is ``(α_ij g + δ_ij scorer) ∘ (1 - h_ij²)``.
    """

    @staticmethod
    def forward(
        ctx: Any, start: Tensor, end: Tensor, product: Tensor | None, scorer: Tensor, reach: Tensor, length: int
    ) -> tuple[Tensor, Tensor]:
        """Pool the spans, with an online softmax.

        Args:
            ctx: Where the backward pass finds what it needs.
            start: ``(B, n, d)``, finite for masked tokens too.
            end: ``(B, n, d)``, likewise.
            product: ``(B, n, d)``, likewise, or None.
            scorer: ``(d,)``.
            reach: What `span_reach` returned, ``(B, n)``.
            length: L, tokens in the longest span.

        Returns:
            The pooled vectors ``(B, d)`` and the weights ``(B, n, L)``.
        """
        spans = _Spans(start, end, product, reach)
        valid = torch.arange(length, device=reach.device) < reach[..., None]
        scores = _band(torch.zeros_like(valid, dtype=start.dtype).masked_fill_(~valid, -torch.inf), -torch.inf)
        top = start.new_full((len(start), 1), torch.finfo(start.dtype).min)
        pooled = torch.zeros_like(start[:, :1])
        for block in spans.blocks():
            hidden = spans.hidden(block)
            score = block.of(scores).add_(hidden @ scorer).flatten(1)
            before = top[block.rows]
            highest = torch.maximum(before, score.amax(1, keepdim=True))
            pooled[block.rows].mul_((before - highest).exp_()[..., None]).baddbmm_(
                (score - highest).exp_()[:, None], hidden.flatten(1, 2)
            )
            before.copy_(highest)
        weights = (scores[..., _MARGIN:-_MARGIN] - top[..., None]).exp_()
        total = weights.sum((1, 2)).clamp_min_(torch.finfo(start.dtype).tiny)[:, None]
        weights /= total[..., None]
        pooled = pooled.squeeze(1) / total
        ctx.save_for_backward(start, end, product, scorer, reach, pooled, weights)
        return pooled, weights

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, pooled_grad: Tensor, weights_grad: Tensor) -> tuple[Tensor | None, ...]:
        """Make the spans again and return the gradients.

        Args:
            ctx: What `forward` left.
            pooled_grad: ``(B, d)``.
            weights_grad: ``(B, n, L)``.

        Returns:
            A gradient for each of the four tensors, and None for the other arguments.
        """
        start, end, product, scorer, reach, pooled, weights = ctx.saved_tensors
        centre = (pooled * pooled_grad).sum(1) + (weights * weights_grad).sum((1, 2))
        alpha, rest = _band(weights, 0.0), _band(weights * (weights_grad - centre[:, None, None]), 0.0)
        directions = torch.stack([pooled_grad, scorer.expand_as(pooled_grad)], dim=1)
        start_grad, end_grad, scorer_grad = torch.zeros_like(start), torch.zeros_like(end), torch.zeros_like(scorer)
        product_grad = None if product is None else torch.zeros_like(product)
        spans = _Spans(start, end, product, reach)
        scratch = torch.empty_like(spans.memory)
        for block in spans.blocks():
            hidden = spans.hidden(block)
            flat = hidden.flatten(1, 2)
            weight = block.of(alpha)
            along = (flat @ pooled_grad[block.rows, :, None]).view_as(weight)
            delta = torch.addcmul(block.of(rest), weight, along)
            scorer_grad.addmv_(flat.flatten(0, 1).T, delta.flatten())
            factors = torch.stack([weight, delta], dim=-1).flatten(1, 2)
            grad = torch.bmm(factors, directions[block.rows], out=scratch[: flat.numel()].view_as(flat))
            grad = grad.addcmul_(grad, flat.square_(), value=-1).view_as(hidden)
            start_grad[block.rows, block.starts] += grad.sum(2)
            end_grad[block.rows, block.ends] += grad.sum(1)
            if product is not None and product_grad is not None:
                torch.mul(grad, product[block.rows, None, block.ends], out=hidden)
                product_grad[block.rows, block.starts] += hidden.sum(2)
                grad *= product[block.rows, block.starts, None]
                product_grad[block.rows, block.ends] += grad.sum(1)
        return start_grad, end_grad, product_grad, scorer_grad, None, None


class _Block(NamedTuple):
    """The spans of some texts that begin in one range and end in another."""

    rows: slice
    starts: slice
    ends: slice

    def of(self, band: Tensor) -> Tensor:
        """Return the view of a band (see `_band`) that belongs to these spans, ``(rows, starts, ends)``."""
        tokens, width = band.shape[1:]
        first = (self.rows.start * tokens + self.starts.start) * width + self.ends.start - self.starts.start
        shape = [part.stop - part.start for part in self]
        return band.as_strided(shape, (tokens * width, width - 1, 1), first + _MARGIN)


def _band(values: Tensor, outside: float) -> Tensor:
    """Give ``(B, n, L)`` numbers a margin of spans that are too long or end before they begin: blocks are oblong."""
    return pad(values, (_MARGIN, _MARGIN), value=outside)


class _Spans:
    """Cuts the spans of a batch into blocks, and makes the vectors of one block at a time, in the same memory."""

    def __init__(self, start: Tensor, end: Tensor, product: Tensor | None, reach: Tensor) -> None:
        self.doubled_start, self.doubled_end, self.product = 2 * start, 2 * end, product
        self.minus_one = start.new_tensor(-1.0)
        tokens = torch.arange(reach.shape[1], device=reach.device)
        self.first = torch.where(reach > 0, tokens, reach.shape[1]).amin(1).tolist()
        self.after = torch.where(reach > 0, tokens + reach, 0).cpu()  # all spans that begin here end before this token
        self.longest = max(reach.amax(1).tolist(), default=0)
        dimension = start.shape[2]
        self.most = max(_MARGIN + 1, (_CPU_BLOCK if start.device.type == "cpu" else _OTHER_BLOCK) // dimension)
        self.memory = start.new_empty(self.most * dimension)

    def blocks(self) -> Iterator[_Block]:
        """Yield blocks that together hold every valid span once, and few others."""
        texts, tokens = self.after.shape
        starts = max(1, min(_MARGIN + 1, self.longest // 8))
        together = max(1, self.most // (starts * min(tokens, self.longest + starts - 1)))
        for row in range(0, texts, together):
            rows = slice(row, min(row + together, texts))
            after = self.after[rows].amax(0)
            for begin in range(min(self.first[rows]), int(after.max()), starts):
                window = slice(begin, min(begin + starts, tokens))
                stop = int(after[window].max())
                size = self.most // (starts * (rows.stop - rows.start))
                for left in range(begin, stop, size):
                    yield _Block(rows, window, slice(left, min(left + size, stop)))

    def hidden(self, block: _Block) -> Tensor:
        """Return ``h`` for a block, ``(rows, starts, ends, d)``; the next call overwrites it.

        It is computed as ``2 σ(2x) - 1``: PyTorch's sigmoid takes a third of the time of its tanh on a CPU, and the
        error stays at rounding of numbers near 1 (2e-7 in float32).
        """
        rows, starts, ends = block
        first, last = self.doubled_start[rows, starts, None], self.doubled_end[rows, None, ends]
        shape = (*first.shape[:2], *last.shape[2:])
        hidden = torch.add(first, last, out=self.memory[: math.prod(shape)].view(shape))
        if self.product is not None:
            hidden.addcmul_(self.product[rows, starts, None], self.product[rows, None, ends], value=2)
        return torch.add(self.minus_one, hidden.sigmoid_(), alpha=2, out=hidden)
