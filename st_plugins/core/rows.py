"""Checks of the blocks of embeddings that modules are fitted on."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["as_floating_point", "as_rows", "refuse_non_finite", "refuse_whole_numbers", "stacked"]

Array = NDArray[np.floating]


def as_rows(block: Array | Tensor, dimension: int, owner: str) -> Array | Tensor:
    """Return a block as an array or tensor of embeddings.

    Args:
        block: An ``(N, d)`` array or tensor, or what makes one.
        dimension: The width d it must have.
        owner: Name of the class that is fitted, for messages.

    Returns:
        The block; not a copy.

    Raises:
        ValueError: It has another shape, or no floating-point type.

    Example:
        >>> as_rows([[1.0, 2.0]], 2, "Whitening").shape
        (1, 2)
    """
    rows = block if isinstance(block, Tensor) else np.asarray(block)
    if rows.ndim != 2 or rows.shape[1] != dimension:
        raise ValueError(
            f"embeddings must have shape (rows, {dimension}), got {tuple(rows.shape)}; stack single vectors into one "
            f"array, or create {owner} with the width of your model"
        )
    if not (rows.is_floating_point() if isinstance(rows, Tensor) else np.issubdtype(rows.dtype, np.floating)):
        raise ValueError(f"embeddings must be of a floating-point type, got {rows.dtype}; convert them first")
    return rows


def as_floating_point(array: Array, owner: str) -> Tensor:
    """Return an array as a tensor, if its type can hold what is computed from it.

    Args:
        array: The numbers.
        owner: Name of the class that is asked, for messages.

    Returns:
        The tensor; it shares its memory with the array where it can.

    Raises:
        TypeError: They are whole numbers, booleans or no numbers.

    Example:
        >>> as_floating_point(np.array([1, 2], np.int8), "Whitening")
        Traceback (most recent call last):
        TypeError: Whitening needs floating-point numbers, got int8; give the embeddings themselves, not quantised...
    """
    given = array.detach().cpu() if isinstance(array, Tensor) else np.asarray(array)
    refuse_whole_numbers(given.dtype, owner)
    if isinstance(given, Tensor):  # NumPy has no bfloat16 for the result
        return given.float() if given.dtype == torch.bfloat16 else given
    return _native(given)


def refuse_whole_numbers(dtype: Any, owner: str) -> None:
    """Raise a TypeError if numbers of a type cannot hold what is computed from them.

    Args:
        dtype: Type of the numbers, of torch or NumPy.
        owner: Name of the class that is asked, for the message.

    Raises:
        TypeError: It is one of whole numbers or booleans, or no type of numbers.

    Example:
        >>> refuse_whole_numbers(torch.int8, "Whitening")
        Traceback (most recent call last):
        TypeError: Whitening needs floating-point numbers, got torch.int8; give the embeddings themselves, not...
    """
    if dtype.is_floating_point if isinstance(dtype, torch.dtype) else np.issubdtype(dtype, np.floating):
        return
    raise TypeError(
        f"{owner} needs floating-point numbers, got {dtype}; give the embeddings themselves, not quantised ones, or "
        "convert them first: array.astype(numpy.float32)"
    )


def refuse_non_finite(rows: Array | Tensor, first_row: int) -> None:
    """Raise a ValueError that names the first NaN or infinity, if there is any.

    Args:
        rows: Embeddings, ``(N, d)``.
        first_row: Number of the first one, for the message.

    Raises:
        ValueError: There is one.

    Example:
        >>> refuse_non_finite(np.array([[1.0, 2.0], [np.nan, 4.0]]), first_row=10)
        Traceback (most recent call last):
        ValueError: embeddings must be finite, but row 11 holds nan in column 0 (1 such rows among 2)...
    """
    if isinstance(rows, Tensor):
        if bool(rows.isfinite().all()):
            return
        rows = rows.detach().double().cpu().numpy()
    bad = np.flatnonzero(~np.isfinite(rows).all(axis=1))
    if len(bad):
        column = int(np.flatnonzero(~np.isfinite(rows[bad[0]]))[0])
        raise ValueError(
            f"embeddings must be finite, but row {first_row + int(bad[0])} holds {rows[bad[0], column]} in column "
            f"{column} ({len(bad)} such rows among {len(rows)}); drop those rows or encode them in float32"
        )


def stacked(
    embeddings: Array | Tensor | Iterable[Array | Tensor], dimension: int, owner: str, device: torch.device
) -> Tensor:
    """Return all blocks in one tensor: float64 if any block is, otherwise float32.

    Args:
        embeddings: An ``(N, d)`` array or tensor, or an iterable of such blocks.
        dimension: The width d.
        owner: Name of the class that is fitted, for messages.
        device: Where to put the tensor.

    Returns:
        ``(N, d)``, a copy.

    Raises:
        ValueError: A block has the wrong shape or type, or holds NaN or infinity (rows are numbered over all blocks).

    Example:
        >>> blocks = [np.ones((2, 3), np.float16), torch.zeros(4, 3)]
        >>> rows = stacked(blocks, 3, "NormalizingFlow", torch.device("cpu"))
        >>> tuple(rows.shape), rows.dtype
        ((6, 3), torch.float32)
    """
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
