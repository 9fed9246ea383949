"""files."""

from __future__ import annotations

import os
import platform
from importlib import metadata

import torch

import st_plugins

__all__ = ["library_versions"]

_PACKAGES = ("sentence-transformers", "torch", "transformers", "numpy", "scipy", "scikit-learn")


def library_versions() -> dict[str, str]:
    """Return the versions of this package, its dependencies, Python, and the kind of machine.

    Returns:
        Plain strings by name.
    """
    versions = {"st-plugins": st_plugins.__version__, "python": platform.python_version()}
    versions |= {name: metadata.version(name) for name in _PACKAGES}
    versions["machine"] = f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores"
    versions["torch_threads"] = str(torch.get_num_threads())
    return versions
