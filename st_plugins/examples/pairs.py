"""What the third and the fourth example learn and are judged on: does a sentence follow from another one?"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from st_plugins import miniature
from st_plugins.evaluation.statistics import resample_counts

Pair = tuple[str, str, int]

_MOST_WORDS = 9


def entailment_pairs(drawn: int, seed: int = 0) -> list[Pair]:
    """Make pairs of short sentences of which the second follows from the first, and as many of which it does not."""
    # About a quarter of what is drawn is short enough and evenly divided.
    found = {(first, second): label for first, second, label in miniature.nli_pairs(drawn, seed)}
    short = [
        (first, second, int(label == "entailment"))
        for (first, second), label in found.items()
        if max(len(first.split()), len(second.split())) <= _MOST_WORDS
    ]
    sides = ([pair for pair in short if pair[2]], [pair for pair in short if not pair[2]])
    return [pair for both in zip(*sides, strict=False) for pair in both]


def resampled_share(hits: Sequence[float] | NDArray, name: str, seed: int) -> NDArray[np.float64]:
    """Return the mean of a number a pair, in 1,000 bootstrap resamples of the pairs."""
    values = np.asarray(hits, dtype=np.float64)
    return resample_counts(len(values), 1000, name, seed) @ values / len(values)
