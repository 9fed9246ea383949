"""Recipes of the RE2 study: tasks, the rows that are compared on them, and what the paper reports."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from evaluation import pair_tasks
from evaluation.pair_tasks import check_task
from evaluation.toml_file import recipe_tables
from st_plugins.matching import RE2Config, RE2Schedule

__all__ = ["Beside", "Row", "Study", "Task", "read_study"]

KINDS = ("re2", "siamese")
SOURCES = ("words", "subwords", "transformer")


@dataclass(frozen=True)
class Task(pair_tasks.Task):
    """One task: its data, and what suits it.

    Args:
        ranked: Whether pairs with the same first text are ranked by their score for class 1; the dev metric is then
            the mean average precision. The classes are then ``["0", "1"]``.
        config: Values of `RE2Config` for all rows of the task.
        schedule: Values of `RE2Schedule` for all rows of the task.
        paper: What the paper reports on its test set: ``value``, ``deviation`` over its runs, ``pairs`` of its
            training set, and ``mrr`` where it ranks.
    """

    ranked: bool = False
    config: dict[str, Any] = field(default_factory=dict)
    schedule: dict[str, Any] = field(default_factory=dict)
    paper: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Row:
    """One row of the tables.

    Args:
        name: Its name.
        kind: ``"re2"``, or ``"siamese"``: means of word vectors, and a softmax on [u; v; |u - v|].
        source: What gives RE2 its token vectors: ``"words"`` (word vectors), ``"subwords"`` (learned on the training
            texts) or ``"transformer"`` (the frozen tokens of an encoder). A Siamese row starts from words.
        trainable: Whether word vectors are trained.
        model: Folder below ``--models``: with ``vectors.txt.gz`` for words, an encoder for a transformer.
        width: Width of learned vectors.
        vocabulary: Most subwords.
        config: Values of `RE2Config` that are other than the task's.
        schedule: Values of `RE2Schedule` that are other than the task's.
        tasks: Tasks it is run on; empty for all.
        seeds: Seeds; empty for the recipe's.
        ablation: Whether it belongs to the table of ablations, on dev sets only, instead of the main one.
        paper: What the paper reports for an ablation on its dev set, by task.
    """

    name: str
    kind: str = "re2"
    source: str = "words"
    trainable: bool = False
    model: str = ""
    width: int = 50
    vocabulary: int = 8000
    config: dict[str, Any] = field(default_factory=dict)
    schedule: dict[str, Any] = field(default_factory=dict)
    tasks: tuple[str, ...] = ()
    seeds: tuple[int, ...] = ()
    ablation: bool = False
    paper: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Beside:
    """A row of another study of pair tasks that is shown beside.

    Args:
        name: What it is called here.
        results: The other study's folder among the results.
        row: Its name there.
        tasks: The other study's names of tasks, by ours; a task without an entry has the same name.
    """

    name: str
    results: str
    row: str
    tasks: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Study:
    """A recipe.

    Args:
        title: Heading of the table.
        tasks: The tasks by name.
        rows: The rows.
        beside: Rows of other studies.
        config: Values of `RE2Config` for all tasks.
        schedule: Values of `RE2Schedule` for all tasks.
        seeds: One training for each.
        patience: After so many epochs without a better dev score the training ends.
        eval_limit: Dev sets are cut to this many pairs, except where pairs are ranked; 0 leaves them whole. Reported
            sets are never cut.
        full: The row that ablations are compared with, on the same seeds; the paper's dev scores of it are its own
            ``paper``.
        notes: Text below the table.
    """

    title: str
    tasks: dict[str, Task]
    rows: list[Row]
    beside: list[Beside] = field(default_factory=list)
    config: dict[str, Any] = field(default_factory=dict)
    schedule: dict[str, Any] = field(default_factory=dict)
    seeds: tuple[int, ...] = (0, 1, 2)
    patience: int = 3
    eval_limit: int = 2000
    full: str = ""
    notes: str = ""

    def config_of(self, row: Row, task: str) -> RE2Config:
        """Return the network of a row on a task.

        Args:
            row: The row.
            task: Name of the task.

        Returns:
            The study's values, with the task's and then the row's in their place.
        """
        own = self.tasks[task]
        return RE2Config.from_dict({"max_length": own.max_length, **self.config, **own.config, **row.config})

    def schedule_of(self, row: Row, task: str) -> RE2Schedule:
        """Return the schedule of a row on a task.

        Args:
            row: The row.
            task: Name of the task.

        Returns:
            The study's values, with the task's and then the row's in their place.
        """
        return RE2Schedule.from_dict({**self.schedule, **self.tasks[task].schedule, **row.schedule})


def read_study(path: Path) -> Study:
    """Read and check a recipe.

    Args:
        path: The TOML file.

    Returns:
        The study.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is not TOML, a key is missing or unknown, or a value is not allowed.
    """
    with recipe_tables(path) as raw:
        defaults = raw.pop("defaults", {})
        rows = [Row(**{**defaults, **row}) for row in raw.pop("row")]
        tasks = {name: Task(**task) for name, task in raw.pop("task").items()}
        beside = [Beside(**row) for row in raw.pop("beside", [])]
        study = Study(rows=rows, tasks=tasks, beside=beside, **raw)
    for name, task in tasks.items():
        check_task(path, name, task)
        if not task.classes:
            raise ValueError(f"{path}: task {name!r} needs classes")
        if task.ranked and list(task.classes) != ["0", "1"]:
            raise ValueError(f"{path}: task {name!r}: classes={list(task.classes)} must be ['0', '1'] to be ranked")
    for row in rows:
        _check_row(f"{path}: row {row.name!r}:", row, study)
    for other in beside:
        _check_names(f"{path}: beside {other.name!r}:", "tasks", other.tasks, study)
    names = [*(row.name for row in rows), *(row.name for row in beside)]
    if len(set(names)) != len(names):
        raise ValueError(f"{path}: two rows have one name")
    if any(row.ablation for row in rows) and not any(row.name == study.full and not row.ablation for row in rows):
        raise ValueError(f"{path}: full={study.full!r} must be the row that ablations are compared with")
    return study


def _check_row(where: str, row: Row, study: Study) -> None:
    for key, choices in (("kind", KINDS), ("source", SOURCES)):
        if getattr(row, key) not in choices:
            raise ValueError(f"{where} {key}={getattr(row, key)!r} must be one of {', '.join(choices)}")
    if row.kind == "siamese" and row.source != "words":
        raise ValueError(f"{where} source={row.source!r} must be words in a siamese row")
    if row.trainable and row.source != "words":
        raise ValueError(f"{where} trainable=true is for words; subwords are always trained, a transformer never")
    if not row.model and row.source != "subwords":
        raise ValueError(f"{where} source={row.source!r} needs a model")
    _check_names(where, "tasks", row.tasks, study)
    _check_names(where, "paper", row.paper, study)
    for task in row.tasks or study.tasks:
        try:
            study.config_of(row, task)
            study.schedule_of(row, task)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{where} task {task!r}: {error}") from None


def _check_names(where: str, key: str, names: Any, study: Study) -> None:
    unknown = [name for name in names if name not in study.tasks]
    if unknown:
        raise ValueError(f"{where} {key}={unknown} must be among {', '.join(study.tasks)}")
