"""Tasks of text pairs: where their files are, what their labels mean, which pairs are trained on and which are dev."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from st_plugins.core.reading.tables import read_table

__all__ = ["Examples", "Task", "check_task", "read_examples", "training_and_dev"]


@dataclass(frozen=True)
class Task:
    """The data of a task; each study adds its budget.

    Args:
        train: Files below ``--data``; columns label (classes) or score, sentence1, sentence2.
        tests: Files of the reported sets by name. Resamples go by the name, so two studies that report on one set
            give it one name.
        dev: File of the development set; empty to put ``aside`` pairs of the training data aside for it.
        aside: How many pairs that is.
        classes: Labels in the order of the classifier's outputs; empty for a task of graded scores.
        scale: Lowest and highest score.
        positive: Class whose F1 is reported beside the accuracy; empty for none.
        max_length: Each text is cut to this many tokens.
    """

    train: list[str]
    tests: dict[str, str]
    dev: str = ""
    aside: int = 0
    classes: tuple[str, ...] = ()
    scale: tuple[float, float] = (0.0, 5.0)
    positive: str = ""
    max_length: int = 48


@dataclass(frozen=True)
class Examples:
    """Pairs with their labels.

    Args:
        first: First texts.
        second: Second texts.
        gold: Class numbers, or scores from 0 to 1.
    """

    first: list[str] = field(default_factory=list)
    second: list[str] = field(default_factory=list)
    gold: list[float] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.gold)

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """The texts, two by two."""
        return list(zip(self.first, self.second, strict=True))

    def take(self, rows: Any) -> Examples:
        """Return some of the pairs.

        Args:
            rows: Their positions.

        Returns:
            The pairs, in the order of the positions.
        """
        return Examples(*([column[row] for row in rows] for column in (self.first, self.second, self.gold)))


def check_task(path: Path, name: str, task: Task) -> None:
    """Check what a recipe says of a task's data.

    Args:
        path: The recipe, for the message.
        name: Name of the task.
        task: The task.

    Raises:
        ValueError: It has neither a dev file nor pairs put aside, or both.
    """
    if bool(task.dev) == bool(task.aside):
        raise ValueError(f"{path}: task {name!r} needs either a dev file or a number of pairs put aside")


def read_examples(task: Task, files: list[str], data: Path) -> Examples:
    """Read pairs and their labels.

    Args:
        task: Whose labels they are.
        files: Files below ``data``.
        data: Folder of the data.

    Returns:
        The pairs.

    Raises:
        ValueError: A label is none of the task's classes, or a score is outside its scale.
    """
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
    """Read a task's training pairs, and its dev pairs cut to a limit. Both are the same for all seeds and rows.

    Args:
        task: The task.
        data: Folder of the data.
        batch_size: Pairs of a training step, of which there must be enough for one.
        limit: Most dev pairs; 0 for all.

    Returns:
        Training pairs and dev pairs.

    Raises:
        ValueError: There are not enough pairs.
    """
    training = read_examples(task, task.train, data)
    generator = np.random.default_rng(0)
    order = generator.permutation(len(training))
    if task.dev:
        dev = read_examples(task, [task.dev], data)
        dev = dev.take(generator.permutation(len(dev)))
    else:
        dev, order = training.take(order[: task.aside]), order[task.aside :]
    training = training.take(order)
    if len(training) < batch_size:
        raise ValueError(f"{len(training)} training pairs are fewer than one batch, batch_size={batch_size}")
    return training, dev.take(range(min(len(dev), limit or len(dev))))
