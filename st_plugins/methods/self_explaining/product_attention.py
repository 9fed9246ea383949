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
    """Attend over all spans (i, j), i ≤ j, with vectors ``tanh(start_i + end_j + project(token_i ∘ token_j))``.

    The spans of one length are computed at a time, and again in the backward pass, so the memory is that of one
    length, and of a vector for each length and text. Scores and sums are float32 at least.

    Args:
        tokens: Token embeddings, finite everywhere, ``(B, n, d)``.
        start: What tokens contribute as first token of a span, ``(B, n, d)``.
        end: What they contribute as last token, ``(B, n, d)``.
        project: From ``(…, d)`` to ``(…, d)``.
        scorer: Weight vector of the score, ``(d,)``.
        mask: ``(B, n)`` bool: the tokens that may be in a span; a span has no other token inside.
        max_span_length: Longest span in tokens; None sets no limit.

    Returns:
        As `st_plugins.methods.self_explaining.span_attention`.

    Example:
        >>> tokens = torch.eye(4)[None, :3]
        >>> mask = torch.tensor([[True, True, False]])
        >>> result = product_attention(tokens, tokens, tokens, lambda x: 0 * x, torch.ones(4), mask)
        >>> [[round(value, 3) for value in row] for row in result.weights[0].tolist()]
        [[0.267, 0.467, 0.0], [0.267, 0.0, 0.0], [0.0, 0.0, 0.0]]

    Reference:
        Sun et al., "Self-Explaining Structures Improve NLP Models" (2020), arXiv 2012.01786, section 3: the paper's
        ``W₄ (hᵢ ∘ hⱼ)``, which the authors' code does not compute.
    """

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
