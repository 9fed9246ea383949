"""Attention over spans with the paper's multiplicative term, which costs a matrix product for each span."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import pad
from torch.utils.checkpoint import checkpoint

from st_plugins.methods.self_explaining.span_attention import SpanAttention

__all__ = ["product_attention"]


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

    def of_one_length(tokens: Tensor, start: Tensor, end: Tensor, inside: Tensor) -> tuple[Tensor, Tensor]:
        """Return the scores of the spans, and the mean of their vectors weighted among themselves."""
        count, offset = inside.shape[1], tokens.shape[1] - inside.shape[1]
        vectors = start[:, :count] + end[:, offset:] + project(tokens[:, :count] * tokens[:, offset:])
        with torch.autocast(tokens.device.type, enabled=False):
            vectors = vectors.to(torch.promote_types(vectors.dtype, torch.float32)).tanh()
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
