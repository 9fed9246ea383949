"""Checks of the blocks of embeddings that modules are fitted on."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Array = NDArray[np.floating]


def as_rows(block: Array | Tensor, dimension: int, owner: str) -> Array | Tensor:
    """Return a block as an array or tensor of embeddings."""
    rows = block if isinstance(block, Tensor) else np.asarray(block)
    # Whole numbers are refused, not cast: quantized embeddings have lost their scale.
    if rows.ndim != 2 or rows.shape[1] != dimension:
        raise ValueError(
            f"embeddings must have shape (rows, {dimension}), got {tuple(rows.shape)}; stack single vectors into one "
            f"array, or create {owner} with the width of your model"
        )
    if not (rows.is_floating_point() if isinstance(rows, Tensor) else np.issubdtype(rows.dtype, np.floating)):
        raise ValueError(f"embeddings must be of a floating-point type, got {rows.dtype}; convert them first")
    return rows


def as_floating_point(array: Array, owner: str) -> Tensor:
    """Return an array as a tensor, if its type can hold what is computed from it."""
    given = array.detach().cpu() if isinstance(array, Tensor) else np.asarray(array)
    refuse_whole_numbers(given.dtype, owner)
    if isinstance(given, Tensor):  # NumPy has no bfloat16 for the result
        return given.float() if given.dtype == torch.bfloat16 else given
    return _native(given)


def refuse_whole_numbers(dtype: Any, owner: str) -> None:
    """Raise a TypeError if numbers of a type cannot hold what is computed from them."""
    if dtype.is_floating_point if isinstance(dtype, torch.dtype) else np.issubdtype(dtype, np.floating):
        return
    raise TypeError(
        f"{owner} needs floating-point numbers, got {dtype}; give the embeddings themselves, not quantized ones, or "
        "convert them first: array.astype(numpy.float32)"
    )


def non_finite_rows(rows: Array | Tensor) -> list[int]:
    """Return the numbers of the rows that hold NaN or infinity."""
    if isinstance(rows, Tensor):
        finite = rows.detach().isfinite().all(dim=1)
        return [] if bool(finite.all()) else (~finite).nonzero().flatten().tolist()
    return np.flatnonzero(~np.isfinite(rows).all(axis=1)).tolist()


def refuse_non_finite(rows: Array | Tensor, first_row: int) -> None:
    """Raise a ValueError that names the first NaN or infinity, if there is any."""
    bad = non_finite_rows(rows)
    if bad:
        row = np.asarray(rows[bad[0]].detach().double().cpu() if isinstance(rows, Tensor) else rows[bad[0]])
        column = int(np.flatnonzero(~np.isfinite(row))[0])
        raise ValueError(
            f"embeddings must be finite, but row {first_row + bad[0]} holds {row[column]} in column {column} "
            f"({len(bad)} such rows among {len(rows)}); drop those rows or encode them in float32"
        )


def stacked(
    embeddings: Array | Tensor | Iterable[Array | Tensor], dimension: int, owner: str, device: torch.device
) -> Tensor:
    """Return all blocks in one tensor: float64 if any block is, otherwise float32."""
    found, count = [torch.empty(0, dimension, device=device)], 0
    for block in [embeddings] if isinstance(embeddings, np.ndarray | Tensor) else embeddings:
        rows = as_rows(block, dimension, owner)
        refuse_non_finite(rows, count)
        count += len(rows)
        tensor = rows.detach() if isinstance(rows, Tensor) else _native(rows)
        found.append(tensor.to(device, torch.promote_types(tensor.dtype, torch.float32)))
    return torch.cat(found)  # outside inference mode no inference tensor, also if the blocks are


def _native(rows: Array) -> Tensor:
    """Return an array as a tensor: of this machine's byte order, and of a type that torch has."""
    kind = np.float64 if rows.dtype.itemsize > 8 else rows.dtype.newbyteorder("=")
    return torch.from_numpy(np.require(rows, kind, ["C", "W"]))
