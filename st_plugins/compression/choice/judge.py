"""Labeled texts as judges: scored pairs, or a retrieval task, decide between the ways to make vectors smaller."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer

from st_plugins.compression.choice.fidelity import unit
from st_plugins.data.pairs import Pairs
from st_plugins.data.retrieval import RetrievalData
from st_plugins.evaluation.result import Difference
from st_plugins.evaluation.retrieval import score_retrieval
from st_plugins.evaluation.statistics import bootstrap, difference, resample_counts, spearman

Array = NDArray[np.floating]
Transform = Callable[[Array], Array]
"""What becomes of vectors."""

_SAMPLES = 1000


class PairJudge:
    """Spearman's correlation with the scores of pairs."""

    metric = "Spearman"

    def __init__(self, head: SentenceTransformer, pairs: Pairs, batch_size: int, prompt: str | None) -> None:
        texts = dict.fromkeys([*pairs.first, *pairs.second])
        vectors = head.encode(list(texts), batch_size=batch_size, prompt=prompt, show_progress_bar=False)
        place = {text: row for row, text in enumerate(texts)}
        self.pairs = pairs
        self.sides = [
            vectors[[place[text] for text in side]].astype(np.float32) for side in (pairs.first, pairs.second)
        ]

    def score(self, transform: Transform) -> float:
        """Return the score of what a transform makes of the model's vectors."""
        return spearman(self.pairs.scores, self._similarities(transform))

    def loss(self, transform: Transform) -> Difference:
        """Return what the transform loses, by a paired bootstrap over the pairs."""
        systems = np.stack([self._similarities(lambda vectors: vectors), self._similarities(transform)])
        values = [spearman(self.pairs.scores, system) for system in systems]
        counts = resample_counts(len(self.pairs), _SAMPLES, self.pairs.name, 0)
        samples = bootstrap(self.pairs.scores, systems.astype(np.float64), counts)[0]
        return difference(values[0] - values[1], samples[0] - samples[1], 0.95)

    def _similarities(self, transform: Transform) -> NDArray[np.float64]:
        first, second = (unit(transform(side)) for side in self.sides)
        return np.asarray(np.einsum("id,id->i", first, second), dtype=np.float64)


class RetrievalJudge:
    """nDCG@10 of a retrieval task."""

    metric = "nDCG@10"

    def __init__(self, head: SentenceTransformer, data: RetrievalData, batch_size: int) -> None:
        options: Any = {"batch_size": batch_size, "show_progress_bar": False}
        self.data = data
        self.queries: Array = np.asarray(head.encode_query(list(data.queries.values()), **options), np.float32)
        self.corpus: Array = np.asarray(head.encode_document(list(data.corpus.values()), **options), np.float32)

    def score(self, transform: Transform) -> float:
        """Return the score of what a transform makes of the model's vectors."""
        return float(np.mean(self._per_query(transform)))

    def loss(self, transform: Transform) -> Difference:
        """Return what the transform loses, by a paired bootstrap over the queries."""
        lost = self._per_query(lambda vectors: vectors) - self._per_query(transform)
        counts = resample_counts(len(lost), _SAMPLES, self.data.name, 0)
        return difference(float(lost.mean()), counts @ lost / len(lost), 0.95)

    def _per_query(self, transform: Transform) -> Array:
        found = score_retrieval(transform(self.queries), transform(self.corpus), self.data, bootstrap_samples=0)
        return np.asarray(found.per_unit["ndcg_at_10"])


Judge = PairJudge | RetrievalJudge


def judge_of(
    head: SentenceTransformer,
    pairs: Pairs | None,
    retrieval: RetrievalData | None,
    batch_size: int,
    prompt: str | None,
) -> Judge | None:
    """Return the judge that the labels make, if there are any."""
    if pairs is not None and retrieval is not None:
        raise ValueError("pairs and retrieval are given, but one of them has to choose; leave the other out")
    if pairs is not None:
        return PairJudge(head, pairs, batch_size, prompt)
    return None if retrieval is None else RetrievalJudge(head, retrieval, batch_size)
