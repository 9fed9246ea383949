"""Modules on disk: safetensors for the numbers, JSON for the rest. No pickle."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from st_plugins import __version__
from st_plugins.core.loading.files import read_object
from st_plugins.core.module import RECORD
from st_plugins.methods.whitening.moments import Moments

__all__ = ["checksum", "read_record", "write_record"]

_STATISTICS = ("mean", "scatter", "cubic")


def checksum(moments: Moments) -> str:
    """Return the SHA-256 of the statistics."""
    digest = hashlib.sha256(str(moments.count).encode())
    for name in _STATISTICS:
        digest.update(np.ascontiguousarray(getattr(moments, name)).tobytes())
    digest.update(np.array([moments.quartic, moments.resolution]).tobytes())
    return digest.hexdigest()


def write_record(
    folder: Path, moments: Moments, explained: NDArray[np.floating], sources: dict[str, int], shrinkage: float
) -> None:
    """Write ``fit.json``: what a Whitening was fitted to."""
    record = {
        "library": f"st-plugins {__version__}",
        "count": moments.count,
        "sources": sources,
        "checksum": checksum(moments),
        "ddof": 0,
        "shrinkage": shrinkage,
        "explained_variance_ratio": [float(share) for share in explained],
    }
    (folder / RECORD).write_text(json.dumps(record, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def read_record(file: Path, tensors: Path, moments: Moments) -> dict[str, int]:
    """Read what `write_record` wrote."""
    record = read_object(file)
    if record.get("checksum") != checksum(moments) or not isinstance(record.get("sources"), dict):
        raise ValueError(f"{tensors} does not match the checksum in {file}; save the model again")
    return {str(name): int(rows) for name, rows in record["sources"].items()}
