"""Span attention in Triton, for NVIDIA GPUs; importable without a GPU and without Triton.

In the forward pass each start position of each text has a program with an online softmax of its own; what the programs
found is then merged. In the backward pass one kernel runs over the ends of each start and one over the starts of each
end, so that no two programs add to the same number: there are no atomics, and the result is the same every time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

try:
    import triton
    import triton.language as tl
except ImportError:
    triton = None


_TILE = 4096  # numbers of span vectors that a program holds at a time: they fit into the registers of four warps

# Without Triton the kernels stay plain functions, which nobody calls.
_jit: Callable[[Callable[..., Any]], Any] = (lambda function: function) if triton is None else triton.jit


def obstacle(tensor: Tensor) -> str:
    """Tell why the Triton version cannot take a tensor."""
    if tensor.device.type != "cuda":
        return f"the tensors are on the {tensor.device.type}"
    if triton is None:
        return "triton is not installed"
    if tensor.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        return f"the tensors are {tensor.dtype}, not float32, float16 or bfloat16"
    if tensor.shape[-1] > _TILE:
        return f"the vectors have {tensor.shape[-1]} numbers, more than {_TILE}"
    return ""


class TritonSpanAttention(torch.autograd.Function):
    """Span attention in Triton, for float32; `TorchSpanAttention` has the same interface and the mathematics."""

    @staticmethod
    def forward(
        ctx: Any, start: Tensor, end: Tensor, product: Tensor | None, scorer: Tensor, reach: Tensor, length: int
    ) -> tuple[Tensor, Tensor]:
        """Pool the spans."""
        start, end, scorer = start.contiguous(), end.contiguous(), scorer.contiguous()
        product = None if product is None else product.contiguous()
        scores = start.new_full((*reach.shape, length), -torch.inf)
        top, mass, total = torch.empty_like(start[..., 0]), torch.empty_like(start[..., 0]), torch.empty_like(start)
        _launch(_forward_kernel, length, start, end, product, scorer, reach, scores, top, mass, total)
        highest = top.amax(1, keepdim=True).clamp_min(torch.finfo(top.dtype).min)  # finite where there is no span
        scale = (top - highest).exp_()
        whole = (scale * mass).sum(1, keepdim=True).clamp_min_(torch.finfo(top.dtype).tiny)
        pooled = (scale[:, None] @ total).squeeze(1) / whole
        weights = (scores - highest[..., None]).exp_().div_(whole[..., None])
        ctx.save_for_backward(start, end, product, scorer, reach, pooled, weights)
        return pooled, weights

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, pooled_grad: Tensor, weights_grad: Tensor) -> tuple[Tensor | None, ...]:
        """Make the spans again, twice, and return the gradients."""
        start, end, product, scorer, reach, pooled, weights = ctx.saved_tensors
        pooled_grad = pooled_grad.contiguous()
        center = (pooled * pooled_grad).sum(1) + (weights * weights_grad).sum((1, 2))
        delta = weights * (weights_grad - center[:, None, None])  # the first kernel adds what the vectors tell
        start_grad, end_grad, scorer_grads = torch.empty_like(start), torch.empty_like(end), torch.empty_like(start)
        product_grad = None if product is None else torch.empty_like(product)
        common = (weights.shape[2], start, end, product, scorer, pooled_grad, weights, delta, product_grad)
        _launch(_backward_of_starts, *common, reach, start_grad, scorer_grads)
        _launch(_backward_of_ends, *common, _past(reach), end_grad)
        return start_grad, end_grad, product_grad, scorer_grads.sum((0, 1)), None, None


def _past(reach: Tensor) -> Tensor:
    """Count the spans that end at each token, from the number that begin at each."""
    position = torch.arange(reach.shape[1], device=reach.device)
    alone = torch.ones_like(reach, dtype=torch.bool)  # no span takes in this token and the one before it
    alone[:, 1:] = reach[:, :-1] < 2
    since = position - torch.where(alone, position, 0).cummax(1).values + 1
    return since.clamp(max=max(1, int(reach.max()))) * (reach > 0)


def _launch(kernel: Any, length: int, start: Tensor, end: Tensor, product: Tensor | None, *others: Any) -> None:
    """Run one program per token of the batch; it does not touch tensors that are None."""
    texts, tokens, dimension = start.shape
    width = triton.next_power_of_2(dimension)
    many = min(triton.next_power_of_2(length), max(1, _TILE // width))
    tensors = [start if tensor is None else tensor for tensor in (start, end, product, *others)]
    with torch.cuda.device_of(start):
        kernel[(texts * tokens,)](
            *tensors, tokens, length, dimension, has_product=product is not None, many=many, width=width, num_warps=4
        )


@_jit
def _hidden(
    first: tl.tensor, last: tl.tensor, first_factor: tl.tensor, last_factor: tl.tensor, has_product: tl.constexpr
) -> tl.tensor:
    argument = first + last
    if has_product:
        argument += first_factor * last_factor
    return 2.0 * tl.sigmoid(2.0 * argument) - 1.0


@_jit
def _forward_kernel(
    start: tl.tensor,
    end: tl.tensor,
    product: tl.tensor,
    scorer: tl.tensor,
    reach: tl.tensor,
    scores: tl.tensor,
    top: tl.tensor,
    mass: tl.tensor,
    total: tl.tensor,
    tokens: tl.tensor,
    length: tl.tensor,
    dimension: tl.tensor,
    has_product: tl.constexpr,
    many: tl.constexpr,
    width: tl.constexpr,
) -> None:
    token = tl.program_id(0).to(tl.int64)  # numbered through the whole batch
    column = tl.arange(0, width)
    inside = column < dimension
    first = tl.load(start + token * dimension + column, mask=inside, other=0.0)[None, :]
    factor = tl.load(product + token * dimension + column, mask=inside, other=0.0)[None, :]
    weight = tl.load(scorer + column, mask=inside, other=0.0)[None, :]
    count = tl.load(reach + token)
    highest = -float("inf")
    found = 0.0
    vector = tl.zeros([width], dtype=tl.float32)
    for offset in range(0, count, many):
        further = offset + tl.arange(0, many)
        valid = further < count
        place = (token + further)[:, None] * dimension + column[None, :]
        both = valid[:, None] & inside[None, :]
        last = tl.load(end + place, mask=both, other=0.0)
        last_factor = tl.load(product + place, mask=both, other=0.0) if has_product else last
        hidden = _hidden(first, last, factor, last_factor, has_product)
        score = tl.where(valid, tl.sum(hidden * weight, axis=1), -float("inf"))
        tl.store(scores + token * length + further, score, mask=valid)
        above = tl.maximum(highest, tl.max(score, axis=0))
        scale = tl.exp(highest - above)
        share = tl.exp(score - above)
        found = found * scale + tl.sum(share, axis=0)
        vector = vector * scale + tl.sum(share[:, None] * hidden, axis=0)
        highest = above
    tl.store(top + token, highest)
    tl.store(mass + token, found)
    tl.store(total + token * dimension + column, vector, mask=inside)


@_jit
def _backward_of_starts(
    start: tl.tensor,
    end: tl.tensor,
    product: tl.tensor,
    scorer: tl.tensor,
    pooled_grad: tl.tensor,
    weights: tl.tensor,
    delta: tl.tensor,
    product_grad: tl.tensor,
    reach: tl.tensor,
    start_grad: tl.tensor,
    scorer_grads: tl.tensor,
    tokens: tl.tensor,
    length: tl.tensor,
    dimension: tl.tensor,
    has_product: tl.constexpr,
    many: tl.constexpr,
    width: tl.constexpr,
) -> None:
    token = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, width)
    inside = column < dimension
    own = token * dimension + column
    first = tl.load(start + own, mask=inside, other=0.0)[None, :]
    factor = tl.load(product + own, mask=inside, other=0.0)[None, :]
    weight = tl.load(scorer + column, mask=inside, other=0.0)[None, :]
    toward = tl.load(pooled_grad + token // tokens * dimension + column, mask=inside, other=0.0)[None, :]
    count = tl.load(reach + token)
    of_start = tl.zeros([width], dtype=tl.float32)
    of_factor = tl.zeros([width], dtype=tl.float32)
    of_scorer = tl.zeros([width], dtype=tl.float32)
    for offset in range(0, count, many):
        further = offset + tl.arange(0, many)
        valid = further < count
        place = (token + further)[:, None] * dimension + column[None, :]
        both = valid[:, None] & inside[None, :]
        last = tl.load(end + place, mask=both, other=0.0)
        last_factor = tl.load(product + place, mask=both, other=0.0) if has_product else last
        hidden = _hidden(first, last, factor, last_factor, has_product)
        span = token * length + further
        alpha = tl.load(weights + span, mask=valid, other=0.0)
        change = tl.load(delta + span, mask=valid, other=0.0) + alpha * tl.sum(hidden * toward, axis=1)
        tl.store(delta + span, change, mask=valid)
        grad = (alpha[:, None] * toward + change[:, None] * weight) * (1.0 - hidden * hidden)
        of_start += tl.sum(grad, axis=0)
        of_scorer += tl.sum(change[:, None] * hidden, axis=0)
        if has_product:
            of_factor += tl.sum(grad * last_factor, axis=0)
    tl.store(start_grad + own, of_start, mask=inside)
    tl.store(scorer_grads + own, of_scorer, mask=inside)
    if has_product:
        tl.store(product_grad + own, of_factor, mask=inside)


@_jit
def _backward_of_ends(
    start: tl.tensor,
    end: tl.tensor,
    product: tl.tensor,
    scorer: tl.tensor,
    pooled_grad: tl.tensor,
    weights: tl.tensor,
    delta: tl.tensor,
    product_grad: tl.tensor,
    past: tl.tensor,
    end_grad: tl.tensor,
    tokens: tl.tensor,
    length: tl.tensor,
    dimension: tl.tensor,
    has_product: tl.constexpr,
    many: tl.constexpr,
    width: tl.constexpr,
) -> None:
    token = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, width)
    inside = column < dimension
    own = token * dimension + column
    last = tl.load(end + own, mask=inside, other=0.0)[None, :]
    factor = tl.load(product + own, mask=inside, other=0.0)[None, :]
    weight = tl.load(scorer + column, mask=inside, other=0.0)[None, :]
    toward = tl.load(pooled_grad + token // tokens * dimension + column, mask=inside, other=0.0)[None, :]
    count = tl.load(past + token)
    of_end = tl.zeros([width], dtype=tl.float32)
    of_factor = tl.zeros([width], dtype=tl.float32)
    for offset in range(0, count, many):
        further = offset + tl.arange(0, many)
        valid = further < count
        place = (token - further)[:, None] * dimension + column[None, :]
        both = valid[:, None] & inside[None, :]
        first = tl.load(start + place, mask=both, other=0.0)
        first_factor = tl.load(product + place, mask=both, other=0.0) if has_product else first
        hidden = _hidden(first, last, first_factor, factor, has_product)
        span = (token - further) * length + further
        alpha = tl.load(weights + span, mask=valid, other=0.0)
        change = tl.load(delta + span, mask=valid, other=0.0)
        grad = (alpha[:, None] * toward + change[:, None] * weight) * (1.0 - hidden * hidden)
        of_end += tl.sum(grad, axis=0)
        if has_product:
            of_factor += tl.sum(grad * first_factor, axis=0)
    tl.store(end_grad + own, of_end, mask=inside)
    if has_product:
        tl.store(product_grad + own, tl.load(product_grad + own, mask=inside) + of_factor, mask=inside)
