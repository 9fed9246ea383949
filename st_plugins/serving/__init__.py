"""One ONNX file of a whole model, vectors from it without PyTorch, and whether every runtime gives the same ones.

The names below are imported on first use: :class:`OnnxEncoder` needs onnxruntime, tokenizers and NumPy only.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from st_plugins.serving.encoder import OnnxEncoder
    from st_plugins.serving.export import export_onnx
    from st_plugins.serving.verification import Agreement, Verification, verify

_LAZY = {
    "Agreement": "st_plugins.serving.verification",
    "OnnxEncoder": "st_plugins.serving.encoder",
    "Verification": "st_plugins.serving.verification",
    "export_onnx": "st_plugins.serving.export",
    "verify": "st_plugins.serving.verification",
}

__all__ = ["Agreement", "OnnxEncoder", "Verification", "export_onnx", "verify"]


if not TYPE_CHECKING:  # which would take any name for one that is here

    def __getattr__(name: str) -> Any:
        if name in _LAZY:
            return getattr(importlib.import_module(_LAZY[name]), name)
        raise AttributeError(f"module 'st_plugins.serving' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_LAZY])
