"""How links of words are judged by people's: a plain protocol, the official scores of iSTS, and those of MultiMWA."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Collection, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from st_plugins.core.reading.content import read_lines

Array = NDArray[np.float64]
WordLink = tuple[int, int]
"""A word of the first text and one of the second."""

MEASURES = ("Ali", "Type", "Score", "Typ+Sco no_penalty", "Typ+Sco penalty")
_DROPPED = frozenset(". , : ' ` ? ; \" -".split())  # tokens that the organisers' scripts do not look at
_LOOSE = ("SIMI", "SPE", "REL")


@dataclass(frozen=True)
class Aligned:
    """Two chunks that belong together, or one that has no counterpart."""

    first: tuple[int, ...]
    second: tuple[int, ...]
    type: str = "EQUI"
    score: float = 5.0


@dataclass(frozen=True)
class Pair:
    """Two texts as words, and what people aligned: chunks of them (iSTS) or single words (MultiMWA)."""

    first: tuple[str, ...]
    second: tuple[str, ...]
    alignments: tuple[Aligned, ...] = ()
    sure: frozenset[WordLink] = frozenset()
    possible: frozenset[WordLink] = frozenset()

    @property
    def chunks(self) -> tuple[list[tuple[int, ...]], list[tuple[int, ...]]]:
        """The chunks of both texts; one with two partners counts once."""
        sides = ([getattr(one, side) for one in self.alignments] for side in ("first", "second"))
        first, second = ([chunk for chunk in dict.fromkeys(side) if chunk] for side in sides)
        return first, second

    @property
    def linked(self) -> frozenset[WordLink]:
        """All pairs of words of aligned chunks."""
        return frozenset((i, j) for one in self.alignments for i in one.first for j in one.second)


def read_pairs(path: Path) -> list[Pair]:
    """Read a file of iSTS or MultiMWA, in an order of its own that is always the same."""
    rows = [json.loads(line) for line in read_lines(path)]
    # The order of the published protocol, whose first pairs are the ones that figures of others are about.
    random.Random(0).shuffle(rows)  # noqa: S311
    return [_pair(row) for row in rows]


def _pair(row: Mapping[str, Any]) -> Pair:
    alignments = tuple(
        Aligned(tuple(one["first"]), tuple(one["second"]), one["type"], 0.0 if one["score"] is None else one["score"])
        for one in row.get("alignments", ())
    )
    sure, possible = (frozenset((i, j) for i, j in row.get(key, ())) for key in ("sure", "possible"))
    return Pair(tuple(row["tokens1"]), tuple(row["tokens2"]), alignments, sure, possible)


def same_words(pair: Pair) -> frozenset[WordLink]:
    """WordLink each word of the first text to the first equal one of the second that is free, case ignored."""
    free = {place: word.lower() for place, word in enumerate(pair.second)}
    found = set()
    for i, word in enumerate(pair.first):
        j = next((place for place, other in free.items() if other == word.lower()), None)
        if j is not None:
            del free[j]
            found.add((i, j))
    return frozenset(found)


# What follows returns, a pair, the numerator and the denominator of precision, and those of recall: of averages over
# pairs the denominators are 1. Sums of them over any pairs, drawn again or not, give their F1.


def f1(sums: Array) -> Array:
    """Return F1, precision and recall ``(3, B)`` of sums ``(B, 4)``; 0 where nothing can be divided."""
    ratios = np.divide(sums[:, ::2], sums[:, 1::2], out=np.zeros((len(sums), 2)), where=sums[:, 1::2] > 0)
    both = ratios.sum(axis=1)
    value = np.divide(2 * ratios.prod(axis=1), both, out=np.zeros(len(sums)), where=both > 0)
    return np.stack([value, *ratios.T])


def by_words(links: Set[WordLink], gold: Set[WordLink]) -> list[float]:
    """Score by the plain protocol: links that are right, and aligned words of both texts that got a right link."""
    hits = links & gold
    right, aligned = (len({i for i, _ in found}) + len({j for _, j in found}) for found in (hits, gold))
    return [len(hits) / max(len(links), 1), 1.0, right / aligned, 1.0]


def by_links(links: Set[WordLink], gold: Set[WordLink]) -> list[float]:
    """Score as MultiMWA does: nothing said is right where there is nothing, and wrong elsewhere."""
    if not links or not gold:
        return [float(not links and not gold), 1.0] * 2
    hits = len(links & gold)
    return [hits / len(links), 1.0, hits / len(gold), 1.0]


def official(pair: Pair, system: Collection[Aligned]) -> dict[str, list[float]]:
    """Score alignments of chunks as the organisers of iSTS do, by measure."""
    found, gold = _typed_links(pair, system), _typed_links(pair, pair.alignments)
    own, true = _weights(found), _weights(gold)
    parts = {measure: [0.0, sum(own.values()), 0.0, sum(true.values())] for measure in MEASURES}
    for link in found.keys() & gold.keys():
        for measure, agreed in _agreement(*found[link], *gold[link]).items():
            parts[measure][0] += own[link] * agreed
            parts[measure][2] += true[link] * agreed
    return parts


Labels = frozenset[str]


def _typed_links(pair: Pair, alignments: Collection[Aligned]) -> dict[WordLink, tuple[Labels, float]]:
    """Return the links of alignments with their labels and score; of equal links the last one holds."""
    return {
        (i, j): (frozenset(one.type.upper().split("_")), one.score)
        for one in alignments
        for i in one.first
        for j in one.second
        if pair.first[i] not in _DROPPED and pair.second[j] not in _DROPPED
    }


def _weights(links: Collection[WordLink]) -> dict[WordLink, float]:
    first, second = Counter(i for i, _ in links), Counter(j for _, j in links)
    return {(i, j): 1 / max(first[i], second[j]) for i, j in links}


def _agreement(labels: Labels, score: float, others: Labels, other_score: float) -> dict[str, float]:
    jaccard = len(labels & others) / len(labels | others)
    near = 1 - abs(score - other_score) / 5
    sides = ((labels, others, other_score), (others, labels, score))
    equal = any(_begins(one, "EQUI") and _begins(other, "SIMI", "SPE") and far >= 4 for one, other, far in sides)
    apart = not any(_begins({label}, *_LOOSE) for label in labels & others)
    loose = _begins(labels, *_LOOSE) and _begins(others, *_LOOSE) and apart and max(score, other_score) < 3
    # The published script that is called "penalty" forgives types that are hard to tell apart.
    forgiven = (1 + len(labels & others)) / (len(labels | others) - 1) if equal or loose else jaccard
    return dict(zip(MEASURES, (1.0, jaccard, near, jaccard * near, forgiven * near), strict=True))


def _begins(labels: Collection[str], *starts: str) -> bool:
    return any(label.startswith(starts) for label in labels)


def pair_chunks(
    first: Sequence[Sequence[int]], second: Sequence[Sequence[int]], strengths: Mapping[WordLink, float]
) -> list[Aligned]:
    """Pair given chunks one to one so that the links of words inside the pairs are as strong as can be, all together.

    A chunk that no link leads to stays without a counterpart, so nothing has to be chosen.
    """
    table = np.zeros((len(first), len(second)))
    places, others = (
        {word: place for place, chunk in enumerate(chunks) for word in chunk} for chunks in (first, second)
    )
    for (i, j), strength in strengths.items():
        if i in places and j in others:
            table[places[i], others[j]] += max(strength, 0.0)
    best = np.transpose(linear_sum_assignment(table, maximize=True)).tolist()
    return [Aligned(tuple(first[row]), tuple(second[column])) for row, column in best if table[row, column] > 0]
