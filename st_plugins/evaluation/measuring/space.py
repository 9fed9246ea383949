"""How the embeddings of the evaluated texts lie in space."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from st_plugins.data.pairs import Pairs
from st_plugins.geometry.embeddings import describe
from st_plugins.geometry.gaussians import Gaussian, bhattacharyya_distance, kl_divergence, wasserstein_distance
from st_plugins.methods.whitening.whitening import Whitening

_EQUAL = 1e-6  # of the largest value: what float32 and the place in a batch make of equal numbers


def is_collapsed(embeddings: NDArray[np.float32]) -> bool:
    """Say whether all texts have one embedding, but for rounding."""
    if len(embeddings) < 2:
        return False
    # Without np.abs, which copies what may be a large corpus.
    largest = max(embeddings.max(), -embeddings.min())
    return bool(np.ptp(embeddings, axis=0).max() <= _EQUAL * largest)


def space_of_pairs(
    embeddings: NDArray[np.float32],
    tasks: Sequence[Pairs],
    rows: Sequence[tuple[NDArray[np.intp], ...]],
    seed: int,
) -> dict[str, Any]:
    """Describe the space; alignment is over the pairs with gold in the top fifth of their task's range."""
    if len(embeddings) < 2:
        return {}
    sides: tuple[list[NDArray[np.intp]], list[NDArray[np.intp]]] = ([], [])
    for pairs, found in zip(tasks, rows, strict=True):
        low, high = pairs.scores.min(), pairs.scores.max()
        # The scales of the tasks differ; where all gold scores are equal nothing says which pairs mean the same.
        positive = pairs.scores >= low + 0.8 * (high - low)
        for side, row in zip(sides, found, strict=False):
            side.append(row[positive] if high > low else row[:0])
    first, second = (np.concatenate(side) for side in sides)
    positives = (embeddings[first], embeddings[second]) if len(first) > 1 else None
    return describe(embeddings, positives=positives, seed=seed)


def fit_distance(whitening: Whitening, seen: Whitening) -> dict[str, Any]:
    """Return distances between the Gaussian a whitening was fitted on and that of the evaluated texts."""
    # Fewer than two texts have no covariance.
    if whitening.count < 2 or seen.count < 2:
        return {}
    fit, here = (
        Gaussian(np.asarray(w.fitted_mean, np.float64), np.asarray(w.covariance, np.float64), w.count)
        for w in (whitening, seen)
    )
    return {
        "fit_kl_divergence": kl_divergence(here, fit),
        "fit_bhattacharyya_distance": bhattacharyya_distance(here, fit),
        "fit_wasserstein_distance": wasserstein_distance(here, fit),
    }
