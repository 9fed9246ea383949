"""What is asked for, and the candidates that answer it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from st_plugins.compression.choice.candidates import METHODS, Candidate, Limits, of_size
from st_plugins.core.quantization import BITS, bytes_of, check_precision

_SMALLEST = 8  # dimensions
# Shares of the dimensions that are tried where a size is looked for.
_PARTS = (1, 3 / 4, 1 / 2, 3 / 8, 1 / 4, 3 / 16, 1 / 8, 3 / 32, 1 / 16, 3 / 64, 1 / 32)


@dataclass(frozen=True)
class Wanted:
    """What is asked for, and the candidates that answer it."""

    width: int
    output_dimension: int | None
    bytes: int | None
    precision: str | None
    max_loss: float | None
    method: str

    def __post_init__(self) -> None:
        check_wanted(self.output_dimension, self.bytes, self.precision, self.max_loss, self.method)
        # Whole numbers of NumPy cannot be written as JSON.
        for name in ("output_dimension", "bytes"):
            given = getattr(self, name)
            object.__setattr__(self, name, None if given is None else int(given))
        if self.output_dimension is not None and self.output_dimension > self.width:
            raise ValueError(
                f"output_dimension is {self.output_dimension}, but the model's embeddings have only {self.width}"
            )

    @property
    def precisions(self) -> tuple[str, ...]:
        """The precisions that come into question, the largest first."""
        return _precisions(self.precision, self.bytes is not None or self.max_loss is not None)

    @property
    def ladder(self) -> list[int]:
        """Sizes that the report shows, each half of the one before."""
        full = bytes_of(max(self.precisions, key=BITS.__getitem__), self.width)
        sizes = [full >> step for step in range(10)]
        least = [bytes_of(precision, min(_SMALLEST, self.width)) for precision in self.precisions]
        return [size for size in sizes if size >= min(least)]

    def groups(self, limits: Limits) -> list[list[Candidate]]:
        """Return the candidates in groups of rising size; within a group the better one is wanted."""
        if self.output_dimension is not None:
            ways = [Candidate(way, self.output_dimension, one) for way in limits for one in self.precisions]
            ways = [way for way in ways if way.dimension <= limits[way.method]]
            if not ways:
                raise ValueError(
                    f"output_dimension is {self.output_dimension}, but the texts have only {max(limits.values())} "
                    f"directions for {' and '.join(limits)}; give more texts, fewer dimensions, or method='rotation'"
                )
        elif self.bytes is None:
            kept = sorted({max(min(_SMALLEST, self.width), round(self.width * part)) for part in _PARTS})
            ways = [
                Candidate(way, one, bits)
                for way, most in limits.items()
                for one in kept
                for bits in self.precisions
                if one <= most
            ]
        else:
            ways = of_size(limits, self.bytes, self.precisions)
        ways = [way for way in ways if self.bytes is None or way.bytes <= self.bytes]
        if self.max_loss is None or self.bytes is not None:
            return [ways]
        return [[way for way in ways if way.bytes == size] for size in sorted({way.bytes for way in ways})]


def check_wanted(
    output_dimension: int | None, bytes: int | None, precision: str | None, max_loss: float | None, method: str
) -> None:
    """Refuse what cannot be asked for, whatever the model."""
    if output_dimension is None and bytes is None and max_loss is None:
        raise ValueError(
            "say how small the vectors shall be: give output_dimension, max_loss, or bytes=96 for example"
        )
    if output_dimension is not None:
        _check_whole("output_dimension", output_dimension)
        if output_dimension < 1:
            raise ValueError(f"output_dimension={output_dimension} must be at least 1")
    if precision is not None:
        check_precision(precision)
    if method != "auto" and method not in METHODS:
        raise ValueError(f"method={method!r} must be one of 'auto', {', '.join(map(repr, METHODS))}")
    if max_loss is not None and (isinstance(max_loss, bool) or not 0 < max_loss < math.inf):
        raise ValueError(f"max_loss={max_loss!r} must be a number of points above 0, such as 0.5")
    if bytes is None:
        return
    _check_whole("bytes", bytes)
    smallest = min(_precisions(precision, True), key=BITS.__getitem__)
    least = bytes_of(smallest, output_dimension or 1)
    if bytes < least:
        raise ValueError(
            f"bytes={bytes} cannot be reached: the nearest is {least}, {output_dimension or 1} x {smallest}"
        )


def _check_whole(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise TypeError(f"{name} must be a whole number, got {value!r}")


def _precisions(precision: str | None, any_size: bool) -> tuple[str, ...]:
    if precision is not None:
        return (precision,)
    return tuple(BITS) if any_size else ("float32",)
