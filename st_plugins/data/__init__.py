"""Sentence pairs and texts: the table of STS tasks, readers for them, and the user's own files."""

from __future__ import annotations

from st_plugins.data.own import read_pairs, read_texts
from st_plugins.data.pairs import Pairs
from st_plugins.data.readers import DATA_VARIABLE, load_task, load_tasks
from st_plugins.data.tasks import GROUPS, TASKS, Split, Task, resolve_tasks

__all__ = [
    "DATA_VARIABLE",
    "GROUPS",
    "TASKS",
    "Pairs",
    "Split",
    "Task",
    "load_task",
    "load_tasks",
    "read_pairs",
    "read_texts",
    "resolve_tasks",
]
