"""What an explanation of a similarity says when it is read as links of words, or as what each token is worth."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer

from evaluation.studies.explain.scoring import Array, Pair, WordLink, same_words
from st_plugins.explain import Link, PairExplanation, Span, Token, explain_pair
from st_plugins.explain.inner.seen import see

Covers = NDArray[np.bool_]


class Linked(NamedTuple):
    """Links of words, and how strong each pair of words is; -inf for words that the model did not read."""

    links: frozenset[WordLink]
    strengths: Array


def mutual_best(strengths: Array) -> Linked:
    """Link words that are each other's strongest."""
    rows, columns = strengths.argmax(axis=1), strengths.argmax(axis=0)
    found = {(i, int(j)) for i, j in enumerate(rows) if columns[j] == i}
    return Linked(frozenset(found), strengths)


def covers(words: Sequence[str], tokens: Sequence[Token | Span]) -> Covers:
    """Return ``(words, tokens)``: which tokens have characters of which words, these joined by one space."""
    ends = np.cumsum([len(word) + 1 for word in words]) - 1
    starts = ends - [len(word) for word in words]
    # A token without characters covers none: its span lies before the text.
    spans = np.array([(token.start, token.end) if token.start is not None else (-1, -1) for token in tokens])
    spans = spans.reshape(-1, 2)
    return np.asarray((spans[:, 0] < ends[:, None]) & (spans[:, 1] > starts[:, None]))


def views(model: SentenceTransformer, pair: Pair) -> dict[str, Linked]:
    """Return what every view says of a pair, those of single layers included."""
    explanation = explain_pair(model, " ".join(pair.first), " ".join(pair.second))
    return {
        "contributions": _summed(pair, explanation, explanation.contributions),
        "interaction": _summed(pair, explanation, explanation.interaction),
        "same word": _same_word(pair),
        **_layer_views(model, pair),
        "alignment": _aligned(pair, explanation),
    }


def _summed(pair: Pair, explanation: PairExplanation, table: Array) -> Linked:
    """Add what pairs of tokens have up to pairs of words."""
    first, second = covers(pair.first, explanation.first.spans), covers(pair.second, explanation.second.spans)
    return mutual_best(np.where(np.outer(first.any(1), second.any(1)), first @ table @ second.T, -np.inf))


def _same_word(pair: Pair) -> Linked:
    links, table = same_words(pair), np.zeros((len(pair.first), len(pair.second)))
    for link in links:
        table[link] = 1.0
    return Linked(links, table)


def _aligned(pair: Pair, explanation: PairExplanation) -> Linked:
    """Take the alignment's own links; its words may be parts of a word here, which is all that is between spaces."""
    table = np.zeros((len(pair.first), len(pair.second)))
    links: set[WordLink] = set()
    found = _links(explanation)
    first, second = (
        covers(pair.first, [link.first for link in found]),
        covers(pair.second, [link.second for link in found]),
    )
    for place, link in enumerate(found):
        for i, j in product(np.flatnonzero(first[:, place]), np.flatnonzero(second[:, place])):
            links.add((int(i), int(j)))
            table[i, j] += link.strength
    return Linked(frozenset(links), table)


def _links(explanation: PairExplanation) -> Sequence[Link]:
    return explanation.alignment.links if explanation.alignment is not None else ()


def _layer_views(model: SentenceTransformer, pair: Pair) -> dict[str, Linked]:
    """Return the mutual best by the cosine of token vectors in each layer, as they are and centered."""
    found = {}
    one, other = see(model, [" ".join(pair.first), " ".join(pair.second)], layers=True)
    first, second = covers(pair.first, one.reading.tokens), covers(pair.second, other.reading.tokens)
    layers = (seen.layers.double().cpu().numpy() for seen in (one, other) if seen.layers is not None)
    for number, sides in enumerate(zip(*layers, strict=True)):
        center = np.concatenate(sides).mean(axis=0)
        for name, vectors in (("cosine", sides), ("centered cosine", [side - center for side in sides])):
            unit, others = map(_unit, vectors)
            table = _strongest(_strongest(unit @ others.T, first).T, second).T
            found[f"{name}, layer {number}"] = mutual_best(table)
    return found


def _unit(vectors: Array) -> Array:
    return np.asarray(vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12))


def _strongest(table: Array, covered: Covers) -> Array:
    """Return for each word the strongest of its tokens, a row each."""
    return np.stack([table[row].max(axis=0) if row.any() else np.full(table.shape[1], -np.inf) for row in covered])


def saliencies(model: SentenceTransformer, first: str, second: str) -> dict[str, tuple[Array, Array]]:
    """Return by view what each token of both texts is worth."""
    found = explain_pair(model, first, second)
    # What a token has in common with any; what it lacks is no reason to keep it.
    common = np.maximum(found.first.spread().T @ found.interaction @ found.second.spread(), 0.0)
    one, other = np.zeros(len(common)), np.zeros(len(common.T))
    # A word is worth its strongest link, and so is each of its tokens.
    for link in _links(found):
        for worth, word in ((one, link.first), (other, link.second)):
            own = worth[word.first : word.last + 1]
            np.maximum(own, link.strength, out=own)
    return {
        "contributions": (found.first_saliency, found.second_saliency),
        "interaction": (common.sum(axis=1), common.sum(axis=0)),
        "alignment": (one, other),
    }
