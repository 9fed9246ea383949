"""What the gold scores allow and ask for: two values, ties, and a scale that runs the other way."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from st_plugins.evaluation.result import BinaryScores, FloorResult, TaskResult
from st_plugins.evaluation.statistics import binary_bootstrap, correlation, interval

__all__ = ["binary_scores", "highest_spearman", "reversed_scale"]

Array = NDArray[np.float64]

_CLEARLY = 0.1  # a correlation this far below zero asks for a reason, if its interval is below zero too
_CLEARLY_ALONE = 0.3  # the same where there is no interval
_BY_CHANCE = 2.0  # standard deviations of a rank correlation between unrelated scores: a few pairs reach any value


def highest_spearman(gold: Array) -> float:
    """Return the highest Spearman that similarities without ties can reach on these gold scores."""
    return correlation(rankdata(gold), rankdata(gold, method="ordinal"))


def binary_scores(
    gold: Array, similarities: Array, counts: NDArray[np.uint8], confidence: float
) -> BinaryScores | None:
    """Return AUC and average precision with intervals, where the gold scores have two values."""
    values = np.unique(gold)
    if len(values) != 2:
        return None
    positive = gold == values[1]
    whole = binary_bootstrap(positive, similarities, np.ones((1, len(gold)), dtype=np.uint8))
    auc, precision = (
        interval(float(value[0]), samples, confidence)
        for value, samples in zip(whole, binary_bootstrap(positive, similarities, counts), strict=True)
    )
    return BinaryScores(float(values[0]), float(values[1]), int(positive.sum()), auc, precision)


def reversed_scale(task: TaskResult, floor: FloorResult | None) -> list[str]:
    """Return a warning where the similarities clearly fall as the gold scores rise."""
    score = task.spearman["all"]
    share = score.value / task.highest  # of what can be reached: few positives leave little room
    clearly = share <= -_CLEARLY_ALONE if np.isnan(score.high) else share <= -_CLEARLY and score.high < 0
    if not clearly or score.value * np.sqrt(task.pairs - 1) > -_BY_CHANCE:
        return []
    text = f"{task.title}: Spearman is {100 * score.value:.2f}, clearly below zero"
    if task.binary is not None:
        text += f", and AUC {100 * task.binary.auc.value:.2f}, below 50"
    raw = None if floor is None else floor.raw[task.name].value
    if raw is not None and raw > _CLEARLY:
        return [
            f"{text}, while the floor is above zero ({100 * raw:.2f}): the model's similarities seem to run the other "
            "way than the gold scores"
        ]
    which = " (that of the floor, too)" if raw is not None and raw < 0 else ""
    return [
        f"{text}{which}: the scale of the gold scores seems to run the other way, higher meaning less similar. If so, "
        "turn the scores around"
    ]
