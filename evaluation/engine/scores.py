"""Scores of pairs with bootstrap intervals, on resamples that all rows and studies share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from evaluation.engine.pairs import Array
from st_plugins.core.pair_metrics import measure
from st_plugins.evaluation.statistics import bootstrap, interval, resample_counts, spearman

_SAMPLES = 1000
_SAMPLES_AT_A_TIME = 100
CONFIDENCE = 0.95


def _counts(count: int, name: str) -> Any:
    """Return how often each pair counts in each resample: by the name of the set alone, so that rows are paired."""
    return resample_counts(count, _SAMPLES, name, seed=0)


def _resampled(value: float, resamples: Array, **more: Any) -> dict[str, Any]:
    """Return a score with its interval, and in ten thousandths its resamples.

    With them differences of two rows can be judged without the data.
    """
    packed = " ".join("nan" if np.isnan(number) else f"{1e4 * number:.0f}" for number in resamples)
    return {**more, "value": _triple(value, resamples), "resamples": packed}


def unpacked(result: dict[str, Any]) -> Array:
    """Return the value on each resample, shape (B,)."""
    return np.array(result["resamples"].split(), dtype=np.float64) / 1e4


def _triple(value: float, resamples: Array) -> list[float]:
    found = interval(value, resamples, CONFIDENCE)
    return [found.value, found.low, found.high]


def average(found: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the mean of several scores as a score: that of their values, and that of each resample."""
    resamples = np.mean([unpacked(result) for result in found], axis=0)
    return _resampled(float(np.mean([result["value"][0] for result in found])), resamples, metric=found[0]["metric"])


def _f1(gold: Array, found: Array, positive: int, counts: Array) -> Array:
    """Return the F1 of one class for each row of counts; 0 where the class neither occurs nor is found."""
    both = counts @ ((gold == positive) & (found == positive))
    either = counts @ (gold == positive) + counts @ (found == positive)
    found_f1: Array = np.divide(2 * both, either, out=np.zeros(len(counts)), where=either > 0)
    return found_f1


def score(name: str, gold: Array, found: Array, positive: int | None = None, classes: bool = True) -> dict[str, Any]:
    """Score classes by accuracy, and F1 of a positive one, or scores by Spearman, all of shape (N,)."""
    gold, found = np.asarray(gold, dtype=np.float64), np.asarray(found, dtype=np.float64)
    counts = _counts(len(gold), name)
    if not classes:
        resamples = bootstrap(gold, found[None], counts)[0][0]
        return _resampled(spearman(gold, found), resamples, metric="spearman", pairs=len(gold))
    hits = (gold == found).astype(np.float64)
    result = _resampled(float(hits.mean()), counts @ hits / len(gold), metric="accuracy", pairs=len(gold))
    if positive is not None:
        whole = float(_f1(gold, found, positive, np.ones((1, len(gold))))[0])
        result["f1"] = _triple(whole, _f1(gold, found, positive, counts.astype(np.float64)))
    return result


def ranking_score(name: str, queries: Sequence[str], gold: Array, found: Array) -> dict[str, Any]:
    """Score how answers rank the second texts of each first one: mean average precision, and mean reciprocal rank.

    Queries that have not both right and wrong second texts are left out, as usual. Of equal scores the wrong text
    counts as the better placed.
    """
    gold, found = np.asarray(gold, dtype=np.float64), np.asarray(found, dtype=np.float64)
    rows: dict[str, list[int]] = {}
    for row, query in enumerate(queries):
        rows.setdefault(query, []).append(row)
    kept = [chosen for chosen in rows.values() if 0 < gold[chosen].sum() < len(chosen)]
    if not kept:
        raise ValueError(f"{name}: no query has both right and wrong second texts")
    # Whole queries are drawn again, not pairs: pairs of one query are not independent.
    counts = _counts(len(kept), name)
    mrr, average_precision = (
        np.array([measure(metric, found[row, None], gold[row], [""] * len(row)) for row in kept])
        for metric in ("mrr", "map")
    )
    result = _resampled(
        float(average_precision.mean()),
        counts @ average_precision / len(kept),
        metric="map",
        pairs=len(gold),
        queries=len(kept),
    )
    return {**result, "mrr": _triple(float(mrr.mean()), counts @ mrr / len(kept))}


def auc(gold: Array, found: Array, counts: Array) -> Array:
    """Return the area of weighted pairs, ties counted half, for each row of counts (B, N); NaN for one class."""
    order = np.argsort(found, kind="stable")
    starts = np.flatnonzero(np.concatenate([[True], np.diff(found[order]) > 0]))
    positive = (np.asarray(gold)[order] == 1).astype(np.float64)
    values = np.full(len(counts), np.nan)
    # A block at a time: all resamples of a large set at once would need gigabytes.
    for begin in range(0, len(counts), _SAMPLES_AT_A_TIME):
        rows = slice(begin, begin + _SAMPLES_AT_A_TIME)
        block = counts[rows].take(order, axis=1).astype(np.float64)
        matches = np.add.reduceat(block * positive, starts, axis=1)
        others = np.add.reduceat(block * (1 - positive), starts, axis=1)
        won = (matches * (others.cumsum(axis=1) - others / 2)).sum(axis=1)
        compared = matches.sum(axis=1) * others.sum(axis=1)
        values[rows] = np.divide(won, compared, out=np.full_like(won, np.nan), where=compared > 0)
    return values


def score_auc(name: str, gold: Array, found: Array) -> dict[str, Any]:
    """Score a row by gold (1 for a match) and scores."""
    value = float(auc(gold, found, np.ones((1, len(gold))))[0])
    return _resampled(value, auc(gold, found, _counts(len(gold), name)), metric="auc", pairs=len(gold))
