"""Which words of two texts correspond: the arithmetic, on vectors of words."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

# Chosen on the dev pairs of MultiMWA (MTRef), with all-MiniLM-L6-v2, all-mpnet-base-v2 and mini-bert-en together.
SUPPORT = 0.15  # what a neighboring link adds to a similarity
NULL = 0.2  # evidence that a word needs, to have a counterpart
_TEMPERATURE = 0.1
_ROUNDS = 3
_PRIOR = 4.0  # words whose mean is taken to be zero: that of two or three says little about all the model's


def middle_layers(count: int) -> list[int]:
    """Return the middle third of layers 1 to L, of ``count`` states that begin with the embeddings (state 0)."""
    # The first layers know words but not which of two equal ones is meant; the last ones know the whole text only.
    last = count - 1
    first = math.ceil(last / 3)
    return list(range(first, max(first, 2 * last // 3) + 1))


def similarities(first: Array, second: Array) -> Array:
    """Return cosines ``(n, m)`` of words ``(L, n, d)`` and ``(L, m, d)`` less their mean, averaged over layers L."""
    # What all words have in common, and encoders give them much of it, would say that everything corresponds.
    count = first.shape[1] + second.shape[1]
    common = (first.sum(1, keepdims=True) + second.sum(1, keepdims=True)) / (count + _PRIOR)
    one, other = (_unit(words - common) for words in (first, second))
    return np.asarray(np.einsum("lnd,lmd->nm", one, other) / len(first))


def evidence(similarity: Array) -> Array:
    """Return similarities ``(n, m)`` with what neighbors add: words next to counterparts rather are counterparts."""
    found = similarity
    for _ in range(_ROUNDS):
        likely = np.pad(choices(found), 1)
        found = similarity + SUPPORT * (likely[:-2, :-2] + likely[2:, 2:])
    return found


def choices(scores: Array) -> Array:
    """Return how likely two words choose each other, when each may also choose none, ``(n, m)`` from 0 to 1."""
    weights = np.exp((scores - NULL) / _TEMPERATURE)
    return np.asarray(weights / np.sqrt((1 + weights.sum(1, keepdims=True)) * (1 + weights.sum(0, keepdims=True))))


def counterparts(scores: Array) -> set[tuple[int, int]]:
    """Return the pairs of words that are each other's best, and better than none."""
    best, best_of = scores.argmax(1), scores.argmax(0)
    return {(i, int(j)) for i, j in enumerate(best) if best_of[j] == i and scores[i, j] > NULL}


def inside_phrases(links: set[tuple[int, int]], similarity: Array) -> set[tuple[int, int]]:
    """Return links of words without counterpart that stand between two whose counterparts are neighbors."""
    # "boy" in "a young boy" meets "child" in "a child", and "young" is a part of it.
    turned = {(j, i) for i, j in links}
    return {*_between(links, similarity), *((i, j) for j, i in _between(turned, similarity.T))}


def _between(links: set[tuple[int, int]], similarity: Array) -> Iterator[tuple[int, int]]:
    own = dict(links)  # each word has one counterpart at most
    for word in range(1, len(similarity) - 1):
        if word in own or word - 1 not in own or word + 1 not in own:
            continue
        left, right = own[word - 1], own[word + 1]
        if right - left == 1:
            better = max((left, right), key=lambda other: (similarity[word, other], -other))
            if similarity[word, better] > 0:
                yield word, better


def _unit(vectors: Array) -> Array:
    return np.asarray(vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12))
