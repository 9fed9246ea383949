"""Numbers of fewer bits: how the vectors of a model are stored, and read back."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer
from sentence_transformers.util import quantize_embeddings
from typing_extensions import Self

from st_plugins.core.files import write_record, write_tensors
from st_plugins.core.loading.files import read_object, read_tensors
from st_plugins.core.numbers import check_count
from st_plugins.core.rows import as_rows, refuse_non_finite
from st_plugins.core.texts import check_texts

Array = NDArray[np.floating]

BITS = {"float32": 32, "float16": 16, "int8": 8, "int4": 4, "int2": 2, "binary": 1}
"""Bits of a number by precision."""
RECORD, TENSORS = "quantization.json", "quantization.safetensors"
# Widths of a step that lose least of a normally distributed number, in units of its root mean square, by the number of
# levels (Max 1960, "Quantizing for minimum distortion", table II).
_STEPS = {16: 0.3352, 4: 0.9957}
_SMALLEST_STEP = 1e-30  # where nothing varies: zero is read back as nearly zero
# What a stored number is held in, where it is not packed.
_TYPES = {"float32": np.float32, "float16": np.float16, "int8": np.int8, "binary": np.int8}


class Quantization:
    """How vectors are stored in fewer bits, with ranges that are fitted once and kept with the model.

    ``int8`` and ``binary`` are the host's own formats: `quantize_embeddings` with these ranges gives the same bytes,
    in any batch. One step serves all dimensions of ``int8`` and zero is a level, so the products of the stored numbers
    are those of the vectors, up to one factor: an index of int8 vectors needs no more. ``int4`` and ``int2`` have 16
    and 4 levels, of a width that fits each dimension, and are packed two and four to a byte, the first number in the
    highest bits; `vectors` reads them back. Of ``binary`` only the signs are kept.

    Args:
        precision: ``"float32"``, ``"float16"``, ``"int8"``, ``"int4"``, ``"int2"`` or ``"binary"``.
        dimension: Numbers of a vector.
        ranges: Lowest and highest number that is told apart, ``(2, dimension)``, for ``int8``, ``int4`` and ``int2``;
            as the host has them.

    Raises:
        ValueError: The precision is unknown, or the ranges do not fit.

    Example:
        >>> vectors = np.random.default_rng(0).normal(size=(100, 8)).astype(np.float32)
        >>> stored = Quantization.fit("int4", vectors)
        >>> codes = stored.quantize(vectors)
        >>> codes.shape, codes.dtype, stored.bytes_per_text
        ((100, 4), dtype('uint8'), 4)
        >>> bool(np.corrcoef(stored.vectors(codes).ravel(), vectors.ravel())[0, 1] > 0.99)
        True
    """

    def __init__(self, precision: str, dimension: int, ranges: Array | None = None) -> None:
        check_precision(precision)
        check_count("dimension", dimension)
        self.precision, self.dimension = precision, int(dimension)
        self.ranges = None if ranges is None else np.asarray(ranges, dtype=np.float32)
        if (precision in ("int8", "int4", "int2")) != (ranges is not None):
            raise ValueError(f"ranges are {'missing' if ranges is None else 'given'}, but precision is {precision!r}")
        if self.ranges is not None and (
            self.ranges.shape != (2, dimension)
            or not np.isfinite(self.ranges).all()
            or not (self.ranges[0] < self.ranges[1]).all()
        ):
            raise ValueError(
                f"ranges must be finite, ascending and of shape (2, {dimension}), got {self.ranges.shape}; fit them "
                "with Quantization.fit"
            )

    @classmethod
    def fit(cls, precision: str, embeddings: Array) -> Self:
        """Find the ranges of a precision.

        Args:
            precision: As for the class.
            embeddings: Vectors like those that will be stored, ``(N, dimension)``.

        Returns:
            The quantization.

        Raises:
            ValueError: The precision is unknown, there is no vector, or a number is NaN or infinite.
        """
        check_precision(precision)
        shape = np.shape(embeddings)
        rows = np.asarray(as_rows(embeddings, shape[-1] if shape else 0, "Quantization"), dtype=np.float64)
        if not rows.size:
            raise ValueError(f"embeddings has shape {rows.shape}; ranges are fitted on at least one vector")
        refuse_non_finite(rows, 0)
        ranges = None
        if precision == "int8":
            # With these ends the host's floor becomes rounding, and 0 stays 0.
            step = np.full(rows.shape[1], max(float(np.abs(rows).max()) / 127, _SMALLEST_STEP))
            ranges = np.stack([-128.5 * step, 126.5 * step])
        elif precision in ("int4", "int2"):
            levels = 1 << BITS[precision]
            step = np.maximum(_STEPS[levels] * np.sqrt(np.square(rows).mean(axis=0)), _SMALLEST_STEP)
            ranges = np.stack([-levels / 2 * step, levels / 2 * step])
        return cls(precision, rows.shape[1], ranges)

    @property
    def bytes_per_text(self) -> int:
        """Bytes of one stored vector."""
        return bytes_of(self.precision, self.dimension)

    def quantize(self, embeddings: Array) -> NDArray[Any]:
        """Return what is stored.

        Args:
            embeddings: ``(N, dimension)``, what the model gives.

        Returns:
            An array with `bytes_per_text` bytes a row: float32, float16, int8, or packed uint8 (int8 for ``binary``,
            as the host has it).

        Raises:
            ValueError: The width is another one, or a number is NaN or infinite.
        """
        rows = np.asarray(as_rows(embeddings, self.dimension, "Quantization"))
        refuse_non_finite(rows, 0)
        if self.precision == "float16":
            largest = np.finfo(np.float16).max
            return np.asarray(np.clip(rows, -largest, largest), dtype=np.float16)
        levels = {"int4": 16, "int2": 4}.get(self.precision, 0)
        if not levels or self.ranges is None:
            host: Any = quantize_embeddings
            return cast("NDArray[Any]", host(rows.astype(np.float32), precision=self.precision, ranges=self.ranges))
        codes = np.clip(np.floor((rows - self.ranges[0]) / self._step()), 0, levels - 1).astype(np.uint8)
        bits, each = BITS[self.precision], 8 // BITS[self.precision]
        codes = np.pad(codes, ((0, 0), (0, -self.dimension % each))).reshape(len(codes), self.bytes_per_text, each)
        shifts = np.arange(each - 1, -1, -1, dtype=np.uint8) * bits
        packed: NDArray[np.uint8] = np.bitwise_or.reduce(codes << shifts, axis=2).astype(np.uint8)
        return packed

    def vectors(self, codes: NDArray[Any]) -> NDArray[np.float32]:
        """Return the vectors that what is stored stands for.

        Args:
            codes: What `quantize` gave.

        Returns:
            ``(N, dimension)`` in float32; 1 and -1 for bits.

        Raises:
            ValueError: The codes have another width or type than `quantize` gives.
        """
        codes = np.asarray(codes)
        kind = np.dtype(_TYPES.get(self.precision, np.uint8))
        width = self.bytes_per_text // kind.itemsize
        if codes.dtype != kind or codes.ndim != 2 or codes.shape[1] != width:
            raise ValueError(
                f"codes of {self.dimension} x {self.precision} are {kind} of shape (N, {width}), got {codes.dtype} of "
                f"shape {codes.shape}; give what quantize returned"
            )
        if self.precision == "binary":
            bits = np.unpackbits((codes.astype(np.int16) + 128).astype(np.uint8), axis=1)[:, : self.dimension]
            return 2 * bits.astype(np.float32) - 1
        if self.ranges is None:
            return codes.astype(np.float32)
        if self.precision == "int8":
            levels = codes.astype(np.float32) + np.float32(128)
        else:
            size = BITS[self.precision]
            shifts = np.arange(8 // size - 1, -1, -1, dtype=np.uint8) * size
            unpacked: NDArray[np.uint8] = (codes[:, :, None] >> shifts) & np.uint8((1 << size) - 1)
            levels = unpacked.reshape(len(codes), width * (8 // size))[:, : self.dimension].astype(np.float32)
        return np.asarray(self.ranges[0] + (levels + np.float32(0.5)) * self._step(), dtype=np.float32)

    def encode(self, model: SentenceTransformer, texts: Sequence[str], **arguments: Any) -> NDArray[Any]:
        """Encode texts and return what is stored of them; ``arguments`` are those of ``model.encode``."""
        given: Any = {**arguments, "convert_to_numpy": True, "convert_to_tensor": False}
        wanted = check_texts(texts, "texts")
        # Of no texts the host does not say how wide their embeddings would be.
        vectors = model.encode(wanted, **given) if wanted else np.zeros((0, self.dimension), np.float32)
        return self.quantize(vectors)

    def save(self, folder: str | Path) -> None:
        """Write ``quantization.json`` into a model folder, and the ranges, where there are any, beside it."""
        write_record(Path(folder, RECORD), precision=self.precision, dimension=self.dimension)
        if self.ranges is not None:
            import torch

            write_tensors(Path(folder, TENSORS), {"ranges": torch.from_numpy(self.ranges)})

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """Read what `save` wrote.

        Args:
            folder: The model folder.

        Returns:
            The quantization.

        Raises:
            FileNotFoundError: The folder has none: its vectors are stored as they are.
            ValueError: A file is damaged.
        """
        record = Path(folder, RECORD)
        if not record.is_file():
            raise FileNotFoundError(f"{str(folder)!r} has no {RECORD}; st_plugins.compress writes one")
        stored = read_object(record)
        ranges = None
        if Path(folder, TENSORS).is_file():
            ranges = read_tensors(Path(folder, TENSORS)).get("ranges")
        try:
            return cls(stored["precision"], stored["dimension"], None if ranges is None else ranges.float().numpy())
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{record} does not describe a quantization: {error}") from None

    def _step(self) -> NDArray[np.float32]:
        """Return the width of a level in each dimension."""
        if self.ranges is None:
            return np.ones(self.dimension, np.float32)
        # The host's int8 has its 256 levels between 255 steps.
        steps = 255 if self.precision == "int8" else 1 << BITS[self.precision]
        return np.asarray((self.ranges[1] - self.ranges[0]) / np.float32(steps), dtype=np.float32)


def bytes_of(precision: str, dimension: int) -> int:
    """Return how many bytes a vector takes."""
    return math.ceil(BITS[precision] * dimension / 8)


def check_precision(precision: str) -> None:
    """Refuse what is no precision."""
    if not isinstance(precision, str) or precision not in BITS:
        raise ValueError(f"precision={precision!r} must be one of {', '.join(map(repr, BITS))}")
