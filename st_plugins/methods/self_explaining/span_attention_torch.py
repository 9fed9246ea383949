"""Span attention in PyTorch: blocks of spans that fit into the cache, made again in the backward pass."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any, NamedTuple, TypeVar

import torch
from threadpoolctl import ThreadpoolController  # type: ignore[import-untyped]
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import pad

# Numbers in a block of span vectors: on a CPU few enough to stay in the cache while a chain of operations runs over
# them, and so many that starting an operation costs little beside running it.
_CPU_BLOCK, _OTHER_BLOCK = 3 * 2**18, 2**24
# A block has at most one start position more than this; every row of the ends serves all of them.
_MARGIN = 7

Result = TypeVar("Result")


class TorchSpanAttention(torch.autograd.Function):
    """Span attention in PyTorch, block by block, for float32 and float64; see `span_attention`."""

    @staticmethod
    def forward(
        ctx: Any, start: Tensor, end: Tensor, product: Tensor | None, scorer: Tensor, reach: Tensor, length: int
    ) -> tuple[Tensor, Tensor]:
        """Pool the spans, with an online softmax."""
        pooled, weights = torch.zeros_like(start[:, 0]), start.new_zeros(*reach.shape, length)

        def pool(texts: Tensor) -> None:
            spans = _Spans(start, end, product, reach, texts)
            valid = torch.arange(length, device=reach.device) < reach[texts, :, None]
            scores = _band(torch.where(valid, start.new_zeros(()), -torch.inf), outside=-torch.inf)
            top = start.new_full((len(texts), 1), torch.finfo(start.dtype).min)
            total = start.new_zeros(len(texts), 1, start.shape[2])
            for block in spans.blocks():
                hidden = spans.hidden(block)
                score = block.of(scores)
                score = score.add_(torch.mv(hidden.flatten(0, 2), scorer).view_as(score)).flatten(1)
                highest = torch.maximum(top, score.amax(1, keepdim=True))
                total.mul_((top - highest).exp_()[..., None])
                total.baddbmm_((score - highest).exp_()[:, None], hidden.flatten(1, 2))
                top = highest
            unnormalized = (scores[..., _MARGIN:-_MARGIN] - top[..., None]).exp_()
            mass = unnormalized.sum((1, 2))[:, None]
            pooled.index_copy_(0, texts, total.squeeze(1) / mass)
            weights.index_copy_(0, texts, unnormalized.div_(mass[..., None]))

        _each(pool, start, reach)
        ctx.save_for_backward(start, end, product, scorer, reach, pooled, weights)
        return pooled, weights

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, pooled_grad: Tensor, weights_grad: Tensor) -> tuple[Tensor | None, ...]:
        """Make the spans again and return the gradients."""
        # With g and γ the gradients of `pooled` and of the weights, the gradient of a score is
        #     δ_ij = α_ij (g · h_ij + γ_ij - c),   c = Σ α (g · h + γ) = g · pooled + Σ α γ,
        # and c ("center") is known beforehand. So one pass over the spans is enough: the gradient of the argument of
        # tanh is (α_ij g + δ_ij scorer) ∘ (1 - h_ij²).
        start, end, product, scorer, reach, pooled, weights = ctx.saved_tensors
        start_grad, end_grad = torch.zeros_like(start), torch.zeros_like(end)
        product_grad = None if product is None else torch.zeros_like(product)

        def spread(texts: Tensor) -> Tensor:
            spans = _Spans(start, end, product, reach, texts)
            scratch = torch.empty_like(spans.memory)
            own_start_grad, own_end_grad, own_factor_grad = (torch.zeros_like(spans.start) for _ in range(3))
            own_scorer_grad = torch.zeros_like(scorer)
            toward, alpha, gain = pooled_grad[texts, None], weights[texts], weights_grad[texts]
            center = (toward[:, 0] * pooled[texts]).sum(1) + (alpha * gain).sum((1, 2))
            rest = _band(alpha * (gain - center[:, None, None]))
            alpha = _band(alpha)
            for block in spans.blocks():
                hidden = spans.hidden(block)
                weight = block.of(alpha)
                along = torch.bmm(hidden.flatten(1, 2), toward.mT).view_as(weight)
                delta = torch.addcmul(block.of(rest), weight, along)
                own_scorer_grad.addmv_(hidden.flatten(0, 2).T, delta.flatten())
                grad = scratch[: hidden.numel()].view_as(hidden)
                torch.mul(weight[..., None], toward[:, :, None], out=grad).addcmul_(delta[..., None], scorer)
                grad.addcmul_(grad, hidden.square_(), value=-1)
                own_start_grad[:, block.starts].add_(grad.sum(2))
                own_end_grad[:, block.ends].add_(grad.sum(1))
                if spans.factor is not None:
                    torch.mul(grad, spans.factor[:, None, block.ends], out=hidden)
                    own_factor_grad[:, block.starts].add_(hidden.sum(2))
                    grad.mul_(spans.factor[:, block.starts, None])
                    own_factor_grad[:, block.ends].add_(grad.sum(1))
            start_grad.index_copy_(0, texts, own_start_grad)
            end_grad.index_copy_(0, texts, own_end_grad)
            if product_grad is not None:
                product_grad.index_copy_(0, texts, own_factor_grad)
            return own_scorer_grad

        scorer_grad = torch.zeros_like(scorer)
        for part in _each(spread, start, reach):
            scorer_grad += part
        return start_grad, end_grad, product_grad, scorer_grad, None, None


class _Block(NamedTuple):
    """The spans that begin in one range and end in another."""

    starts: slice
    ends: slice

    def of(self, band: Tensor) -> Tensor:
        """Return the view of a band (see `_band`) that belongs to these spans, ``(texts, starts, ends)``."""
        texts, tokens, width = band.shape
        shape = (texts, self.starts.stop - self.starts.start, self.ends.stop - self.ends.start)
        first = self.starts.start * width + self.ends.start - self.starts.start + _MARGIN
        return band.as_strided(shape, (tokens * width, width - 1, 1), band.storage_offset() + first)


def _band(values: Tensor, outside: float = 0.0) -> Tensor:
    """Give ``(B, n, L)`` numbers a margin of spans that are too long or end before they begin: blocks are oblong."""
    return pad(values, (_MARGIN, _MARGIN), value=outside)


class _Spans:
    """Cuts the spans of some texts into blocks, and makes the vectors of one block at a time, in the same memory."""

    def __init__(self, start: Tensor, end: Tensor, product: Tensor | None, reach: Tensor, texts: Tensor) -> None:
        reach = reach[texts]
        masked = (reach == 0)[..., None]  # blocks have masked tokens too, with weight 0, but 0 · NaN is NaN
        self.start, self.end = (x[texts].mul_(2).masked_fill_(masked, 0.0) for x in (start, end))
        self.factor = None if product is None else product[texts].masked_fill_(masked, 0.0)
        self.minus_one = start.new_tensor(-1.0)
        tokens = torch.arange(reach.shape[1], device=reach.device)
        self.first = int(torch.where(reach > 0, tokens, reach.shape[1]).min())
        self.after = torch.where(reach > 0, tokens + reach, 0).amax(0).tolist()  # where spans that begin here stop
        numbers = len(texts) * start.shape[2]
        self.starts = _starts(numbers)
        self.ends = max(1, _block_size(start) // (numbers * self.starts))
        self.memory = start.new_empty(self.ends * numbers * self.starts)

    def blocks(self) -> Iterator[_Block]:
        """Yield blocks that together hold every valid span once, and little else."""
        for begin in range(self.first, max(self.after), self.starts):
            starts = slice(begin, min(begin + self.starts, len(self.after)))
            stop = max(self.after[starts])
            for left in range(begin, stop, self.ends):
                yield _Block(starts, slice(left, min(left + self.ends, stop)))

    def hidden(self, block: _Block) -> Tensor:
        """Return the vectors of a block, ``(texts, starts, ends, d)``; the next call overwrites them."""
        first, last = self.start[:, block.starts, None], self.end[:, None, block.ends]
        shape = (*first.shape[:2], *last.shape[2:])
        hidden = torch.add(first, last, out=self.memory[: math.prod(shape)].view(shape))
        # tanh x as 2 σ(2x) - 1: on a CPU that takes a third of the time, and it is as exact for numbers near 1 (2e-7
        # in float32). The factor 2 is in the halves already.
        if self.factor is not None:
            hidden.addcmul_(self.factor[:, block.starts, None], self.factor[:, None, block.ends], value=2)
        return torch.add(self.minus_one, hidden.sigmoid_(), alpha=2, out=hidden)


def _block_size(start: Tensor) -> int:
    return _CPU_BLOCK if start.device.type == "cpu" else _OTHER_BLOCK


def _starts(numbers: int) -> int:
    """Return how many start positions a block has, given how many numbers one span of each text has together."""
    # k of them make a k-th of the blocks, but about k² / 2 spans of each block are wasted, as they end before they
    # begin. An operation takes as long to start as to run over some thousand numbers, hence the constant (measured).
    return max(1, min(_MARGIN + 1, math.isqrt(2**17 // numbers)))


def _groups(start: Tensor, reach: Tensor) -> list[Tensor]:
    """Sort the texts that have spans by the number of them, and put a block's worth together."""
    spans, order = reach.sum(1).sort(descending=True)
    order = order[spans > 0]
    widths = (reach > 0).sum(1)[order].tolist()
    groups, begin = [], 0
    while begin < len(order):
        left = len(order) - begin
        # The number of ends falls while the starts move on: on average it is half of the width.
        fit = max(1, 2 * _block_size(start) // ((_MARGIN + 1) * widths[begin] * start.shape[2]))
        stop = begin + math.ceil(left / math.ceil(left / fit))
        groups.append(order[begin:stop])
        begin = stop
    return groups


def _each(work: Callable[[Tensor], Result], start: Tensor, reach: Tensor) -> list[Result]:
    """Call ``work`` for all texts, a few at a time; on a CPU in several threads that use one core each."""
    # PyTorch would split every single operation on a block over the cores, and wait for the slowest each time. That is
    # slow for blocks that fit into a cache, and hopeless (20 times slower) where other processes want the cores too.
    groups = _groups(start, reach)
    workers = min(len(groups), torch.get_num_threads()) if start.device.type == "cpu" else 1
    if workers < 2:
        with torch.autocast(start.device.type, enabled=False):  # the backward pass may run under it
            return [work(texts) for texts in groups]
    inference = torch.is_inference_mode_enabled()

    def alone(texts: Tensor) -> Result:
        with torch.inference_mode(inference), torch.no_grad():  # a new thread does not inherit them, nor autocast
            return work(texts)

    with ThreadPoolExecutor(workers, initializer=_use_one_core) as pool:
        return list(pool.map(alone, groups))


def _use_one_core() -> None:
    torch.get_num_threads()  # PyTorch sets its number of threads in a new thread when first asked, so ask before
    _openmp().limit(limits=1, user_api="openmp")  # a setting of this thread only


@cache
def _openmp() -> ThreadpoolController:
    return ThreadpoolController()  # looks through all loaded libraries, which takes a millisecond
