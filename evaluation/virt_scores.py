"""Scores of pair tasks with bootstrap intervals: accuracy, F1 and Spearman, on resamples that all rows share."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from st_plugins.evaluators.statistics import bootstrap, interval, resample_counts, spearman

__all__ = ["CONFIDENCE", "SAMPLES", "score", "unpacked"]

Array = NDArray[np.float64]

SAMPLES = 1000
CONFIDENCE = 0.95


def f1(gold: Array, found: Array, positive: int, counts: Array) -> Array:
    """Return the F1 of one class on weighted pairs; 0 where the class neither occurs nor is found.

    Args:
        gold: Classes, shape (N,).
        found: Predicted classes, shape (N,).
        positive: The class.
        counts: How often each pair counts, shape (B, N).

    Returns:
        One F1 for each row of counts.

    Example:
        >>> f1(np.array([1, 1, 0]), np.array([1, 0, 0]), 1, np.ones((1, 3))).round(4).tolist()
        [0.6667]
    """
    both = counts @ ((gold == positive) & (found == positive))
    either = counts @ (gold == positive) + counts @ (found == positive)
    found_f1: Array = np.divide(2 * both, either, out=np.zeros(len(counts)), where=either > 0)
    return found_f1


def score(name: str, gold: Array, found: Array, positive: int | None = None, classes: bool = True) -> dict[str, Any]:
    """Score answers against gold labels.

    Resamples depend on the name of the set alone, so the differences between two results of one set are paired.

    Args:
        name: Name of the set.
        gold: Classes or scores, shape (N,).
        found: What was answered, shape (N,).
        positive: Class whose F1 is wanted.
        classes: Whether they are classes.

    Returns:
        ``metric``, ``value`` with its interval, and ``resamples``: the value on each, times 10,000, as text.

    Example:
        >>> found = score("toy", np.array([0, 1, 1, 0]), np.array([0, 1, 0, 0]), positive=1)
        >>> found["metric"], found["value"][0], round(found["f1"][0], 4), len(unpacked(found))
        ('accuracy', 0.75, 0.6667, 1000)
    """
    gold, found = np.asarray(gold, dtype=np.float64), np.asarray(found, dtype=np.float64)
    counts = resample_counts(len(gold), SAMPLES, name, seed=0)
    result: dict[str, Any] = {"metric": "accuracy" if classes else "spearman", "pairs": len(gold)}
    if not classes:
        value, resamples = spearman(gold, found), bootstrap(gold, found[None], counts)[0][0]
    else:
        hits = (gold == found).astype(np.float64)
        value, resamples = float(hits.mean()), counts @ hits / len(gold)
        if positive is not None:
            whole = float(f1(gold, found, positive, np.ones((1, len(gold))))[0])
            result["f1"] = _triple(whole, f1(gold, found, positive, counts.astype(np.float64)))
    result["value"] = _triple(value, resamples)
    # Ten thousandths, so that differences of two rows can be judged without the data.
    result["resamples"] = " ".join("nan" if np.isnan(number) else f"{1e4 * number:.0f}" for number in resamples)
    return result


def unpacked(result: dict[str, Any]) -> Array:
    """Return the resamples of a result.

    Args:
        result: What ``score`` returned.

    Returns:
        The value on each resample, shape (B,).
    """
    return np.array(result["resamples"].split(), dtype=np.float64) / 1e4


def _triple(value: float, resamples: Array) -> list[float]:
    found = interval(value, resamples, CONFIDENCE)
    return [found.value, found.low, found.high]
