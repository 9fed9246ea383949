"""Contributions added up to words: which of them count in a similarity."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from st_plugins.explain.alignment import Alignment
from st_plugins.explain.spans import Span

View = Literal["interaction", "contribution"]


class AlignedPair(NamedTuple):
    """A span of each text, and what they add to the similarity.

    Args:
        first: Of the first text.
        second: Of the second text.
        contribution: Their entry of the contributions.
        interaction: The part of it that the two have in common beyond what each adds by itself.

    Example:
        >>> from st_plugins.miniature import untrained_encoder
        >>> from st_plugins.explain import explain_pair
        >>> found = explain_pair(untrained_encoder(), "A happy dog sleeps.", "The cat is asleep.")
        >>> found.top_pairs[0].interaction >= found.top_pairs[1].interaction
        True
    """

    first: Span
    second: Span
    contribution: float
    interaction: float


class Gathered(NamedTuple):
    """Contributions of words, sentences or tokens.

    Args:
        first: Those of the first text.
        second: Those of the second text.
        contributions: ``(units of the first, units of the second)``, float64.
        interaction: The part of them that two units have in common, of the same shape.

    Example:
        >>> from st_plugins.miniature import untrained_encoder
        >>> from st_plugins.explain import explain_pair
        >>> found = explain_pair(untrained_encoder(), "A happy dog sleeps.", "The cat is asleep.")
        >>> round(float(found.gathered("sentence").contributions.sum() - found.contributions.sum()), 9) + 0.0
        0.0
    """

    first: tuple[Span, ...]
    second: tuple[Span, ...]
    contributions: NDArray[np.float64]
    interaction: NDArray[np.float64]


def by_phrase(words: Gathered, alignment: Alignment | None) -> Gathered:
    """Add the contributions of words up to phrases: words in a row that correspond to the same."""
    if alignment is None or alignment.by != "word":
        raise ValueError("phrases are words that correspond to the same; explain with by='phrase' or by='word'")
    numbers: tuple[dict[tuple[int, int], int], ...] = ({}, {})
    for number, phrase in enumerate(alignment.phrases, 1):
        for side, found in zip(numbers, (phrase.first, phrase.second), strict=True):
            side.update(((word.first, word.last), number) for word in found)
    first, one = _phrases(words.first, numbers[0], alignment.texts[0])
    second, other = _phrases(words.second, numbers[1], alignment.texts[1])
    tables = (np.asarray(one @ table @ other.T) for table in (words.contributions, words.interaction))
    return Gathered(first, second, *tables)


def _phrases(
    words: Sequence[Span], numbers: Mapping[tuple[int, int], int], text: str
) -> tuple[tuple[Span, ...], NDArray[np.float64]]:
    """Return the phrases of a text and which words each has, ``(phrases, words)``, 1 or 0."""
    # A word without counterpart stands for itself.
    names = [numbers.get((word.first, word.last), -place) for place, word in enumerate(words)]
    groups = [list(members) for _, members in groupby(range(len(words)), key=lambda place: names[place])]
    table = np.zeros((len(groups), len(words)))
    for row, members in zip(table, groups, strict=True):
        row[members] = 1.0
    return tuple(_joined([words[place] for place in members], text) for members in groups), table


def _joined(words: Sequence[Span], text: str) -> Span:
    head, tail = words[0], words[-1]
    if len(words) == 1:
        return head
    told = head.start is not None and tail.end is not None
    written = text[head.start : tail.end] if told else " ".join(word.text for word in words)
    return Span(written, head.start, tail.end, head.first, tail.last, sum(word.weight for word in words), head.kind)
