"""Pair classification against scikit-learn, the host, and every threshold tried."""

from __future__ import annotations

import math

import numpy as np
import pytest
from sentence_transformers.sentence_transformer.evaluation import BinaryClassificationEvaluator
from sklearn.metrics import average_precision_score, roc_auc_score

from st_plugins.data import Pairs
from st_plugins.evaluation import PairClassificationEvaluator, score_pairs
from st_plugins.evaluation.pair_classification import thresholds
from st_plugins.miniature import corpus as miniature_corpus
from st_plugins.miniature import untrained_encoder


def own_pairs() -> Pairs:
    texts = list(dict.fromkeys(miniature_corpus(200, seed=5)))[:91]
    first, second = texts[:-1], texts[1:]
    gold = np.random.default_rng(0).integers(0, 2, size=90)
    return Pairs("own", first, second, gold * 4.0 - 2.0, title="Own")


def test_scores_are_scikit_learns_and_the_hosts() -> None:
    pairs, model = own_pairs(), untrained_encoder()
    labels = (pairs.scores > 0).astype(int).tolist()
    theirs = BinaryClassificationEvaluator(pairs.first, pairs.second, labels, name="own")(model)
    evaluator = PairClassificationEvaluator(pairs)
    ours = evaluator(model)
    assert evaluator.primary_metric == "own_cosine_ap"
    task = evaluator.last_result.tasks[0] if evaluator.last_result else pytest.fail("no result")
    similarities = task.per_unit["similarity"]
    assert ours["own_cosine_ap"] == pytest.approx(average_precision_score(labels, similarities))
    assert ours["own_cosine_auc"] == pytest.approx(roc_auc_score(labels, similarities))
    for name in ("own_cosine_ap", "own_cosine_f1"):
        assert ours[name] == pytest.approx(theirs[name], abs=1e-6)
    assert task.details["f1_threshold"] == pytest.approx(theirs["own_cosine_f1_threshold"], abs=1e-5)


@pytest.mark.parametrize("precision", [0.3, 0.5, 0.8, 1.0])
def test_the_threshold_finds_most_at_the_wanted_precision(precision: float) -> None:
    generator = np.random.default_rng(int(10 * precision))
    similarities = generator.normal(size=80).round(1)
    positive = generator.random(80) < 1 / (1 + np.exp(-2 * similarities))
    positive[similarities.argmax()] = True
    found = thresholds(positive, similarities, precision)
    recalls = []
    for threshold in similarities:
        taken = similarities >= threshold
        if positive[taken].mean() >= precision:
            recalls.append(positive[taken].sum() / positive.sum())
    taken = similarities >= found["precision_threshold"]
    assert positive[taken].mean() >= precision
    assert found["recall"] == pytest.approx(positive[taken].sum() / positive.sum())
    assert found["recall"] == pytest.approx(max(recalls))


def test_a_precision_out_of_reach_is_said() -> None:
    pairs = Pairs("toy", ["a", "b"], ["c", "d"], [0, 1])
    task = score_pairs(np.eye(2), np.float32([[1, 0], [1, 0]]), pairs, precision=0.9)
    assert math.isnan(task.details["precision_threshold"])
    assert task.warnings == ["toy: no threshold reaches a precision of 0.9"]


def test_one_class_or_one_vector_is_undefined() -> None:
    vectors = np.random.default_rng(0).normal(size=(4, 3))
    task = score_pairs(vectors, vectors[::-1], Pairs("toy", list("abcd"), list("dcba"), [1, 1, 1, 1]))
    assert all(math.isnan(score.value) for score in task.scores.values())
    assert "every score is undefined" in task.warnings[0]
    same = np.ones((4, 3)) + np.random.default_rng(0).normal(size=(4, 3)) * 1e-7
    pairs = Pairs("toy", list("abcd"), list("dcba"), [1, 1, 0, 0])
    task = score_pairs(same, same[[1, 0, 3, 2]], pairs, similarity="euclidean")
    assert task.scores["auc"].value == 0.5
    assert "the same vector" in task.warnings[0]


def test_graded_pairs_and_bad_precision_are_refused_before_anything_is_encoded() -> None:
    with pytest.raises(ValueError, match="gold has 3 different scores"):
        PairClassificationEvaluator(Pairs("toy", list("abc"), list("def"), [0, 1, 2]))
    with pytest.raises(ValueError, match=r"precision=1\.5"):
        PairClassificationEvaluator(Pairs("toy", list("ab"), list("de"), [0, 1]), precision=1.5)
