"""The race of `adapt` on domains with a labelled test: what each entry gains, and what is seen without labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from evaluation.engine import study
from evaluation.engine.judged import Task, places
from evaluation.engine.study import Page, Record, Results, Row, check_choice
from evaluation.studies.adapt.domains import DOMAINS
from evaluation.studies.adapt.tables import page
from st_plugins.adaptation.race.entries import GIVEN, Entry, entries
from st_plugins.adaptation.race.race import Race, timed
from st_plugins.adaptation.race.training import Schedule
from st_plugins.evaluation.statistics import difference
from st_plugins.io import load_sentence_transformer


@dataclass(frozen=True)
class EntryRow(Row):
    """One entry of the race; its name is the entry's, or ``unchanged``."""

    skip: tuple[str, ...] = ()  # domains that there was no time for


@dataclass
class Cell:
    """A model in a domain: the race, and the test with the given model's vectors."""

    race: Race
    task: Task
    distinct: list[str]
    places: list[Any]
    vectors: Any
    value: float
    samples: Any


@dataclass(kw_only=True)
class Study(study.Study[EntryRow]):
    """All entries on one model, domain by domain."""

    row_type: ClassVar[type[Row]] = EntryRow
    options: ClassVar[tuple[str, ...]] = ("dry_run",)
    keeps_rows_together: ClassVar[bool] = True
    takes_bf16: ClassVar[bool] = True

    model: str
    domains: tuple[str, ...]
    texts: int = 5000
    batches: int = 24
    batch_size: int = 64
    learning_rate: float = 3e-5
    max_seq_length: int = 64  # in training
    cut: int = 0  # the model's own limit, in everything, where it is dear; 0 leaves it
    _open: tuple[tuple[str, int], Cell] | None = field(default=None, init=False, repr=False)

    def check(self) -> None:
        """Refuse values that cannot be meant."""
        super().check()
        for domain in self.domains:
            check_choice("recipe:", "domains", domain, DOMAINS)
        for row in self.rows:
            check_choice("row", "name", row.name, [GIVEN, *(entry.name for entry in entries())])

    @property
    def task_names(self) -> Sequence[str]:
        """The domains."""
        return self.domains

    def tasks_of(self, row: EntryRow) -> Sequence[str]:
        """Return the domains that a row is measured in."""
        return [domain for domain in self.domains if domain not in row.skip]

    def measure(self, row: EntryRow, task: str, seed: int) -> Record:
        """Make an entry, look at what was held out, and score it on the test."""
        if self._open is None or self._open[0] != (task, seed):
            self._open = (task, seed), self._cell(task, seed)
        cell = self._open[1]
        found: Record = {"metric": cell.task.metric, "title": cell.task.title, "given": cell.value}
        if row.name == GIVEN:
            return found | {"value": cell.value, "texts": len(cell.race.texts)}
        entry = next(entry for entry in entries() if entry.name == row.name)
        try:
            return found | self._entered(cell, entry)
        except ValueError as error:  # the entry is out of this race, which is a result
            return found | {"out": str(error)}

    def _entered(self, cell: Cell, entry: Entry) -> Record:
        model, training = timed(lambda: cell.race.run(entry))
        seen, looking = timed(lambda: cell.race.look(model))
        value, samples = cell.task.score(*self._parts(cell, self._encode(model, cell.distinct)))
        gain = difference(value - cell.value, samples - cell.samples, 0.95)
        return {
            "value": value,
            "gain": gain.value,
            "low": gain.low,
            "high": gain.high,
            "verdict": gain.verdict,
            "seen": seen,
            "training_seconds": training,
            "looking_seconds": looking,
        }

    def _cell(self, name: str, seed: int) -> Cell:
        model = load_sentence_transformer(self.place.models / self.model, self.place.on)
        if self.cut:
            model.max_seq_length = self.cut
        task = DOMAINS[name].task(self.place.data)
        texts = DOMAINS[name].texts(self.place.data, task, 1000 if self.place.dry_run else self.texts, seed)
        schedule = Schedule(
            batches=2 if self.place.dry_run else self.batches,
            batch_size=self.batch_size,
            learning_rate=self.learning_rate,
            max_seq_length=self.max_seq_length,
            seed=seed,
            bf16=self.bf16,
        )
        race = Race(model.eval(), texts, schedule, batch_size=64)
        distinct = list(dict.fromkeys(text for part in task.parts for text in part))
        row_of = {text: row for row, text in enumerate(distinct)}
        vectors = self._encode(model, distinct)
        cell = Cell(race, task, distinct, places(task.parts, row_of), vectors, 0.0, None)
        cell.value, cell.samples = task.score(*self._parts(cell, vectors))
        return cell

    def _encode(self, model: Any, texts: list[str]) -> Any:
        with self.passes():
            vectors = np.asarray(model.encode(texts, batch_size=64, show_progress_bar=False), dtype=np.float32)
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    def _parts(self, cell: Cell, vectors: Any) -> list[Any]:
        return [vectors[rows] for rows in cell.places]

    def summary(self, record: Record) -> str:
        """Return what the terminal shows of a new record."""
        told = record.get("out") or f"{100 * record.get('gain', 0):+.2f} to {100 * record['value']:.2f}"
        return f"{super().summary(record)}, {told}"

    def page(self, results: Results, folder: Any) -> Page:
        """Return the page."""
        return page(self, results, folder)
