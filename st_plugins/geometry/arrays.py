"""Embeddings as checked float64 matrices."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["as_matrix", "normalized"]


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
