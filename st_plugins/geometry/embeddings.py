"""Measures of one set of embeddings (or of aligned pairs of them)."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import logsumexp

if TYPE_CHECKING:
    from st_plugins.scale.summary import Summary

_SAMPLE = 5000  # of embeddings that are not in memory
_BLOCK_ENTRIES = 2**21  # pairs looked at in one go: 16 MiB of float64


def alignment(first: Any, second: Any, alpha: float = 2.0) -> float:
    """Return how near the two sides of positive pairs lie: mean ||x_i - y_i||^alpha on normalised rows.

    Reference: Wang and Isola (2020), Understanding Contrastive Representation Learning through Alignment and
    Uniformity on the Hypersphere, ICML. Smaller is better.

    Args:
        first: One side, (N, d).
        second: The other side, (N, d).
        alpha: The exponent.

    Returns:
        The mean, in [0, 2^alpha].

    Raises:
        ValueError: The shapes differ, a row is zero or not finite.

    Example:
        >>> alignment([[1.0, 0.0], [0.0, 2.0]], [[3.0, 0.0], [0.0, -1.0]])  # one pair equal, one at distance 2
        2.0
    """
    one, other = as_matrix(first, "first"), as_matrix(second, "second")
    if one.shape != other.shape:
        raise ValueError(f"first has shape {one.shape} and second {other.shape}; row i of both must be a pair")
    distances = np.linalg.norm(normalized(one, "first") - normalized(other, "second"), axis=1)
    return float(np.mean(distances**alpha))


def uniformity(x: Any, t: float = 2.0, *, max_rows: int | None = None, seed: int = 0) -> float:
    """Return how evenly embeddings fill the sphere: log of the mean of exp(-t ||x_i - x_j||^2) over all pairs i < j.

    Rows are normalised first. Pairs are visited in blocks, so memory grows with N, not with N^2.
    Reference: Wang and Isola (2020), as for :func:`alignment`. Smaller is more uniform.

    Args:
        x: Embeddings, (N, d).
        t: Sharpness of the kernel.
        max_rows: Take a random subset of this many rows when there are more; None takes all.
        seed: Seed of that subset.

    Returns:
        The value, in [-4t, 0].

    Raises:
        ValueError: A row is zero or not finite, there are fewer than two rows, or ``max_rows`` is below 2.

    Example:
        >>> uniformity([[1.0, 0.0], [-5.0, 0.0]])  # one pair at distance 2: -t * 4
        -8.0
    """
    matrix = as_matrix(x)
    if max_rows is not None and max_rows < 2:
        raise ValueError(f"max_rows={max_rows} leaves no pair; use at least 2, or None for all rows")
    if max_rows is not None and len(matrix) > max_rows:
        matrix = matrix[np.sort(np.random.default_rng(seed).choice(len(matrix), max_rows, replace=False))]
    unit = normalized(matrix)
    count = len(unit)
    step = max(1, _BLOCK_ENTRIES // count)
    # Blocks of rows, so that no N x N matrix is held; their sums meet as logarithms, where tiny ones do not vanish.
    logs = []
    for start in range(0, count - 1, step):
        rows = unit[start : start + step]
        exponents = -2.0 * t * (1.0 - rows @ unit[start:].T)  # ||a - b||^2 = 2 - 2 ab for unit vectors
        exponents[np.tri(*exponents.shape, dtype=np.bool_)] = -np.inf  # j <= i: every pair counts once
        logs.append(logsumexp(exponents))
    return float(logsumexp(logs) - math.log(count * (count - 1) / 2))


def mean_random_cosine(x: Any) -> float:
    """Return the mean cosine over all pairs of different rows, exactly and in one pass.

    The sum of all entries of the cosine matrix is ||sum_i u_i||^2 for unit rows u; its diagonal takes N of it.

    Args:
        x: Embeddings, (N, d).

    Returns:
        The mean, 0 for directions spread evenly, near 1 for a narrow cone.

    Raises:
        ValueError: A row is zero or not finite, or there are fewer than two rows.

    Example:
        >>> mean_random_cosine([[1.0, 0.0], [2.0, 0.0], [0.0, 1.0]])  # cosines 1, 0, 0
        0.333...
    """
    unit = normalized(as_matrix(x))
    total = unit.sum(axis=0)
    return float((total @ total - len(unit)) / (len(unit) * (len(unit) - 1)))


def spectrum(x: Any) -> NDArray[np.float64]:
    """Return the eigenvalues of the covariance matrix (divisor N), largest first.

    Args:
        x: Embeddings, (N, d).

    Returns:
        d values, none negative.

    Raises:
        ValueError: A row is not finite, or there are fewer than two rows.

    Example:
        >>> spectrum([[2.0, 1.0], [-2.0, 1.0], [0.0, 1.0], [0.0, 1.0]]).tolist()
        [2.0, 0.0]
    """
    matrix = as_matrix(x)
    centered = matrix - matrix.mean(axis=0)
    centered[:, np.ptp(matrix, axis=0) == 0] = 0.0  # a mean may round; a constant feature still has variance 0
    values = np.linalg.eigvalsh(centered.T @ centered / len(centered))[::-1]
    return np.maximum(values, 0.0)


def effective_rank(x: Any) -> float:
    """Return exp(H(p)), H the entropy of the covariance eigenvalues scaled to sum to one.

    Reference: Roy and Vetterli (2007), The effective rank: a measure of effective dimensionality, EUSIPCO; their
    measure is taken here of the covariance matrix, whose singular values are its eigenvalues, not of the data matrix.

    Args:
        x: Embeddings, (N, d).

    Returns:
        A number from 1 (a line) to d (a ball); NaN when all rows are equal.

    Raises:
        ValueError: A row is not finite, or there are fewer than two rows.

    Example:
        >>> effective_rank([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
        2.0
    """
    return _effective_rank(spectrum(x))


def participation_ratio(x: Any) -> float:
    """Return (sum of eigenvalues)^2 / (sum of squared eigenvalues) of the covariance matrix.

    Args:
        x: Embeddings, (N, d).

    Returns:
        A number from 1 (a line) to d (a ball); NaN when all rows are equal.

    Raises:
        ValueError: A row is not finite, or there are fewer than two rows.

    Example:
        >>> participation_ratio([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
        2.0
    """
    return _participation_ratio(spectrum(x))


def isoscore(x: Any) -> float:
    r"""Return IsoScore, 0 for a line and 1 for a ball.

    The published steps, with n dimensions: (1) rotate to principal components; (2) take the variances
    l = (l_1, ..., l_n); (3) scale them, v = sqrt(n) l / ||l||; (4) isotropy defect
    delta = ||v - (1, ..., 1)|| / sqrt(2 (n - sqrt(n))); (5) fraction of dimensions used
    phi = (n - delta^2 (n - sqrt(n)))^2 / n^2; (6) score (n phi - 1) / (n - 1).

    Put together this is (P - 1) / (n - 1) with P the participation ratio: delta^2 (n - sqrt(n)) is
    n - sqrt(n) S with S = sum(l) / ||l||, hence phi = S^2 / n = P / n. That form is what is computed.

    Reference: Rudman, Gillman, Rayne and Eickhoff (2022), IsoScore: Measuring the Uniformity of Embedding Space
    Utilization, Findings of ACL.

    Args:
        x: Embeddings, (N, n).

    Returns:
        The score, in [0, 1]; NaN when all rows are equal or there is one dimension only.

    Raises:
        ValueError: A row is not finite, or there are fewer than two rows.

    Example:
        >>> isoscore([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
        1.0
    """
    return _isoscore(spectrum(x))


def describe(
    x: Any,
    *,
    positives: tuple[Any, Any] | None = None,
    leading: int = 64,
    max_rows: int | None = 5000,
    seed: int = 0,
) -> dict[str, Any]:
    """Return all measures of one set of embeddings as plain JSON values.

    Rows of length zero have no direction; they are counted and left out of the measures on normalised rows, which
    are NaN where fewer than two rows remain.

    Args:
        x: Embeddings, (N, d). Where they do not fit into memory: the folder that `st_plugins.scale.encode` wrote, a
            Ray Dataset with a column ``vector``, or a `st_plugins.scale.Summary` with a sample, as ``summarize`` makes
            of texts.
        positives: Both sides of pairs that mean the same, for the alignment; left out of the result when None.
        leading: How many eigenvalues to list.
        max_rows: Rows used for the uniformity, whose cost grows with their square; None uses all of a matrix, and
            5,000 of a folder or dataset.
        seed: Seed of that choice; of a summary, which has made it already, neither counts.

    Returns:
        Keys ``rows``, ``dimension``, ``zero_rows``, ``mean_norm``, ``mean_random_cosine``, ``uniformity``,
        ``uniformity_rows``, ``effective_rank``, ``participation_ratio``, ``isoscore``, ``total_variance``,
        ``spectrum`` (the leading eigenvalues) and, with ``positives``, ``alignment``.

    Raises:
        ValueError: A row is not finite, there are fewer than two rows, or a summary has no sample.

    Example:
        >>> found = describe([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
        >>> found["isoscore"], found["spectrum"], found["mean_norm"]
        (1.0, [0.5, 0.5], 1.0)
    """
    summary = summary_of(x, max_rows or _SAMPLE, seed)
    result = _of_rows(x, leading, max_rows, seed) if summary is None else _of_summary(summary, leading)
    if positives is not None:
        first, second = as_matrix(positives[0], "positives[0]"), as_matrix(positives[1], "positives[1]")
        if first.shape != second.shape:
            raise ValueError(f"positives have the shapes {first.shape} and {second.shape}; row i must be a pair")
        kept = first.any(axis=1) & second.any(axis=1)
        result["alignment"] = alignment(first[kept], second[kept]) if kept.sum() >= 2 else math.nan
    return result


def _of_rows(x: Any, leading: int, max_rows: int | None, seed: int) -> dict[str, Any]:
    # A zero vector has no direction; it counts for lengths and the covariance, not on the sphere.
    matrix = as_matrix(x)
    directed = matrix[matrix.any(axis=1)]
    enough = len(directed) >= 2
    return {
        "rows": len(matrix),
        "dimension": matrix.shape[1],
        "zero_rows": len(matrix) - len(directed),
        "mean_norm": float(np.linalg.norm(matrix, axis=1).mean()),
        "mean_random_cosine": mean_random_cosine(directed) if enough else math.nan,
        "uniformity": uniformity(directed, max_rows=max_rows, seed=seed) if enough else math.nan,
        "uniformity_rows": min(len(directed), max_rows or len(directed)),
        **_of_spectrum(spectrum(matrix), leading),
    }


def _of_summary(summary: Summary, leading: int) -> dict[str, Any]:
    if not summary.size or summary.split is not None:
        raise ValueError("x is a summary without a sample of all rows; make it with Summary(dimension, sample=5000)")
    if summary.count < 2:
        raise ValueError(f"x has {summary.count} rows; give at least 2")
    moments, sampled = summary.moments, summary.sample()
    directed, rows = summary.count - summary.zero_rows, sampled[sampled.any(axis=1)]
    pairs, total = directed * (directed - 1), summary.directions
    values = np.maximum(np.linalg.eigvalsh(moments.second())[::-1], 0.0)
    return {
        "rows": summary.count,
        "dimension": summary.dimension,
        "zero_rows": summary.zero_rows,
        "mean_norm": summary.norms / summary.count,
        "mean_random_cosine": float(total @ total - directed) / pairs if pairs else math.nan,
        "uniformity": uniformity(rows) if len(rows) >= 2 else math.nan,
        "uniformity_rows": len(rows),
        **_of_spectrum(values, leading),
    }


def _of_spectrum(values: NDArray[np.float64], leading: int) -> dict[str, Any]:
    return {
        "effective_rank": _effective_rank(values),
        "participation_ratio": _participation_ratio(values),
        "isoscore": _isoscore(values),
        "total_variance": float(values.sum()),
        "spectrum": values[:leading].tolist(),
    }


def summary_of(x: Any, sample: int, seed: int) -> Summary | None:
    """Return the summary that is given, or that of embeddings which are not in memory; None for those that are."""
    if isinstance(x, np.ndarray | list | tuple) or hasattr(x, "detach"):
        return None
    # Only here: scale needs torch, which numbers of a matrix do not.
    from st_plugins.scale.embeddings import Embeddings
    from st_plugins.scale.one_pass import summarize_vectors
    from st_plugins.scale.summary import Summary
    from st_plugins.scale.texts import is_dataset

    if isinstance(x, Embeddings | str | Path) or is_dataset(x):
        return summarize_vectors(x, sample, seed=seed)
    return x if isinstance(x, Summary) else None


def as_matrix(x: Any, name: str = "x") -> NDArray[np.float64]:
    """Return embeddings as a float64 matrix."""
    if hasattr(x, "detach"):  # a tensor; numpy has no bfloat16, so torch converts
        x = x.detach().cpu().double().numpy()
    matrix = np.asarray(x, dtype=np.float64)
    if matrix.ndim != 2 or matrix.shape[1] == 0:
        raise ValueError(f"{name} has shape {matrix.shape}; give one row a text, (N, d)")
    if len(matrix) < 2:
        raise ValueError(f"{name} has {len(matrix)} rows; give at least 2")
    bad = np.flatnonzero(~np.isfinite(matrix).all(axis=1))
    if bad.size:
        raise ValueError(f"{name}: row {bad[0]} has NaN or an infinity ({bad.size} such rows); leave them out")
    return matrix


def normalized(matrix: NDArray[np.float64], name: str = "x") -> NDArray[np.float64]:
    """Scale every row to length one."""
    # The largest entry goes first, so that squares of very small or very large ones neither vanish nor overflow.
    largest = np.abs(matrix).max(axis=1, keepdims=True)
    zero = np.flatnonzero(largest == 0)
    if zero.size:
        raise ValueError(f"{name}: row {zero[0]} is a zero vector ({zero.size} such rows); it has no direction")
    scaled: NDArray[np.float64] = matrix / largest
    scaled /= np.linalg.norm(scaled, axis=1, keepdims=True)
    return scaled


def _effective_rank(eigenvalues: NDArray[np.float64]) -> float:
    # 0 ln 0 is 0: a direction without variance adds nothing to the entropy.
    positive = eigenvalues[eigenvalues > 0]
    if not positive.size:
        return math.nan
    shares = positive / positive.sum()
    return float(np.exp(-(shares * np.log(shares)).sum()))


def _participation_ratio(eigenvalues: NDArray[np.float64]) -> float:
    if not eigenvalues.any():
        return math.nan
    # Scaled first: squares of very small eigenvalues would vanish.
    scaled = eigenvalues / eigenvalues.max()
    return float(scaled.sum() ** 2 / (scaled @ scaled))


def _isoscore(eigenvalues: NDArray[np.float64]) -> float:
    dimension = len(eigenvalues)
    return math.nan if dimension == 1 else (_participation_ratio(eigenvalues) - 1) / (dimension - 1)
