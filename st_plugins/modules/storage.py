"""Modules on disk: safetensors for the numbers, JSON for the rest. No pickle."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file
from sentence_transformers.base.modules import Module

from st_plugins import __version__
from st_plugins.loading.files import read_object, regular
from st_plugins.modules.moments import Moments
from st_plugins.modules.transform import Transform

__all__ = ["RECORD", "TENSORS", "checksum", "find", "read", "write"]

TENSORS = "model.safetensors"
RECORD = "fit.json"
_STATISTICS = ("mean", "scatter", "cubic")
_TRANSFORM = ("mean", "weight", "eigenvalues", "explained")


def checksum(moments: Moments) -> str:
    """Return the SHA-256 of the statistics.

    Args:
        moments: The statistics.

    Returns:
        64 hexadecimal digits.

    Example:
        >>> checksum(Moments.of(np.array([[0.0], [2.0]])))[:12]
        '3c9c4e94a0ee'
    """
    digest = hashlib.sha256(str(moments.count).encode())
    for name in _STATISTICS:
        digest.update(np.ascontiguousarray(getattr(moments, name)).tobytes())
    digest.update(np.array([moments.quartic, moments.resolution]).tobytes())
    return digest.hexdigest()


def write(folder: Path, moments: Moments, transform: Transform, sources: dict[str, int], shrinkage: float) -> None:
    """Write ``model.safetensors`` and ``fit.json``.

    Args:
        folder: An existing folder.
        moments: The statistics, so that fitting can go on after a reload.
        transform: The transform, so that a reload is exact to the bit.
        sources: Number of embeddings by source.
        shrinkage: The intensity used.
    """
    tensors = {f"statistics.{name}": np.ascontiguousarray(getattr(moments, name)) for name in _STATISTICS}
    tensors["statistics.scalars"] = np.array([moments.quartic, moments.resolution])
    tensors["statistics.count"] = np.array([moments.count])
    tensors |= {name: np.ascontiguousarray(getattr(transform, name)) for name in _TRANSFORM}
    save_file(tensors, folder / TENSORS)
    record = {
        "library": f"st-plugins {__version__}",
        "count": moments.count,
        "sources": sources,
        "checksum": checksum(moments),
        "ddof": 0,
        "shrinkage": shrinkage,
        "explained_variance_ratio": [float(share) for share in transform.explained],
    }
    (folder / RECORD).write_text(json.dumps(record, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def read(
    tensors_path: Path, record_path: Path, dimension: int, output_dimension: int | None
) -> tuple[Moments, Transform, dict[str, int]]:
    """Read what `write` wrote.

    Args:
        tensors_path: The ``model.safetensors``.
        record_path: The ``fit.json``.
        dimension: Width of the embeddings it must be for.
        output_dimension: Width of the output it must have; None for any.

    Returns:
        The statistics, the transform and the number of embeddings by source.

    Raises:
        ValueError: A file is damaged, or the two do not belong together; the message names it.
    """
    record = read_object(record_path)
    try:
        tensors = load_file(tensors_path)
        quartic, resolution = tensors["statistics.scalars"].tolist()
        (count,) = tensors["statistics.count"].tolist()
        mean, scatter, cubic = (np.array(tensors[f"statistics.{name}"]) for name in _STATISTICS)
        transform = Transform(*(np.array(tensors[name]) for name in _TRANSFORM))
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise ValueError(f"{tensors_path} is damaged or not of a Whitening: {error}") from error
    shape = transform.weight.shape
    if scatter.shape != (dimension, dimension) or shape != (output_dimension or len(transform.weight), dimension):
        raise ValueError(
            f"{tensors_path} has statistics of shape {scatter.shape} and a transform of shape {shape}, which is not "
            f"what config.json says: embedding_dimension {dimension}, output_dimension {output_dimension}"
        )
    moments = Moments(dimension, count, mean, scatter, cubic, quartic, resolution)
    if record.get("checksum") != checksum(moments) or not isinstance(record.get("sources"), dict):
        raise ValueError(f"{tensors_path} does not match the checksum in {record_path}; save the model again")
    return moments, transform, {str(name): int(rows) for name, rows in record["sources"].items()}


def find(module: type[Module], name: str, model: str, subfolder: str, **hub: Any) -> Path:
    """Return where a file of a saved module is.

    Args:
        module: The module's class.
        name: Name of the file.
        model: Model folder or hub id.
        subfolder: Folder of the module in it.
        **hub: How to reach the hub.

    Returns:
        Its path.

    Raises:
        ValueError: There is none.
    """
    path = module.load_file_path(model, filename=name, subfolder=subfolder, **hub)
    if path is None:
        raise ValueError(f"{name} is missing from {Path(model) / subfolder}; save the model again")
    return regular(Path(path))
