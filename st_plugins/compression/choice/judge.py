"""Labeled texts as judges: scored pairs, or a retrieval task, decide between the ways to make vectors smaller."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer

from st_plugins.compression.choice.fidelity import unit
from st_plugins.core.rows import refuse_non_finite
from st_plugins.data.pairs import Pairs
from st_plugins.data.retrieval import RetrievalData
from st_plugins.evaluation.measuring.ways import ways_of
from st_plugins.evaluation.result import Difference
from st_plugins.evaluation.retrieval import score_retrieval
from st_plugins.evaluation.statistics import bootstrap, difference, resample_counts, spearman

Array = NDArray[np.floating]
Transform = Callable[[Array], Array]
"""What becomes of vectors."""

_SAMPLES = 1000


def _encoded(
    head: SentenceTransformer, texts: list[str], batch_size: int, arguments: dict[str, Any]
) -> NDArray[np.float32]:
    """Return the vectors of texts, each different one encoded once."""
    place = {text: row for row, text in enumerate(dict.fromkeys(texts))}
    vectors = head.encode(list(place), batch_size=batch_size, show_progress_bar=False, **arguments)
    refuse_non_finite(vectors, 0)
    return np.asarray(vectors[[place[text] for text in texts]], dtype=np.float32)


class PairJudge:
    """Spearman's correlation with the scores of pairs."""

    metric = "Spearman"

    def __init__(
        self, head: SentenceTransformer, pairs: Pairs, batch_size: int, prompt: str | None, route: str | None
    ) -> None:
        routes = None if route is None else (route, route)
        first, second, _ = ways_of(head, pairs.title, pairs.columns, routes, prompt)
        self.pairs = pairs
        # Questions and answers have routes and prompts of their own.
        self.sides = [
            _encoded(head, texts, batch_size, way.arguments)
            for texts, way in ((pairs.first, first), (pairs.second, second))
        ]

    def score(self, transform: Transform) -> float:
        """Return the score of what a transform makes of the model's vectors; the lowest where it is undefined."""
        found = spearman(self.pairs.scores, self._similarities(transform))
        return found if np.isfinite(found) else -1.0

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


def check_graded(pairs: Pairs) -> None:
    """Refuse what is no scored pairs, or has one score only."""
    if not isinstance(pairs, Pairs):
        raise TypeError(f"pairs must be Pairs, got {type(pairs).__name__}; st_plugins.data.read_pairs reads a file")
    if not np.ptp(pairs.scores):
        raise ValueError(
            f"pairs {pairs.name!r}: all scores are {pairs.scores[0]:g}, which says nothing; leave them out"
        )


def check_labeled(pairs: Pairs | None, retrieval: RetrievalData | None) -> None:
    """Refuse labels that cannot choose."""
    if pairs is not None and retrieval is not None:
        raise ValueError("pairs and retrieval are given, but one of them has to choose; leave the other out")
    if pairs is not None:
        check_graded(pairs)
    if retrieval is not None and not isinstance(retrieval, RetrievalData):
        raise TypeError(f"retrieval must be RetrievalData, got {type(retrieval).__name__}; read_retrieval reads one")


def judge_of(
    head: SentenceTransformer,
    pairs: Pairs | None,
    retrieval: RetrievalData | None,
    batch_size: int,
    prompt: str | None,
    route: str | None,
) -> Judge | None:
    """Return the judge that the labels make, if there are any."""
    if pairs is not None:
        return PairJudge(head, pairs, batch_size, prompt, route)
    return None if retrieval is None else RetrievalJudge(head, retrieval, batch_size)
