"""What a choice of vectors is made on: moments of two groups of texts, and some texts of each held back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from typing_extensions import Self

from st_plugins.compression.choice.fidelity import unit
from st_plugins.core.rows import refuse_non_finite
from st_plugins.methods.whitening.moments import Moments
from st_plugins.scale.summary import Summary, along

Array = NDArray[np.floating]
Map = tuple[Array, Array]
"""A mean that is subtracted, ``(d,)``, and the weight ``(k, d)`` that follows."""

KEPT = 1000  # texts of a group that the choice is judged on
LEAST = 25  # below, ten neighbors and a rank correlation say nothing
FIRST = 4096  # rows that decide how the groups are told apart


@dataclass(eq=False)
class Sample:
    """Embeddings of unlabeled texts in two groups of unlike texts, summed up block by block in O(d²) memory."""

    # The groups are told apart by the direction in which the texts differ most. What is fitted on one group is judged
    # on the other: users' texts are never those that a map was fitted on, and a map that keeps only what the fit texts
    # talk about must not look better than it is.

    dimension: int
    normalized: bool = True  # whether the model's vectors have unit length in the end
    summary: Summary | None = None  # made on the first rows

    @property
    def moments(self) -> tuple[Moments, Moments]:
        """Moments of each group."""
        first, second = self._summed().groups
        return first, second

    @property
    def count(self) -> int:
        """Number of texts seen."""
        return 0 if self.summary is None else self.summary.count

    def add(self, block: Array, texts: Sequence[str] | None = None) -> Self:
        """Add a block of embeddings; the first rows decide how the groups are told apart."""
        if self.summary is None:
            refuse_non_finite(block, 0)
            self.summary = empty_summary(block)
        self.summary.add(block, texts)
        return self

    def check(self) -> None:
        """Refuse texts that are too few to judge anything by."""
        fewest = min(map(len, self.held)) if self.count else 0
        if fewest < LEAST:
            raise ValueError(
                f"the {self.count} different texts are too few, or too much alike, to say what is lost (the smaller "
                f"of two groups has {fewest}, and {LEAST} are needed); give more texts"
            )

    @property
    def held(self) -> tuple[Array, Array]:
        """Embeddings of some texts of each group."""
        return self._summed().sample(0), self._summed().sample(1)

    @property
    def texts(self) -> tuple[list[str], list[str]]:
        """These texts, if they were given."""
        return self._summed().texts(0), self._summed().texts(1)

    def given(self, vectors: Array, mapped: Map) -> Array:
        """Return the vectors that the model gives with a map in it."""
        found = applied(vectors, mapped)
        return unit(found) if self.normalized else found

    @property
    def whole(self) -> Moments:
        """Moments of all texts."""
        return self._summed().moments

    def _summed(self) -> Summary:
        if self.summary is None:
            raise ValueError("there are no embeddings yet; add some")
        return self.summary


def empty_summary(block: Array) -> Summary:
    """Return a summary of nothing in two groups, told apart as the first rows of a block are best."""
    rows = unit(np.asarray(block[:FIRST], dtype=np.float64))
    values, vectors = np.linalg.eigh(np.cov(rows.T, ddof=0))
    direction = vectors[:, int(values.argmax())]
    # The sign of an eigenvector is arbitrary, and must not decide which group is which.
    direction = direction * np.sign(direction[np.abs(direction).argmax()])
    # Its middle lies between two rows, where rounding changes no side.
    places = np.unique(along(block[:FIRST], direction))
    middle = len(places) // 2
    threshold = float(places[middle - 1 : middle + 1].mean()) if len(places) > 1 else float(places[0])
    return Summary(rows.shape[1], sample=KEPT, split=(direction, threshold))


def applied(vectors: Array, mapped: Map) -> Array:
    """Return what a map makes of vectors."""
    mean, weight = mapped
    return np.asarray((vectors - mean) @ weight.T)
