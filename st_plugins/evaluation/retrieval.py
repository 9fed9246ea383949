"""Retrieval: how well the nearest documents of a query are those that answer it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer

from st_plugins.data.retrieval import RetrievalData
from st_plugins.evaluation.measuring.nearest import Search
from st_plugins.evaluation.measuring.scoring import SIMILARITIES
from st_plugins.evaluation.measuring.sentence_evaluator import check_sampling
from st_plugins.evaluation.measuring.stored_corpus import check_model, search_embeddings, with_corpus
from st_plugins.evaluation.measuring.task_evaluator import TaskEvaluator, Vectors
from st_plugins.evaluation.measuring.units import check_vectors, check_widths, measured_task
from st_plugins.evaluation.measuring.ways import Way
from st_plugins.evaluation.task_result import MeasuredTask
from st_plugins.scale.embeddings import Embeddings
from st_plugins.scale.engines import Engine, Local, engine_of

_DEPTH = 100  # documents a query that are looked at
_SAMPLE = 8  # documents that are encoded again, to see whether the embeddings are those of the model


def score_retrieval(
    query_vectors: NDArray[np.floating],
    corpus_vectors: NDArray[np.floating] | Embeddings,
    data: RetrievalData,
    *,
    similarity: str = "cosine",
    confidence: float = 0.95,
    bootstrap_samples: int = 1000,
    seed: int = 0,
    engine: str | Engine = "local",
) -> MeasuredTask:
    """Score vectors of queries and documents.

    The main metric, ``ndcg_at_10``, takes the judgments as they are graded: gain is the score, discount log2(1 +
    rank), as trec_eval and the public leaderboard (MTEB, BEIR) compute it; the host's evaluator counts every relevant
    document as 1. ``recall_at_10``, ``recall_at_100``, ``mrr_at_10`` and ``map_at_100`` ask only whether a document
    is relevant (score above 0). Documents of equal similarity come in the order of their ids, as in the host. A
    document with the id of the query is a document like others.

    The corpus is searched in blocks: besides the vectors, memory is that of a block of similarities (64 MB) and of its
    documents in float64. `Embeddings` are read part by part, so that their number does not matter. A similarity is
    computed in float64, cosine then rounded to six decimals, and does not depend on blocks and parts: however a corpus
    is divided, and in whichever order, the scores have the same bits.

    Args:
        query_vectors: One row a query, in the order of ``data.queries``, shape (Q, d).
        corpus_vectors: One row a document, in the order of ``data.corpus``, shape (N, d); or `Embeddings` with the
            documents' ids, which must be those of ``data.corpus``, in any order. Where ``data.partial`` is set, all
            that is asked is that every judged document is there.
        data: The task.
        similarity: ``"cosine"``, ``"dot"``, ``"euclidean"`` or ``"manhattan"`` (distances are negated).
        confidence: Coverage of the intervals.
        bootstrap_samples: Number of resamples of the queries; 0 switches the intervals off.
        seed: Seed of the resamples.
        engine: Where the parts of `Embeddings` are searched: ``"local"``, one after another, ``"ray"``, or a `Ray`.

    Returns:
        The scores, with each query's own in ``per_unit``; all NaN where all vectors are equal.

    Raises:
        ValueError: The vectors have another shape or hold NaN, documents are missing among the `Embeddings` or are
            unknown, or a number is out of its range.

    Example:
        >>> documents = {"d1": "a dog", "d2": "a cat", "d3": "a puppy"}
        >>> data = RetrievalData("pets", documents, {"q1": "dogs"}, {"q1": {"d1": 2, "d3": 1}})
        >>> task = score_retrieval(np.float32([[1, 0]]), np.float32([[1, 0.5], [0, 1], [1, 0]]), data)
        >>> {name: round(score.value, 3) for name, score in task.scores.items()}
        {'ndcg_at_10': 0.86, 'recall_at_10': 1.0, 'recall_at_100': 1.0, 'mrr_at_10': 1.0, 'map_at_100': 1.0}
    """
    sampling = {"confidence": confidence, "bootstrap_samples": bootstrap_samples, "seed": seed}
    return _scored(query_vectors, corpus_vectors, data, similarity, sampling, engine)


def _scored(
    query_vectors: NDArray[np.floating],
    corpus_vectors: NDArray[np.floating] | Embeddings,
    data: RetrievalData,
    similarity: str,
    sampling: dict[str, Any],
    engine: str | Engine,
    sample: Mapping[str, Vectors] | None = None,
) -> MeasuredTask:
    """Score vectors; those of a sample of documents must be among the embeddings."""
    if similarity not in SIMILARITIES:
        raise ValueError(f"similarity={similarity!r} is unknown; choose one of {', '.join(SIMILARITIES)}")
    check_sampling(**sampling)
    queries = check_vectors(query_vectors, len(data.queries), "query_vectors", "queries")
    warnings: list[str] = []
    if isinstance(corpus_vectors, Embeddings):
        found, warnings = search_embeddings(queries, corpus_vectors, data, similarity, _DEPTH, engine, sample or {})
    else:
        _check_in_memory(data, engine, "Embeddings as corpus_vectors")
        corpus = check_vectors(corpus_vectors, len(data.corpus), "corpus_vectors", "documents")
        check_widths(query_vectors=queries, corpus_vectors=corpus)
        found = Search(queries, similarity, _DEPTH).among([(list(data.corpus), corpus)])
    # Where all documents have one vector, but for rounding, rounding would be ranked.
    if collapsed := found.count > 1 and found.spread.collapsed:
        warnings.append(f"{data.name}: all documents have the same vector: the ranking, and every score, is undefined")
    gains = np.zeros(found.values.shape)
    for row, (query, documents) in enumerate(zip(data.queries, found.ids.tolist(), strict=True)):
        judged = data.qrels[query]
        gains[row] = [max(0, judged.get(one, 0)) for one in documents]
    gains[np.isneginf(found.values)] = 0  # there are fewer documents
    per_unit = _per_query(
        gains, [[score for score in data.qrels[query].values() if score > 0] for query in data.queries]
    )
    if collapsed:
        per_unit = {name: np.full_like(values, np.nan) for name, values in per_unit.items()}
    task = measured_task(
        "retrieval",
        data,
        "ndcg_at_10",
        "queries",
        per_unit,
        settings={"similarity": similarity},
        **sampling,
        details={"documents": found.count},
        warnings=warnings,
    )
    if data.partial and isinstance(corpus_vectors, Embeddings):
        task.checksum = with_corpus(task.checksum, corpus_vectors)
    return task


def _check_in_memory(data: RetrievalData, engine: str | Engine, stored: str) -> None:
    """Refuse what only embeddings in files allow: another engine, and documents that are not there."""
    if engine_of(engine) not in (Local(), Local(workers=1)):
        given = f"engine={engine!r}"
    elif data.partial:
        given = "data without all of its documents"
    else:
        return
    raise ValueError(f"{given} goes with {stored}; give what encode has written")


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
        corpus_embeddings: `Embeddings` of the documents, or their folder, which the model under evaluation has made;
            the corpus is then not encoded again, and need not be in ``data`` (``data.partial``). Some of the documents
            in ``data`` are encoded, and must have the embeddings that are there.
        engine: Where these are searched: ``"local"``, ``"ray"``, or a `Ray`.

    Raises:
        FileNotFoundError: There are no embeddings in the folder.
        ValueError: An unknown similarity, or a number out of its range; when a model is evaluated, that the embeddings
            of the corpus are of another model, or were encoded with another prompt or route.

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
        corpus_embeddings: Embeddings | str | Path | None = None,
        engine: str | Engine = "local",
    ) -> None:
        self.data, self.engine = data, engine
        if isinstance(corpus_embeddings, str | Path):
            corpus_embeddings = Embeddings(corpus_embeddings)
        self.corpus_embeddings = corpus_embeddings
        documents = dict(data.corpus)
        if corpus_embeddings is not None:
            engine_of(engine)  # an unknown one is refused before anything is encoded
            documents = dict(list(documents.items())[:: max(1, len(documents) // _SAMPLE)][:_SAMPLE])
        else:
            _check_in_memory(data, engine, "corpus_embeddings")
        self._documents = list(documents)
        super().__init__(
            data.name,
            [list(data.queries.values()), *([list(documents.values())] if documents else [])],
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

    def _check(self, model: SentenceTransformer, ways: Sequence[Way]) -> None:
        if self.corpus_embeddings is not None:
            check_model(model, ways[1], self.corpus_embeddings)

    def _score(self, vectors: list[Vectors], similarity: str) -> MeasuredTask:
        queries, *corpus = vectors
        if self.corpus_embeddings is None:
            return score_retrieval(queries, corpus[0], self.data, similarity=similarity, **self._sampling)
        sample = dict(zip(self._documents, corpus[0], strict=True)) if corpus else {}
        return _scored(queries, self.corpus_embeddings, self.data, similarity, self._sampling, self.engine, sample)
