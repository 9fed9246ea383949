"""Files of a model folder: regular ones only, read without trusting what they say about their size."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

Shapes = dict[str, tuple[int, ...]]


def is_there(file: Path) -> bool:
    """Return whether a file can be read: False where there is nothing."""
    if file.is_file():
        return True
    # A pipe would be waited for without end.
    if file.exists() or file.is_symlink():
        kind = "a folder" if file.is_dir() else "a link to nothing" if not file.exists() else "a pipe or a device"
        raise ValueError(f"{file} is {kind}, not a regular file; copy or download the model again")
    return False


def regular(file: Path) -> Path:
    """Return the file itself."""
    if not is_there(file):
        raise FileNotFoundError(f"{file} does not exist")
    return file


def read_json(file: Path) -> Any:
    """Return what a JSON file holds."""
    try:
        return json.loads(regular(file).read_bytes().decode("utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{file} is damaged, not valid JSON ({error}); copy or download it again") from error


def read_object(file: Path) -> dict[str, Any]:
    """Return the JSON object in a file."""
    content = read_json(file)
    if not isinstance(content, dict):
        raise ValueError(f"{file} must hold a JSON object, got {type(content).__name__}")
    return content


def shapes(file: Path) -> Shapes:
    """Return the shapes of the tensors in a safetensors file; the numbers themselves are not read."""
    try:
        with safe_open(regular(file), framework="np") as tensors:
            return {name: tuple(tensors.get_slice(name).get_shape()) for name in tensors.keys()}
    except SafetensorError as error:
        raise ValueError(f"{file} is damaged ({error}); copy or download it again") from error


def read_tensors(file: Path) -> dict[str, Tensor]:
    """Return the tensors in a safetensors file."""
    try:
        return load_file(regular(file))
    except SafetensorError as error:
        raise ValueError(f"{file} is damaged ({error}); copy or download it again") from error
