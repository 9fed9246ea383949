r"""Distances between Gaussians fitted to two sets of embeddings, in closed form, also for singular covariances.

A Gaussian with a singular covariance lives on its *support*: the mean plus the range of the covariance. Two Gaussians
with different supports have no common density (each gives the part of space where the other lives probability 0), so
the Kullback-Leibler divergence and the Bhattacharyya distance between them are infinite. With fewer texts than
dimensions that is the usual case: then fit with ``shrinkage``, or use the Wasserstein distance, always finite.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from typing_extensions import Self

from st_plugins.geometry.embeddings import as_matrix, summary_of

RANK_TOLERANCE = 1e-12
"""Eigenvalues below this fraction of the largest count as zero: forming a covariance rounds by about d * 2e-16."""

ANGLE_TOLERANCE = 1e-4
"""Ranges at a smaller angle (radians) count as one, for rounding tilts the eigenvectors of small eigenvalues."""


@dataclass(frozen=True, eq=False)
class Gaussian:
    """A normal distribution; the distances below refuse a covariance with a negative eigenvalue.

    Args:
        mean: Vector of length d.
        covariance: Symmetric positive semi-definite matrix (d, d); it may be singular.
        count: Number of rows it was fitted to; 0 when given by hand.

    Raises:
        ValueError: The shapes do not fit, a value is not finite, or the covariance is not symmetric.

    Example:
        >>> fitted = Gaussian.fit([[0.0, 0.0], [2.0, 0.0], [0.0, 4.0], [2.0, 4.0]])
        >>> fitted.mean.tolist(), fitted.covariance.tolist(), fitted.count
        ([1.0, 2.0], [[1.0, 0.0], [0.0, 4.0]], 4)
    """

    mean: NDArray[np.float64]
    covariance: NDArray[np.float64]
    count: int = 0

    def __post_init__(self) -> None:
        mean = np.asarray(self.mean, dtype=np.float64)
        covariance = np.asarray(self.covariance, dtype=np.float64)
        if mean.ndim != 1 or covariance.shape != (mean.size, mean.size):
            raise ValueError(f"mean has shape {mean.shape} and covariance {covariance.shape}; give (d,) and (d, d)")
        if not (np.isfinite(mean).all() and np.isfinite(covariance).all()):
            raise ValueError("mean or covariance has NaN or an infinity")
        if not np.allclose(covariance, covariance.T, rtol=1e-8, atol=1e-12 * np.abs(covariance).max(initial=0.0)):
            raise ValueError("covariance is not symmetric")
        object.__setattr__(self, "mean", mean)
        # Symmetric to the last bit, as `eigh` looks at one triangle only.
        object.__setattr__(self, "covariance", (covariance + covariance.T) / 2)

    @classmethod
    def fit(cls, x: Any, shrinkage: float = 0.0) -> Self:
        """Fit mean and covariance (divisor N).

        Args:
            x: Embeddings, (N, d), or what else `describe` takes.
            shrinkage: See :meth:`shrunk`.

        Returns:
            The Gaussian.

        Raises:
            ValueError: A row is not finite, there are fewer than two rows, or ``shrinkage`` is outside [0, 1].
        """
        summary = summary_of(x, 0, 0)
        if summary is not None:
            moments = summary.moments
            if moments.count < 2:
                raise ValueError(f"x has {moments.count} rows; give at least 2")
            fitted = cls(np.asarray(moments.mean, np.float64), np.asarray(moments.second(), np.float64), moments.count)
        else:
            matrix = as_matrix(x)
            mean = matrix.mean(axis=0)
            centered = matrix - mean
            fitted = cls(mean, centered.T @ centered / len(matrix), len(matrix))
        return fitted.shrunk(shrinkage) if shrinkage else fitted

    def shrunk(self, shrinkage: float) -> Self:
        """Return the Gaussian with covariance (1 - s) C + s (trace(C) / d) I, regular for every s > 0.

        Args:
            shrinkage: The weight s, in [0, 1].

        Returns:
            A new Gaussian.

        Raises:
            ValueError: ``shrinkage`` is outside [0, 1].
        """
        if not 0.0 <= shrinkage <= 1.0:
            raise ValueError(f"shrinkage={shrinkage} must lie in [0, 1]")
        dimension = self.mean.size
        # The ball has the mean variance, so that the total variance stays.
        ball = np.trace(self.covariance) / dimension * np.eye(dimension)
        return type(self)(self.mean, (1 - shrinkage) * self.covariance + shrinkage * ball, self.count)


def kl_divergence(p: Gaussian, q: Gaussian) -> float:
    """Return KL(p || q) = 1/2 [tr(Q^-1 P) + (m_q - m_p)^T Q^-1 (m_q - m_p) - r + ln(|Q| / |P|)], in nats.

    Inverse, determinant and dimension r are those on the common support; without one the divergence is infinite (see
    the module's text). Also when the support of p is a proper part of q's: p then has no density with respect to q.

    Args:
        p: The distribution that the expectation is taken over.
        q: The distribution it is compared with.

    Returns:
        The divergence, in [0, inf].

    Raises:
        ValueError: The dimensions differ, or a covariance has a negative eigenvalue.

    Example:
        >>> kl_divergence(Gaussian([1.0], [[1.0]]), Gaussian([0.0], [[1.0]]))
        0.5
    """
    standard = _relative_to(p, q)
    if standard is None:  # different supports
        return math.inf
    variances, shift = standard
    # With q standard normal: 1/2 sum(a - 1 - ln a + d^2); log1p keeps the first part exact where a is near 1.
    excess = variances - 1.0
    return float(0.5 * (np.sum(excess - np.log1p(excess)) + shift @ shift))


def bhattacharyya_distance(p: Gaussian, q: Gaussian) -> float:
    """Return -ln of the integral of sqrt(p q) = 1/8 d^T M^-1 d + 1/2 ln(|M| / sqrt(|P| |Q|)), with M = (P + Q) / 2.

    Here d is the difference of the means; inverse and determinants are those on the common support, and without one
    the distance is infinite (see the module's text).

    Args:
        p: One distribution.
        q: The other.

    Returns:
        The distance, in [0, inf].

    Raises:
        ValueError: The dimensions differ, or a covariance has a negative eigenvalue.

    Example:
        >>> bhattacharyya_distance(Gaussian([2.0], [[1.0]]), Gaussian([0.0], [[1.0]]))
        0.5
    """
    standard = _relative_to(p, q)
    if standard is None:
        return math.inf
    variances, shift = standard
    # With q standard normal: 1/4 sum(d^2 / (1 + a)) + 1/2 sum(ln((1 + a) / (2 sqrt(a)))).
    roots = np.sqrt(variances)
    determinants = np.log1p((1.0 - roots) ** 2 / (2.0 * roots))
    return float(0.25 * np.sum(shift**2 / (1.0 + variances)) + 0.5 * np.sum(determinants))


def wasserstein_distance(p: Gaussian, q: Gaussian) -> float:
    """Return the 2-Wasserstein distance, whose square is the Fréchet distance that image generation calls FID.

    W^2 = ||m_p - m_q||^2 + tr(P + Q - 2 (P^1/2 Q P^1/2)^1/2). The trace equals the least ||A - B U||_F^2 over
    orthogonal U for square roots A A^T = P and B B^T = Q. That sum of squares is what is computed: it cannot turn
    negative and does not cancel when the two are alike, and singular covariances need no care.

    Args:
        p: One distribution.
        q: The other.

    Returns:
        The distance, always finite, in the units of the embeddings.

    Raises:
        ValueError: The dimensions differ, or a covariance has a negative eigenvalue.

    Example:
        >>> wasserstein_distance(Gaussian([3.0], [[1.0]]), Gaussian([0.0], [[25.0]]))  # sqrt(3^2 + (1 - 5)^2)
        5.0
    """
    _check_widths(p, q)
    root_p, root_q = (_root(gaussian) for gaussian in (p, q))
    # Orthogonal Procrustes: where Bᵀ A = L S R, the U that brings B U nearest to A is L R.
    left, _, right = np.linalg.svd(root_q.T @ root_p)
    return float(math.hypot(np.linalg.norm(p.mean - q.mean), np.linalg.norm(root_p - root_q @ left @ right)))


def _relative_to(p: Gaussian, q: Gaussian) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
    """Return p's variances and mean in coordinates in which q is standard normal and p has independent ones."""
    _check_widths(p, q)
    values_p, vectors_p = _eigen(p)
    values_q, vectors_q = _eigen(q)
    rank = values_q.size
    difference = p.mean - q.mean
    if values_p.size != rank:
        return None
    outside = difference - vectors_q @ (vectors_q.T @ difference)
    if np.linalg.norm(outside) > 1e-8 * (np.linalg.norm(p.mean) + np.linalg.norm(q.mean)):
        return None  # parallel supports
    if rank == 0:  # two points, and the same one
        return np.ones(0), np.ones(0)
    # The squares add up to those of the sines of the angles between the two ranges.
    if np.linalg.norm(vectors_p - vectors_q @ (vectors_q.T @ vectors_p)) > ANGLE_TOLERANCE:
        return None
    # W = V_q Λ_q^-1/2, (d, r), makes q standard normal; the eigenvalues of Wᵀ P W are what p's variances become.
    whitener = vectors_q / np.sqrt(values_q)
    variances, rotation = np.linalg.eigh(whitener.T @ p.covariance @ whitener)
    if variances.min() <= 0:  # p is flat, to working precision, along a direction of q
        return None
    return variances, rotation.T @ (whitener.T @ difference)


def _check_widths(p: Gaussian, q: Gaussian) -> None:
    if p.mean.size != q.mean.size:
        raise ValueError(f"p has {p.mean.size} dimensions and q {q.mean.size}; compare embeddings of one width")


def _eigen(gaussian: Gaussian) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the eigenvalues that are not zero to rounding, and their eigenvectors as columns."""
    values, vectors = np.linalg.eigh(gaussian.covariance)
    if values.size and values[0] < -1e-8 * np.abs(values).max():
        raise ValueError(f"covariance has the eigenvalue {values[0]:.3g}; a covariance has no negative one")
    kept = values > RANK_TOLERANCE * values.max(initial=0.0)
    return values[kept], vectors[:, kept]


def _root(gaussian: Gaussian) -> NDArray[np.float64]:
    """Return the symmetric square root of the covariance."""
    values, vectors = _eigen(gaussian)
    return (vectors * np.sqrt(values)) @ vectors.T
