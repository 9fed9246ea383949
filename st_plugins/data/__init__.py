"""Sentence pairs, texts, labeled texts and retrieval: the table of STS tasks, and readers for the user's files."""

from __future__ import annotations

from st_plugins.data.labeled_texts import LabeledTexts, read_labeled_texts
from st_plugins.data.own import read_pairs, read_texts
from st_plugins.data.pairs import Pairs
from st_plugins.data.readers import DATA_VARIABLE, load_task, load_tasks
from st_plugins.data.retrieval import RetrievalData, read_retrieval
from st_plugins.data.tasks import GROUPS, TASKS, Split, Task, resolve_tasks

__all__ = [
    "DATA_VARIABLE",
    "GROUPS",
    "TASKS",
    "LabeledTexts",
    "Pairs",
    "RetrievalData",
    "Split",
    "Task",
    "load_task",
    "load_tasks",
    "read_labeled_texts",
    "read_pairs",
    "read_retrieval",
    "read_texts",
    "resolve_tasks",
]
