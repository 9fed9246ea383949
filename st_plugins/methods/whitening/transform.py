"""From the moments of embeddings to the transform that whitens them: the equations, without the module around them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from st_plugins.methods.whitening.moments import Moments

Array = NDArray[np.floating]


@dataclass(frozen=True)
class Transform:
    """The affine map ``x ↦ (x - mean) weightᵀ`` in float64, and the spectrum it came from."""

    mean: Array  # (d,)
    weight: Array  # (k, d), a row for each kept direction
    eigenvalues: Array  # (d,), all of them, after shrinkage, descending
    explained: Array  # (k,), shares of their sum, before shrinkage


def derive(
    moments: Moments,
    output_dimension: int | None,
    shrinkage: float,
    rcond: float | None,
    *,
    center: bool = True,
    power: float = 1.0,
) -> Transform:
    """Derive the whitening transform: one eigen-decomposition of the covariance or second moment."""
    if moments.count < 2:
        raise ValueError(
            f"Whitening is fitted on {moments.count} embeddings, but a covariance needs at least 2; call fit() or "
            "partial_fit() first"
        )
    # A spread no larger than the rounding of the values themselves is no spread at all. Without centering, equal
    # embeddings would have rank 1: a direction along which no two of them differ.
    variances = moments.scatter.diagonal() / moments.count
    if variances.max() <= (64 * moments.resolution * np.abs(moments.mean).max()) ** 2:
        raise ValueError(
            f"the {moments.count} embeddings fitted on are all equal up to rounding (rank 0), so there is nothing to "
            "whiten; fit on different texts"
        )
    values, vectors = np.linalg.eigh(moments.second(center=center))
    values, vectors = np.clip(values[::-1], 0.0, None), vectors[:, ::-1]
    explained = values / values.sum()
    values = (1.0 - shrinkage) * values + shrinkage * values.mean()
    if rcond is None:
        rcond = max(max(moments.count, moments.dimension) * float(np.finfo(np.float64).eps), moments.resolution)
    rank = int(np.count_nonzero(values > rcond * values[0]))
    kept = rank if output_dimension is None else output_dimension
    # A rotation inverts nothing: beyond the rank its directions complete the others to an orthonormal basis.
    if kept > rank and power > 0:
        raise ValueError(
            f"output_dimension is {kept}, but the {moments.count} embeddings fitted on have rank {rank} (eigenvalues "
            f"above {rcond:.1e} of the largest); choose output_dimension <= {rank}, fit on more texts, or set "
            "shrinkage='ledoit-wolf' or power=0"
        )
    vectors = vectors[:, :kept]
    vectors = vectors * np.sign(vectors[np.abs(vectors).argmax(axis=0), np.arange(kept)])
    scales = np.sqrt(values[:kept] ** power)
    weight = np.ascontiguousarray((vectors / scales).T) + 0.0  # + 0.0: no negative zeros
    mean = moments.mean.copy() if center else np.zeros(moments.dimension)
    return Transform(mean, weight, values, explained[:kept])
