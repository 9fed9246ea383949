"""The records that are written beside tensors and results: JSON that says which library wrote it."""

from __future__ import annotations

import dataclasses
import json
import os
import platform
from abc import ABC, abstractmethod
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor
from typing_extensions import Self

from st_plugins import __version__

LIBRARY = f"st-plugins {__version__}"
_PACKAGES = ("sentence-transformers", "torch", "transformers", "numpy", "scipy", "scikit-learn")


def write_record(file: Path, **values: Any) -> None:
    """Write a JSON object whose ``library`` is this one in its version; `read_object` reads it back."""
    text = json.dumps({"library": LIBRARY, **values}, indent=2, sort_keys=True)
    file.write_text(f"{text}\n", encoding="utf-8")


class JSONText(ABC):
    """A dataclass that is kept as JSON text."""

    def to_json(self: Any) -> str:
        """Return everything as JSON text, which :meth:`from_json` reads."""

        def plain(value: Any) -> Any:
            if isinstance(value, np.ndarray):
                return value.tolist()
            raise TypeError(f"{type(value).__name__} cannot be written as JSON")

        return json.dumps(dataclasses.asdict(self), default=plain, indent=1, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read :meth:`to_json` back.

        Args:
            text: JSON text.

        Returns:
            The explanation.
        """
        return cls._stored(json.loads(text))

    @classmethod
    @abstractmethod
    def _stored(cls, stored: dict[str, Any]) -> Self:
        """Build it from what JSON has of it."""


def write_tensors(file: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors, on whatever device and in whatever layout they are."""
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, file)


def library_versions() -> dict[str, str]:
    """Return the versions of this package, its dependencies and Python, and the kind of machine."""
    versions = {"st-plugins": __version__, "python": platform.python_version()}
    versions |= {name: metadata.version(name) for name in _PACKAGES}
    versions["machine"] = f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores"
    versions["torch_threads"] = str(torch.get_num_threads())
    return versions
