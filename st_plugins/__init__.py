"""Published sentence-embedding methods as ordinary sentence-transformers parts, and an honest evaluation of them.

The names below are imported on first use, so that ``import st_plugins`` costs next to nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from st_plugins.adaptation.adapt import adapt
    from st_plugins.compression.compress import compress
    from st_plugins.io import load, save_for_servers
    from st_plugins.methods.whitening.fold import fold
    from st_plugins.recipes import first_last_avg, fit_flow, whiten

__version__ = "0.1.0"

_LAZY = {
    "adapt": "st_plugins.adaptation.adapt",
    "compress": "st_plugins.compression.compress",
    "first_last_avg": "st_plugins.recipes",
    "fit_flow": "st_plugins.recipes",
    "fold": "st_plugins.methods.whitening.fold",
    "load": "st_plugins.io",
    "save_for_servers": "st_plugins.io",
    "whiten": "st_plugins.recipes",
}

__all__ = [
    "__version__",
    "adapt",
    "compress",
    "first_last_avg",
    "fit_flow",
    "fold",
    "load",
    "save_for_servers",
    "whiten",
]


if not TYPE_CHECKING:  # which would take any name for one that is here

    def __getattr__(name: str) -> Any:
        if name in _LAZY:
            return getattr(importlib.import_module(_LAZY[name]), name)
        raise AttributeError(f"module 'st_plugins' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_LAZY])
