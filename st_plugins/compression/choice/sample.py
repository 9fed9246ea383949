"""What a choice of vectors is made on: moments of two groups of texts, and some texts of each held back."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from typing_extensions import Self

from st_plugins.compression.choice.fidelity import unit
from st_plugins.core.rows import refuse_non_finite
from st_plugins.methods.whitening.moments import Moments

Array = NDArray[np.floating]
Map = tuple[Array, Array]
"""A mean that is subtracted, ``(d,)``, and the weight ``(k, d)`` that follows."""

KEPT = 1000  # texts of a group that the choice is judged on
LEAST = 25  # below, ten neighbors and a rank correlation say nothing
_ROWS = 4096  # added at a time: memory does not grow with the block


@dataclass(eq=False)
class Sample:
    """Embeddings of unlabeled texts in two groups of unlike texts, summed up block by block in O(d²) memory."""

    # The groups are told apart by the direction in which the texts differ most. What is fitted on one group is judged
    # on the other: users' texts are never those that a map was fitted on, and a map that keeps only what the fit texts
    # talk about must not look better than it is.

    dimension: int
    normalized: bool = True  # whether the model's vectors have unit length in the end
    moments: tuple[Moments, Moments] = field(init=False)
    _kept: list[tuple[Array, NDArray[np.float64], NDArray[np.intp]]] = field(init=False)
    _split: tuple[Array, float] | None = field(default=None, init=False)
    _generator: np.random.Generator = field(init=False)

    def __post_init__(self) -> None:
        self.moments = (Moments(self.dimension), Moments(self.dimension))
        none = np.zeros((0, self.dimension), np.float32), np.zeros(0), np.zeros(0, np.intp)
        self._kept = [none, none]
        self._generator = np.random.default_rng(0)

    @property
    def count(self) -> int:
        """Number of texts seen."""
        return sum(moments.count for moments in self.moments)

    def add(self, block: Array) -> Self:
        """Add a block of embeddings; the first rows decide how the groups are told apart."""
        for first in range(0, len(block), _ROWS):
            self._add(block[first : first + _ROWS])
        return self

    def _add(self, block: Array) -> None:
        refuse_non_finite(block, self.count)
        direction, threshold = self._split = self._split or _halves(block)
        start, side = self.count, unit(block) @ direction > threshold
        # Each text draws a number, and those with the highest are kept: a fair sample, whatever the blocks.
        drawn = self._generator.random(len(block))
        for group in (0, 1):
            rows = np.flatnonzero(side == bool(group))
            if len(rows):
                part = block[rows]
                self.moments[group].merge(Moments.of(part, first_row=start))
                vectors, numbers, places = self._kept[group]
                numbers, places = np.append(numbers, drawn[rows]), np.append(places, start + rows)
                best = np.sort(np.argsort(-numbers)[:KEPT])
                # Only what stays is copied.
                old, new = best[best < len(vectors)], best[best >= len(vectors)] - len(vectors)
                kept = np.concatenate([vectors[old], np.asarray(part[new], dtype=np.float32)])
                self._kept[group] = kept, numbers[best], places[best]

    def check(self) -> None:
        """Refuse texts that are too few to judge anything by."""
        fewest = min(len(held) for held, *_ in self._kept)
        if fewest < LEAST:
            raise ValueError(
                f"the {self.count} different texts are too few, or too much alike, to say what is lost (the smaller "
                f"of two groups has {fewest}, and {LEAST} are needed); give more texts"
            )

    @property
    def held(self) -> tuple[Array, Array]:
        """Embeddings of some texts of each group."""
        return self._kept[0][0], self._kept[1][0]

    @property
    def places(self) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        """Which of the texts these are, counted over all blocks."""
        return self._kept[0][2], self._kept[1][2]

    def given(self, vectors: Array, mapped: Map) -> Array:
        """Return the vectors that the model gives with a map in it."""
        found = applied(vectors, mapped)
        return unit(found) if self.normalized else found

    @property
    def whole(self) -> Moments:
        """Moments of all texts."""
        return Moments(self.dimension).merge(self.moments[0]).merge(self.moments[1])


def _halves(block: Array) -> tuple[Array, float]:
    """Return the direction in which texts differ most, and its middle."""
    rows = unit(np.asarray(block, dtype=np.float64))
    values, vectors = np.linalg.eigh(np.cov(rows.T, ddof=0))
    direction = vectors[:, int(values.argmax())]
    # The sign of an eigenvector is arbitrary, and must not decide which group is which.
    direction = direction * np.sign(direction[np.abs(direction).argmax()])
    return direction, float(np.median(rows @ direction))


def applied(vectors: Array, mapped: Map) -> Array:
    """Return what a map makes of vectors."""
    mean, weight = mapped
    return np.asarray((vectors - mean) @ weight.T)
