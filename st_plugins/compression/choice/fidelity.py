"""How well vectors keep what other vectors say of texts: the order of similarities, and the nearest neighbors."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

Array = NDArray[np.floating]

NEIGHBORS = 10
_LEVELS = 24  # partners of a text, from its nearest neighbor to the farthest
_BLOCKS = 20  # parts that are left out in turn to see how far chance goes


def unit(vectors: Array) -> Array:
    """Scale rows to length 1; a row of zeros stays one."""
    return np.asarray(vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12))


@dataclass(frozen=True)
class Measured:
    """What was kept: the loss of rank correlation, and the share of neighbors, with their standard errors."""

    loss: float  # 1 - Spearman's correlation of the similarities, old and new
    loss_error: float
    neighbors: float  # share of the ten nearest neighbors that are the same
    neighbors_error: float
    # The same loss between two mutilated copies of each text; 0 where there are none.
    copies: float = 0.0


@dataclass(frozen=True, eq=False)
class Held:
    """Texts that a map was not fitted on, as the vectors have them that are to be kept."""

    original: Array  # (n, d)

    def __len__(self) -> int:
        return len(self.original)

    @cached_property
    def _order(self) -> NDArray[np.intp]:
        """The other texts by falling similarity, ``(n, n - 1)``."""
        return np.argsort(-_similarities(self.original), axis=1, kind="stable")[:, :-1]

    @cached_property
    def _partners(self) -> NDArray[np.intp]:
        """Texts to compare each text with, from near to far in equal ratios of their ranks."""
        # Pairs drawn at random are nearly all unlike: their order says little about the texts that people compare.
        ranks = np.unique(np.geomspace(1, len(self) - 1, min(_LEVELS, len(self) - 1)).round().astype(int)) - 1
        return self._order[:, ranks]

    @cached_property
    def _ranks(self) -> Array:
        return rankdata(_pairs(unit(self.original), self._partners)).reshape(self._partners.shape)

    def measure(self, vectors: Array, *, errors: bool = False) -> Measured:
        """Compare vectors of the same texts with the original ones."""
        new = unit(np.asarray(vectors, dtype=np.float32))
        ranks = rankdata(_pairs(new, self._partners)).reshape(self._partners.shape)
        nearest = min(NEIGHBORS, len(self) - 1)
        found = np.argpartition(-_similarities(new), nearest - 1, axis=1)[:, :nearest]
        same = (found[:, :, None] == self._order[:, None, :nearest]).any(axis=1).mean(axis=1)
        loss, neighbors = 1 - _correlation(self._ranks, ranks), float(same.mean())
        if not errors:
            return Measured(loss, 0.0, neighbors, 0.0)
        # The jackknife over blocks of texts: all pairs of a text go together.
        parts = np.array_split(np.random.default_rng(0).permutation(len(self)), min(_BLOCKS, len(self)))
        without = [np.setdiff1d(np.arange(len(self)), part) for part in parts]
        losses = [1 - _correlation(self._ranks[rows], ranks[rows]) for rows in without]
        kept = [same[rows].mean() for rows in without]
        scale = np.sqrt(len(parts) - 1)
        return Measured(loss, float(np.std(losses) * scale), neighbors, float(np.std(kept) * scale))


def _similarities(vectors: Array) -> Array:
    """Return cosines of all pairs; of a text with itself the lowest of all."""
    rows = unit(np.asarray(vectors, dtype=np.float32))
    found = rows @ rows.T
    np.fill_diagonal(found, -np.inf)
    return found


def _pairs(rows: Array, partners: NDArray[np.intp]) -> Array:
    return np.asarray(np.einsum("id,ijd->ij", rows, rows[partners]))


def _correlation(first: Array, second: Array) -> float:
    """Return Pearson's correlation of ranks; 0 where one side does not vary."""
    a, b = first.ravel() - first.mean(), second.ravel() - second.mean()
    scale = float(np.sqrt((a @ a) * (b @ b)))
    return float(a @ b) / scale if scale > 0 else 0.0


def paired(first: Array, second: Array) -> Array:
    """Return the cosine of each row of one side with that of the other."""
    return np.asarray(np.einsum("id,id->i", unit(first), unit(second)))


def rank_correlation(first: Array, second: Array) -> float:
    """Return Spearman's correlation; 0 where one side does not vary."""
    return _correlation(rankdata(first), rankdata(second))


def reciprocal_ranks(first: Array, second: Array) -> Array:
    """Return 1 / rank of each row's partner on the other side among all, the mean of both ways, ``(n,)``."""
    similarities = unit(np.asarray(first, dtype=np.float32)) @ unit(np.asarray(second, dtype=np.float32)).T
    own = np.diag(similarities)
    # Ties count as lost: a map onto one point recognizes nothing.
    forth = 1 / (similarities >= own[:, None]).sum(axis=1)
    back = 1 / (similarities >= own[None, :]).sum(axis=0)
    return np.asarray((forth + back) / 2)


def recognized(first: Array, second: Array) -> float:
    """Return how surely two mutilated copies of a text find each other."""
    return float(reciprocal_ranks(first, second).mean())
