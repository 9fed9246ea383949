"""The ways to make vectors smaller, and what each costs on texts that it was not fitted on."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from st_plugins.compression.choice.fidelity import Held, Measured, paired, rank_correlation, recognized, unit
from st_plugins.compression.choice.sample import Map, Sample, applied
from st_plugins.core.quantization import BITS, Quantization, bytes_of
from st_plugins.methods.whitening.moments import Moments
from st_plugins.methods.whitening.transform import derive

Array = NDArray[np.floating]

TRUNCATION, ROTATION, WHITENING = "truncation", "rotation", "whitening"
# How a direction is weighed: whether the mean is subtracted, the power of 1 / √λ, and the shrinkage of the covariance.
_SHAPES: dict[str, tuple[bool, float, bool]] = {
    ROTATION: (False, 0.0, False),
    "centered rotation": (True, 0.0, False),
    "soft whitening": (False, 0.5, False),
    WHITENING: (True, 1.0, False),
    "shrunk whitening": (True, 1.0, True),
}
METHODS = (TRUNCATION, *_SHAPES)
Limits = dict[str, int]
"""Methods, and how many dimensions each has to give."""
OTHER_SHAPES = tuple(name for name in _SHAPES if name != ROTATION)
"""Methods that give other similarities than the model's, in all dimensions too."""
# By how much copies must find each other more surely before the model's own similarities are given up: for
# all-MiniLM-L6-v2 no other shape gained more than 0.009, for the raw mini-bert-en one gained 0.022 to 0.032 (three
# samples of 4,000 texts each).
MARGIN = 0.015
# And only where texts look alike whatever they say: on texts of one kind copies may gain with trained encoders too.
# The mean cosine of two texts is 0.5 to 0.7 for mini-bert-en and 0.03 to 0.2 for all-MiniLM-L6-v2, on either.
ALIKE = 0.35


@dataclass(frozen=True)
class Candidate:
    """One way: what is done to a vector, how many numbers are kept, and in how many bits each."""

    method: str
    dimension: int
    precision: str

    @property
    def bytes(self) -> int:
        """Bytes of a stored vector."""
        return bytes_of(self.precision, self.dimension)

    def __str__(self) -> str:
        return f"{self.method}, {self.dimension} x {self.precision}"


class Maps:
    """The maps of all candidates that are fitted on the same moments; a shape's directions are found once."""

    def __init__(self, moments: Moments) -> None:
        self.moments = moments
        self._found: dict[str, Map] = {}

    def of(self, candidate: Candidate) -> Map:
        """Return the map of a candidate."""
        width, kept = self.moments.dimension, candidate.dimension
        if candidate.method == TRUNCATION:
            return np.zeros(width), np.eye(kept, width)
        mean, weight = self.directions(candidate.method)
        if kept > len(weight):
            raise ValueError(
                f"{candidate.method} to {kept} dimensions needs as many directions, but the texts have {len(weight)}; "
                "give more texts, or fewer dimensions"
            )
        weight = weight[:kept]
        # A sign is worth its bit only where all dimensions vary alike; a random rotation makes them.
        return mean, random_rotation(kept) @ weight if candidate.precision == "binary" else weight

    def directions(self, method: str) -> Map:
        """Return a shape's map that keeps all directions, those of largest variance first."""
        if method not in self._found:
            center, power, shrunk = _SHAPES[method]
            shrinkage = self.moments.ledoit_wolf(center=center) if shrunk else 0.0
            # A rotation is one also where the texts do not vary; of the others only what was seen can be scaled.
            kept = self.moments.dimension if power == 0 else None
            transform = derive(self.moments, kept, shrinkage, None, center=center, power=power)
            self._found[method] = transform.mean, transform.weight
        return self._found[method]


def random_rotation(dimension: int, seed: int = 0) -> Array:
    """Return a random orthogonal matrix, always the same one."""
    drawn = torch.randn(dimension, dimension, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    basis, triangle = np.linalg.qr(drawn.numpy())
    return basis * np.sign(np.diag(triangle))


class Trial:
    """Candidates tried on a sample, each fitted on one group and judged on the other."""

    def __init__(self, sample: Sample, copies: Sequence[tuple[Array, Array]] = ()) -> None:
        sample.check()
        self.sample, self.copies = sample, copies
        # What judges a group is fitted on the other one.
        self.maps = Maps(sample.moments[1]), Maps(sample.moments[0])
        self.recognized = self._recognized()
        best, own = max(self.recognized.values(), default=0.0), self.recognized.get(ROTATION, 0.0)
        # The shape whose similarities are kept. Where they are not the model's own, the paper's: on dev sets it was
        # the best of four powers for the raw encoder, also where copies find each other better with a smaller one.
        alike = float(np.square(unit(np.concatenate(sample.held)).mean(axis=0)).sum())
        self.shape = WHITENING if best > own + MARGIN and alike > ALIKE else ROTATION
        self._held: dict[str, tuple[Held, Held]] = {}
        self._found: dict[tuple[Candidate, bool], Measured] = {}
        self._copied: dict[Candidate, float] = {}

    @property
    def limits(self) -> Limits:
        """The methods that come into question when nobody names one."""
        methods = (TRUNCATION, ROTATION) if self.shape == ROTATION else (self.shape,)
        return {method: self.most(method) for method in methods}

    def most(self, method: str) -> int:
        """Return how many directions there are for a method."""
        if method == TRUNCATION:
            return self.sample.dimension
        return min(len(maps.directions(method)[1]) for maps in self.maps)

    def measure(self, candidate: Candidate, *, errors: bool = False) -> Measured:
        """Return what a candidate keeps of the similarities that its shape has in all dimensions."""
        key = candidate, errors
        if key not in self._found:
            parts = [self._on(candidate, group, errors) for group in (0, 1)]
            loss, kept = (float(np.mean([getattr(part, name) for part in parts])) for name in ("loss", "neighbors"))
            spread = [
                float(np.sqrt(np.sum(np.square([getattr(part, name) for part in parts]))) / 2)
                for name in ("loss_error", "neighbors_error")
            ]
            copies = self._copy_loss(candidate) if self.copies else 0.0
            self._found[key] = Measured(loss, spread[0], kept, spread[1], copies)
        return self._found[key]

    def score(self, candidate: Candidate) -> float:
        """Return how badly a candidate keeps the order of similarities, of neighbors and of much closer copies."""
        # Texts of a corpus are seldom paraphrases of each other, copies are: few bits keep what is near better than
        # what is far, few dimensions the other way round. The geometric mean lets neither drown the other.
        found = self.measure(candidate)
        if not self.copies:
            return found.loss
        # Rounding takes a correlation of 1 beyond it.
        return float(np.sqrt(max(found.loss, 0.0) * max(found.copies, 0.0)))

    def best(self, candidates: Iterable[Candidate]) -> Candidate:
        """Return the candidate with the lowest score; the first of equal ones."""
        return min(candidates, key=self.score)

    def _copy_loss(self, candidate: Candidate) -> float:
        """Return 1 - Spearman's correlation of the similarities of two copies of a text, old and new."""
        if candidate not in self._copied:
            losses = []
            for group, copies in enumerate(self.copies):
                new = [self._stored(candidate, group, rows) for rows in copies]
                old = [self._whole(candidate.method, group, rows) for rows in copies]
                losses.append(1 - rank_correlation(paired(*old), paired(*new)))
            self._copied[candidate] = float(np.mean(losses))
        return self._copied[candidate]

    def _on(self, candidate: Candidate, group: int, errors: bool) -> Measured:
        new = self._stored(candidate, group, self.sample.held[group])
        return self._reference(candidate.method)[group].measure(new, errors=errors)

    def _stored(self, candidate: Candidate, group: int, vectors: Array) -> Array:
        """Return what is stored of vectors of a group, read back."""
        mapped = self.maps[group].of(candidate)
        # The ranges are fitted where the map is.
        given = self.sample.given
        quantization = Quantization.fit(candidate.precision, given(self.sample.held[1 - group], mapped))
        return quantization.vectors(quantization.quantize(given(vectors, mapped)))

    def _whole(self, method: str, group: int, vectors: Array) -> Array:
        """Return vectors of a group as a method's shape has them in all dimensions."""
        return vectors if method not in OTHER_SHAPES else applied(vectors, self.maps[group].directions(method))

    def _reference(self, method: str) -> tuple[Held, Held]:
        """Return the held-out texts as a shape has them in all dimensions."""
        shape = method if method in OTHER_SHAPES else ROTATION
        if shape not in self._held:
            first, second = (self._whole(shape, group, rows) for group, rows in enumerate(self.sample.held))
            self._held[shape] = Held(first), Held(second)
        return self._held[shape]

    def _recognized(self) -> dict[str, float]:
        """Return how surely copies find each other in each shape; nothing without copies."""
        if not self.copies:
            return {}
        return {
            shape: float(
                np.mean(
                    [
                        recognized(*(applied(rows, maps.directions(shape)) for rows in copies))
                        for copies, maps in zip(self.copies, self.maps, strict=True)
                    ]
                )
            )
            for shape in _SHAPES
        }


def of_size(limits: Limits, size: int, precisions: Iterable[str]) -> list[Candidate]:
    """Return the candidates that fill so many bytes, at most, with as many dimensions as there is room for."""
    found = []
    for precision in precisions:
        room = size * 8 // BITS[precision]
        found += [Candidate(method, min(room, most), precision) for method, most in limits.items() if min(room, most)]
    return found
