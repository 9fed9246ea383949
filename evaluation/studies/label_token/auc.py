"""The area under the ROC curve, with its bootstrap."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from evaluation.engine.pairs import Array
from evaluation.engine.scores import counts_of, resampled

__all__ = ["auc", "score_auc"]

_ROWS_AT_A_TIME = 100


def auc(gold: NDArray[Any], found: Array, counts: NDArray[Any]) -> Array:
    """Return the area of weighted pairs, ties counted half, for each row of counts (B, N); NaN for one class."""
    order = np.argsort(found, kind="stable")
    starts = np.flatnonzero(np.concatenate([[True], np.diff(found[order]) > 0]))
    positive = (np.asarray(gold)[order] == 1).astype(np.float64)
    values = np.full(len(counts), np.nan)
    # A block at a time: all resamples of a large set at once would need gigabytes.
    for begin in range(0, len(counts), _ROWS_AT_A_TIME):
        rows = slice(begin, begin + _ROWS_AT_A_TIME)
        block = counts[rows].take(order, axis=1).astype(np.float64)
        matches = np.add.reduceat(block * positive, starts, axis=1)
        others = np.add.reduceat(block * (1 - positive), starts, axis=1)
        won = (matches * (others.cumsum(axis=1) - others / 2)).sum(axis=1)
        compared = matches.sum(axis=1) * others.sum(axis=1)
        values[rows] = np.divide(won, compared, out=np.full_like(won, np.nan), where=compared > 0)
    return values


def score_auc(name: str, gold: NDArray[Any], found: Array) -> dict[str, Any]:
    """Score a row by gold (1 for a match) and scores."""
    value = float(auc(gold, found, np.ones((1, len(gold))))[0])
    return resampled(value, auc(gold, found, counts_of(len(gold), name)), metric="auc", pairs=len(gold))
