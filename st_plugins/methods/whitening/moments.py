"""Streaming moments of embeddings: what whitening needs to know about its texts, in O(d²) memory."""

from __future__ import annotations

import hashlib
import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]
from typing_extensions import Self

from st_plugins.core.rows import refuse_non_finite

Array = NDArray[np.floating]

# From this many rows on, single-precision blocks are multiplied in single precision, chunk by chunk: twice as fast,
# and the rounding of so many chunks averages out (about 1e-8 of a variance, tests/methods/whitening).
_SINGLE_PRECISION_ROWS = 16_384
_CHUNK_ROWS = 4096  # summed at a time in the precision of the product, before float64 takes over
_WORKING_BYTES = 16 << 20  # centered rows held at any time, all threads together
_MAX_WORKERS = 4
# An encoder's own rounding adds up over its layers: directions in which its embeddings do not vary at all were seen to
# have 1.2 · eps² of the largest variance, where half precision encoders stay below eps².
_COMPUTED_IN = {4: 16.0}  # bytes of a number: its rounding in units of eps


@dataclass
class Moments:
    """Count, mean, scatter and the two fourth-order sums that Ledoit-Wolf shrinkage needs."""

    # With y = x - mean over all rows so far: scatter = Σ y yᵀ, cubic = Σ ‖y‖² y, quartic = Σ ‖y‖⁴, in float64. All are
    # about a mean, so nothing cancels when the mean is far larger than the spread, and two summaries merge exactly
    # (Chan, Golub & LeVeque 1983, for the scatter): both are moved to the common mean and added. `resolution` is the
    # relative size below which an eigenvalue of the scatter is rounding noise, whatever the count.
    dimension: int
    count: int = 0
    mean: Array = field(default_factory=lambda: np.zeros(0))
    scatter: Array = field(default_factory=lambda: np.zeros((0, 0)))
    cubic: Array = field(default_factory=lambda: np.zeros(0))
    quartic: float = 0.0
    resolution: float = float(np.finfo(np.float64).eps)

    def __post_init__(self) -> None:
        if not self.count:
            self.mean, self.cubic = np.zeros(self.dimension), np.zeros(self.dimension)
            self.scatter = np.zeros((self.dimension, self.dimension))

    @staticmethod
    def of(block: Array | torch.Tensor, *, first_row: int = 0) -> Moments:
        """Summarize one block."""
        epsilon = torch.finfo(block.dtype).eps if isinstance(block, torch.Tensor) else np.finfo(block.dtype).eps
        single = block.dtype.itemsize <= 4 and len(block) >= _SINGLE_PRECISION_ROWS
        dtype: np.dtype[np.floating] = np.dtype(np.float32) if single else np.dtype(np.float64)
        width = block.shape[1]
        cores = torch.get_num_threads()
        workers = max(1, min(_MAX_WORKERS, cores, len(block) * width * dtype.itemsize // _WORKING_BYTES))
        step = min(_CHUNK_ROWS, max(64, _WORKING_BYTES // (workers * dtype.itemsize * width)))
        edges = [len(block) * worker // workers for worker in range(workers + 1)]

        def summarize(start: int, stop: int) -> Moments:
            total, buffer = Moments(width), np.empty((step, width), dtype)
            for first in range(start, stop, step):
                rows = _as_numpy(block[first : min(first + step, stop)])
                total.merge(_chunk(rows, buffer[: len(rows)], first_row + first))
            return total

        if workers == 1:
            total = summarize(0, len(block))
        else:  # whole chunks in parallel: the passes over memory overlap with the products
            with threadpool_limits(cores // workers, user_api="blas"), ThreadPoolExecutor(workers) as pool:
                total, *others = pool.map(summarize, edges[:-1], edges[1:])
            for other in others:
                total.merge(other)
        # Computing in the type of the input, and rounding to it, adds noise to every direction, of a variance of that
        # order.
        noise = float(np.finfo(np.float32).eps) if single else float(np.finfo(np.float64).eps)
        total.resolution = max(noise, (_COMPUTED_IN.get(block.dtype.itemsize, 1.0) * float(epsilon)) ** 2)
        return total

    def merge(self, other: Moments) -> Self:
        """Add the rows that another summary has seen."""
        self.resolution = max(self.resolution, other.resolution)
        if not other.count:
            return self
        if not self.count:
            self.count, self.mean, self.cubic, self.quartic = other.count, other.mean, other.cubic, other.quartic
            self.scatter = other.scatter.astype(np.float64)
            return self
        total = self.count + other.count
        step = other.mean - self.mean
        cubic, quartic = self._about(step * (other.count / total))
        other_cubic, other_quartic = other._about(step * (-self.count / total))
        spread = step * math.sqrt(self.count * other.count / total)
        self.cubic, self.quartic = cubic + other_cubic, quartic + other_quartic
        self.scatter += other.scatter
        self.scatter += np.outer(spread, spread)
        self.mean = self.mean + step * (other.count / total)
        self.count = total
        return self

    def second(self, *, center: bool = True) -> Array:
        """Return the covariance, or the second moment ``E[xxᵀ]``, divided by N."""
        covariance = self.scatter / max(self.count, 1)
        return covariance if center else covariance + np.outer(self.mean, self.mean)

    def ledoit_wolf(self, *, center: bool = True) -> float:
        """Return the Ledoit-Wolf shrinkage intensity of that matrix towards ``(trace / d) · I``."""
        # β̄² = (Σ ‖y‖⁴ / N - ‖Σ̂‖²) / N estimates the squared error of the covariance, δ² = ‖Σ̂ - m I‖² its squared
        # distance from the target; the intensity is min(β̄², δ²) / δ² (Ledoit & Wolf 2004, section 3).
        if not self.count:
            return 0.0
        # Without a mean y is x itself, and the fourth-order sum is about zero.
        second = self.second(center=center)
        norm, trace = float(np.sum(np.square(second))), float(np.trace(second))
        quartic = self.quartic if center else self._about(-self.mean)[1]
        distance = norm - trace**2 / self.dimension
        error = (quartic / self.count - norm) / self.count
        return min(max(error, 0.0), distance) / distance if distance > 0 else 0.0

    def checksum(self) -> str:
        """Return the SHA-256 of the statistics."""
        digest = hashlib.sha256(str(self.count).encode())
        for sums in (self.mean, self.scatter, self.cubic, np.array([self.quartic, self.resolution])):
            digest.update(np.ascontiguousarray(sums).tobytes())
        return digest.hexdigest()

    def _about(self, delta: Array) -> tuple[Array, float]:
        """Return the third- and fourth-order sums about ``mean + delta`` (expand ``‖y - delta‖``, ``Σ y = 0``)."""
        length, variance, pull = float(delta @ delta), float(np.trace(self.scatter)), self.scatter @ delta
        cubic = self.cubic - 2 * pull - (variance + self.count * length) * delta
        quartic = self.quartic + 4 * float(delta @ pull) - 4 * float(self.cubic @ delta)
        return cubic, quartic + 2 * variance * length + self.count * length**2


def _as_numpy(block: Array | torch.Tensor) -> Array:
    if isinstance(block, torch.Tensor):
        block = block.detach().cpu()
        return np.asarray((block.float() if block.dtype == torch.bfloat16 else block).numpy())
    return block


def _chunk(rows: Array, centered: Array, first_row: int) -> Moments:
    """Return the moments of a few thousand rows; ``centered`` is working memory, in the type to multiply in."""
    with np.errstate(over="ignore", invalid="ignore"):
        ones = np.ones(len(rows), centered.dtype)
        np.copyto(centered, rows, casting="same_kind")
        shift = ones @ centered / len(rows)
        centered -= shift
        remainder = ones @ centered / len(rows)  # the mean is the shift, rounded to dtype, plus this
        scatter = centered.T @ centered
        leftover = math.sqrt(len(rows)) * remainder
        scatter -= np.outer(leftover, leftover)
        squares = np.einsum("ij,ij->i", centered, centered)
        cubic = (squares @ centered).astype(np.float64)
        quartic = float(np.square(squares, dtype=np.float64).sum())
        finite = math.isfinite(float(cubic.sum()) + float(np.trace(scatter)) + quartic)
    if finite:
        return Moments(rows.shape[1], len(rows), shift + remainder.astype(np.float64), scatter, cubic, quartic)
    refuse_non_finite(rows, first_row)
    if centered.dtype == np.float32:
        return _chunk(rows, np.empty(rows.shape), first_row)
    raise ValueError(f"embeddings from row {first_row} on are so large that their squares overflow; rescale them")
