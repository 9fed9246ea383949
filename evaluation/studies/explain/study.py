"""The explain study: whether what explanations say of two texts is what people say, and what the model reacts to."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from torch import Tensor
from tqdm.auto import tqdm

from evaluation.engine import study
from evaluation.engine.pipelines import Pipeline, build_model
from evaluation.engine.scores import CONFIDENCE
from evaluation.engine.study import Page, Record, Results
from evaluation.studies.explain.readings import Linked, saliencies, views
from evaluation.studies.explain.scoring import Array, Pair, by_links, by_words, f1, official, pair_chunks, read_pairs
from evaluation.studies.explain.tables import FAITHFUL, OURS, page
from st_plugins.data import load_task
from st_plugins.evaluation import difference, resample_counts
from st_plugins.evaluation.statistics import interval
from st_plugins.explain import Ranking, faithfulness

Parts = dict[str, dict[str, Array]]
"""What is summed over pairs, by score and view."""

SETS = {
    "images": "ists_images",
    "headlines": "ists_headlines",
    "mtref-dev": "mwa_mtref_dev",
    "mtref-test": "mwa_mtref_test",
    "wiki-test": "mwa_wiki_test",
}
DELETION = "deletion"
FIRST = 150  # pairs of the published protocol
_SAMPLES = 1000


@dataclass(frozen=True)
class Row(Pipeline):
    """A model."""

    pairs: int = 0  # of each set of MultiMWA, drawn; 0 for all
    deleted: int = 100  # drawn pairs of STS-B dev of which words are deleted; 0 for none


@dataclass(kw_only=True)
class Study(study.Study[Row]):
    """A recipe; its rows are models, and its tasks the sets with people's links, and deletion."""

    row_type: ClassVar[type[Row]] = Row
    options: ClassVar[tuple[str, ...]] = ()

    dev: str  # the set that single layers are chosen on
    seeds: tuple[int, ...] = (0,)  # of the resamples, which is no choice

    def check(self) -> None:
        """Refuse values that cannot be meant."""
        super().check()
        study.check_choice("recipe:", "dev", self.dev, SETS)

    @property
    def task_names(self) -> tuple[str, ...]:
        """The tasks."""
        return (*SETS, DELETION)

    def tasks_of(self, row: Row) -> Sequence[str]:
        """Return the tasks that a row is measured on."""
        return self.task_names if row.deleted else tuple(SETS)

    def measure(self, row: Row, task: str, seed: int) -> Record:
        """Score every view of a model on one set."""
        model = build_model(row, self.place.models, seed).to(self.place.on)
        if task == DELETION:
            return _record(task, deleted(model, self.drawn(row.deleted)), FAITHFUL, _mean)
        given = read_pairs(self.place.data / "explain" / f"{SETS[task]}.jsonl.gz")
        # Their order is random, so the first are as good as any.
        given = given if given[0].alignments else given[: row.pairs or None]
        return _record(task, judged(given, [views(model, pair) for pair in tqdm(given, task, leave=False)]), OURS, f1)

    def drawn(self, count: int) -> list[tuple[str, str]]:
        """Draw pairs of STS-B dev, whose file is sorted by where they come from; of a single word nothing is left."""
        loaded = load_task("stsb", self.place.data, "dev")
        pairs = [pair for pair in zip(loaded.first, loaded.second, strict=True) if all(" " in text for text in pair)]
        return [pairs[place] for place in np.random.default_rng(0).permutation(len(pairs))[:count]]

    def page(self, results: Results, folder: Path) -> Page:
        """Return the tables of all models."""
        return page(self, results)


def judged(pairs: Sequence[Pair], linked: Sequence[Mapping[str, Linked]]) -> Parts:
    """Judge what every view says of the pairs by what people said."""
    found: dict[str, dict[str, list[list[float]]]] = {}
    count = 0
    for pair, views_of_it in zip(pairs, linked, strict=True):
        count += bool(pair.linked)
        for view, said in views_of_it.items():
            for score, parts in _judgments(pair, said, count <= FIRST).items():
                found.setdefault(score, {}).setdefault(view, []).append(parts)
    return {score: {view: np.array(rows) for view, rows in by_view.items()} for score, by_view in found.items()}


def _judgments(pair: Pair, said: Linked, early: bool) -> dict[str, list[float]]:
    """Return what one view scores on one pair; words only where people linked any."""
    if not pair.alignments:
        return {
            "sure": by_links(said.links, pair.sure),
            "sure and possible": by_links(said.links, pair.sure | pair.possible),
        }
    strong = {link: float(said.strengths[link]) for link in said.links}
    found = {"chunks": official(pair, pair_chunks(*pair.chunks, strong))["Ali"]}
    if pair.linked:
        found["words"] = by_words(said.links, pair.linked)
        found |= {f"words, first {FIRST}": found["words"]} if early else {}
    return found


def deleted(model: SentenceTransformer, pairs: Sequence[tuple[str, str]]) -> Parts:
    """Delete from either text what a view says is worth most, while the other text stays, and average both."""
    rows: dict[str, list[list[float]]] = {}
    for pair in tqdm(pairs, desc=DELETION, leave=False):
        worth = saliencies(model, *pair)
        sides = [
            _reactions(model, pair[side], pair[1 - side], {view: values[side] for view, values in worth.items()})
            for side in (0, 1)
        ]
        for view in sides[0]:
            rows.setdefault(view, []).append([*np.mean([side[view] for side in sides], axis=0), 1.0])
    table = {view: np.array(values) for view, values in rows.items()}
    columns = {"comprehensiveness": [0, 2], "sufficiency": [1, 2]}
    return {score: {view: values[:, chosen] for view, values in table.items()} for score, chosen in columns.items()}


def _reactions(
    model: SentenceTransformer, text: str, other: str, worth: Mapping[str, Array]
) -> dict[str, list[float]]:
    """Return how the similarity reacts to deletion in one text, by view, gradient and chance included."""
    fixed = torch.from_numpy(model.encode(other)).float()

    def score(embeddings: Tensor) -> Tensor:
        compared: Tensor = model.similarity(embeddings.float(), fixed.to(embeddings.device)[None])[:, 0]
        return compared

    rankings: dict[str, Ranking] = {}
    for view, values in worth.items():
        # Gradient and random orders are the same for all views: the first brings them.
        new = not rankings
        found = faithfulness(model, text, values, score, gradient=new, repeats=10 if new else 1).rankings
        rankings = {**found, **rankings, view: found["explanation"]}
    del rankings["explanation"]
    return {view: [one.mean_comprehensiveness, one.mean_sufficiency] for view, one in rankings.items()}


def _mean(sums: Array) -> Array:
    return sums[:, 0][None] / sums[:, 1]


def _record(task: str, parts: Parts, base: str, statistic: Callable[[Array], Array]) -> Record:
    """Return each view's scores with intervals over pairs, and how far it is above one of them, paired."""
    scores: Record = {}
    for score, by_view in parts.items():
        size = len(next(iter(by_view.values())))
        counts = resample_counts(size, _SAMPLES, f"{task}, {score}", seed=0).astype(np.float64)
        whole = {view: statistic(rows.sum(axis=0, keepdims=True))[:, 0] for view, rows in by_view.items()}
        drawn = {view: statistic(counts @ rows)[0] for view, rows in by_view.items()}
        scores[score] = {"pairs": size, "views": {}}
        for view, (value, *more) in whole.items():
            found = interval(value, drawn[view], CONFIDENCE)
            shown: Record = {"value": _rounded(found.value, found.low, found.high), "more": _rounded(*more)}
            if base in by_view and view != base:
                gain = difference(value - whole[base][0], drawn[view] - drawn[base], CONFIDENCE)
                shown |= {"above": _rounded(gain.value, gain.low, gain.high), "verdict": gain.verdict}
            scores[score]["views"][view] = shown
    return {"base": base, "scores": scores}


def _rounded(*values: float) -> list[float]:
    return [round(float(value), 6) for value in values]
