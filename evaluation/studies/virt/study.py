"""The VIRT study: what a bi-encoder gains from a cross-encoder's attention, beside its scores."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from typing_extensions import Self

from evaluation.engine import pairs
from evaluation.engine.pair_tables import difference_table, main_table
from evaluation.engine.study import Page, Results, check_choice, stamp
from evaluation.engine.tables import section
from evaluation.studies.virt import tables
from evaluation.studies.virt.reading import Reading, reader
from evaluation.studies.virt.setting import Setting


@dataclass(frozen=True)
class Task(pairs.Task):
    """A task and its budget."""

    # Training steps; 0 leaves it to ``epochs``. The pairs are drawn with the seed, each at most once an epoch.
    steps: int = 0
    epochs: float = 2.0
    teacher_steps: int = 0  # of the cross-encoder; 0 for as many as the rows have
    teacher_from: str = ""  # task whose cross-encoder this task's starts from; empty for the encoder


@dataclass(frozen=True)
class Row(pairs.PairRow):
    """A model of pairs."""

    # "cross-encoder" (the teacher itself), "siamese" (sentence vectors; softmax on [u; v; |u - v|] for classes, cosine
    # for scores) or "interaction" (VIRTPairClassifier on token vectors)
    kind: str = "siamese"
    # Share of the teacher's answers in what is learned, the rest is the gold label.
    distillation: float = 0.0
    # How the teacher's answers on classes are learned: "kl", mixed into the probabilities; "mse", its logits;
    # "margin", the differences between its logits, which leave open what a softmax does not see.
    scores: str = "kl"
    weight: float = 0.0  # of VIRTLoss, as all down to ``include_special_tokens``; 0 for no VIRT
    layers: str | tuple[int, ...] = "all"
    target: str = "softmax_slice"
    distance: str = "mse"
    heads: str = "match"
    include_special_tokens: bool = False
    virt_after: float = 0.0  # share of the steps that pass before VIRT begins
    learning_rate: float = 1e-4  # peak; linear warm-up over a tenth of the steps, then linear decay
    regression: str = "mse"  # host's loss on the cosine where the task has scores, or "cosent"
    fusion: str = "difference"  # of the interaction
    steps: int = 0  # 0 for the task's
    dev_only: bool = False  # never scored on a reported set
    grid: bool = False  # a cell of the ablation picture


@dataclass(frozen=True)
class Grid:
    """The ablation: target × layers × weight on one task's dev set, every combination a row of its own."""

    task: str
    steps: int
    targets: list[str]  # panels of the picture
    layers: list[str | list[int]]  # lines of each panel
    weights: list[float]  # columns of each panel; those of one target need not mean the same for another
    seeds: tuple[int, ...] = (0,)

    def rows(self, defaults: dict[str, Any]) -> list[dict[str, Any]]:
        """Return the cells, and before them the Siamese encoder that they are compared with."""
        shared = {**defaults, "steps": self.steps, "tasks": (self.task,), "seeds": tuple(self.seeds)}
        plain = {**shared, "name": "grid: without", "dev_only": True, "grid": True}
        return [plain] + [
            {
                **plain,
                "name": f"grid: {target}, {tables.layer_name(layers)}, {weight:g}",
                "target": target,
                "layers": layers,
                "weight": weight,
            }
            for target, layers, weight in itertools.product(self.targets, self.layers, self.weights)
        ]


@dataclass(kw_only=True)
class Study(pairs.PairStudy[Row]):
    """A recipe."""

    row_type: ClassVar[type[Row]] = Row
    task_type: ClassVar[type[Task]] = Task
    setting_type: ClassVar[type[Setting]] = Setting
    takes_bf16: ClassVar[bool] = True

    model: str  # folder below --models; cross-encoder and students start from it
    grid: Grid | None = None
    reading: Reading | None = None  # what the encoder learns before it becomes cross-encoder and students
    pooling: str = "mean"
    batch_size: int = 32
    teacher_learning_rate: float = 1e-4
    # Of the cross-encoder that all seeds learn from; None for one of their own each.
    teacher_seed: int | None = None
    agreement_pairs: int = 256  # dev pairs on which attention maps are compared
    test_limit: int = 0  # the first so many pairs of each reported set; 0 leaves them whole
    cache_maps: bool = False  # whether rows share the teacher's maps, kept in half precision beside the cross-encoder

    @classmethod
    def from_tables(cls, raw: dict[str, Any]) -> Self:
        """Make dataclasses of a recipe's tables."""
        grid = Grid(**raw.pop("grid")) if "grid" in raw else None
        reading = Reading(**raw.pop("reading")) if "reading" in raw else None
        rows = raw.pop("row") + (grid.rows(raw.get("defaults", {})) if grid else [])
        found = super().from_tables({**raw, "row": rows, "grid": grid, "reading": reading})
        # Lists of layers become tuples, so that rows can be compared and hashed.
        found.rows = [
            row if isinstance(row.layers, str) else replace(row, layers=tuple(row.layers)) for row in found.rows
        ]
        return found

    def check(self) -> None:
        """Refuse values that cannot be meant."""
        super().check()
        for row in self.rows:
            where = f"row {row.name!r}:"
            check_choice(where, "kind", row.kind, ("cross-encoder", "siamese", "interaction"))
            check_choice(where, "regression", row.regression, ("mse", "cosent"))
            check_choice(where, "scores", row.scores, ("kl", "mse", "margin"))
            graded = [name for name in self.tasks_of(row) if not self.tasks[name].classes]
            if row.scores != "kl" and (graded or not row.distillation):
                raise ValueError(
                    f"{where} scores={row.scores!r} is for tasks with classes and rows with distillation; leave it out"
                )
            if not 0 <= row.virt_after < 1 or (row.virt_after and not row.weight):
                raise ValueError(
                    f"{where} virt_after={row.virt_after} must be a share of the steps, from 0 to below 1, of a row "
                    "with a weight"
                )
            if row.distillation and row.kind == "interaction":
                raise ValueError(
                    f"{where} distillation={row.distillation} is for siamese rows; the pair head takes labels"
                )
        for name, task in self.tasks.items():
            if task.teacher_from and (
                task.teacher_from not in self.tasks or self.tasks[task.teacher_from].teacher_from
            ):
                raise ValueError(
                    f"task {name!r}: teacher_from={task.teacher_from!r} must be a task whose cross-encoder starts "
                    "from the encoder"
                )

    def prepare(self) -> str:
        """Train the encoder to read two texts at once, if the cache does not have it."""
        return str(reader(self)) if self.reading else ""

    def page(self, results: Results, folder: Path) -> Page:
        """Return scores, differences, dev sets, attention maps, and the picture of the grid."""
        kept = [row for row in self.rows if not row.grid]
        names = [row.name for row in kept]
        lines = [f"# {self.title}", "", tables.INTRODUCTION, "", *main_table(names, self.sets, results), ""]
        for base in kept:
            if base.kind == "siamese" and not base.weight:
                lines += [*difference_table(names, base.name, self.sets, results), ""]
        lines += section("Dev sets", tables.DEV, tables.dev_table(self, names, results))
        lines += section("Attention maps", tables.AGREEMENT, tables.agreement_table(self, names, results))
        picture = tables.grid_picture(self, results)
        if picture:
            lines += ["## Target, layers and weight", "", "![Dev score of each setting](ablation.svg)", ""]
        lines += [self.notes, "", stamp(next(iter(results.values()))[0]), ""]
        return lines, {"ablation.svg": picture} if picture else {}
