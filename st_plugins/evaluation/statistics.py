"""Correlations and their bootstrap, vectorised over resamples and exact under ties.

A bootstrap resample of N pairs is fully described by how often each pair was drawn, a vector of counts ``w``. With
the values sorted once, the mid-rank of a tied group ``g`` in the resample is ``W_{<g} + (W_g + 1) / 2``, where ``W``
are sums of counts, so every resample costs one cumulative sum instead of one sort, and Spearman's rho is the Pearson
correlation of those ranks weighted by ``w``. The ranks are exactly those that ``scipy.stats.rankdata`` gives on the
resampled values.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from st_plugins.evaluation.result import Difference, Score

Array = NDArray[np.float64]

# Values per block of resamples: small enough to stay in the processor's cache, large enough to hide Python.
_BLOCK_VALUES = 1 << 17


def correlation(x: Array, y: Array) -> float:
    """Return Pearson's correlation; NaN when either side is constant or there are fewer than two values."""
    x = np.asarray(x, dtype=np.float64)
    y = np.asarray(y, dtype=np.float64)
    if x.size < 2 or x.min() == x.max() or y.min() == y.max():
        return float("nan")
    x = x - x.mean()
    y = y - y.mean()
    return float(np.clip(x @ y / np.sqrt((x @ x) * (y @ y)), -1.0, 1.0))


def spearman(x: Array, y: Array) -> float:
    """Return Spearman's rank correlation with mid-ranks for ties; NaN where it is undefined.

    Args:
        x: Values, shape (N,).
        y: Values, shape (N,).

    Returns:
        The correlation in [-1, 1], or NaN.

    Example:
        >>> round(spearman(np.array([1.0, 2.0, 2.0, 5.0]), np.array([0.1, 0.3, 0.2, 0.9])), 4)
        0.9487
    """
    return correlation(rankdata(x), rankdata(y))


def resample_counts(pairs: int, samples: int, name: str, seed: int) -> NDArray[np.uint8]:
    """Draw bootstrap resamples of one task as counts.

    The stream depends on the task's name and the seed only, so two models scored on the same task see the same
    resamples whatever else was evaluated with them.

    Args:
        pairs: Number of pairs N.
        samples: Number of resamples B.
        name: The task's name.
        seed: Any non-negative integer.

    Returns:
        Counts of shape (B, N); every row sums to N.

    Example:
        >>> resample_counts(5, 2, "sts12", seed=0).sum(axis=1).tolist()
        [5, 5]
    """
    generator = np.random.default_rng([seed, zlib.crc32(name.encode())])
    counts = np.empty((samples, pairs), dtype=np.uint8)
    block = max(1, _BLOCK_VALUES // pairs)
    for start in range(0, samples, block):
        rows = min(block, samples - start)
        drawn = generator.integers(pairs, size=(rows, pairs), dtype=np.int32)
        drawn += (np.arange(rows, dtype=np.int32) * pairs)[:, None]
        block_counts = np.bincount(drawn.ravel(), minlength=rows * pairs).reshape(rows, pairs)
        # A count cannot exceed N, and for N > 255 one above 255 is less likely than 1e-300: a byte is enough.
        counts[start : start + rows] = block_counts
    return counts


class _Ranker:
    """Mid-ranks of one list of values under many vectors of counts."""

    def __init__(self, values: Array) -> None:
        order = np.argsort(values, kind="stable")
        ordered = values[order]
        new_group = np.concatenate([[True], ordered[1:] != ordered[:-1]])
        self.order = order
        self.starts = np.flatnonzero(new_group)
        self.tied = self.starts.size < values.size
        self.group = np.empty(values.size, dtype=np.intp)
        self.group[order] = np.cumsum(new_group) - 1

    def __call__(self, counts: Array) -> Array:
        """Return ranks (B, N) of the resampled values; entries of pairs with count 0 carry no weight later."""
        ordered = counts.take(self.order, axis=1)
        weight = np.add.reduceat(ordered, self.starts, axis=1) if self.tied else ordered
        rank: Array = np.cumsum(weight, axis=1)
        rank -= 0.5 * weight
        rank += 0.5
        return rank.take(self.group, axis=1)


def _moments(values: Array, counts: Array, total: Array) -> tuple[Array, Array]:
    """Centre values (B, N) or (N,) by their weighted mean; return them and their weighted sum of squares."""
    mean = np.einsum("bn,bn->b", counts, np.broadcast_to(values, counts.shape)) / total
    centered = values - mean[:, None]
    square = np.einsum("bn,bn,bn->b", counts, centered, centered)
    # A constant resample is left with the rounding of its mean instead of with zero.
    square[square <= total * (1e-14 * np.abs(values).max()) ** 2] = 0.0
    return centered, square


def _weighted(x: tuple[Array, Array], y: tuple[Array, Array], counts: Array) -> Array:
    """Return the weighted correlation of two centered sides, NaN where one of them is constant."""
    product: Array = np.einsum("bn,bn,bn->b", counts, x[0], y[0])
    scale = np.sqrt(x[1]) * np.sqrt(y[1])
    value: Array = np.divide(product, scale, out=np.full_like(product, np.nan), where=scale > 0)
    return value.clip(-1.0, 1.0)


def bootstrap(gold: Array, systems: Array, counts: NDArray[np.uint8]) -> tuple[Array, Array]:
    """Return the bootstrap distribution of the correlations between gold scores and several systems.

    All systems see the same resamples, so differences of two rows are paired.

    Args:
        gold: Gold scores, shape (N,).
        systems: Similarities of S systems, shape (S, N).
        counts: Resamples from :func:`resample_counts`, shape (B, N).

    Returns:
        Spearman and Pearson, each of shape (S, B); NaN where a resample is constant.

    Example:
        >>> gold = np.arange(50.0)
        >>> rho, r = bootstrap(gold, np.stack([gold**3, -gold]), resample_counts(50, 4, "toy", seed=0))
        >>> rho.round(6).tolist()
        [[1.0, 1.0, 1.0, 1.0], [-1.0, -1.0, -1.0, -1.0]]
    """
    rho = np.full((len(systems), len(counts)), np.nan)
    r = np.full_like(rho, np.nan)
    # Centring first keeps the float64 sums exact enough however far from zero the scores live.
    gold = gold - gold.mean()
    systems = systems - systems.mean(axis=1, keepdims=True)
    rank_gold = _Ranker(gold)
    rankers = [_Ranker(system) for system in systems]
    for block, total, rows in blocks(counts):
        gold_ranks = _moments(rank_gold(block), block, total)
        gold_values = _moments(gold, block, total)
        for index, (system, ranker) in enumerate(zip(systems, rankers, strict=True)):
            rho[index, rows] = _weighted(_moments(ranker(block), block, total), gold_ranks, block)
            r[index, rows] = _weighted(_moments(system, block, total), gold_values, block)
    return rho, r


def binary_bootstrap(
    positive: NDArray[np.bool_], similarities: Array, counts: NDArray[np.uint8]
) -> tuple[Array, Array]:
    """Return AUC and average precision on each resample, both exact under ties and as scikit-learn defines them."""
    auc, precision = np.full(len(counts), np.nan), np.full(len(counts), np.nan)
    # AUC comes from mid-ranks (Mann-Whitney), average precision from steps over groups of equal similarities.
    ranker = _Ranker(similarities)
    falling = _Ranker(-similarities)
    last = np.append(falling.starts[1:], len(similarities)) - 1  # of each group of equal similarities, best first
    for block, total, rows in blocks(counts):
        hits = block * positive
        found = hits.sum(axis=1)
        others = total - found
        mixed = (found > 0) & (others > 0)
        above = np.einsum("bn,bn->b", hits, ranker(block)) - found * (found + 1) / 2
        np.divide(above, found * others, out=auc[rows], where=mixed)
        right = np.cumsum(hits.take(falling.order, axis=1), axis=1)[:, last]
        seen = np.cumsum(block.take(falling.order, axis=1), axis=1)[:, last]
        share = np.divide(right, seen, out=np.zeros_like(right), where=seen > 0)
        gained = np.diff(right, axis=1, prepend=0.0)
        np.divide((gained * share).sum(axis=1), found, out=precision[rows], where=mixed)
    return auc, precision


def blocks(counts: NDArray[np.uint8]) -> Iterator[tuple[Array, Array, slice]]:
    """Yield counts as float64 blocks with their sums (at least 1, an empty resample gives NaN anyway)."""
    step = max(1, _BLOCK_VALUES // counts.shape[1])
    for start in range(0, len(counts), step):
        rows = slice(start, min(start + step, len(counts)))
        block = counts[rows].astype(np.float64)
        yield block, np.maximum(block.sum(axis=1), 1.0), rows


def interval(value: float, distribution: Array, confidence: float) -> Score:
    """Return a score with its percentile interval, which reaches to the score itself if that lies outside."""
    finite = distribution[np.isfinite(distribution)]
    if not np.isfinite(value) or finite.size == 0:
        return Score(float(value))
    # The percentile interval reaches to the score itself if that lies outside, as it may with few pairs.
    tail = (1.0 - confidence) / 2.0
    low, high = np.quantile(finite, [tail, 1.0 - tail])
    return Score(float(value), min(float(low), float(value)), max(float(high), float(value)))


def difference(value: float, distribution: Array, confidence: float) -> Difference:
    """Judge a paired difference by its bootstrap distribution (uncorrected; see :func:`holm`).

    The two-sided p-value is twice the smaller share of resamples on either side of zero, with one added to both
    counts so that it is never exactly zero. A resample on which the difference is undefined speaks for neither side,
    and counts on both: few pairs, or one positive, decide nothing.

    Args:
        value: Difference on the pairs themselves.
        distribution: Difference on the resamples, shape (B,).
        confidence: Coverage, such as 0.95.

    Returns:
        The difference with interval, p-value and verdict; ``"undefined"`` where the difference does not exist,
        ``"not tested"`` where there are no resamples.

    Example:
        >>> found = difference(0.02, np.linspace(0.01, 0.03, 199), 0.95)
        >>> found.verdict, found.p_value
        ('better', 0.01)
    """
    score = interval(value, distribution, confidence)
    finite = distribution[np.isfinite(distribution)]
    if not np.isfinite(value) or finite.size == 0:
        # Nothing was measured, which is another thing than two that cannot be told apart.
        verdict = "not tested" if np.isfinite(value) and distribution.size == 0 else "undefined"
        return Difference(score.value, score.low, score.high, float("nan"), verdict)
    # A resample on which the difference is undefined speaks for neither side and counts on both; the ones keep p
    # above 0.
    neither = distribution.size - finite.size
    tails = (np.sum(finite <= 0) + neither + 1, np.sum(finite >= 0) + neither + 1)
    p_value = min(1.0, 2.0 * float(min(tails)) / (distribution.size + 1))
    return Difference(score.value, score.low, score.high, p_value, _verdict(score.value, p_value, confidence))


def holm(differences: dict[str, Difference], confidence: float) -> dict[str, Difference]:
    """Correct the p-values of several comparisons by Holm's step-down rule and judge again.

    An undefined difference is no test: it keeps its verdict and does not count.

    Args:
        differences: Uncorrected differences by task name.
        confidence: Coverage; the family-wise error is at most ``1 - confidence``.

    Returns:
        The same differences with corrected p-values and verdicts.

    Example:
        >>> raw = {"a": Difference(0.1, 0.0, 0.2, 0.03, "better"), "b": Difference(0.1, 0.0, 0.2, 0.04, "better")}
        >>> {name: (value.p_value, value.verdict) for name, value in holm(raw, 0.95).items()}
        {'a': (0.06, 'not separable'), 'b': (0.06, 'not separable')}
    """
    # An undefined difference is no test: it keeps its verdict and does not count.
    tested = sorted((d.p_value, name) for name, d in differences.items() if np.isfinite(d.p_value))
    corrected = dict(differences)
    largest = 0.0
    for step, (_, name) in enumerate(tested):
        old = differences[name]
        largest = max(largest, min(1.0, (len(tested) - step) * old.p_value))
        corrected[name] = Difference(old.value, old.low, old.high, largest, _verdict(old.value, largest, confidence))
    return corrected


def _verdict(value: float, p_value: float, confidence: float) -> str:
    if p_value >= 1.0 - confidence or value == 0:
        return "not separable"
    return "better" if value > 0 else "worse"
