"""Rounding is not ranked: equal rows, equal pairs and equal bags of tokens have equal similarities."""

from __future__ import annotations

import math

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer

from st_plugins.evaluation import STSSuiteEvaluator
from st_plugins.evaluation.measuring.floor import bag_of_random_vectors, whiten_bag
from st_plugins.evaluation.measuring.scoring import SIMILARITIES, pair_similarities

SAME = {"cosine": 1.0, "euclidean": 0.0, "manhattan": 0.0}


@pytest.fixture
def vectors() -> np.ndarray:
    """50 rows of odd length, so that each begins elsewhere in a processor's register; the last 25 repeat the first."""
    drawn = np.random.default_rng(0).normal(size=(25, 37)).astype(np.float32)
    return np.concatenate([drawn, drawn])


@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_rows_equal_bit_by_bit_are_the_same_row(vectors: np.ndarray, similarity: str) -> None:
    rows = np.arange(25)
    found = pair_similarities(vectors, rows, rows + 25, similarity)
    if similarity in SAME:
        assert set(found) == {SAME[similarity]} and not np.signbit(found).any()
    np.testing.assert_array_equal(found, pair_similarities(vectors, rows, rows, similarity))
    np.testing.assert_allclose(
        pair_similarities(vectors, rows, rows, "dot"), (vectors[:25].astype(np.float64) ** 2).sum(axis=1)
    )


@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_a_pair_has_one_value_in_either_order_and_at_any_place(vectors: np.ndarray, similarity: str) -> None:
    first, second = np.arange(24), np.arange(1, 25)
    found = pair_similarities(vectors, first, second, similarity)
    np.testing.assert_array_equal(found, pair_similarities(vectors, second + 25, first, similarity))
    np.testing.assert_array_equal(found[::-1], pair_similarities(vectors, first[::-1], second[::-1], similarity))


def test_cosines_stay_within_one_and_parallel_rows_tie(vectors: np.ndarray) -> None:
    both = np.concatenate([vectors[:25], 3 * vectors[:25], -0.7 * vectors[:25]])
    rows = np.arange(25)
    assert set(pair_similarities(both, rows, rows + 25)) == {1.0}
    assert set(pair_similarities(both, rows, rows + 50)) == {-1.0}


def test_dot_products_of_unit_vectors_are_cosines(vectors: np.ndarray) -> None:
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    rows = np.arange(25)
    assert len(set((unit[:25].astype(np.float64) ** 2).sum(axis=1))) > 1
    assert set(pair_similarities(unit, rows, rows + 25, "dot")) == {1.0}
    np.testing.assert_array_equal(
        pair_similarities(unit, rows, rows[::-1], "dot"), pair_similarities(unit, rows, rows[::-1], "cosine")
    )


def test_zero_rows_have_cosine_zero_also_with_themselves() -> None:
    rows = np.array([[0.0, 0.0], [-0.0, 0.0], [1.0, 0.0]], dtype=np.float32)
    assert pair_similarities(rows, np.array([0, 0, 2]), np.array([1, 2, 2])).tolist() == [0.0, 0.0, 1.0]


def test_equal_bags_have_equal_floor_vectors() -> None:
    rng = np.random.default_rng(1)
    tokens = [rng.integers(500, size=rng.integers(3, 30)).tolist() for _ in range(300)]
    shuffled = [rng.permutation(row).tolist() for row in tokens]
    raw = bag_of_random_vectors([*tokens, *shuffled], 24)
    np.testing.assert_array_equal(raw[:300], raw[300:])
    white = whiten_bag(raw, raw[:300])
    np.testing.assert_array_equal(white[:300], white[300:])
    thrice = bag_of_random_vectors([row * 3 for row in tokens], 24)
    np.testing.assert_array_equal(raw[:300], thrice)  # the mean of the same tokens


def test_the_floor_of_turned_sentences_is_undefined(model: SentenceTransformer, sentences: list[str]) -> None:
    turned = [" ".join(reversed(text.split())) for text in sentences]
    evaluator = STSSuiteEvaluator.from_pairs(sentences, turned, list(range(len(sentences))), bootstrap_samples=20)
    floor = evaluator.evaluate(model).floor
    assert floor is not None
    assert math.isnan(floor.raw["avg"].value) and math.isnan(floor.whitened["avg"].value)
    assert floor.above_raw["avg"].verdict == floor.above_whitened["pairs"].verdict == "undefined"


def test_target_whitening_keeps_identical_texts_equal(model: SentenceTransformer, sentences: list[str]) -> None:
    texts = [*sentences, *sentences[:9]]
    evaluator = STSSuiteEvaluator.from_pairs(
        texts, [*sentences[::-1], *sentences[:9]], list(range(len(texts))), target_whitening=0, bootstrap_samples=0
    )
    task = evaluator.evaluate(model).tasks[0]
    assert task.similarities is not None and set(task.similarities[-9:]) == {1.0}
