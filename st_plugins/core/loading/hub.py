"""Models of the hub, or of its local cache, as folders: only the files that loading uses are fetched."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from huggingface_hub import snapshot_download
from sentence_transformers.util import ORIGINAL_TRANSFORMER_MODELS

# What loading opens; weights of other formats would be gigabytes for nothing.
_FILES = ("*.json", "*.txt", "*.model", "*.jinja", "*.bpe", "*.codes", "*.spm", "*.tiktoken", "*.vocab", "README.md")
_WEIGHTS = ("model", "model-*", "adapter_model", "matcher", "pair_head")
_NEEDED = [*_FILES, *(f"{place}{name}.safetensors" for name in _WEIGHTS for place in ("", "*/"))]
_NOT_NEEDED = ["onnx/*", "openvino/*", "checkpoint-*/*", "*/onnx/*", "*/openvino/*"]


def local_folder(
    name: str | Path,
    revision: str | None = None,
    token: bool | str | None = None,
    organization: str = "sentence-transformers",
) -> Path:
    """Return the folder of a model, which is fetched from the hub if it is none of this machine."""
    given = str(name)
    if not given.strip():
        raise ValueError(f"path {given!r} is empty; give a model folder or a hub id")
    folder = Path(name)
    if not folder.exists():  # else a folder whose own name begins with ~
        with contextlib.suppress(RuntimeError):  # no such user
            folder = folder.expanduser()
    if folder.is_dir():
        return folder
    if folder.exists():
        raise ValueError(f"path {given!r} is a file; give the model folder that contains it")
    if isinstance(name, Path) or given.startswith((".", "/", "~")) or "\\" in given or given.count("/") > 1:
        raise FileNotFoundError(f"model folder {given!r} does not exist")
    # A bare name is a model of the organization, as in the host, or one of the old names of transformers.
    stock = "/" in given or given.lower() in ORIGINAL_TRANSFORMER_MODELS
    cache = os.getenv("SENTENCE_TRANSFORMERS_HOME")
    try:
        found = snapshot_download(
            given if stock else f"{organization}/{given}",
            revision=revision,
            token=token,
            cache_dir=cache,
            allow_patterns=_NEEDED,
            ignore_patterns=_NOT_NEEDED,
        )
    except (OSError, ValueError) as error:
        raise FileNotFoundError(f"{given!r} is no folder, and cannot be had from the hub: {error}") from error
    return Path(found)
