"""AUC with its bootstrap, and the table of the study of anonymised pairs, made from its JSON results."""

from __future__ import annotations

import statistics
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evaluation.ledger import spread
from evaluation.pair_scores import CONFIDENCE, SAMPLES, unpacked
from st_plugins.evaluation.statistics import difference, holm, interval, resample_counts

__all__ = ["auc", "score_auc", "table"]

Array = NDArray[np.float64]
Results = dict[str, list[dict[str, Any]]]
"""Results of all seeds by row."""

_ROWS_AT_A_TIME = 100
INTRODUCTION = (
    "AUC x 100 on the test pairs: mean and standard deviation over seeds, in brackets the 95 % bootstrap interval of "
    "the mean over the pairs. Differences are paired on the same resamples and corrected for their number (Holm); "
    "they tell what the seeds shown tell, not what other seeds would. All trained rows have the same encoder, batch "
    "size and number of steps. 'Unlabelled' says whether the test pairs, without labels, were among the training "
    "pairs. 'Sentence vectors' is the AUC of the cosine of the same encoder's sentence vectors. The last checkpoint "
    "is scored. Seconds are of the processor, for the training."
)


def auc(gold: NDArray[Any], found: Array, counts: NDArray[Any]) -> Array:
    """Return the area under the ROC curve of weighted pairs, ties counted half.

    Args:
        gold: 1 for a match and 0 for none, shape (N,).
        found: Scores, shape (N,).
        counts: How often each pair counts, shape (B, N).

    Returns:
        One value for each row of counts; NaN where it holds only one class.

    Example:
        >>> auc(np.array([0, 1, 1, 0]), np.array([0.1, 0.9, 0.4, 0.4]), np.ones((1, 4))).tolist()
        [0.875]
    """
    order = np.argsort(found, kind="stable")
    starts = np.flatnonzero(np.concatenate([[True], np.diff(found[order]) > 0]))
    positive = (np.asarray(gold)[order] == 1).astype(np.float64)
    values = np.full(len(counts), np.nan)
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
    """Score a row; the resamples depend on the name of the set alone, so rows are paired.

    Args:
        name: Name of the set.
        gold: 1 for a match and 0 for none, shape (N,).
        found: Scores, shape (N,).

    Returns:
        ``metric``, ``pairs``, ``value`` with its interval, ``resamples``: the value on each, times 10,000, as text.

    Example:
        >>> found = score_auc("toy", np.array([0, 1, 1, 0]), np.array([0.1, 0.9, 0.4, 0.4]))
        >>> found["value"][0], len(unpacked(found))
        (0.875, 1000)
    """
    value = float(auc(gold, found, np.ones((1, len(gold))))[0])
    resamples = auc(gold, found, resample_counts(len(gold), SAMPLES, name, seed=0))
    whole = interval(value, resamples, CONFIDENCE)
    text = " ".join("nan" if np.isnan(number) else f"{1e4 * number:.0f}" for number in resamples)
    return {
        "metric": "auc",
        "pairs": len(gold),
        "value": [whole.value, whole.low, whole.high],
        "resamples": text,
    }


def table(results: Results, bases: dict[str, str]) -> list[str]:
    """Return the table.

    Args:
        results: Results of all seeds by row.
        bases: For each row but the first the row that it is compared with, beside the first.

    Returns:
        Markdown lines.
    """
    first = next(iter(results))
    judged = {
        row: _differences(results, {name: (name, base) for name, base in sides.items() if base in results})
        for row, sides in (("first", dict.fromkeys(list(results)[1:], first)), ("base", bases))
    }
    lines = [
        f"| row | start | unlabelled | seeds | steps | AUC | minus {first} | minus Siamese | sentence vectors | s |",
        "| --- | --- | --- | ---: | ---: | --- | --- | --- | --- | ---: |",
    ]
    for name, seeds in results.items():
        row = seeds[0]["row"]
        trained = row["kind"] != "tf-idf"
        cells = [
            name,
            row["start"] if trained else "",
            ("yes" if row["unlabelled"] else "no") if trained else "",
            str(len(seeds)),
            str(seeds[0]["steps"]) if trained else "",
            _cell([found["test"] for found in seeds]),
            judged["first"].get(name, ""),
            judged["base"].get(name, ""),
            _cell([found["sentence"] for found in seeds if "sentence" in found]),
            f"{statistics.median(found['train_seconds'] for found in seeds):.0f}" if trained else "",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def _cell(seeds: list[dict[str, Any]]) -> str:
    if not seeds:
        return ""
    values = [found["value"][0] for found in seeds]
    whole = interval(statistics.mean(values), np.mean([unpacked(found) for found in seeds], axis=0), CONFIDENCE)
    return f"{spread(values)} [{100 * whole.low:.1f}, {100 * whole.high:.1f}]"


def _differences(results: Results, sides: dict[str, tuple[str, str]]) -> dict[str, str]:
    raw = {}
    for name, (row, base) in sides.items():
        if row not in results:
            continue
        values, resamples = zip(
            *(_mean([found["test"] for found in results[side]]) for side in (row, base)), strict=True
        )
        raw[name] = difference(values[0] - values[1], resamples[0] - resamples[1], CONFIDENCE)
    return {name: f"{100 * found.value:+.2f} {found.verdict}" for name, found in holm(raw, CONFIDENCE).items()}


def _mean(seeds: list[dict[str, Any]]) -> tuple[float, Array]:
    value = statistics.mean(found["value"][0] for found in seeds)
    return value, np.mean([unpacked(found) for found in seeds], axis=0)
