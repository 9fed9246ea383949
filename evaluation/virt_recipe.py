"""Recipes of the VIRT study: tasks, the budget of each, and the rows that are compared on them."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from evaluation import pair_tasks
from evaluation.pair_tasks import check_task
from evaluation.toml_file import recipe_tables

__all__ = ["Grid", "Reading", "Row", "Study", "Task", "layer_name", "read_study"]

KINDS = ("cross-encoder", "siamese", "interaction")


@dataclass(frozen=True)
class Task(pair_tasks.Task):
    """One task: its data and its budget.

    Args:
        steps: Training steps; 0 leaves it to ``epochs``. The pairs are drawn with the seed, each seen at most once an
            epoch.
        epochs: Passes over the training data.
        teacher_steps: Training steps of the cross-encoder; 0 for as many as the rows have.
        teacher_from: Task whose cross-encoder this task's starts from; empty for the encoder.
    """

    steps: int = 0
    epochs: float = 2.0
    teacher_steps: int = 0
    teacher_from: str = ""


@dataclass(frozen=True)
class Row:
    """One row of the table.

    Args:
        name: Its name.
        kind: ``"cross-encoder"`` (the teacher itself), ``"siamese"`` (sentence vectors; softmax on [u; v; |u - v|]
            for classes, cosine for scores) or ``"interaction"`` (`VIRTPairClassifier` on token vectors).
        distillation: Share of the teacher's answers in what is learned, the rest is the gold label: 0 for none.
        weight: α of `VIRTLoss`; 0 for no VIRT.
        layers: As for `VIRTLoss`: ``"all"`` or a list of the student's layers.
        target: As for `VIRTLoss`.
        distance: As for `VIRTLoss`.
        heads: As for `VIRTLoss`.
        special_tokens: As for `VIRTLoss`.
        learning_rate: Peak; linear warm-up over a tenth of the steps, then linear decay.
        regression: Host's loss on the cosine where the task has scores: ``"mse"`` or ``"cosent"``.
        fusion: Of the interaction.
        steps: Training steps; 0 for the task's.
        tasks: Tasks it is run on; empty for all.
        seeds: Seeds; empty for the recipe's.
        dev_only: Whether it is never scored on a reported set.
        grid: Whether it is a cell of the ablation picture.
    """

    name: str
    kind: str = "siamese"
    distillation: float = 0.0
    weight: float = 0.0
    layers: str | tuple[int, ...] = "all"
    target: str = "softmax_slice"
    distance: str = "mse"
    heads: str = "match"
    special_tokens: str = "exclude"
    learning_rate: float = 1e-4
    regression: str = "mse"
    fusion: str = "difference"
    steps: int = 0
    tasks: tuple[str, ...] = ()
    seeds: tuple[int, ...] = ()
    dev_only: bool = False
    grid: bool = False


@dataclass(frozen=True)
class Grid:
    """The ablation: target × layers × weight on one task's dev set, every combination a row of its own.

    Args:
        task: The task.
        steps: Training steps of each cell.
        targets: Panels of the picture.
        layers: Lines of each panel.
        weights: Columns of each panel. Those of one target need not mean the same for another.
        seeds: Seeds.
    """

    task: str
    steps: int
    targets: list[str]
    layers: list[str | list[int]]
    weights: list[float]
    seeds: tuple[int, ...] = (0,)

    def rows(self, defaults: dict[str, Any]) -> list[Row]:
        """Return the cells, and before them the Siamese encoder that they are compared with.

        Args:
            defaults: Settings of all rows of the recipe.

        Returns:
            One row a combination.
        """
        shared = {**defaults, "steps": self.steps, "tasks": (self.task,), "seeds": tuple(self.seeds)}
        plain = Row(**{**shared, "name": "grid: without", "dev_only": True, "grid": True})
        return [plain] + [
            replace(
                plain,
                name=f"grid: {target}, {layer_name(layers)}, {weight:g}",
                target=target,
                layers=_layers(layers),
                weight=weight,
            )
            for target, layers, weight in itertools.product(self.targets, self.layers, self.weights)
        ]


@dataclass(frozen=True)
class Reading:
    """What teaches the encoder to read two texts at once; see ``evaluation/virt_reading.py``.

    Args:
        pairs: Files below ``--data``, and what marks the pairs that say the same: a label, or a lowest score.
        masked_steps: Training steps on masked words of one text beside the other.
        steps: Training steps on telling such pairs from pairs put together at random.
        batch_size: Pairs a step.
        masked: Share of the second text's tokens that are asked for.
        masked_learning_rate: Peak of the first part; linear warm-up over a tenth of the steps, then linear decay.
        learning_rate: Peak of the second part.
        max_length: Tokens of both texts.
    """

    pairs: dict[str, str | float]
    masked_steps: int
    steps: int
    batch_size: int = 64
    masked: float = 0.4
    masked_learning_rate: float = 5e-4
    learning_rate: float = 3e-4
    max_length: int = 80


@dataclass(frozen=True)
class Study:
    """A recipe.

    Args:
        title: Heading of the table.
        model: Folder below ``--models``; cross-encoder and students start from it.
        tasks: The tasks by name.
        rows: The rows, cells of the grid among them.
        grid: The ablation, if there is one.
        reading: What the encoder learns before it becomes cross-encoder and students; None for nothing.
        pooling: As for `Pipeline`.
        seeds: One training for each.
        batch_size: Pairs a step.
        teacher_learning_rate: Of the cross-encoder.
        teacher_seed: Seed of the cross-encoder that all seeds of the rows learn from; None for one of their own each.
        eval_limit: Dev sets are cut to this many pairs; 0 leaves them whole. Reported sets are never cut.
        agreement_pairs: Dev pairs on which attention maps are compared.
        notes: Text below the table.
    """

    title: str
    model: str
    tasks: dict[str, Task]
    rows: list[Row]
    grid: Grid | None = None
    reading: Reading | None = None
    pooling: str = "mean"
    seeds: tuple[int, ...] = (0, 1, 2)
    batch_size: int = 32
    teacher_learning_rate: float = 1e-4
    teacher_seed: int | None = None
    eval_limit: int = 2000
    agreement_pairs: int = 256
    notes: str = ""


def layer_name(layers: Any) -> str:
    """Return what a choice of layers is called in names and pictures.

    Args:
        layers: As in a row.

    Returns:
        ``"all"``, or ``"layers 2+3"``.

    Example:
        >>> layer_name("all"), layer_name([2, -1])
        ('all', 'layers 2+-1')
    """
    return layers if isinstance(layers, str) else "layers " + "+".join(map(str, layers))


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
        grid = Grid(**raw.pop("grid")) if "grid" in raw else None
        reading = Reading(**raw.pop("reading")) if "reading" in raw else None
        rows = [replace(row, layers=_layers(row.layers)) for row in rows]
        rows += grid.rows(defaults) if grid else []
        study = Study(rows=rows, tasks=tasks, grid=grid, reading=reading, **raw)
    for row in study.rows:
        where = f"{path}: row {row.name!r}:"
        unknown = [name for name in row.tasks if name not in tasks]
        if unknown:
            raise ValueError(f"{where} tasks={unknown} must be among {', '.join(tasks)}")
        if row.kind not in KINDS:
            raise ValueError(f"{where} kind={row.kind!r} must be one of {', '.join(KINDS)}")
        if row.regression not in ("mse", "cosent"):
            raise ValueError(f"{where} regression={row.regression!r} must be mse or cosent")
        if row.distillation and row.kind == "interaction":
            raise ValueError(
                f"{where} distillation={row.distillation} is for siamese rows; the pair head takes labels"
            )
    for name, task in tasks.items():
        if task.teacher_from and (task.teacher_from not in tasks or tasks[task.teacher_from].teacher_from):
            raise ValueError(
                f"{path}: task {name!r}: teacher_from={task.teacher_from!r} must be a task whose cross-encoder starts "
                f"from the encoder"
            )
        check_task(path, name, task)
    if len({row.name for row in study.rows}) != len(study.rows):
        raise ValueError(f"{path}: two rows have one name")
    return study


def _layers(given: Any) -> str | tuple[int, ...]:
    return given if isinstance(given, str) else tuple(given)
