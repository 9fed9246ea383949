"""What vectors are judged by: tasks whose texts are encoded once, scored on vectors and on resamples."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from st_plugins.data import (
    LabeledTexts,
    Pairs,
    load_task,
    load_tasks,
    read_labeled_texts,
    read_pairs,
    read_retrieval,
)
from st_plugins.evaluation import (
    MeasuredTask,
    bootstrap,
    resample_counts,
    score_classification,
    score_clustering,
    score_pairs,
    score_retrieval,
    spearman,
)
from st_plugins.evaluation.measuring.units import resampled

Array = NDArray[Any]

SAMPLES = 300
# Draws of training texts, and clusterings: the leaderboard's first ones of ten. These tasks take most of the time.
_DRAWS, _CLUSTERINGS = 1, 3
_PAIRS, _TEXTS = 4000, 8000  # of the sets that have many more


@dataclass(frozen=True, eq=False)
class Task:
    """A task: lists of texts, and what gives a score with its distribution for unit vectors of each list."""

    name: str
    title: str
    metric: str
    parts: tuple[list[str], ...]
    score: Callable[..., tuple[float, Array]]


def sts_tasks(names: str, data: Path) -> list[Task]:
    """Return the STS tasks."""
    return [scored(pairs) for pairs in load_tasks(names, data)]


def other_task(name: str, data: Path) -> Task:
    """Return one of the other tasks."""
    return _OTHERS[name](data)


@cache
def _counts(units: int, name: str) -> Array:
    return resample_counts(units, SAMPLES, name, seed=0)


def scored(pairs: Pairs) -> Task:
    """Return graded pairs."""

    def score(first: Array, second: Array) -> tuple[float, Array]:
        found = np.einsum("nd,nd->n", first, second).astype(np.float64)
        counts = _counts(len(pairs), pairs.name)
        return spearman(pairs.scores, found), bootstrap(pairs.scores, found[None], counts)[0][0]

    return Task(pairs.name, pairs.title, "Spearman", (pairs.first, pairs.second), score)


def drawn(task: MeasuredTask) -> tuple[float, Array]:
    """Return a score and its distribution over resamples of the units."""
    return resampled(task.kind, task.per_unit, _counts(task.units, task.name))[task.main]


def first_ones(pairs: Pairs, count: int) -> Pairs:
    """Return the first so many pairs, or all."""
    first, second, scores = pairs.first[:count], pairs.second[:count], pairs.scores[:count]
    return replace(pairs, first=first, second=second, scores=scores, subsets=[])


def matched(name: str, title: str, path: Path, count: int = _PAIRS) -> Task:
    """Return pairs with two labels."""
    pairs = first_ones(read_pairs(path, score="label", name=name), count)
    first, second = pairs.first, pairs.second
    return Task(
        name,
        title,
        "average precision",
        (first, second),
        lambda one, two: drawn(score_pairs(one, two, pairs, **NO_INTERVAL)),
    )


def searched(data: Path) -> Task:
    """Return Cranfield's queries and documents."""
    task = read_retrieval(data / "retrieval")
    parts = list(task.queries.values()), list(task.corpus.values())

    def score(queries: Array, corpus: Array) -> tuple[float, Array]:
        return drawn(score_retrieval(queries, corpus, task, **NO_INTERVAL))

    return Task(task.name, "Cranfield", "nDCG@10", parts, score)


def _classes(data: Path) -> Task:
    name, folder = "banking77", data / "classification"
    train, test = (read_labeled_texts(folder / f"{name}_{end}.tsv.gz", name=name) for end in ("train", "test"))

    def score(known: Array, tested: Array) -> tuple[float, Array]:
        return drawn(score_classification(known, tested, train, test, experiments=_DRAWS, **NO_INTERVAL))

    return Task(name, "Banking77", "accuracy", (train.texts, test.texts), score)


def clustered(data: Path, count: int = _TEXTS, clusterings: int = _CLUSTERINGS) -> Task:
    """Return so many titles of StackOverflow, drawn, with their classes, clustered so often."""
    whole = read_labeled_texts(data / "clustering/stackoverflow.tsv.gz", name="stackoverflow")
    rows = np.sort(np.random.default_rng(0).permutation(len(whole))[:count])
    chosen = LabeledTexts(whole.name, [whole.texts[row] for row in rows], [whole.labels[row] for row in rows])

    def score(vectors: Array) -> tuple[float, Array]:
        return drawn(score_clustering(vectors, chosen, experiments=clusterings, **NO_INTERVAL))

    return Task(whole.name, "StackOverflow", "V-measure", (chosen.texts,), score)


def _sick(data: Path) -> Task:
    return scored(replace(read_pairs(data / "sts/sick_trial.tsv.gz", name="sick-trial"), title="SICK trial"))


def _stsb(data: Path) -> Task:
    return scored(replace(load_task("stsb", data, "dev"), name="stsb-dev", title="STS-B dev"))


NO_INTERVAL: Any = {"bootstrap_samples": 0}  # the resamples are drawn here, once for all rows
_OTHERS: dict[str, Callable[[Path], Task]] = {
    "cranfield": searched,
    "banking77": _classes,
    "stackoverflow": clustered,
    "qqp": lambda data: matched("qqp", "QQP", data / "matching/qqp_test.tsv.gz"),
    "mrpc": lambda data: matched("mrpc", "MRPC", data / "matching/mrpc_test.tsv.gz"),
    "stsb-dev": _stsb,
    "sick-trial": _sick,
    "qqp-dev": lambda data: matched("qqp-dev", "QQP dev", data / "matching/qqp_dev.tsv.gz"),
    "mrpc-train": lambda data: matched("mrpc-train", "MRPC train", data / "matching/mrpc_train.tsv.gz"),
}


def places(parts: Sequence[Sequence[str]], row_of: dict[str, int]) -> list[NDArray[np.intp]]:
    """Return which row of the distinct texts each text is, for each list."""
    return [np.array([row_of[text] for text in part], dtype=np.intp) for part in parts]
