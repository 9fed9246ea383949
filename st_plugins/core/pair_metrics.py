"""How good the logits of pairs are: what a matcher's checkpoints are chosen by."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import spearmanr

METRICS = ("accuracy", "f1", "spearman", "map", "mrr")
_Z = 1.959964  # of a normal variable, 95 % lie within so many standard deviations
_OF_SCORES = ("spearman", "map", "mrr")


@dataclass(frozen=True)
class Accuracy:
    """Share of pairs that were judged right, and what it is to be compared with."""

    value: float
    # Its 95 % interval, Wilson's, which holds for few pairs and at 0 and 1 too.
    low: float
    high: float
    majority: float  # share of the most frequent class: the accuracy of always naming that one

    def __str__(self) -> str:
        return (
            f"{100 * self.value:.1f} [{100 * self.low:.1f}, {100 * self.high:.1f}]; "
            f"majority class {100 * self.majority:.1f}"
        )


def measure_accuracy(logits: ArrayLike, labels: ArrayLike) -> Accuracy:
    """Compute how many pairs are judged right, with an interval and the share of the most frequent class."""
    found = np.asarray(logits)
    right = np.asarray(labels) if found.shape[1] > 1 else np.asarray(labels) > 0.5
    value, count = measure("accuracy", found, labels), len(found)
    # Wilson: the middle is (p + z² / 2n) / (1 + z² / n). The usual p ± z · √(p (1 - p) / n) has no width at 0 and 1.
    spread = _Z**2 / count
    middle = (value + spread / 2) / (1 + spread)
    half = _Z * math.sqrt(value * (1 - value) / count + spread / (4 * count)) / (1 + spread)
    majority = int(np.unique(right, return_counts=True)[1].max()) / count
    return Accuracy(value, max(0.0, middle - half), min(1.0, middle + half), majority)


def check_metric(metric: str | None, num_labels: int) -> str:
    """Return the name of a metric, or raise a ValueError."""
    if metric is None:
        return "spearman" if num_labels == 1 else "accuracy"
    if metric not in METRICS:
        raise ValueError(f"metric must be {', '.join(map(repr, METRICS))} or None, got {metric!r}")
    if metric in _OF_SCORES and num_labels != 1:
        raise ValueError(
            f"metric={metric!r} needs a score, but the model has {num_labels} classes; choose 'accuracy' or 'f1', or "
            "build it without labels"
        )
    return metric


def measure(metric: str, logits: ArrayLike, labels: ArrayLike, queries: Sequence[str] = ()) -> float:
    """Compute a metric of logits ``(N, num_labels)``, from 0 to 1, or from -1 for ``"spearman"``."""
    # A score is a class 1 above 0.5 (a logit above 0), and so is a gold score. F1 is that of class 1 where there are
    # two, otherwise the mean over the classes; it is 0 where a class neither occurs nor is predicted.
    logits, gold = np.asarray(logits, dtype=np.float64), np.asarray(labels, dtype=np.float64)
    if metric == "spearman":
        scores = logits[:, 0]
        # Undefined there; but checkpoints are compared by it, and NaN is neither better nor worse than anything.
        if len(np.unique(scores)) < 2 or len(np.unique(gold)) < 2:
            return 0.0
        result: Any = spearmanr(scores, gold)
        return float(result.statistic)
    if metric in ("map", "mrr"):
        return _ranked(metric, logits[:, 0], gold > 0.5, queries)
    found = logits.argmax(axis=1) if logits.shape[1] > 1 else (logits[:, 0] > 0).astype(int)
    right = gold if logits.shape[1] > 1 else gold > 0.5
    if metric == "accuracy":
        return float((found == right).mean())
    classes = [1] if logits.shape[1] <= 2 else range(logits.shape[1])
    return float(np.mean([_f1(found == label, right == label) for label in classes]))


def _f1(found: NDArray[np.bool_], right: NDArray[np.bool_]) -> float:
    both = int(found.sum() + right.sum())
    return 2 * int((found & right).sum()) / both if both else 0.0


def _ranked(metric: str, scores: NDArray[np.float64], right: NDArray[np.bool_], queries: Sequence[str]) -> float:
    rows: dict[str, list[int]] = {}
    for row, query in enumerate(queries):
        rows.setdefault(query, []).append(row)
    values = []
    # Queries without a right document do not count. Of equal scores the wrong document counts as the better placed, so
    # that a model that cannot tell them apart gains nothing from the order of the file.
    for chosen in rows.values():
        order = sorted(chosen, key=lambda row: (-scores[row], right[row]))
        places = [place for place, row in enumerate(order, start=1) if right[row]]
        if places:
            precisions = [hits / place for hits, place in enumerate(places, start=1)]
            values.append(float(np.mean(precisions)) if metric == "map" else 1 / places[0])
    return float(np.mean(values)) if values else 0.0
