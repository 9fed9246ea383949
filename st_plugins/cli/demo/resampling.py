"""Means with their bootstrap intervals, and differences of two means on the same resamples."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from st_plugins.evaluation.result import Difference, Score
from st_plugins.evaluation.statistics import difference, interval, resample_counts

Values = Sequence[float] | NDArray[np.float64]

CONFIDENCE, _SAMPLES = 0.95, 1000


def mean_of(values: Values, name: str, seed: int) -> Score:
    """Return the mean with its interval."""
    return interval(float(np.mean(values)), _resampled(values, name, seed), CONFIDENCE)


def difference_of(first: Values, second: Values, name: str, seed: int) -> Difference:
    """Return by how much the first mean is higher; both have a value for each of the same units."""
    gained = np.asarray(first, dtype=np.float64) - np.asarray(second, dtype=np.float64)
    return difference(float(gained.mean()), _resampled(gained, name, seed), CONFIDENCE)


def percents(score: Score | Difference, sign: bool = False) -> str:
    """Return a score and its interval, times 100."""
    value, low, high = (f"{100 * one:{'+' if sign else ''}.1f}" for one in (score.value, score.low, score.high))
    return f"{value} [{low}, {high}]"


def _resampled(values: Values, name: str, seed: int) -> NDArray[np.float64]:
    numbers = np.asarray(values, dtype=np.float64)
    return np.asarray(resample_counts(len(numbers), _SAMPLES, name, seed) @ numbers / len(numbers))
