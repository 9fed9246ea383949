"""What smaller vectors are judged by: tasks whose texts are encoded once, scored on vectors and on resamples."""

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
    return [_scored(pairs) for pairs in load_tasks(names, data)]


def other_task(name: str, data: Path) -> Task:
    """Return one of the other tasks."""
    return _OTHERS[name](data)


@cache
def _counts(units: int, name: str) -> Array:
    return resample_counts(units, SAMPLES, name, seed=0)


def _scored(pairs: Pairs) -> Task:
    def score(first: Array, second: Array) -> tuple[float, Array]:
        found = np.einsum("nd,nd->n", first, second).astype(np.float64)
        counts = _counts(len(pairs), pairs.name)
        return spearman(pairs.scores, found), bootstrap(pairs.scores, found[None], counts)[0][0]

    return Task(pairs.name, pairs.title, "Spearman", (pairs.first, pairs.second), score)


def _drawn(task: MeasuredTask) -> tuple[float, Array]:
    return resampled(task.kind, task.per_unit, _counts(task.units, task.name))[task.main]


def _matched(name: str, title: str, file: str, data: Path) -> Task:
    pairs = read_pairs(data / "matching" / file, score="label", name=name)
    first, second = pairs.first[:_PAIRS], pairs.second[:_PAIRS]
    pairs = replace(pairs, first=first, second=second, scores=pairs.scores[:_PAIRS], subsets=[])
    return Task(
        name,
        title,
        "average precision",
        (first, second),
        lambda one, two: _drawn(score_pairs(one, two, pairs, **_NONE)),
    )


def _retrieval(data: Path) -> Task:
    task = read_retrieval(data / "retrieval")
    parts = list(task.queries.values()), list(task.corpus.values())
    return Task(
        task.name, "Cranfield", "nDCG@10", parts, lambda one, two: _drawn(score_retrieval(one, two, task, **_NONE))
    )


def _classes(data: Path) -> Task:
    name, folder = "banking77", data / "classification"
    train, test = (read_labeled_texts(folder / f"{name}_{end}.tsv.gz", name=name) for end in ("train", "test"))

    def score(known: Array, tested: Array) -> tuple[float, Array]:
        return _drawn(score_classification(known, tested, train, test, experiments=_DRAWS, **_NONE))

    return Task(name, "Banking77", "accuracy", (train.texts, test.texts), score)


def _clusters(data: Path) -> Task:
    whole = read_labeled_texts(data / "clustering/stackoverflow.tsv.gz", name="stackoverflow")
    rows = np.sort(np.random.default_rng(0).permutation(len(whole))[:_TEXTS])
    chosen = LabeledTexts(whole.name, [whole.texts[row] for row in rows], [whole.labels[row] for row in rows])

    def score(vectors: Array) -> tuple[float, Array]:
        return _drawn(score_clustering(vectors, chosen, experiments=_CLUSTERINGS, **_NONE))

    return Task(whole.name, "StackOverflow", "V-measure", (chosen.texts,), score)


def _sick(data: Path) -> Task:
    return _scored(replace(read_pairs(data / "sts/sick_trial.tsv.gz", name="sick-trial"), title="SICK trial"))


def _stsb(data: Path) -> Task:
    return _scored(replace(load_task("stsb", data, "dev"), name="stsb-dev", title="STS-B dev"))


_NONE: Any = {"bootstrap_samples": 0}  # the resamples are drawn here, once for all rows
_OTHERS: dict[str, Callable[[Path], Task]] = {
    "cranfield": _retrieval,
    "banking77": _classes,
    "stackoverflow": _clusters,
    "qqp": lambda data: _matched("qqp", "QQP", "qqp_test.tsv.gz", data),
    "mrpc": lambda data: _matched("mrpc", "MRPC", "mrpc_test.tsv.gz", data),
    "stsb-dev": _stsb,
    "sick-trial": _sick,
    "qqp-dev": lambda data: _matched("qqp-dev", "QQP dev", "qqp_dev.tsv.gz", data),
    "mrpc-train": lambda data: _matched("mrpc-train", "MRPC train", "mrpc_train.tsv.gz", data),
}


def places(parts: Sequence[Sequence[str]], row_of: dict[str, int]) -> list[NDArray[np.intp]]:
    """Return which row of the distinct texts each text is, for each list."""
    return [np.array([row_of[text] for text in part], dtype=np.intp) for part in parts]
