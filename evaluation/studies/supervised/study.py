"""The supervised study: whether labelled pairs make a trained encoder better, and what beats plain CoSENT."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Normalize
from sentence_transformers.sentence_transformer.modules import Pooling

from evaluation.engine import study
from evaluation.engine.corpus import draw_texts
from evaluation.engine.kept_layers import LowerLayers, freeze_below
from evaluation.engine.pipelines import Pipeline, build_model
from evaluation.engine.scores import average, score
from evaluation.engine.study import Page, Record, Results, check_choice
from evaluation.engine.vectors import KeptVectors
from evaluation.studies.supervised import tables
from evaluation.studies.supervised.sources import OVERLAPS, Reported, Source, read_source
from evaluation.studies.supervised.training import LABELED, LOSSES, TAUGHT, UNLABELED, between, train
from st_plugins.compression import Compressed, compress
from st_plugins.data import Pairs, load_tasks, read_pairs
from st_plugins.modules import LayerMix, SpanPooling

POOLINGS = ("", "span", "layer-mix")
_BATCH = 64
# The softmax of a layer mix begins with nearly all weight on the last layer, which is what the given model uses.
_LAST = 5.0
Encode = Callable[[Sequence[str]], NDArray[Any]]


@dataclass(frozen=True)
class Row(study.Row):
    """What a model learns, and from what."""

    learns: dict[str, str] = field(default_factory=dict)  # key of [data] tables -> loss; empty: the model as it is
    pooling: str = ""  # instead of the model's own
    frozen: int = 0  # so many of the lowest layers are not trained, and have no dropout
    dropout: bool = True  # whether the encoder has its dropout in training
    r_drop: float = 0.0  # weight of R-Drop around losses with labels
    anchor: float = 0.0  # weight of what keeps the cosines of different texts, beside each loss
    views: tuple[str, str] = ("feature-cutoff:0.2", "token-shuffle")  # of consert
    temperature: float = 0.05  # of consert, simcse and in-batch
    learning_rate: float = 2e-5
    new_learning_rate: float = 0.0  # of weights that begin random; 0 for the same
    epochs: float = 1.0
    max_steps: int = 0  # 0 leaves it to ``epochs``
    batch_size: int = 32
    # Where to stop on the line from the given weights (0) to the trained ones (1); each is a line of the table.
    shares: tuple[float, ...] = (1.0,)
    bytes: tuple[int, ...] = ()  # sizes to compress the last of them to


@dataclass(kw_only=True)
class Study(study.Study[Row]):
    """A recipe."""

    row_type: ClassVar[type[Row]] = Row
    takes_bf16: ClassVar[bool] = True

    model: str  # folder below --models, a whole sentence-transformers model
    tasks: str  # STS tasks
    dev: dict[str, str]  # files of scored pairs by name
    data: dict[str, Any]  # tables of a Source
    base: str = ""  # row that the others are compared with, beside the first one
    corpus: list[str] = field(default_factory=list)  # for compressing
    corpus_size: int = 5000
    # What others report for whole tables: name = {encoder = "...", value = 81.57}
    paper: dict[str, dict[str, Any]] = field(default_factory=dict)
    _below: dict[int, LowerLayers] = field(default_factory=dict, init=False, repr=False)

    def check(self) -> None:
        """Refuse values that cannot be meant."""
        super().check()
        self.data = {name: Source(**table) for name, table in self.data.items()}
        for name, source in self.data.items():
            check_choice(f"data {name!r}:", "overlap", source.overlap, OVERLAPS)
        for row in self.rows:
            where = f"row {row.name!r}:"
            check_choice(where, "pooling", row.pooling, POOLINGS)
            for name, loss in row.learns.items():
                check_choice(where, "learns", name, self.data)
                check_choice(where, "loss", loss, LOSSES)
                source = self.data[name]
                kind = TAUGHT if source.teachers else UNLABELED if source.texts else LABELED
                if loss not in kind:
                    raise ValueError(f"{where} loss {loss!r} cannot learn from data {name!r}")
            if row.frozen and "consert" in row.learns.values():
                raise ValueError(f"{where} frozen={row.frozen}: the views of ConSERT are made below the frozen layers")
            if row.pooling and row.shares != (1.0,):
                raise ValueError(f"{where} shares={row.shares}: a new pooling has no given weights to go back to")

    @cached_property
    def reported(self) -> Reported:
        """The test sets, and the dev sets without their pairs."""
        tests = load_tasks(self.tasks, self.place.data)
        apart = Reported(tests)
        dev: list[Pairs] = []
        for name, file in self.dev.items():
            pairs = read_pairs(self.place.data / file, name=f"{name}-dev")
            kept = [row for row in range(len(pairs)) if apart.clean(pairs.first[row], pairs.second[row], "pair")]
            first, second = ([column[row] for row in kept] for column in (pairs.first, pairs.second))
            dev.append(Pairs(pairs.name, first, second, pairs.scores[kept]))
        return Reported(tests, dev)

    def build(self, row: Row, seed: int) -> SentenceTransformer:
        """Return the model that a row begins with."""
        model = build_model(Pipeline("", self.model, "as-is", max_length=0), self.place.models, seed)
        if row.frozen:
            self._freeze(model, row.frozen)
        modules: list[Any] = list(model)
        torch.manual_seed(seed)
        width = model.get_embedding_dimension() or 0
        if row.pooling == "span":
            modules = [modules[0], SpanPooling(width), Normalize()]
        elif row.pooling == "layer-mix":
            mix = LayerMix.after(modules[0])
            with torch.no_grad():
                mix.scalars[-1] = _LAST
            modules = [modules[0], mix, Pooling(width, pooling_mode="mean"), Normalize()]
        if row.pooling:
            model = SentenceTransformer(modules=modules)
        return model.to(self.place.on).eval()

    def _freeze(self, model: SentenceTransformer, layers: int) -> None:
        known = self._below.get(layers)
        cache = self.place.cache
        name = f"{self.model}-below-{layers}{'-bf16' * self.bf16}"
        folder = cache / name if cache and not known else None
        below = freeze_below(model, layers, folder)
        # All rows share what was computed.
        if known:
            below.states = known.states
            below.folder = known.folder
        else:
            self._below[layers] = below

    def measure(self, row: Row, task: str, seed: int) -> Record:
        """Train a row and score it."""
        if self.place.dry_run:
            row = replace(row, max_steps=2)
        model = self.build(row, seed)
        read = {
            name: read_source(self.data[name], loss, self.reported, self.place.data, self._known)
            for name, loss in row.learns.items()
        }
        given = {key: value.clone() for key, value in model.state_dict().items()}
        begin = self.place.clock()
        if read:
            train(model, row, {name: columns for name, (columns, _) in read.items()}, seed, self.bf16)
        found: Record = {
            "data": {name: counts for name, (_, counts) in read.items()},
            "seconds_training": self.place.clock() - begin if read else 0.0,
            "trained": sum(weights.numel() for weights in model.parameters() if weights.requires_grad),
            "forms": {},
        }
        trained = {key: value.clone() for key, value in model.state_dict().items()}
        for share in row.shares:
            model.load_state_dict(between(given, trained, share))
            found["forms"][tables.form_name(share)] = self.scores(partial(_vectors, model))
        # What is compressed is one model: with more seeds the table would tell of the seeds, not of the bytes.
        for size in row.bytes if seed == self.seeds_of(row)[0] else ():
            texts = draw_texts(self.corpus, self.place.data, self.corpus_size)
            small = compress(model, texts, bytes=size, show_progress_bar=False)
            found["forms"][f"{size} bytes"] = self.scores(partial(_stored, small))
        for module in model:
            if isinstance(module, LayerMix):
                found["layers"] = module.report()
        for below in self._below.values():
            below.write()
        return found

    def _known(self, name: str, texts: list[str]) -> NDArray[Any]:
        """Return the vectors of another model, which are kept where there is a cache."""
        model = build_model(Pipeline("", name, "as-is", max_length=0), self.place.models, 0).to(self.place.on)
        with self.passes():
            if self.place.cache is None:
                return _vectors(model, texts)
            return KeptVectors(self.place.cache / f"{name}-vectors{'-bf16' * self.bf16}").encode(model, texts)

    def scores(self, encode: Encode) -> Record:
        """Score vectors on dev, and on the reported sets with their average."""
        sets = {"dev": self.reported.dev, **({} if self.place.dev_only else {"tests": self.reported.tests})}
        found: Record = {}
        for split, tasks in sets.items():
            places = {text: 0 for pairs in tasks for text in (*pairs.first, *pairs.second)}
            places = {text: place for place, text in enumerate(places)}
            with self.passes():
                vectors = encode(list(places)).astype(np.float64)
            vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
            scored = {}
            for pairs in tasks:
                sides = (vectors[[places[text] for text in side]] for side in (pairs.first, pairs.second))
                scored[pairs.name] = score(pairs.name, pairs.scores, np.einsum("nd,nd->n", *sides), classes=False)
            scored["average"] = average(list(scored.values()))
            if split == "dev":
                # Rows are compared on the reported sets only, and resamples are most of a file.
                scored = {name: {"value": result["value"]} for name, result in scored.items()}
            found[split] = scored
        return found

    def summary(self, record: Record) -> str:
        """Return what the terminal shows of a new record."""
        shown = [
            f"{form or 'trained'}: "
            + " ".join(
                f"{name} {100 * result['value'][0]:.2f}" for split in found.values() for name, result in split.items()
            )
            for form, found in record["forms"].items()
        ]
        return f"{super().summary(record)}, training {record['seconds_training']:.0f} s; {'; '.join(shown)}"

    def page(self, results: Results, folder: Any) -> Page:
        """Return the tables."""
        return tables.page(self, study.by_row(results)), {}


def _stored(small: Compressed, texts: Sequence[str]) -> NDArray[Any]:
    found: NDArray[Any] = small.quantization.vectors(small.encode(list(texts), batch_size=_BATCH))
    return found


def _vectors(model: SentenceTransformer, texts: Sequence[str]) -> NDArray[Any]:
    found: NDArray[Any] = model.encode(list(texts), batch_size=_BATCH, show_progress_bar=False)
    return found
