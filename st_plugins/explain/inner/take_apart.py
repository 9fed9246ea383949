"""Take an embedding apart: which spans or tokens it is a weighted sum of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling, StaticEmbedding
from torch import Tensor, nn

from st_plugins.core.host import evaluating
from st_plugins.explain.inner.reading import Reading, check_route
from st_plugins.explain.inner.seen import Seen
from st_plugins.explain.inner.tail import Tail
from st_plugins.explain.spans import Kind, Side, Span, Unit
from st_plugins.methods.self_explaining.span_pooling import SpanPooling

_POOLINGS = ("mean", "weightedmean", "mean_sqrt_len_tokens")
_SUPPORTED = (
    "SpanPooling, Pooling with pooling_mode 'mean', 'weightedmean' or 'mean_sqrt_len_tokens', and StaticEmbedding"
)


@dataclass(frozen=True)
class Parts:
    """An embedding as a sum."""

    side: Side
    unit: Unit
    vectors: Tensor  # (S, k), float64: shares of the embedding, through all modules; their sum is the embedding
    alone: Tensor  # the same, had each part passed activations by itself
    saliency: NDArray[np.float64]  # (n,), over tokens; sums to 1
    sharpness: float  # sum of the squared weights
    embedding: Tensor  # (k,), what the model itself makes of the text
    exact: bool  # whether vectors involve no choice
    # Through the layers only, where the last vector is that of the reference:
    reference: str | None = None
    nodes: int = 0  # of the quadrature
    error: float = 0.0  # length of what the vectors miss of the embedding, of the embedding's length


def check_apart(model: SentenceTransformer) -> tuple[int, Tail]:
    """Return where the pooling is and what comes after it; refuse what cannot be taken apart before the model runs."""
    modules = list(model)
    check_route(modules[0])
    position = _pooling(modules)
    return position, Tail(modules[position + 1 :], model.truncate_dim)


def take_apart(model: SentenceTransformer, seen: Seen, limit: int) -> Parts:
    """Take the embedding of a text apart into spans (SpanPooling) or tokens (mean poolings)."""
    position, tail = check_apart(model)
    modules, reading = list(model), seen.reading
    # Of all the model only the pooling runs once more.
    with evaluating(modules[position]), torch.no_grad():
        pooled = _pool(modules[position], dict(seen.features))
        # n tokens have n (n + 1) / 2 spans: only the heaviest get a vector, so that memory stays linear in the text.
        kept = np.sort(np.argsort(-pooled.weights, kind="stable")[:limit])
        vectors = pooled.vectors(kept).detach().double().cpu()
        whole = pooled.features["sentence_embedding"][0].double().cpu()
    if not bool(whole.isfinite().all() and seen.embedding.isfinite().all()):
        raise ValueError(
            f"the model gave NaN or infinity for the {reading.name} {reading.text[:80]!r}; try float32, or check the "
            "model's weights"
        )
    weights, count = pooled.weights, len(reading.tokens)
    shares = weights / weights.sum()
    saliency = _spread(pooled.first, pooled.last, shares, count)
    parts = torch.from_numpy(weights[kept])[:, None] * vectors
    spans = [_span(reading, int(pooled.first[k]), int(pooled.last[k]), float(weights[k])) for k in kept]
    left: tuple[float, ...] | None = None
    if len(kept) == len(weights):
        _check_sum(parts, whole, vectors, modules[position], model.dtype)
        kept_shares = shares
    else:
        # The rest is exact as a whole: its vector is the embedding minus the spans kept.
        parts = torch.cat([parts, (whole - parts.sum(0))[None]])
        rest = float(weights.sum() - weights[kept].sum())
        spans.append(Span(f"{len(weights) - len(kept):,} more", None, None, -1, -1, rest, "rest"))
        over = np.clip(saliency - _spread(pooled.first[kept], pooled.last[kept], shares[kept], count), 0.0, None)
        left = tuple((over / over.sum() if over.sum() > 0 else saliency).tolist())
        kept_shares = np.append(shares[kept], 1 - shares[kept].sum())
    share = torch.from_numpy(kept_shares)
    carried = tail(parts, share)
    return Parts(
        side=Side(reading.text, reading.tokens, tuple(spans), left, len(weights), reading.unread),
        unit=pooled.unit,
        vectors=carried,
        alone=carried if tail.exact else tail(parts, share, alone=True),
        saliency=saliency,
        sharpness=float(np.square(shares).sum()),
        embedding=seen.embedding,
        exact=tail.exact,
    )


def _span(reading: Reading, first: int, last: int, weight: float) -> Span:
    """Return the span of tokens ``first`` to ``last`` of a text."""
    head, tail = reading.tokens[first], reading.tokens[last]
    kind: Kind = head.kind if first == last else "text"
    if head.start is None or tail.end is None:
        words = " ".join(token.text for token in reading.tokens[first : last + 1])
        return Span(words, None, None, first, last, weight, kind)
    words = head.text if first == last else reading.text[head.start : tail.end]
    return Span(words, head.start, tail.end, first, last, weight, kind)


def _pooling(modules: Sequence[nn.Module]) -> int:
    """Return the position of the pooling, or say why there is none to take apart."""
    for position, module in enumerate(modules):
        if isinstance(module, SpanPooling) or (position == 0 and isinstance(module, StaticEmbedding)):
            return position
        if isinstance(module, Pooling):
            mode = module.pooling_mode
            if mode in _POOLINGS:
                return position
            reason = (
                f"pools with {mode!r}"
                if isinstance(mode, str)
                else f"concatenates the poolings {', '.join(map(repr, mode))}"
            )
            raise ValueError(
                f"the model {reason}, which is no weighted sum of parts of the text; explanations are exact for "
                f"{_SUPPORTED}; for the similarity of two texts depth='input' goes through any pooling"
            )
    names = ", ".join(type(module).__name__ for module in modules)
    raise ValueError(f"the model ({names}) has no pooling that can be taken apart; supported are {_SUPPORTED}")


@dataclass(frozen=True)
class _Pooled:
    """What a pooling did: the weight of each part, its first and last token, and how to get at the vectors of some."""

    unit: Unit
    weights: NDArray[np.float64]
    first: NDArray[np.intp]
    last: NDArray[np.intp]
    vectors: Callable[[NDArray[np.intp]], Tensor]
    features: dict[str, Any]


def _pool(pooling: nn.Module, features: dict[str, Any]) -> _Pooled:
    if isinstance(pooling, SpanPooling):
        # Returning the spans' weights is switched on for this one pass; the vectors are made from what went in.
        before = dict(features)
        with pooling.returning_spans():
            features = pooling(features)
        table = features["span_weights"][0].double().cpu().numpy()
        first, offset = np.nonzero(table)
        last = first + offset
        if not len(first):
            raise ValueError("the text has no span that SpanPooling may look at; give at least one ordinary word")

        def of_spans(kept: NDArray[np.intp]) -> Tensor:
            return pooling.span_vectors(before, torch.from_numpy(np.stack([first[kept], last[kept]], axis=1)))

        return _Pooled("span", table[first, offset], first, last, of_spans, features)
    if isinstance(pooling, StaticEmbedding):
        tokens = pooling.embedding.weight[features["input_ids"]]
        weights = np.full(len(tokens), 1 / len(tokens))
    else:
        tokens = features["token_embeddings"][0]
        # The unit vectors of the positions, pooled, are the weights: for every host version, prompt and padding.
        units = torch.eye(len(tokens), device=tokens.device)[None]
        weights = pooling({**features, "token_embeddings": units})["sentence_embedding"][0].double().cpu().numpy()
    used = np.flatnonzero(weights)
    if not len(used):
        raise ValueError("the pooling leaves out every token of the text, only the prompt is left; give a longer text")
    return _Pooled(
        "token", weights[used], used, used, lambda kept: tokens[torch.from_numpy(used[kept])], pooling(features)
    )


def _check_sum(parts: Tensor, whole: Tensor, vectors: Tensor, pooling: nn.Module, dtype: torch.dtype | None) -> None:
    """Refuse a pooling that is not the sum it should be (a subclass, say), instead of explaining something else."""
    # The weights are float64, the model's own sum is not: the gap may be some rounding errors of its own type.
    tolerance = 100 * torch.finfo(dtype or torch.float32).eps * float(vectors.abs().max())
    if float((parts.sum(0) - whole).abs().max()) > tolerance:
        raise ValueError(
            f"the output of {type(pooling).__name__} is not the weighted sum of its inputs; supported are {_SUPPORTED}"
        )


def _spread(
    first: NDArray[np.intp], last: NDArray[np.intp], values: NDArray[np.float64], count: int
) -> NDArray[np.float64]:
    """Spread each span's value evenly over its tokens and add up, ``(count,)``, in O(spans + count)."""
    # A span adds to where it begins and subtracts after where it ends; the running sum is the value at each token.
    each = values / (last - first + 1)
    change = np.zeros(count + 1)
    np.add.at(change, first, each)
    np.add.at(change, last + 1, -each)
    return np.clip(np.cumsum(change)[:count], 0.0, None)
