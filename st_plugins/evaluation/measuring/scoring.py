"""From embeddings and pairs to scores: similarities, the three aggregation conventions, their bootstrap."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from st_plugins.data.pairs import Pairs
from st_plugins.evaluation.result import BinaryScores, FloorResult, Score, TaskResult
from st_plugins.evaluation.statistics import (
    binary_bootstrap,
    bootstrap,
    correlation,
    interval,
    resample_counts,
    spearman,
)
from st_plugins.methods.whitening.whitening import Whitening

Array = NDArray[np.float64]

SIMILARITIES = ("cosine", "dot", "euclidean", "manhattan")
CONVENTIONS = ("all", "mean", "wmean")
_BLOCK_ROWS = 4096
_COSINE_DECIMALS = 12
_UNIT = 1e-5  # what rounding leaves of a squared length of 1

_CLEARLY = 0.1  # a correlation this far below zero asks for a reason, if its interval is below zero too
_CLEARLY_ALONE = 0.3  # the same where there is no interval
_BY_CHANCE = 2.0  # standard deviations of a rank correlation between unrelated scores: a few pairs reach any value


def pair_similarities(
    embeddings: NDArray[np.float32], first: NDArray[np.intp], second: NDArray[np.intp], similarity: str = "cosine"
) -> Array:
    """Return the similarity of each pair of rows, in float64, without copying the whole matrix."""
    if similarity not in SIMILARITIES:
        raise ValueError(f"similarity={similarity!r} is unknown; choose one of {', '.join(SIMILARITIES)}")
    # Rounding is not ranked. Rows that are equal bit by bit are one row: their cosine is 1 and their distance 0.
    used, places = np.unique(np.concatenate([first, second]), return_inverse=True)
    a, b = used[equal_rows(embeddings[used])[places]].reshape(2, -1)
    # The dot product of vectors of length 1 is their cosine, and gets its rounding.
    if similarity == "dot" and np.all(np.abs(np.einsum("nd,nd->n", *[embeddings[used]] * 2) - 1) < _UNIT):
        similarity = "cosine"
    # One value for each pair of distinct rows: a sum's rounding depends on where the row lies in memory.
    codes, back = np.unique(np.minimum(a, b) * len(embeddings) + np.maximum(a, b), return_inverse=True)
    one, other = np.divmod(codes, len(embeddings))
    result = np.empty(len(codes))
    # In blocks: the matrix may be large, and its float64 copy twice as large.
    for start in range(0, len(codes), _BLOCK_ROWS):
        rows = slice(start, start + _BLOCK_ROWS)
        x = embeddings[one[rows]].astype(np.float64)
        y = embeddings[other[rows]].astype(np.float64)
        # Distances are negated, so that larger always means more similar.
        if similarity == "euclidean":
            result[rows] = -np.linalg.norm(x - y, axis=1)
        elif similarity == "manhattan":
            result[rows] = -np.abs(x - y).sum(axis=1)
        else:
            dot = np.einsum("nd,nd->n", x, y)
            if similarity == "cosine":
                # The cosine of a zero vector with anything is 0, as in the host.
                norms = np.linalg.norm(x, axis=1) * np.linalg.norm(y, axis=1)
                dot = np.divide(dot, norms, out=np.zeros_like(dot), where=norms > 0)
                dot[(one[rows] == other[rows]) & (norms > 0)] = 1.0
                # float32 vectors that differ by rounding only have a cosine within 1e-13 of 1; between others
                # rounding is a million times larger.
                dot = np.round(dot, _COSINE_DECIMALS).clip(-1.0, 1.0)
            result[rows] = dot
    return result[back] + 0.0  # + 0.0: a distance of 0, not -0


def equal_rows(embeddings: NDArray[np.float32]) -> NDArray[np.intp]:
    """Return for each row the first row that is equal to it bit by bit (0 and -0 are the same)."""
    plain = np.ascontiguousarray(embeddings + 0.0)  # + 0.0: no -0
    seen: dict[bytes, int] = {}
    rows = plain.view(f"V{plain.dtype.itemsize * plain.shape[1]}").ravel().tolist()
    return np.array([seen.setdefault(row, index) for index, row in enumerate(rows)], dtype=np.intp)


def system_similarities(
    systems: Sequence[NDArray[np.float32]],
    found: Sequence[tuple[NDArray[np.intp], ...]],
    similarity: str,
    target_whitening: int | None,
) -> Array:
    """Return the similarities of one task's pairs under the model and, if there are more systems, its floor."""
    result = np.empty((len(systems), len(found[0][0])))
    for index, (vectors, rows) in enumerate(zip(systems, found, strict=False)):
        first, second, _ = rows
        if target_whitening is not None and index != 1:  # 1 is the raw floor
            # Fitted on both sides with their duplicates and the further texts, as published; 0 keeps all dimensions.
            dimension = (target_whitening or None) if index == 0 else None
            fitted = Whitening(vectors.shape[1], dimension).fit(vectors[np.concatenate(rows)])
            texts, back = np.unique(equal_rows(vectors)[np.concatenate([first, second])], return_inverse=True)
            vectors = np.asarray(fitted.transform(vectors[texts]), dtype=np.float32)
            first, second = np.split(back, 2)
        result[index] = pair_similarities(vectors, first, second, similarity if index == 0 else "cosine")
    return result


@dataclass
class TaskScores:
    """Scores of S systems on one task: the values, and their distribution over the resamples."""

    # By convention: values (S,), and below them samples (S, B).
    spearman: dict[str, Array]
    pearson: dict[str, Array]
    spearman_samples: dict[str, Array]
    pearson_samples: dict[str, Array]
    subsets: dict[str, dict[str, float]]  # of the first system
    counts: NDArray[np.uint8]  # the resamples, (B, N)


def score_task(pairs: Pairs, systems: Array, *, bootstrap_samples: int, seed: int) -> TaskScores:
    """Score the similarities of several systems on one task, all on the same resamples."""
    gold = pairs.scores
    counts = resample_counts(len(gold), bootstrap_samples, pairs.name, seed)
    whole = _scores(gold, systems, counts)
    labels = np.array(pairs.subsets)
    sizes = {name: int(np.sum(labels == name)) for name in dict.fromkeys(pairs.subsets)}
    parts = [whole]  # a single sub-dataset is the whole
    if len(sizes) > 1:
        rows = [np.flatnonzero(labels == name) for name in sizes]
        parts = [_scores(gold[row], systems[:, row], np.ascontiguousarray(counts[:, row])) for row in rows]
    # "all" is what SBERT, SimCSE and ConSERT publish, "mean" and "wmean" (by size: BERT-flow, BERT-whitening) are over
    # the sub-datasets.
    found = {"all": whole}
    weights = {"mean": np.full(len(sizes), 1 / len(sizes)), "wmean": np.array([*sizes.values()]) / len(gold)}
    for kind, weight in weights.items():
        found[kind] = tuple(np.tensordot(weight, np.stack(column), axes=1) for column in zip(*parts, strict=True))
    subsets = {
        name: {"pairs": size, "spearman": float(rhos[0]), "pearson": float(rs[0])}
        for (name, size), (rhos, rs, *_) in zip(sizes.items(), parts, strict=True)
    }
    rho, r, rho_samples, r_samples = ({kind: scores[k] for kind, scores in found.items()} for k in range(4))
    return TaskScores(rho, r, rho_samples, r_samples, subsets, counts)


def _scores(gold: Array, systems: Array, counts: NDArray[np.uint8]) -> tuple[Array, ...]:
    """Return Spearman and Pearson of each system, ``(S,)``, and of each on every resample, ``(S, B)``."""
    rho = np.array([spearman(gold, system) for system in systems])
    r = np.array([correlation(gold, system) for system in systems])
    return rho, r, *bootstrap(gold, systems, counts)


def task_result(
    pairs: Pairs, scores: TaskScores, similarities: Array, confidence: float, keep_similarities: bool
) -> TaskResult:
    """Put the first system's scores of one task into its result, with warnings for what is undefined."""
    warnings = list(pairs.warnings)
    undefined = [name for name, subset in scores.subsets.items() if np.isnan(subset["spearman"])]
    if undefined:
        rows = np.array(pairs.subsets) == undefined[0]
        warnings.append(
            f"{pairs.title}: the correlation is undefined (NaN) for {', '.join(undefined)}: "
            + _why_undefined(pairs.scores[rows], similarities[rows])
        )
    resamples = scores.spearman_samples["all"][0]
    missing = int(np.isnan(resamples).sum())
    if missing and not np.isnan(scores.spearman["all"][0]):
        warnings.append(
            f"{pairs.title}: in {missing:,} of {resamples.size:,} resamples all gold scores or all similarities are "
            "equal; the interval is that of the others"
        )
    return TaskResult(
        name=pairs.name,
        title=pairs.title,
        pairs=len(pairs),
        spearman=_first(scores.spearman, scores.spearman_samples, confidence),
        pearson=_first(scores.pearson, scores.pearson_samples, confidence),
        subsets=scores.subsets,
        checksum=pairs.checksum,
        source=pairs.source,
        warnings=warnings,
        gold=pairs.scores.tolist() if keep_similarities else None,
        similarities=similarities.tolist() if keep_similarities else None,
        highest=highest_spearman(pairs.scores),
        binary=_binary_scores(pairs.scores, similarities, scores.counts, confidence),
    )


def _why_undefined(gold: Array, similarities: Array) -> str:
    if len(gold) < 2:
        return "there are fewer than two pairs"
    return "all gold scores are equal" if np.ptp(gold) == 0 else "all similarities are equal"


def _first(values: dict[str, Array], samples: dict[str, Array], confidence: float) -> dict[str, Score]:
    return {kind: interval(float(values[kind][0]), samples[kind][0], confidence) for kind in CONVENTIONS}


def average(scores: Sequence[TaskScores], confidence: float) -> dict[str, Score]:
    """Return the mean over tasks with its interval; the tasks are resampled independently of each other."""
    result = {}
    for kind in CONVENTIONS:
        for metric in ("spearman", "pearson"):
            # Row b of all tasks makes one resample of the average: each task has a stream of its own.
            values = np.array([getattr(score, metric)[kind][0] for score in scores])
            samples = np.stack([getattr(score, f"{metric}_samples")[kind][0] for score in scores])
            result[f"{metric}_{kind}"] = interval(float(values.mean()), samples.mean(axis=0), confidence)
    return result


def highest_spearman(gold: Array) -> float:
    """Return the highest Spearman that similarities without ties can reach on these gold scores."""
    # Tied gold scores share a rank that no ranking without ties can give them: with half of the pairs 1 and half 0, a
    # perfect ranking scores 0.866.
    return correlation(rankdata(gold), rankdata(gold, method="ordinal"))


def _binary_scores(
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
