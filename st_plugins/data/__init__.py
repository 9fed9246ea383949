"""Sentence pairs and texts: the table of STS tasks, readers for them, and the user's own files.

The names below are imported on first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from st_plugins.data.own import read_pairs, read_texts
    from st_plugins.data.pairs import Pairs
    from st_plugins.data.readers import DATA_VARIABLE, load_task, load_tasks
    from st_plugins.data.tasks import GROUPS, TASKS, Task, resolve_tasks

_LAZY = {
    "DATA_VARIABLE": "st_plugins.data.readers",
    "GROUPS": "st_plugins.data.tasks",
    "TASKS": "st_plugins.data.tasks",
    "Pairs": "st_plugins.data.pairs",
    "Task": "st_plugins.data.tasks",
    "load_task": "st_plugins.data.readers",
    "load_tasks": "st_plugins.data.readers",
    "read_pairs": "st_plugins.data.own",
    "read_texts": "st_plugins.data.own",
    "resolve_tasks": "st_plugins.data.tasks",
}

__all__ = [
    "DATA_VARIABLE",
    "GROUPS",
    "TASKS",
    "Pairs",
    "Task",
    "load_task",
    "load_tasks",
    "read_pairs",
    "read_texts",
    "resolve_tasks",
]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'st_plugins.data' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
