"""Scores of pair tasks with bootstrap intervals, on resamples that all rows and studies share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from st_plugins.core.pair_metrics import measure
from st_plugins.evaluation.statistics import bootstrap, interval, resample_counts, spearman

__all__ = ["CONFIDENCE", "SAMPLES", "ranking_score", "score", "unpacked"]

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
    result["resamples"] = _packed(resamples)
    return result


def ranking_score(name: str, queries: Sequence[str], gold: Array, found: Array) -> dict[str, Any]:
    """Score how answers rank the second texts of each first one: mean average precision, and mean reciprocal rank.

    Queries that have not both right and wrong second texts are left out, as usual. Of equal scores the wrong text
    counts as the better placed. Whole queries are drawn again, not pairs; otherwise as for `score`.

    Args:
        name: Name of the set.
        queries: First texts, N.
        gold: 1 for a right second text, otherwise 0, shape (N,).
        found: What was answered, shape (N,).

    Returns:
        As for `score`, with ``mrr`` beside, and ``queries``, the number that count.

    Raises:
        ValueError: No query has both right and wrong second texts.

    Example:
        >>> found = ranking_score("toy", ["q", "q", "q", "p"], np.array([0, 1, 0, 1]), np.array([0.9, 0.5, 0.1, 0.2]))
        >>> found["metric"], found["value"][0], found["mrr"][0], found["queries"]
        ('map', 0.5, 0.5, 1)
    """
    gold, found = np.asarray(gold, dtype=np.float64), np.asarray(found, dtype=np.float64)
    rows: dict[str, list[int]] = {}
    for row, query in enumerate(queries):
        rows.setdefault(query, []).append(row)
    kept = [chosen for chosen in rows.values() if 0 < gold[chosen].sum() < len(chosen)]
    if not kept:
        raise ValueError(f"{name}: no query has both right and wrong second texts")
    counts = resample_counts(len(kept), SAMPLES, name, seed=0)
    result: dict[str, Any] = {"metric": "map", "pairs": len(gold), "queries": len(kept)}
    for metric, key in (("mrr", "mrr"), ("map", "value")):
        values = np.array([measure(metric, found[row, None], gold[row], [""] * len(row)) for row in kept])
        resamples = counts @ values / len(kept)
        result[key] = _triple(float(values.mean()), resamples)
    result["resamples"] = _packed(resamples)
    return result


def unpacked(result: dict[str, Any]) -> Array:
    """Return the resamples of a result.

    Args:
        result: What ``score`` returned.

    Returns:
        The value on each resample, shape (B,).
    """
    return np.array(result["resamples"].split(), dtype=np.float64) / 1e4


def _packed(resamples: Array) -> str:
    """Write ten thousandths, so that differences of two rows can be judged without the data."""
    return " ".join("nan" if np.isnan(number) else f"{1e4 * number:.0f}" for number in resamples)


def _triple(value: float, resamples: Array) -> list[float]:
    found = interval(value, resamples, CONFIDENCE)
    return [found.value, found.low, found.high]
