"""Retrieval: how well the nearest documents of a query are those that answer it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from sentence_transformers import SimilarityFunction

from st_plugins.data.retrieval import RetrievalData
from st_plugins.evaluation.measuring.scoring import SIMILARITIES
from st_plugins.evaluation.measuring.sentence_evaluator import check_sampling
from st_plugins.evaluation.measuring.space import is_collapsed
from st_plugins.evaluation.measuring.task_evaluator import TaskEvaluator, Vectors
from st_plugins.evaluation.measuring.units import check_vectors, check_widths, measured_task
from st_plugins.evaluation.task_result import MeasuredTask

_DEPTH = 100  # documents a query that are looked at
_QUERIES, _DOCUMENTS = 1024, 16384  # of a block of similarities: 64 MB
_NO_DOCUMENT = -1
_COSINE_DECIMALS = 6


def score_retrieval(
    query_vectors: NDArray[np.floating],
    corpus_vectors: NDArray[np.floating],
    data: RetrievalData,
    *,
    similarity: str = "cosine",
    confidence: float = 0.95,
    bootstrap_samples: int = 1000,
    seed: int = 0,
) -> MeasuredTask:
    """Score vectors of queries and documents.

    The main metric, ``ndcg_at_10``, takes the judgments as they are graded: gain is the score, discount log2(1 +
    rank), as trec_eval and the public leaderboard (MTEB, BEIR) compute it; the host's evaluator counts every relevant
    document as 1. ``recall_at_10``, ``recall_at_100``, ``mrr_at_10`` and ``map_at_100`` ask only whether a document
    is relevant (score above 0). Documents of equal similarity come in the order of their ids, as in the host. A
    document with the id of the query is a document like others.

    Memory is that of a block of similarities (64 MB), however large the corpus.

    Args:
        query_vectors: One row a query, in the order of ``data.queries``, shape (Q, d).
        corpus_vectors: One row a document, in the order of ``data.corpus``, shape (N, d).
        data: The task.
        similarity: ``"cosine"``, ``"dot"``, ``"euclidean"`` or ``"manhattan"`` (distances are negated).
        confidence: Coverage of the intervals.
        bootstrap_samples: Number of resamples of the queries; 0 switches the intervals off.
        seed: Seed of the resamples.

    Returns:
        The scores, with each query's own in ``per_unit``; all NaN where all vectors are equal.

    Raises:
        ValueError: The vectors have another shape or hold NaN, or a number is out of its range.

    Example:
        >>> documents = {"d1": "a dog", "d2": "a cat", "d3": "a puppy"}
        >>> data = RetrievalData("pets", documents, {"q1": "dogs"}, {"q1": {"d1": 2, "d3": 1}})
        >>> task = score_retrieval(np.float32([[1, 0]]), np.float32([[1, 0.5], [0, 1], [1, 0]]), data)
        >>> {name: round(score.value, 3) for name, score in task.scores.items()}
        {'ndcg_at_10': 0.86, 'recall_at_10': 1.0, 'recall_at_100': 1.0, 'mrr_at_10': 1.0, 'map_at_100': 1.0}
    """
    if similarity not in SIMILARITIES:
        raise ValueError(f"similarity={similarity!r} is unknown; choose one of {', '.join(SIMILARITIES)}")
    check_sampling(confidence, bootstrap_samples, seed)
    queries = check_vectors(query_vectors, len(data.queries), "query_vectors", "queries")
    corpus = check_vectors(corpus_vectors, len(data.corpus), "corpus_vectors", "documents")
    check_widths(query_vectors=queries, corpus_vectors=corpus)
    ids = list(data.corpus)
    warnings = []
    # Where all documents have one vector, but for rounding, rounding would be ranked.
    if collapsed := is_collapsed(corpus):
        warnings.append(f"{data.name}: all documents have the same vector: the ranking, and every score, is undefined")
    found = nearest(queries, corpus, np.argsort(np.array(ids, dtype=object), kind="stable"), similarity, _DEPTH)
    gains = np.zeros(found.shape)
    for row, (query, documents) in enumerate(zip(data.queries, found, strict=True)):
        judged = data.qrels[query]
        gains[row] = [0 if one == _NO_DOCUMENT else max(0, judged.get(ids[one], 0)) for one in documents]
    per_unit = _per_query(
        gains, [[score for score in data.qrels[query].values() if score > 0] for query in data.queries]
    )
    if collapsed:
        per_unit = {name: np.full_like(values, np.nan) for name, values in per_unit.items()}
    return measured_task(
        "retrieval",
        data,
        "ndcg_at_10",
        "queries",
        per_unit,
        settings={"similarity": similarity},
        bootstrap_samples=bootstrap_samples,
        confidence=confidence,
        seed=seed,
        details={"documents": len(ids)},
        warnings=warnings,
    )


def nearest(
    queries: Vectors, corpus: Vectors, order: NDArray[np.intp], similarity: str, depth: int
) -> NDArray[np.intp]:
    """Return the rows of each query's nearest documents, best first, ``(Q, depth)``; among equals by ``order``."""
    similarities = SimilarityFunction.to_similarity_fn(similarity)
    found = np.full((len(queries), depth), _NO_DOCUMENT, dtype=np.intp)
    for start in range(0, len(queries), _QUERIES):
        block = torch.from_numpy(queries[start : start + _QUERIES])
        best = np.full((len(block), depth), -np.inf, dtype=np.float32)
        places = np.full((len(block), depth), _NO_DOCUMENT, dtype=np.intp)
        # In the order of ties, so that whatever came earlier stands first among equals.
        for begin in range(0, len(order), _DOCUMENTS):
            rows = order[begin : begin + _DOCUMENTS]
            scores = similarities(block, torch.from_numpy(corpus[rows]))
            if similarity == "cosine":  # what float32 makes of equal cosines, of binary vectors say, is not ranked
                scores = scores.round(decimals=_COSINE_DECIMALS)
            least = scores.topk(min(depth, len(rows)), dim=1).values[:, -1].numpy()
            for query, row in enumerate(scores.numpy()):
                # More than `depth` where there are equals at the border, and none that earlier ones keep out.
                near = np.flatnonzero((row >= least[query]) & (row > best[query, -1]))
                values = np.concatenate([best[query], row[near]])
                chosen = np.argsort(-values, kind="stable")[:depth]
                places[query] = np.concatenate([places[query], rows[near]])[chosen]
                best[query] = values[chosen]
        found[start : start + len(block)] = places
    return found


def _per_query(gains: NDArray[np.float64], relevant: Sequence[Sequence[int]]) -> dict[str, NDArray[np.float64]]:
    """Return the metrics of each query from the gains of what was found, ``(Q, depth)``, and of what there is."""
    discounts = 1 / np.log2(np.arange(2, 12))
    ranks = np.arange(1, gains.shape[1] + 1)
    ideal = np.array([np.dot(best, discounts[: len(best)]) for best in (sorted(r)[:-11:-1] for r in relevant)])
    count = np.array([len(scores) for scores in relevant])
    hits = gains > 0
    first = np.where(hits[:, :10].any(axis=1), hits[:, :10].argmax(axis=1) + 1, np.inf)
    return {
        "ndcg_at_10": gains[:, :10] @ discounts / ideal,
        "recall_at_10": hits[:, :10].sum(axis=1) / count,
        "recall_at_100": hits.sum(axis=1) / count,
        "mrr_at_10": 1 / first,
        "map_at_100": (hits * hits.cumsum(axis=1) / ranks).sum(axis=1) / count,
    }


class RetrievalEvaluator(TaskEvaluator):
    """Score a model on a retrieval task, with intervals over the queries.

    Queries are encoded as the model encodes queries (``encode_query``: its route and prompt for them), documents as it
    encodes documents, each distinct text once. The metrics are those of :func:`score_retrieval`, under the host's key
    style: ``NAME_cosine_ndcg@10``, the primary metric, ``NAME_cosine_recall@10`` and so on.

    Args:
        data: The task, such as :func:`~st_plugins.data.read_retrieval` reads.
        batch_size: Texts per batch.
        similarity: ``"cosine"``, ``"dot"``, ``"euclidean"`` or ``"manhattan"``; None takes the model's own.
        confidence: Coverage of the intervals.
        bootstrap_samples: Number of resamples of the queries; 0 switches the intervals off.
        seed: Seed of the resamples.
        name: Prefix of the metric keys; the task's name by default.
        prompt: Prompt of all texts; None takes the model's own for queries and documents.
        prompt_name: Its name among the model's prompts.
        routes: How queries and documents are encoded, such as ``"default"``, by plain ``encode``; None is
            ``"query,document"``.
        show_progress_bar: Whether to show the progress bar; default: when there are more than 2,000 texts.

    Raises:
        ValueError: An unknown similarity, or a number out of its range.

    Example:
        >>> from st_plugins.miniature import untrained_encoder
        >>> data = RetrievalData("pets", {"d1": "a dog", "d2": "a cat"}, {"q1": "a dog"}, {"q1": {"d1": 1}})
        >>> metrics = RetrievalEvaluator(data)(untrained_encoder())
        >>> metrics["pets_cosine_ndcg@10"]
        1.0
    """

    columns = ("query", "document")
    _main = "ndcg_at_10"

    def __init__(
        self,
        data: RetrievalData,
        batch_size: int = 32,
        similarity: str | None = None,
        confidence: float = 0.95,
        bootstrap_samples: int = 1000,
        seed: int = 0,
        name: str = "",
        *,
        prompt: str | None = None,
        prompt_name: str | None = None,
        routes: str | Sequence[str] | None = None,
        show_progress_bar: bool | None = None,
    ) -> None:
        self.data = data
        super().__init__(
            data.name,
            [list(data.queries.values()), list(data.corpus.values())],
            batch_size=batch_size,
            similarity=similarity,
            confidence=confidence,
            bootstrap_samples=bootstrap_samples,
            seed=seed,
            name=name,
            prompt=prompt,
            prompt_name=prompt_name,
            routes=routes,
            show_progress_bar=show_progress_bar,
        )

    def _key(self, metric: str, similarity: str) -> str:
        return f"{similarity}_{metric.replace('_at_', '@')}"

    def _score(self, vectors: list[Vectors], similarity: str) -> MeasuredTask:
        queries, corpus = vectors
        return score_retrieval(queries, corpus, self.data, similarity=similarity, **self._sampling)
