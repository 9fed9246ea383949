"""The RE2 study: what a small matcher makes of real pairs, beside a Siamese encoder, cross-encoders and the paper."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from typing_extensions import Self

from evaluation.engine import pairs
from evaluation.engine.pair_tables import difference_table, main_table
from evaluation.engine.runner import load_seeds
from evaluation.engine.study import Page, Results, check_choice, stamp
from evaluation.engine.tables import section
from evaluation.studies.re2 import tables
from evaluation.studies.re2.setting import Setting
from evaluation.studies.re2.word_embeddings import FORMS
from st_plugins.matching import RE2Config, RE2Schedule


@dataclass(frozen=True)
class Task(pairs.Task):
    """A task and what suits it."""

    # Pairs with the same first text are ranked by their score for class 1, and the dev metric is the mean average
    # precision; the classes are then ["0", "1"].
    ranked: bool = False
    config: dict[str, Any] = field(default_factory=dict)  # values of RE2Config for all rows of the task
    schedule: dict[str, Any] = field(default_factory=dict)  # values of RE2Schedule
    # What the paper reports on its test set: ``value``, ``deviation`` over its runs, ``pairs`` of its training set,
    # and ``mrr`` where it ranks.
    paper: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Row(pairs.PairRow):
    """A matcher."""

    # Or "siamese": means of word vectors, and a softmax on [u; v; |u - v|]; or "cosine": the cosine of these means
    # with thresholds chosen on dev, which is the floor.
    kind: str = "re2"
    # What gives RE2 its token vectors: "words" (word vectors, of a Siamese row, too), "subwords" (learned on the
    # training texts), "embeddings" (the word embeddings of an encoder, without the encoder) or "transformer" (the
    # frozen tokens of an encoder).
    source: str = "words"
    # Of word embeddings: "raw" or "whitened" by the tokens of the training texts; and to how many directions they are
    # cut, the ones with most variance, 0 for all.
    form: str = "raw"
    dimensions: int = 0
    trainable: bool = False  # whether word vectors are trained
    model: str = ""  # folder below --models: with vectors.txt.gz for words, an encoder for a transformer
    width: int = 50  # of learned vectors
    vocabulary: int = 8000  # most subwords
    # Values of RE2Config that are other than the task's.
    config: dict[str, Any] = field(default_factory=dict)
    schedule: dict[str, Any] = field(default_factory=dict)  # values of RE2Schedule
    ablation: bool = False  # belongs to the table of ablations, on dev sets only, instead of the main one
    paper: dict[str, float] = field(default_factory=dict)  # reported for an ablation on its dev set, by task


@dataclass(frozen=True)
class Beside:
    """A row of another study of pair tasks that is shown beside."""

    name: str  # what it is called here
    results: str  # the other recipe's results, from the folder of this recipe's
    row: str  # its name there
    tasks: dict[str, str] = field(default_factory=dict)  # the other study's names by ours, where they differ


@dataclass(kw_only=True)
class Study(pairs.PairStudy[Row]):
    """A recipe."""

    row_type: ClassVar[type[Row]] = Row
    task_type: ClassVar[type[Task]] = Task
    setting_type: ClassVar[type[Setting]] = Setting

    beside: list[Beside] = field(default_factory=list)
    config: dict[str, Any] = field(default_factory=dict)  # values of RE2Config for all tasks
    schedule: dict[str, Any] = field(default_factory=dict)  # values of RE2Schedule
    patience: int = 3  # after so many epochs without a better dev score the training ends
    # The row that ablations are compared with, on the same seeds; its own ``paper`` has the paper's dev scores.
    full: str = ""

    @classmethod
    def from_tables(cls, raw: dict[str, Any]) -> Self:
        """Make dataclasses of a recipe's tables."""
        beside = [Beside(**row) for row in raw.pop("beside", [])]
        return super().from_tables({**raw, "beside": beside})

    def check(self) -> None:
        """Refuse values that cannot be meant."""
        super().check()
        for name, task in self.tasks.items():
            if not task.classes:
                raise ValueError(f"task {name!r} needs classes")
            if task.ranked and list(task.classes) != ["0", "1"]:
                raise ValueError(f"task {name!r}: classes={list(task.classes)} must be ['0', '1'] to be ranked")
        for row in self.rows:
            self._check_row(f"row {row.name!r}:", row)
        for other in self.beside:
            self.check_names(f"beside {other.name!r}:", "tasks", other.tasks)
        if {row.name for row in self.rows} & {row.name for row in self.beside}:
            raise ValueError("two rows have one name")
        if any(row.ablation for row in self.rows) and self.full not in {row.name for row in self.main}:
            raise ValueError(f"full={self.full!r} must be the row that ablations are compared with")

    def _check_row(self, where: str, row: Row) -> None:
        check_choice(where, "kind", row.kind, ("re2", "siamese", "cosine"))
        check_choice(where, "source", row.source, ("words", "subwords", "embeddings", "transformer"))
        check_choice(where, "form", row.form, FORMS)
        if row.form != "raw" and row.source != "embeddings":
            raise ValueError(f"{where} form={row.form!r} is for source='embeddings'")
        if row.dimensions and row.form != "whitened":
            raise ValueError(f"{where} dimensions={row.dimensions} needs form='whitened'")
        if row.kind == "cosine" and row.source not in ("words", "embeddings"):
            raise ValueError(f"{where} source={row.source!r} must be words or embeddings in a cosine row")
        if row.kind == "siamese" and row.source != "words":
            raise ValueError(f"{where} source={row.source!r} must be words in a siamese row")
        if row.trainable and row.source != "words":
            raise ValueError(f"{where} trainable=true is for words; subwords are always trained, a transformer never")
        if not row.model and row.source != "subwords":
            raise ValueError(f"{where} source={row.source!r} needs a model")
        self.check_names(where, "paper", row.paper)
        for task in self.tasks_of(row):
            try:
                self.config_of(row, task)
                self.schedule_of(row, task)
            except (TypeError, ValueError) as error:
                raise ValueError(f"{where} task {task!r}: {error}") from None

    @property
    def main(self) -> list[Row]:
        """The rows of the main table."""
        return [row for row in self.rows if not row.ablation]

    def config_of(self, row: Row, task: str) -> RE2Config:
        """Return a row's network on a task: the study's values, with the task's and then the row's in their place."""
        own = self.tasks[task]
        return RE2Config.from_dict({"max_seq_length": own.max_length, **self.config, **own.config, **row.config})

    def schedule_of(self, row: Row, task: str) -> RE2Schedule:
        """Return a row's schedule on a task, in the same way."""
        return RE2Schedule.from_dict({**self.schedule, **self.tasks[task].schedule, **row.schedule})

    def page(self, results: Results, folder: Path) -> Page:
        """Return scores beside those of other studies, differences, costs and ablations."""
        others: Results = {
            (task, row.name): load_seeds(folder.parent / row.results, row.tasks.get(task, task), row.row)
            for row in self.beside
            for task in self.tasks
        }
        everything = {**results, **others}
        own, beside = [row.name for row in self.main], [row.name for row in self.beside]
        lines = [f"# {self.title}", "", tables.INTRODUCTION, ""]
        lines += main_table([*own, *beside], self.sets, everything, tables.MISSING)
        lines += [*tables.paper_lines(self, results), ""]
        for base in [row.name for row in self.main if row.kind != "re2"] + beside:
            differences = difference_table(own, base, self.sets, everything)
            lines += [*differences, ""] if len(differences) > 2 else []
        lines += section("Dev sets and costs", tables.COSTS, tables.cost_table(self, results))
        ablations = tables.ablation_table(self, results)
        if ablations:
            lines += section("Ablations", tables.ABLATIONS.format(full=self.full), ablations)
        return [*lines, self.notes, "", stamp(next(iter(results.values()))[0]), ""], {}
