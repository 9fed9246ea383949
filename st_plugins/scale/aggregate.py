"""Statistics of embeddings as an aggregate of Ray Data: of a dataset, or of each of its groups."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from ray.data.aggregate import AggregateFnV2
from ray.data.block import BlockAccessor

from st_plugins.scale.summary import Split, Summary

# In front of an accumulator's summary: how many rows it is made from, and how many of those had no summary.
_HEADER = struct.Struct("<qq")
_WHOLE_BATCHES = (
    "a summary of Encode is of a whole batch, so that its rows must be neither grouped nor filtered later; aggregate "
    "the column of the vectors instead"
)


class MomentsAggregate(AggregateFnV2[bytes, bytes]):
    """Statistics of a column of embeddings, for ``Dataset.aggregate`` and ``groupby(...).aggregate`` of Ray Data.

    What comes out are the bytes of a `Summary`: what whitening, rotation, covariances, distances between Gaussians
    and a sample to calibrate on need. The same for any order and any blocks: to about 1e-15 of it in the sums,
    exactly in the sample. Of ``summary``, the column that `Encode` writes, the summaries of the batches are merged.
    Each group of a block takes O(d²) bytes, 1.2 MB at 384 dimensions, on its way.

    Args:
        on: Column of the embeddings (lists, or tensors of one axis, of floating-point numbers), or of summaries as
            bytes, of which empty ones are skipped.
        dimension: Width d of the embeddings; None: that of the column.
        sample: How many embeddings to keep in each group of texts; of summaries, what they were made with.
        split: As `Summary` takes it: keep two groups of texts apart; of summaries, what they were made with.
        seed: Of the sample's hashes; of summaries, what they were made with.
        alias_name: Column of the result; None: ``moments(on)``.

    Raises:
        ImportError: Ray is not installed.
        ValueError: A setting is out of range. In the tasks of Ray: the column is missing, has another type or no
            rows, a vector is missing, has another width or holds NaN or infinity (rows are counted within a block
            then), or rows were grouped or filtered after their batches had been summed up.

    Example:
        >>> rows = np.random.default_rng(0).normal(size=(10, 2))
        >>> aggregate = MomentsAggregate("vector")
        >>> blocks = [pa.table({"vector": list(part)}) for part in (rows[:3], rows[3:])]
        >>> parts = [aggregate.aggregate_block(block) for block in blocks]  # Ray does this, where the blocks are
        >>> found = Summary.from_bytes(aggregate.finalize(aggregate.combine(*parts)))
        >>> found.count, bool(np.allclose(found.moments.second(), np.cov(rows.T, ddof=0), rtol=1e-13))
        (10, True)

        With Ray, and a dataset that has the columns ``language`` and ``vector``::

            of_all = dataset.aggregate(MomentsAggregate("vector"))["moments(vector)"]
            of_each = dataset.groupby("language").aggregate(MomentsAggregate("vector"))
            whitening = Whitening(384, 256).fit_moments(Summary.from_bytes(of_all).moments)

    Reference:
        Chan, Golub & LeVeque, "Algorithms for computing the sample variance" (1983), for merging. The sample is no
        reservoir, which would depend on the order, but the embeddings whose hashes are smallest.
    """

    def __init__(
        self,
        on: str = "vector",
        *,
        dimension: int | None = None,
        sample: int = 0,
        split: Split | None = None,
        seed: int = 0,
        alias_name: str | None = None,
    ) -> None:
        if not isinstance(on, str) or not on:
            raise ValueError(f"on={on!r} must be the name of a column")
        Summary(1 if dimension is None else dimension, sample=sample, seed=seed)  # refuses what is out of range
        if split is not None and dimension not in (None, len(split[0])):
            raise ValueError(f"split has a direction of width {len(split[0])}, but dimension={dimension}")
        self.on, self.dimension, self.size, self.split, self.seed = on, dimension, sample, split, seed
        # Nulls are refused where they are, with their row, not turned into a null result.
        super().__init__(alias_name or f"moments({on})", lambda: b"", on=on, ignore_nulls=False)

    def aggregate_block(self, block: Any) -> bytes:
        """Return the statistics of a block.

        Args:
            block: An Arrow or Pandas table with the column.

        Returns:
            What `combine` takes.
        """
        table = BlockAccessor.for_block(block).to_arrow()
        if self.on not in table.column_names:
            raise ValueError(
                f"on={self.on!r} is not a column of the dataset, which has {', '.join(table.column_names)}"
            )
        column = table.column(self.on)
        if column.null_count:
            row = pc.index(column.is_null(), True).as_py()
            raise ValueError(
                f"column {self.on!r} has {column.null_count} missing values in a block of {len(column)} rows, the "
                f"first in row {row}; drop those rows: dataset.filter(lambda row: row[{self.on!r}] is not None)"
            )
        return self._merged(column) if _holds_bytes(column.type) else self._added(column)

    def combine(self, current_accumulator: bytes, new: bytes) -> bytes:
        """Return the statistics of two parts together.

        Args:
            current_accumulator: What `aggregate_block` or this returned, or ``b""`` for nothing.
            new: Another one.

        Returns:
            What this and `finalize` take.
        """
        if not current_accumulator or not new:
            return current_accumulator or new
        (rows, empty, first), (more, others, second) = _unpacked(current_accumulator), _unpacked(new)
        if first is None or second is None:
            return _packed(rows + more, empty + others, first or second)
        if first.dimension != second.dimension:
            raise ValueError(
                f"column {self.on!r} holds embeddings of width {first.dimension} and {second.dimension}; take "
                "those of one model"
            )
        return _packed(rows + more, empty + others, first.merge(second))

    def finalize(self, accumulator: bytes) -> bytes:  # type: ignore[override] # Ray's base has an attribute, too
        """Return the bytes that ``Summary.from_bytes`` reads.

        Args:
            accumulator: What `combine` or `aggregate_block` returned, or ``b""`` of no rows.

        Returns:
            The summary's bytes.
        """
        rows, empty, found = _unpacked(accumulator) if accumulator else (0, 0, None)
        if not rows:
            raise ValueError(f"column {self.on!r} has no rows; give a dataset with embeddings")
        # Empty summaries stand for the other rows of a batch: together they are as many as there are texts.
        if found is None or (empty and rows != found.count):
            raise ValueError(
                f"column {self.on!r} has {rows} rows, but summaries of {found.count if found else 0} texts; "
                + _WHOLE_BATCHES
            )
        return accumulator[_HEADER.size :]

    def _added(self, column: Any) -> bytes:
        """Sum up a column of embeddings."""
        total, dimension = None, self.dimension
        for chunk in column.chunks:
            if not len(chunk):
                continue
            try:
                rows = _rows(chunk, dimension)
                dimension = rows.shape[1]
                total = total or Summary(dimension, sample=self.size, split=self.split, seed=self.seed)
                total.add(rows)
            except ValueError as error:
                raise ValueError(f"column {self.on!r}: {error} (rows are counted within their block)") from error
        return _packed(len(column), 0, total) if total else b""

    def _merged(self, column: Any) -> bytes:
        """Merge a column of summaries."""
        total, empty = None, 0
        for value in column:
            data = value.as_py()
            if not data:
                empty += 1
                continue
            part = Summary.from_bytes(data)
            if total is None:
                # Settings that were asked for are to be those of the summaries.
                asked = self.size > 0 or self.split is not None or self.seed > 0
                total = part.empty()
                if asked or self.dimension is not None:
                    like = self if asked else part
                    width = self.dimension or part.dimension
                    settings: dict[str, Any] = {"sample": like.size, "split": like.split, "seed": like.seed}
                    total = Summary(width, **settings, keep_texts=part.keep_texts)
            total.merge(part)
        return _packed(len(column), empty, total)


def _packed(rows: int, empty: int, summary: Summary | None) -> bytes:
    return _HEADER.pack(rows, empty) + (b"" if summary is None else summary.to_bytes())


def _unpacked(accumulator: bytes) -> tuple[int, int, Summary | None]:
    data = accumulator[_HEADER.size :]
    return *_HEADER.unpack_from(accumulator), Summary.from_bytes(data) if data else None


def _holds_bytes(kind: Any) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind))


def _rows(chunk: Any, dimension: int | None) -> NDArray[np.floating]:
    """Return embeddings, ``(N, d)``, of an Arrow array of lists or of Ray's tensors."""
    kind, axes = chunk.type, {len(getattr(chunk.type, "shape", None) or (1,))}
    if isinstance(chunk, pa.ExtensionArray):
        chunk = chunk.storage
        if pa.types.is_struct(chunk.type) and chunk.type.get_field_index("data") >= 0:  # tensors of different shapes
            axes = set(pc.list_value_length(chunk.field("shape")).unique().to_pylist())
            chunk = chunk.field("data")
    lists = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    if axes != {1} or not any(is_list(chunk.type) for is_list in lists):
        raise ValueError(f"is of type {kind}, but embeddings are lists or tensors of one axis")
    lengths = pc.list_value_length(chunk).to_numpy(zero_copy_only=False)
    width = int(lengths[0]) if dimension is None else dimension
    if (lengths != width).any():
        row = int(np.flatnonzero(lengths != width)[0])
        raise ValueError(f"row {row} has {lengths[row]} numbers, but others or the dimension say {width}")
    if not width:
        raise ValueError("has vectors without numbers; drop those rows")
    values = chunk.flatten()
    if not pa.types.is_floating(values.type):
        raise ValueError(f"has numbers of type {values.type}, but embeddings are floating-point; convert them first")
    if values.null_count:
        row = pc.index(values.is_null(), True).as_py() // width
        raise ValueError(f"row {row} has missing numbers; drop it, or encode it again")
    return np.asarray(values.to_numpy(zero_copy_only=False)).reshape(-1, width)
