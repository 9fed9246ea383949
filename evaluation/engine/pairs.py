"""Studies of text pairs: the files of their tasks, which pairs are trained on, and which are dev."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray
from typing_extensions import Self

from evaluation.engine.study import Record, Row, Study
from st_plugins.core.reading.tables import read_table

if TYPE_CHECKING:
    from evaluation.engine.setting import Setting


Array = NDArray[np.float64]


@dataclass(frozen=True)
class Task:
    """The data of a task; each study adds its budget."""

    train: list[str]  # files below --data; columns label (classes) or score, sentence1, sentence2
    # Files of the reported sets by name. Resamples go by the name: studies that report on one set give it one name.
    tests: dict[str, str]
    dev: str = ""  # file; empty to put ``aside`` pairs of the training data aside for it
    aside: int = 0
    # In the order of the classifier's outputs; empty for a task of graded scores.
    classes: tuple[str, ...] = ()
    scale: tuple[float, float] = (0.0, 5.0)  # lowest and highest score
    positive: str = ""  # class whose F1 is reported beside the accuracy
    max_length: int = 48  # each text is cut to so many tokens

    @property
    def positive_class(self) -> int | None:
        """The number of the class whose F1 is reported."""
        return self.classes.index(self.positive) if self.positive else None


@dataclass(frozen=True)
class PairRow(Row):
    """One row of a table of pair tasks."""

    tasks: tuple[str, ...] = field(default=(), kw_only=True)  # empty for all


@dataclass(frozen=True)
class Examples:
    """Pairs with their labels: class numbers, or scores from 0 to 1."""

    first: list[str] = field(default_factory=list)
    second: list[str] = field(default_factory=list)
    gold: list[float] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.gold)

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """The texts, two by two."""
        return list(zip(self.first, self.second, strict=True))

    @property
    def texts(self) -> list[str]:
        """All texts."""
        return [*self.first, *self.second]

    def take(self, rows: Any) -> Examples:
        """Return the pairs at some positions, in their order."""
        return Examples(*([column[row] for row in rows] for column in (self.first, self.second, self.gold)))

    def first_ones(self, count: int) -> Examples:
        """Return the first so many pairs, or all."""
        return self.take(range(min(len(self), count)))

    def columns(self, targets: list[Any]) -> dict[str, list[Any]]:
        """Return the columns of a training set that learns ``targets``."""
        return {"sentence1": self.first, "sentence2": self.second, "label": targets}


Answer = Callable[[Examples], Array]
"""A trained row: logits (N, C) of the classes, or scores (N,)."""
AnyRow = TypeVar("AnyRow", bound=PairRow)


@dataclass(kw_only=True)
class PairStudy(Study[AnyRow], Generic[AnyRow]):
    """A study with ``[task.<name>]`` tables, whose rows share what a task and a seed need."""

    task_type: ClassVar[type[Task]] = Task
    setting_type: ClassVar[type[Setting]]
    keeps_rows_together: ClassVar[bool] = True

    tasks: dict[str, Any]
    # Dev sets are cut to so many pairs; 0 leaves them whole. Reported sets are cut only by `test_limit`.
    eval_limit: int = 2000
    _open: Setting | None = field(default=None, init=False, repr=False)

    @classmethod
    def from_tables(cls, raw: dict[str, Any]) -> Self:
        """Make dataclasses of a recipe's tables."""
        tasks = {name: cls.task_type(**task) for name, task in raw.pop("task").items()}
        return super().from_tables({**raw, "tasks": tasks})

    def check(self) -> None:
        """Refuse values that cannot be meant."""
        super().check()
        for name, task in self.tasks.items():
            if bool(task.dev) == bool(task.aside):
                raise ValueError(f"task {name!r} needs either a dev file or a number of pairs put aside")
        for row in self.rows:
            self.check_names(f"row {row.name!r}:", "tasks", row.tasks)

    def check_names(self, where: str, key: str, names: Any) -> None:
        """Refuse names that are no task's."""
        unknown = [name for name in names if name not in self.tasks]
        if unknown:
            raise ValueError(f"{where} {key}={unknown} must be among {', '.join(self.tasks)}")

    @property
    def task_names(self) -> tuple[str, ...]:
        """The tasks."""
        return tuple(self.tasks)

    @property
    def sets(self) -> list[tuple[str, str]]:
        """Task and name of each reported set."""
        return [(name, test) for name, task in self.tasks.items() for test in task.tests]

    def tasks_of(self, row: AnyRow) -> tuple[str, ...]:
        """Return the tasks that a row is measured on."""
        return row.tasks or self.task_names

    def measure(self, row: AnyRow, task: str, seed: int) -> Record:
        """Train and score a row."""
        # Only the last one is kept: a teacher and its pairs need memory, and the next task has others.
        if self._open is None or (self._open.name, self._open.seed) != (task, seed):
            self._open = self.setting_type(self, task, seed)
        return self._open.measure(row)

    def summary(self, record: Record) -> str:
        """Return what the terminal shows of a new record."""
        return f"{super().summary(record)}, dev {record['dev']['value'][0]:.4f}"


def read_examples(task: Task, files: list[str], data: Path) -> Examples:
    """Read pairs and their labels, which have to be the task's."""
    found = Examples()
    low, high = task.scale
    for file in files:
        table = read_table(data / file)
        found.first.extend(table.texts("sentence1"))
        found.second.extend(table.texts("sentence2"))
        if task.classes:
            labels = table.texts("label")
            unknown = sorted(set(labels) - set(task.classes))
            if unknown:
                raise ValueError(f"{file}: labels {unknown} are not among the task's classes {list(task.classes)}")
            found.gold.extend(task.classes.index(label) for label in labels)
        else:
            scores = [(score - low) / (high - low) for score in table.scores("score")]
            if min(scores) < 0 or max(scores) > 1:
                raise ValueError(f"{file}: scores lie outside the task's scale {low:g} to {high:g}")
            found.gold.extend(scores)
    return found


def training_and_dev(task: Task, data: Path, batch_size: int, limit: int = 0) -> tuple[Examples, Examples]:
    """Read a task's training pairs, and its dev pairs cut to a limit; both are the same for all seeds and rows."""
    training = read_examples(task, task.train, data)
    generator = np.random.default_rng(0)
    # Files may be sorted, and what is dev must not depend on a row's seed.
    order = generator.permutation(len(training))
    if task.dev:
        dev = read_examples(task, [task.dev], data)
        dev = dev.take(generator.permutation(len(dev)))
    else:
        dev, order = training.take(order[: task.aside]), order[task.aside :]
    training = training.take(order)
    if len(training) < batch_size:
        raise ValueError(f"{len(training)} training pairs are fewer than one batch, batch_size={batch_size}")
    return training, dev.first_ones(limit or len(dev))
