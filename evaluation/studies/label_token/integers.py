"""Readable pairs turned into anonymous ones."""

from __future__ import annotations

import re

import numpy as np

from st_plugins.matching import AnonymizedPairs

Source = tuple[list[str], list[str], list[str]]
"""First texts, second texts, labels."""


def as_integers(sets: dict[str, Source], seed: int) -> dict[str, AnonymizedPairs]:
    """Replace words by integers, the same ones in all sets: the position of each in a shuffled list of all words."""
    words = sorted({word for *sides, _ in sets.values() for side in sides for text in side for word in words_of(text)})
    places = np.random.default_rng(seed).permutation(len(words)).tolist()
    integer = {word: str(place) for word, place in zip(words, places, strict=True)}

    def coded(texts: list[str]) -> list[str]:
        return [" ".join(integer[word] for word in words_of(text)) for text in texts]

    return {name: AnonymizedPairs(coded(a), coded(b), labels) for name, (a, b, labels) in sets.items()}


def words_of(text: str) -> list[str]:
    """Return the words and punctuation marks of a text, in lower case."""
    return re.findall(r"\w+|[^\w\s]", text.lower())
