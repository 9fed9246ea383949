"""In which precision modules compute."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_hook


@contextlib.contextmanager
def passes_of(kind: type[nn.Module]) -> Iterator[dict[str, set[torch.dtype]]]:
    """Collect the types of what modules of a kind put out inside the block, in training and in evaluation mode."""
    found: dict[str, set[torch.dtype]] = {"training": set(), "evaluation": set()}

    def note(module: nn.Module, given: Any, result: Any) -> None:
        if isinstance(module, kind):
            found["training" if module.training else "evaluation"].add(result.dtype)

    handle = register_module_forward_hook(note)
    try:
        yield found
    finally:
        handle.remove()
