"""The table of STS tasks: facts only (``tasks.json``), one :class:`Task` for each entry.

STS-B and SICK-R have one sub-dataset each: the published tables score them whole, so the genres inside STS-B are
not told apart here. SICK-R exists twice: ``sickr`` is the 4,927 test pairs of the published tables, ``sickr_all`` all
9,927 pairs, as the public leaderboard (MTEB) scores it. The years 2012 to 2016 keep the sub-datasets of the shared
tasks.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from importlib import resources
from typing import Any


@dataclass(frozen=True)
class Columns:
    """Names of the columns of a file or hub dataset."""

    first: str
    second: str
    score: str  # gold score or 0/1 label
    subset: str | None = None  # None where the task is scored whole


@dataclass(frozen=True, eq=False)
class Split:
    """One part of a task.

    Args:
        file: Path inside the data folder; the same name without ``.gz`` is accepted too.
        rows: Published number of pairs.
        subsets: Published number of pairs of each sub-dataset; empty when the task is scored whole.
        more: Further files of the same columns, read after the first.

    Example:
        >>> TASKS["stsb"].split("dev").rows
        1500
    """

    file: str
    rows: int
    subsets: dict[str, int] = field(default_factory=dict)
    more: Sequence[str] = ()


@dataclass(frozen=True, eq=False)
class Hub:
    """Where the task lies on the Hugging Face hub. No copy there names the sub-dataset of a pair."""

    dataset: str
    splits: dict[str, str]  # its name of each of our splits
    columns: Columns
    revision: str | None = None  # a commit; None is the main branch
    config: str | None = None
    note: str = ""  # what differs from the published data, for the report


@dataclass(frozen=True, eq=False)
class Task:
    """One STS task, as data.

    Args:
        name: Short name, used in metric keys (``sts12``).
        title: Name as printed (``STS12``).
        language: ``"en"`` or ``"zh"``.
        kind: ``"graded"`` or ``"binary"`` (labels 0 and 1).
        scale: Lowest and highest gold score.
        columns: Column names of the local files.
        splits: The parts, by name (``"train"``, ``"dev"``, ``"test"``).
        hub: Where to find it on the hub.
        citation: Whom to cite.
        license: Terms, as far as they are stated.

    Example:
        >>> TASKS["sts12"].splits["test"].rows, sum(TASKS["sts12"].splits["test"].subsets.values())
        (3108, 3108)
    """

    name: str
    title: str
    language: str
    kind: str
    scale: tuple[float, float]
    columns: Columns
    splits: dict[str, Split]
    hub: Hub
    citation: str
    license: str

    def split(self, name: str) -> Split:
        """Return one part of the task.

        Args:
            name: ``"train"``, ``"dev"`` or ``"test"``.

        Returns:
            The split.

        Raises:
            ValueError: The task has no such split.
        """
        if name not in self.splits:
            raise ValueError(f"split={name!r}: task {self.name!r} has the splits {', '.join(self.splits)}")
        return self.splits[name]


def _task(raw: dict[str, Any]) -> Task:
    hub = {**raw["hub"], "columns": Columns(**raw["hub"]["columns"])}
    return Task(
        **{
            **raw,
            "scale": (float(raw["scale"][0]), float(raw["scale"][1])),
            "columns": Columns(**raw["columns"]),
            "splits": {name: Split(**split) for name, split in raw["splits"].items()},
            "hub": Hub(**hub),
        }
    )


_TABLE = json.loads(resources.files("st_plugins.data").joinpath("tasks.json").read_text(encoding="utf-8"))

TASKS: dict[str, Task] = {raw["name"]: _task(raw) for raw in _TABLE["tasks"]}
"""Every known task by name, in the order of the published tables."""

GROUPS: dict[str, list[str]] = _TABLE["groups"]
"""Names that stand for several tasks: ``"en"`` (the seven English ones) and ``"zh"`` (the five Chinese ones)."""


def resolve_tasks(tasks: str | Task | Iterable[str | Task]) -> list[Task]:
    """Turn what a user writes into tasks.

    Args:
        tasks: A group (``"en"``, ``"zh"``), a name, several of them separated by commas, or a list of names and tasks.

    Returns:
        The tasks in the order given, each once.

    Raises:
        ValueError: A name is unknown, or no task is named.
        TypeError: An item is neither text nor a task.

    Example:
        >>> [task.name for task in resolve_tasks("sts12,stsb")]
        ['sts12', 'stsb']
        >>> len(resolve_tasks("en")), len(resolve_tasks("zh"))
        (7, 5)
    """
    allowed = f"use {', '.join(GROUPS)} or names among {', '.join(TASKS)}"
    found: dict[str, Task] = {}
    for item in [tasks] if isinstance(tasks, str | Task) else tasks:
        if isinstance(item, Task):
            found[item.name] = item
            continue
        if not isinstance(item, str):
            raise TypeError(f"tasks has an item {item!r}; {allowed}")
        for name in (part.strip().lower() for part in item.split(",")):
            # As some people write them: sickr-all, stsb-mt-zh.
            name = name.replace("-", "_")
            if name not in GROUPS and name not in TASKS:
                raise ValueError(f"tasks={name!r} is not a known task; {allowed}")
            found.update((member, TASKS[member]) for member in GROUPS.get(name, [name]))
    if not found:
        raise ValueError(f"tasks={tasks!r} names no task; {allowed}")
    return list(found.values())
