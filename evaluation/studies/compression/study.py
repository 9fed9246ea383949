"""The compression study: what vectors of so many bytes keep, whoever makes them smaller."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Normalize

from evaluation.engine import study
from evaluation.engine.corpus import draw_texts
from evaluation.engine.judged import Task, other_task, places, sts_tasks
from evaluation.engine.pipelines import Pipeline, build_model
from evaluation.engine.study import Page, Record, Results, by_row, check_choice
from evaluation.engine.vectors import KeptVectors
from evaluation.studies.compression import ways
from evaluation.studies.compression.tables import page
from evaluation.studies.compression.ways import Array, Way
from st_plugins.compression.choice.candidates import ROTATION, Candidate, Maps, Trial, of_size
from st_plugins.compression.choice.copies import mutilated
from st_plugins.compression.choice.fidelity import NEIGHBORS, Measured, unit
from st_plugins.compression.choice.sample import Map, Sample, applied
from st_plugins.core.host import rebuild
from st_plugins.core.quantization import BITS, Quantization
from st_plugins.evaluation import difference

_BLOCK = 4096
_COMPARED = 1000  # texts of a task whose neighbors are looked up
_SIGNS = {"better": "+", "worse": "-"}


Near = NDArray[np.intp]


@dataclass(frozen=True)
class Row(study.Row):
    """One way to make vectors smaller."""

    method: str
    precision: str = "float32"  # of peers; ours chooses
    target: bool = False  # fitted on the texts of the tasks, which a user does not have
    corpus: tuple[str, ...] = ()  # fitted on these texts instead of the study's


@dataclass(frozen=True, eq=False)
class Scores:
    """What vectors scored: by task the value with its distribution, and the share of neighbors that are the same."""

    drawn: dict[str, tuple[float, Array]]
    neighbors: dict[str, float]


@dataclass(frozen=True, eq=False)
class Chosen:
    """Our vectors of one size: what they are, what was known of them beforehand, and what they scored."""

    candidate: Candidate
    measured: Measured
    scores: Scores


@dataclass(frozen=True, eq=False)
class Ours:
    """Our vectors of every size, and those that they are judged by: of the same shape, in all dimensions."""

    sizes: dict[int, Chosen]
    reference: Scores


@dataclass(kw_only=True)
class Study(study.Study[Row]):
    """A recipe."""

    row_type: ClassVar[type[Row]] = Row
    options: ClassVar[tuple[str, ...]] = ()
    # All are compared with ours, on the same resamples.
    keeps_rows_together: ClassVar[bool] = True

    model: str  # folder below --models
    pooling: str = "as-is"  # as for Pipeline
    dtype: str = "float32"  # that the model computes in
    tasks: str  # STS tasks, whose average is the headline
    others: list[str]
    dev: list[str]  # tasks that the certificate's constants were chosen on; only ours is measured on them
    corpus: list[str]
    corpus_size: int  # of all samples together
    samples: int = 3  # of fit texts: every third text is one of three
    budgets: list[int]  # bytes of a vector
    batch_size: int = 64

    def check(self) -> None:
        """Refuse values that cannot be meant."""
        super().check()
        for row in self.rows:
            check_choice(f"row {row.name!r}:", "method", row.method, ways.METHODS)

    @cached_property
    def all_tasks(self) -> list[Task]:
        """The tasks, those of the headline first, those for tuning last."""
        others = [other_task(name, self.place.data) for name in [*self.others, *self.dev]]
        return [*sts_tasks(self.tasks, self.place.data), *others]

    @cached_property
    def encoder(self) -> tuple[SentenceTransformer, bool]:
        """The model without its last Normalize, and whether it has one."""
        model = build_model(Pipeline("", self.model, self.pooling, max_length=0), self.place.models, 0)
        kept = [module for module in model if not isinstance(module, Normalize)]
        normalized = len(kept) < len(model)
        found = rebuild(model, kept) if normalized else model
        return found.to(self.place.on, getattr(torch, self.dtype)), normalized

    @cached_property
    def kept(self) -> KeptVectors:
        """The embeddings that have been computed before."""
        if self.place.cache is None:
            raise ValueError("name a folder for the embeddings with --cache: all rows share them")
        name = self.model if self.dtype == "float32" else f"{self.model}-{self.dtype}"
        return KeptVectors(self.place.cache / name, self.batch_size)

    def vectors(self, texts: Sequence[str]) -> Array:
        """Return what enters the model's Normalize."""
        return self.kept.encode(self.encoder[0], texts)

    def given(self, vectors: Array) -> Array:
        """Return what the model gives its users."""
        return unit(vectors) if self.encoder[1] else vectors

    @cached_property
    def texts(self) -> dict[str, int]:
        """The row of every distinct text of the tasks."""
        found = dict.fromkeys(text for task in self.all_tasks for part in task.parts for text in part)
        return {text: row for row, text in enumerate(found)}

    @cached_property
    def embedded(self) -> Array:
        """Their vectors."""
        return self.vectors(list(self.texts))

    @cached_property
    def fit_texts(self) -> list[str]:
        """The texts of all samples."""
        return draw_texts(self.corpus, self.place.data, self.corpus_size, 0)

    def sample(self, row: Row, seed: int) -> list[str]:
        """Return the texts that a row is fitted on."""
        if row.corpus:
            return draw_texts(list(row.corpus), self.place.data, self.corpus_size // self.samples, seed)
        if not row.target:
            return self.fit_texts[seed :: self.samples]
        reported = {text: None for task in self.reported for part in task.parts for text in part}
        return draw_from(list(reported), self.corpus_size // self.samples)

    @property
    def reported(self) -> list[Task]:
        """The tasks that rows are compared on."""
        return [task for task in self.all_tasks if task.name not in self.dev]

    @cached_property
    def compared(self) -> dict[str, Array]:
        """Rows of some texts of each task, for neighbors among them."""
        found = {}
        for task in self.all_tasks:
            rows = np.unique(np.concatenate(places(task.parts, self.texts)))
            found[task.name] = np.sort(np.random.default_rng(0).permutation(rows)[:_COMPARED])
        return found

    def score(self, way: Way, tasks: list[Task], near: dict[str, Near]) -> Scores:
        """Score what a way makes of the tasks' texts, which pass it once."""
        # Those for tuning come last: only ours passes them.
        last = 1 + max(int(rows.max()) for task in tasks for rows in places(task.parts, self.texts))
        blocks = (self.embedded[start : min(start + _BLOCK, last)] for start in range(0, last, _BLOCK))
        new = np.concatenate([unit(way(block)).astype(np.float32) for block in blocks])
        drawn = {task.name: task.score(*(new[rows] for rows in places(task.parts, self.texts))) for task in tasks}
        kept = {task.name: same(near[task.name], nearest(new[self.compared[task.name]])) for task in tasks}
        names = [task.name for task in tasks if task.metric == "Spearman" and task.name not in self.dev]
        together = zip(*(drawn[name] for name in names), strict=True)
        value, distribution = (np.mean(np.stack(parts), axis=0) for parts in together)
        return Scores({**drawn, "average": (float(value), distribution)}, kept)

    def near(self, way: Way) -> dict[str, Near]:
        """Return the neighbors that are to be kept, as a way has them."""
        return {name: nearest(unit(way(self.embedded[rows]))) for name, rows in self.compared.items()}

    @cached_property
    def own(self) -> dict[str, Near]:
        """The same as the model has them."""
        return self.near(lambda rows: rows)

    def ours(self, row: Row, seed: int) -> Ours:
        """Fit and score ours at every size."""
        key = row.name, seed
        if key not in self._found:
            self._found[key] = self._fit_ours(row, seed)
        return self._found[key]

    @cached_property
    def _found(self) -> dict[tuple[str, int], Ours]:
        return {}

    @cached_property
    def _scored(self) -> dict[tuple[str, str, int], Scores]:
        return {}

    def _fit_ours(self, row: Row, seed: int) -> Ours:
        texts = self.sample(row, seed)
        vectors = self.vectors(texts)
        sample = Sample(vectors.shape[1])
        for start in range(0, len(vectors), _BLOCK):
            sample.add(vectors[start : start + _BLOCK], texts[start : start + _BLOCK])
        generator = torch.Generator().manual_seed(0)
        halves = [mutilated(group, generator) for group in sample.texts]
        trial = Trial(sample, [(self.vectors(first), self.vectors(second)) for first, second in halves])
        maps, tasks = Maps(sample.whole), self.reported if row.target else self.all_tasks
        shape: Way = lambda rows: rows  # noqa: E731
        if trial.shape != ROTATION:
            shape = _mapped(maps.directions(trial.shape))
        near = self.near(shape)
        sizes = {}
        for budget in self.budgets:
            best = trial.best(of_size(trial.limits, budget, BITS))
            mapped = _mapped(maps.of(best))
            stored = Quantization.fit(best.precision, mapped(np.concatenate(sample.held)))
            scores = self.score(_through(mapped, stored), tasks, near)
            sizes[budget] = Chosen(best, trial.measure(best, errors=True), scores)
        return Ours(sizes, self.score(shape, tasks, near))

    def measure(self, row: Row, task: str, seed: int) -> Record:
        """Score a row at every size, and compare it with ours."""
        if row.method == "ours":
            return self._record_ours(row, seed)
        ours, vectors = self.ours(self.find("ours"), seed), self.given(self.vectors(self.sample(row, seed)))
        sizes: Record = {}
        for budget in self.budgets:
            size = 4 * vectors.shape[1] if row.method == "raw" else budget
            kept, way = ways.fit(row.method, row.precision, vectors, size)
            if way is None:
                continue
            # More bytes than there are numbers change nothing, nor do fit texts where nothing is fitted.
            free = row.method in ("raw", "truncation") and row.precision != "int8"
            key = row.name, kept, -1 if free else seed
            if key not in self._scored:
                self._scored[key] = self.score(_after(self.given, way), self.reported, self.own)
            sizes[str(budget)] = {"kept": kept, **_shown(self._scored[key], ours.sizes[budget].scores)}
        return {"tasks": self._names(self.reported), "sizes": sizes}

    def _record_ours(self, row: Row, seed: int) -> Record:
        ours = self.ours(row, seed)
        sizes = {
            str(budget): {
                "kept": str(found.candidate),
                "bytes": found.candidate.bytes,
                "measured": {key: round(value, 6) for key, value in vars(found.measured).items()},
                **_shown(found.scores),
            }
            for budget, found in ours.sizes.items()
        }
        names = self._names(self.reported if row.target else self.all_tasks)
        return {"tasks": names, "reference": _shown(ours.reference)["value"], "sizes": sizes}

    def _names(self, tasks: list[Task]) -> Record:
        return {task.name: f"{task.title}, {task.metric}" for task in tasks} | {"average": "average of the STS tasks"}

    def summary(self, record: Record) -> str:
        """Return what the terminal shows of a new record."""
        return ", ".join(f"{size}: {found['value'].split()[-1]}" for size, found in record["sizes"].items())

    def page(self, results: Results, folder: Any) -> Page:
        """Return the page."""
        return page(self, by_row(results))


def nearest(vectors: Array) -> Near:
    """Return the nearest neighbors of each text, by unit vectors, ``(n, 10)``."""
    similarities = vectors @ vectors.T
    np.fill_diagonal(similarities, -np.inf)
    count = min(NEIGHBORS, len(vectors) - 1)
    return np.argpartition(-similarities, count - 1, axis=1)[:, :count]


def same(old: Near, new: Near) -> float:
    """Return the share of neighbors that are in both."""
    return float((old[:, :, None] == new[:, None, :]).any(axis=2).mean())


def draw_from(texts: list[str], size: int) -> list[str]:
    """Draw some texts, in their order."""
    rows = np.sort(np.random.default_rng(0).permutation(len(texts))[:size])
    return [texts[row] for row in rows]


def _mapped(mapped: Map) -> Way:
    single = mapped[0].astype(np.float32), mapped[1].astype(np.float32)
    return lambda rows: unit(applied(rows, single))


def _after(first: Way, then: Way) -> Way:
    return lambda rows: then(first(rows))


def _through(mapped: Way, stored: Quantization) -> Way:
    return lambda rows: stored.vectors(stored.quantize(mapped(rows)))


def _shown(scores: Scores, ours: Scores | None = None) -> dict[str, str]:
    """Return scores times 100, neighbors in percent and, of peers, where ours is better (+), worse (-) or neither."""
    values = [value for value, _ in scores.drawn.values()]
    found = {"value": _packed(values), "neighbors": _packed(list(scores.neighbors.values()))}
    if ours is not None:
        verdicts = [
            difference(ours.drawn[name][0] - value, ours.drawn[name][1] - drawn, 0.95).verdict
            for name, (value, drawn) in scores.drawn.items()
        ]
        found["ours"] = " ".join(_SIGNS.get(verdict, "=") for verdict in verdicts)
    return found


def _packed(values: list[float]) -> str:
    """Return numbers times 100 as one string: lists would be written a line a number."""
    return " ".join(f"{100 * value:.2f}" for value in values)
