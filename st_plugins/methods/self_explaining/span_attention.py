"""Softmax over all spans of a text and the weighted sum of their vectors, without ever holding the vectors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad
from torch.utils.checkpoint import checkpoint

from st_plugins.core.precision import precise
from st_plugins.methods.self_explaining import span_attention_triton
from st_plugins.methods.self_explaining.span_attention_torch import TorchSpanAttention

# Blocks that depend on the mask are nothing to compile; the rest of a model still is.
_apply: Callable[..., tuple[Tensor, Tensor]] = torch.compiler.disable(lambda function, *rest: function.apply(*rest))


class SpanAttention(NamedTuple):
    """What `span_attention` returns.

    Attributes:
        pooled: ``(B, d)``, the weighted sum of span vectors.
        weights: ``(B, n, L)``; ``weights[b, i, k]`` is the weight of the span from token i to token i + k.
        sharpness: ``(B,)``, the sum of squared weights: 1 for a single span, 1 / S for S equal weights.

    Example:
        >>> SpanAttention(torch.zeros(1, 2), weights=torch.ones(1, 1, 1), sharpness=torch.ones(1)).sharpness.tolist()
        [1.0]
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
        [[0.267, 0.467, 0.0], [0.267, 0.0, 0.0], [0.0, 0.0, 0.0]]
        >>> round(result.sharpness.item(), 3)  # 2 · 0.267² + 0.467²
        0.36

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
    # Both make the spans block by block and forget them, and make them again in the backward pass.
    function: Any = TorchSpanAttention
    if implementation != "torch" and not obstacle:
        function = span_attention_triton.TritonSpanAttention
    length = start.shape[1] if max_span_length is None else min(start.shape[1], max_span_length)
    reach = span_reach(mask, segments, length)
    kind = torch.promote_types(start.dtype, torch.float32)
    with torch.autocast(start.device.type, enabled=False):
        vectors = [None if x is None else x.to(kind) for x in (start, end, product)]
        pooled, weights = _apply(function, *vectors, scorer.to(kind), reach, length)
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
                f"{name} must have shape {tuple(shape)}, as start is {tuple(start.shape)}; got {tuple(tensor.shape)}"
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
    """Count the spans that begin at each token."""
    # Spans (i, i), …, (i, i + reach - 1) are valid, and no other that begins at i.
    tokens = mask.shape[1]
    position = torch.arange(tokens, device=mask.device)
    barrier = ~mask  # a span that began earlier ends before such a token
    if segments is not None:
        barrier = barrier | pad(segments[:, 1:] != segments[:, :-1], (1, 0))
    barriers = pad(torch.where(barrier, position, tokens)[:, 1:], (0, 1), value=tokens)
    following = barriers.flip(1).cummin(1).values.flip(1)
    return (following - position).clamp(max=length) * mask


def product_attention(
    tokens: Tensor,
    start: Tensor,
    end: Tensor,
    project: Callable[[Tensor], Tensor],
    scorer: Tensor,
    mask: Tensor,
    max_span_length: int | None = None,
) -> SpanAttention:
    """Attend over all spans (i, j), i ≤ j, with vectors ``tanh(start_i + end_j + project(token_i ∘ token_j))``."""
    # The paper's W₄ (hᵢ ∘ hⱼ), which the authors' code does not compute. The spans of one length are computed at a
    # time, and again in the backward pass: the memory is that of one length, and of a vector for each length and text.

    def of_one_length(tokens: Tensor, start: Tensor, end: Tensor, inside: Tensor) -> tuple[Tensor, Tensor]:
        """Return the scores of the spans, and the mean of their vectors weighted among themselves."""
        count, offset = inside.shape[1], tokens.shape[1] - inside.shape[1]
        vectors = start[:, :count] + end[:, offset:] + project(tokens[:, :count] * tokens[:, offset:])
        with torch.autocast(tokens.device.type, enabled=False):
            vectors = precise(vectors).tanh()
            scores = vectors @ scorer.to(vectors.dtype)
            return scores, torch.einsum("bi,bid->bd", _softmax(scores, inside), vectors)

    length = mask.shape[1]
    breaks = (~mask).cumsum(dim=1)
    scores, means, valid = [], [], []
    for offset in range(min(length, max_span_length or length)):
        count = length - offset
        inside = mask[:, :count] & (breaks[:, offset:] == breaks[:, :count])
        score, mean = checkpoint(
            of_one_length, tokens, start, end, inside, use_reentrant=False, preserve_rng_state=False
        )
        scores.append(pad(score, (0, offset)))
        means.append(mean)
        valid.append(pad(inside, (0, offset)))
    weights = _softmax(torch.stack(scores, dim=2).flatten(1), torch.stack(valid, dim=2).flatten(1))
    weights = weights.unflatten(1, (length, -1))
    # A length's weighted mean times its share of all weights is its weighted sum.
    pooled = torch.einsum("bk,bkd->bd", weights.sum(dim=1), torch.stack(means, dim=1))
    return SpanAttention(pooled.to(start.dtype), weights, weights.square().sum(dim=(1, 2)))


def _softmax(scores: Tensor, valid: Tensor) -> Tensor:
    """Softmax over the last dimension among the valid entries; 0 for all others, and for all where none is valid."""
    lowest = torch.finfo(scores.dtype).min
    return scores.masked_fill(~valid, lowest).softmax(dim=-1).masked_fill(~valid, 0.0)
