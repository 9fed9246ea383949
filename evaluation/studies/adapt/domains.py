"""The domains: unlabelled texts of one kind, and a labelled test that no training sees."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from evaluation.engine.corpus import draw_texts
from evaluation.engine.judged import (
    NO_INTERVAL,
    Array,
    Task,
    clustered,
    drawn,
    first_ones,
    matched,
    scored,
    searched,
)
from st_plugins.data import LabeledTexts, read_labeled_texts, read_pairs
from st_plugins.evaluation import score_classification

_PAIRS = 2000  # of a test that has more
_CLUSTERED = 4000
# Of three clusterings the mean moves by a point with the last digits of the vectors.
_CLUSTERINGS = 30
_KNOWN, _DRAWS = 8, 1  # labelled texts of a class that are encoded, and draws: the classifier takes longest


@dataclass(frozen=True)
class Domain:
    """Where a domain's texts are, and its test."""

    sources: tuple[str, ...]  # file#column
    task: Callable[[Path], Task]

    def texts(self, data: Path, task: Task, count: int, seed: int) -> list[str]:
        """Return so many different texts, none of them one of the test."""
        # Documents to be searched and texts with known classes are the user's own: only what is asked is kept back.
        tested = {_plain(text) for text in task.parts[0 if len(task.parts) == 1 else -1]}
        if task.metric in ("Spearman", "average precision"):
            tested |= {_plain(text) for text in task.parts[0]}
        if task.metric == "nDCG@10":
            tested = set()
        found = [text for text in draw_texts(list(self.sources), data) if _plain(text) not in tested]
        if len(found) <= count:
            return found
        order = np.random.default_rng(seed).permutation(len(found))[:count]
        return [found[place] for place in np.sort(order)]


def _plain(text: str) -> str:
    return "".join(letter for letter in text.lower() if letter.isalnum())


def _graded(name: str, title: str, file: str, score: str = "score") -> Callable[[Path], Task]:
    def task(data: Path) -> Task:
        pairs = read_pairs(data / file, score=score, name=name)
        return scored(replace(first_ones(pairs, _PAIRS), title=title))

    return task


def _matched(name: str, title: str, file: str) -> Callable[[Path], Task]:
    return lambda data: matched(name, title, data / file, _PAIRS)


def _classes(name: str, title: str) -> Callable[[Path], Task]:
    def task(data: Path) -> Task:
        folder = data / "classification"
        whole, test = (read_labeled_texts(folder / f"{name}_{end}.tsv.gz", name=name) for end in ("train", "test"))
        # As many texts of each class as the draws can take: the rest need not be encoded.
        labels = np.array(whole.labels)
        rows = np.sort(np.concatenate([np.flatnonzero(labels == one)[:_KNOWN] for one in np.unique(labels)]))
        known = LabeledTexts(name, [whole.texts[row] for row in rows], [whole.labels[row] for row in rows])

        def score(first: Array, second: Array) -> tuple[float, Array]:
            return drawn(score_classification(first, second, known, test, experiments=_DRAWS, **NO_INTERVAL))

        return Task(name, title, "accuracy", (known.texts, test.texts), score)

    return task


def _both(file: str) -> tuple[str, str]:
    return f"{file}#sentence1", f"{file}#sentence2"


DOMAINS = {
    "cranfield": Domain(("retrieval/cranfield_corpus.jsonl.gz#text",), searched),
    "stackoverflow": Domain(
        ("clustering/stackoverflow.tsv.gz#text",), lambda data: clustered(data, _CLUSTERED, _CLUSTERINGS)
    ),
    "banking77": Domain(("classification/banking77_train.tsv.gz#text",), _classes("banking77", "Banking77")),
    "clinc150": Domain(("classification/clinc150_train.tsv.gz#text",), _classes("clinc150", "CLINC150")),
    "qqp": Domain(_both("matching/qqp_train_subset.tsv.gz"), _matched("qqp", "QQP", "matching/qqp_test.tsv.gz")),
    "mrpc": Domain(_both("matching/mrpc_train.tsv.gz"), _matched("mrpc", "MRPC", "matching/mrpc_test.tsv.gz")),
    "stsb": Domain(_both("sts/stsb_train.tsv.gz"), _graded("stsb", "STS-B", "sts/stsb_test.tsv.gz")),
    "sick": Domain(_both("sts/sick_train.tsv.gz"), _graded("sick", "SICK-R", "sts/sick_test.tsv.gz")),
    "atec": Domain(_both("zh/atec_train.tsv.gz"), _graded("atec", "ATEC", "zh/atec_test.tsv.gz", "label")),
    "bq": Domain(_both("zh/bq_dev.tsv.gz"), _graded("bq", "BQ", "zh/bq_test.tsv.gz", "label")),
    "lcqmc": Domain(_both("zh/lcqmc_dev.tsv.gz"), _graded("lcqmc", "LCQMC", "zh/lcqmc_test.tsv.gz", "label")),
    "pawsx": Domain(_both("zh/pawsx_dev.tsv.gz"), _graded("pawsx", "PAWS-X", "zh/pawsx_test.tsv.gz", "label")),
    "stsb-zh": Domain(_both("zh/stsb_zh_train.tsv.gz"), _graded("stsb-zh", "STS-B zh", "zh/stsb_zh_test.tsv.gz")),
}
