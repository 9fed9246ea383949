"""Pair classification: how well a threshold on the similarity tells pairs that belong together from others."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from st_plugins.data.pairs import Pairs
from st_plugins.evaluation.measuring.scoring import pair_similarities
from st_plugins.evaluation.measuring.sentence_evaluator import check_sampling
from st_plugins.evaluation.measuring.space import is_collapsed
from st_plugins.evaluation.measuring.task_evaluator import TaskEvaluator, Vectors
from st_plugins.evaluation.measuring.units import check_vectors, check_widths, measured_task
from st_plugins.evaluation.task_result import MeasuredTask

Array = NDArray[np.float64]


def score_pairs(
    first_vectors: NDArray[np.floating],
    second_vectors: NDArray[np.floating],
    pairs: Pairs,
    *,
    precision: float = 0.9,
    similarity: str = "cosine",
    confidence: float = 0.95,
    bootstrap_samples: int = 1000,
    seed: int = 0,
) -> MeasuredTask:
    """Score vectors of pairs whose gold scores have two values; the higher one is the positive class.

    The main metric is ``average_precision`` (as scikit-learn and the public leaderboard compute it); ``auc`` is the
    area under the ROC curve, ``f1`` the highest F1 that any threshold reaches. ``details`` hold that threshold and
    the one at the wanted precision: the lowest at which at least this share of the pairs above it is positive, which
    finds as many of them as possible. Both were chosen on these very pairs, so on others they do a little worse.

    Args:
        first_vectors: One row a pair, shape (N, d).
        second_vectors: The same of the other texts.
        pairs: The pairs.
        precision: The wanted precision.
        similarity: ``"cosine"``, ``"dot"``, ``"euclidean"`` or ``"manhattan"`` (distances are negated, and so are
            their thresholds).
        confidence: Coverage of the intervals.
        bootstrap_samples: Number of resamples of the pairs; 0 switches the intervals off.
        seed: Seed of the resamples.

    Returns:
        The scores; NaN where all pairs are of one class or all vectors are equal.

    Raises:
        ValueError: Gold has more than two values, the vectors have another shape or hold NaN, or a number is out of
            its range.

    Example:
        >>> pairs = Pairs("toy", ["a", "b", "c"], ["d", "e", "f"], [1, 1, 0])
        >>> first, second = np.float32([[1, 0]] * 3), np.float32([[1, 0.1], [1, 0.3], [0, 1]])
        >>> task = score_pairs(first, second, pairs, bootstrap_samples=0)
        >>> task.score.value, round(task.details["precision_threshold"], 2), task.details["recall"]
        (1.0, 0.48, 1.0)
    """
    check_sampling(confidence, bootstrap_samples, seed)
    if not 0 < precision <= 1:
        raise ValueError(f"precision={precision} must lie above 0 and at most at 1, for example 0.9")
    values = np.unique(pairs.scores)
    if len(values) > 2:
        raise ValueError(
            f"pairs {pairs.name!r}: gold has {len(values):,} different scores; pair classification needs two, such as "
            "0 and 1. Measure graded pairs with STSSuiteEvaluator"
        )
    first = check_vectors(first_vectors, len(pairs), "first_vectors", "pairs")
    second = check_vectors(second_vectors, len(pairs), "second_vectors", "pairs")
    check_widths(first_vectors=first, second_vectors=second)
    warnings = []
    vectors = np.concatenate([first, second])
    if is_collapsed(vectors):
        vectors = np.repeat(vectors[:1], len(vectors), axis=0)  # rounding would be ranked
        warnings.append(f"{pairs.title}: all texts have the same vector, but for rounding: nothing tells pairs apart")
    rows = np.arange(len(vectors))
    similarities = pair_similarities(vectors, rows[: len(pairs)], rows[len(pairs) :], similarity)
    positive = pairs.scores == values[-1] if len(values) == 2 else np.zeros(len(pairs), dtype=bool)
    details: dict[str, float] = {"positives": int(positive.sum()), "wanted_precision": precision}
    if len(values) == 2:
        best = thresholds(positive, similarities, precision)
        if math.isnan(best["precision_threshold"]):
            warnings.append(f"{pairs.title}: no threshold reaches a precision of {precision:g}")
    else:
        best = dict.fromkeys(("f1", "f1_threshold", "precision_threshold", "recall"), math.nan)
        warnings.append(f"{pairs.title}: all pairs have the gold score {values[0]:g}: every score is undefined (NaN)")
    f1 = best.pop("f1")
    return measured_task(
        "pair classification",
        pairs,
        "average_precision",
        "pairs",
        {"positive": positive.astype(np.int64), "similarity": similarities},
        settings={"similarity": similarity},
        bootstrap_samples=bootstrap_samples,
        confidence=confidence,
        seed=seed,
        values={"f1": f1},
        details=details | best,
        warnings=warnings,
    )


def thresholds(positive: NDArray[np.bool_], similarities: Array, precision: float) -> dict[str, float]:
    """Return the best F1 with its threshold, and the threshold at the wanted precision with the recall there."""
    levels, place = np.unique(-similarities, return_inverse=True)  # the most similar first
    found = np.bincount(place, positive).cumsum()
    taken = np.bincount(place).cumsum()
    # Between a level and the next one, as the host does, so that rounding takes no pair to the other side.
    between = -np.append((levels[:-1] + levels[1:]) / 2, levels[-1])
    between = np.where(between == -np.append(levels[1:], np.nan), -levels, between)
    f1 = 2 * found / (taken + positive.sum())
    best = int(f1.argmax())
    enough = np.flatnonzero((found >= precision * taken) & (found > 0))
    last = enough[-1] if len(enough) else None
    return {
        "f1": float(f1[best]),
        "f1_threshold": float(between[best]),
        "precision_threshold": math.nan if last is None else float(between[last]),
        "recall": math.nan if last is None else float(found[last] / positive.sum()),
    }


class PairClassificationEvaluator(TaskEvaluator):
    """Score a model on pairs that belong together or do not, with intervals over the pairs.

    The metrics are those of :func:`score_pairs`, under the host's key style: ``NAME_cosine_ap``, the primary metric,
    ``NAME_cosine_auc`` and ``NAME_cosine_f1``.

    Args:
        pairs: Pairs whose gold scores have two values, the higher one for pairs that belong together.
        batch_size: Texts per batch.
        similarity: ``"cosine"``, ``"dot"``, ``"euclidean"`` or ``"manhattan"``; None takes the model's own.
        confidence: Coverage of the intervals.
        bootstrap_samples: Number of resamples of the pairs; 0 switches the intervals off.
        seed: Seed of the resamples.
        name: Prefix of the metric keys; the name of the pairs by default.
        precision: The wanted precision, to which a threshold is given.
        prompt: Prompt of all texts; None takes the model's own.
        prompt_name: Its name among the model's prompts.
        routes: How the two sides are encoded: ``"query,document"`` or ``"default"``; None goes by the names of the
            columns of the pairs.
        show_progress_bar: Whether to show the progress bar; default: when there are more than 2,000 texts.

    Raises:
        ValueError: Gold has more than two values, an unknown similarity, or a number out of its range.

    Example:
        >>> from st_plugins.miniature import untrained_encoder
        >>> pairs = Pairs("pets", ["a dog", "a cat"], ["a dog", "the men run"], [1, 0])
        >>> PairClassificationEvaluator(pairs)(untrained_encoder())["pets_cosine_ap"]
        1.0
    """

    _main = "average_precision"

    def __init__(
        self,
        pairs: Pairs,
        batch_size: int = 32,
        similarity: str | None = None,
        confidence: float = 0.95,
        bootstrap_samples: int = 1000,
        seed: int = 0,
        name: str = "",
        *,
        precision: float = 0.9,
        prompt: str | None = None,
        prompt_name: str | None = None,
        routes: str | Sequence[str] | None = None,
        show_progress_bar: bool | None = None,
    ) -> None:
        # What the scoring refuses is refused before anything is encoded.
        score_pairs(
            np.ones((len(pairs), 1)), np.ones((len(pairs), 1)), pairs, precision=precision, bootstrap_samples=0
        )
        self.pairs = pairs
        self.columns = pairs.columns
        self.precision = precision
        super().__init__(
            pairs.name,
            [pairs.first, pairs.second],
            batch_size=batch_size,
            similarity=similarity,
            confidence=confidence,
            bootstrap_samples=bootstrap_samples,
            seed=seed,
            name=name,
            prompt=prompt,
            prompt_name=prompt_name,
            routes=routes,
            show_progress_bar=show_progress_bar,
        )

    def _key(self, metric: str, similarity: str) -> str:
        return f"{similarity}_{'ap' if metric == self._main else metric}"

    def _score(self, vectors: list[Vectors], similarity: str) -> MeasuredTask:
        first, second = vectors
        settings = {"similarity": similarity, "precision": self.precision, **self._sampling}
        return score_pairs(first, second, self.pairs, **settings)
