"""How the embeddings of the evaluated texts lie in space."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from st_plugins.data.pairs import Pairs
from st_plugins.geometry.embeddings import describe
from st_plugins.geometry.gaussians import Gaussian, bhattacharyya_distance, kl_divergence, wasserstein_distance
from st_plugins.methods.whitening.whitening import Whitening

_EQUAL = 1e-6  # of the largest value: what float32 and the place in a batch make of equal numbers


@dataclass
class Spread:
    """The least and the greatest value of each dimension, of embeddings that come in parts."""

    low: NDArray[np.float32] | None = None
    high: NDArray[np.float32] | None = None

    def add(self, embeddings: NDArray[np.float32]) -> None:
        """Take in some embeddings."""
        if len(embeddings):
            self.merge(Spread(embeddings.min(axis=0), embeddings.max(axis=0)))

    def merge(self, other: Spread) -> None:
        """Take in the spread of other embeddings."""
        if other.low is not None and other.high is not None:
            self.low = other.low if self.low is None else np.minimum(self.low, other.low)
            self.high = other.high if self.high is None else np.maximum(self.high, other.high)

    @property
    def collapsed(self) -> bool:
        """Whether all embeddings, of at least two texts, are one, but for rounding."""
        if self.low is None or self.high is None:
            return False
        largest = max(self.high.max(), -self.low.min())
        return bool((self.high - self.low).max() <= _EQUAL * largest)


def is_collapsed(embeddings: NDArray[np.float32]) -> bool:
    """Say whether all texts have one embedding, but for rounding."""
    spread = Spread()
    spread.add(embeddings)
    return len(embeddings) > 1 and spread.collapsed


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
