"""Retrieval against trec_eval's formulas written out, scikit-learn and the host."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from sentence_transformers.sentence_transformer.evaluation import InformationRetrievalEvaluator
from sklearn.metrics import ndcg_score

from st_plugins.data import RetrievalData
from st_plugins.evaluation import RetrievalEvaluator, score_retrieval
from st_plugins.evaluation.measuring import nearest
from st_plugins.miniature import corpus as miniature_corpus
from st_plugins.miniature import untrained_encoder

Floats = NDArray[np.float32]


def graded(
    queries: int = 30, documents: int = 250, width: int = 6, seed: int = 0
) -> tuple[RetrievalData, Floats, Floats]:
    """Make a task with graded judgments, also of 0 and below, and vectors with many equal similarities."""
    generator = np.random.default_rng(seed)
    corpus = {f"d{number}": f"document {number}" for number in generator.permutation(documents)}
    asked = {f"q{number}": f"query {number}" for number in range(queries)}
    qrels = {}
    for query in asked:
        judged = generator.choice(list(corpus), size=generator.integers(2, 20), replace=False)
        qrels[query] = {str(document): int(generator.integers(-1, 4)) for document in judged} | {str(judged[0]): 2}
    vectors = [np.sign(generator.normal(size=(size, width))).astype(np.float32) for size in (queries, documents)]
    return RetrievalData("made", corpus, asked, qrels), *vectors


def trec(data: RetrievalData, queries: Floats, corpus: Floats) -> dict[str, list[float]]:
    """Compute every metric of every query as trec_eval defines it, by loops."""
    found: dict[str, list[float]] = {
        key: [] for key in ("ndcg_at_10", "recall_at_10", "recall_at_100", "mrr_at_10", "map_at_100")
    }
    for query, vector in zip(data.queries, queries, strict=True):
        scored = []
        for document, other in zip(data.corpus, corpus, strict=True):
            product = sum(float(a) * float(b) for a, b in zip(vector, other, strict=True))
            scored.append((-round(product, 6), document))
        ranking = [document for _, document in sorted(scored)]
        judged = {document: score for document, score in data.qrels[query].items() if score > 0}
        dcg = sum(judged.get(document, 0) / math.log2(rank + 1) for rank, document in enumerate(ranking[:10], 1))
        best = sorted(judged.values(), reverse=True)[:10]
        found["ndcg_at_10"].append(dcg / sum(gain / math.log2(rank + 1) for rank, gain in enumerate(best, 1)))
        for depth in (10, 100):
            right = sum(document in judged for document in ranking[:depth])
            found[f"recall_at_{depth}"].append(right / len(judged))
        ranks = [rank for rank, document in enumerate(ranking, 1) if document in judged]
        found["mrr_at_10"].append(1 / ranks[0] if ranks[0] <= 10 else 0.0)
        precisions = [number / rank for number, rank in enumerate(ranks, 1) if rank <= 100]
        found["map_at_100"].append(sum(precisions) / len(judged))
    return found


def test_every_metric_of_every_query_is_trec_evals() -> None:
    data, queries, corpus = graded()
    task = score_retrieval(queries, corpus, data, similarity="dot")
    expected = trec(data, queries, corpus)
    assert task.per_unit.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_allclose(task.per_unit[name], values, atol=1e-12, err_msg=name)
        assert task.scores[name].value == pytest.approx(np.mean(values))
        assert task.scores[name].low < task.scores[name].value < task.scores[name].high


def test_ndcg_is_scikit_learns_where_no_similarities_are_equal() -> None:
    data, _, _ = graded()
    generator = np.random.default_rng(1)
    queries, corpus = (generator.normal(size=(size, 5)).astype(np.float32) for size in (30, 250))
    gold = [[max(0, data.qrels[query].get(document, 0)) for document in data.corpus] for query in data.queries]
    expected = [ndcg_score([row], [scores], k=10) for row, scores in zip(gold, queries @ corpus.T, strict=True)]
    task = score_retrieval(queries, corpus, data, similarity="dot")
    np.testing.assert_allclose(task.per_unit["ndcg_at_10"], expected, atol=1e-6)


@pytest.mark.parametrize("similarity", ["cosine", "dot", "euclidean", "manhattan"])
def test_blocks_change_nothing(similarity: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data, queries, corpus = graded()
    whole = score_retrieval(queries, corpus, data, similarity=similarity)
    monkeypatch.setattr(nearest, "_QUERIES", 7)
    monkeypatch.setattr(nearest, "_DOCUMENTS", 11)
    assert score_retrieval(queries, corpus, data, similarity=similarity).per_unit == whole.per_unit


def own_texts() -> RetrievalData:
    texts = miniature_corpus(120, seed=3)
    corpus = {f"d{row}": text for row, text in enumerate(dict.fromkeys(texts[:90]))}
    queries = {f"q{row}": text for row, text in enumerate(dict.fromkeys(texts[90:]))}
    ids = list(corpus)
    qrels = {
        query: {ids[3 * row % len(ids)]: 1, ids[(5 * row + 1) % len(ids)]: 1} for row, query in enumerate(queries)
    }
    return RetrievalData("own", corpus, queries, qrels)


def test_metrics_are_the_hosts_where_all_judgments_are_one() -> None:
    data, model = own_texts(), untrained_encoder()
    relevant = {query: set(scores) for query, scores in data.qrels.items()}
    host = InformationRetrievalEvaluator(
        dict(data.queries), dict(data.corpus), relevant, name="own", precision_recall_at_k=[10, 100]
    )
    theirs, evaluator = host(model), RetrievalEvaluator(data)
    ours = evaluator(model)
    assert evaluator.primary_metric == host.primary_metric == "own_cosine_ndcg@10"
    assert len(ours) == 5
    for name, value in ours.items():
        assert value == pytest.approx(theirs[name], abs=1e-9), name


def test_queries_and_documents_are_encoded_each_in_its_own_way_and_once(monkeypatch: pytest.MonkeyPatch) -> None:
    data, model = own_texts(), untrained_encoder()
    model.prompts = {"query": "the man ", "document": "a boat "}
    expected = score_retrieval(
        model.encode_query(list(data.queries.values())), model.encode_document(list(data.corpus.values())), data
    )
    plain, seen = model.encode, []

    def counting(texts: list[str], **arguments: Any) -> Any:
        seen.extend((text, arguments.get("prompt")) for text in texts)
        return plain(texts, **arguments)

    monkeypatch.setattr(model, "encode", counting)
    task = RetrievalEvaluator(data).evaluate(model).tasks[0]
    np.testing.assert_allclose(task.per_unit["map_at_100"], expected.per_unit["map_at_100"], atol=1e-6)
    assert task.measured["prompts"]["used"] == {"own": ["the man ", "a boat "]}
    assert len(seen) == len(set(seen)) == len(data.queries) + len(data.corpus)


def test_equal_vectors_are_undefined() -> None:
    data, queries, corpus = graded()
    task = score_retrieval(queries, np.ones_like(corpus), data)
    assert math.isnan(task.score.value)
    assert any("undefined" in warning for warning in task.warnings)


def test_queries_without_an_answer_are_left_out_and_said() -> None:
    data = RetrievalData("pets", {"d": "a dog", "e": "a cat"}, {"q": "dogs", "r": "cats"}, {"q": {"d": 1}})
    task = score_retrieval(np.eye(2, dtype=np.float32)[:1], np.eye(2, dtype=np.float32), data)
    assert task.units == 1
    assert "1 of the 2 queries" in task.warnings[0]


def test_bad_input() -> None:
    data, queries, corpus = graded()
    with pytest.raises(ValueError, match=r"query_vectors must have shape \(30, d\)"):
        score_retrieval(queries[:5], corpus, data)
    with pytest.raises(ValueError, match="query_vectors have 3 dimensions and corpus_vectors 6"):
        score_retrieval(queries[:, :3], corpus, data)
    corpus[7] = np.nan
    with pytest.raises(ValueError, match="corpus_vectors holds NaN or infinity in 1 rows, the first is row 7"):
        score_retrieval(queries, corpus, data)
    with pytest.raises(ValueError, match="similarity='cos'"):
        RetrievalEvaluator(data, similarity="cos")
    with pytest.raises(ValueError, match="bootstrap_samples=-1"):
        RetrievalEvaluator(data, bootstrap_samples=-1)
