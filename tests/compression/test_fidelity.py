"""What is kept of vectors, against explicit pairs, scipy and a jackknife that is written out."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import spearmanr

from st_plugins.compression.choice.copies import mutilated
from st_plugins.compression.choice.fidelity import Held, recognized
from st_plugins.compression.choice.sample import Sample
from st_plugins.methods.whitening.moments import Moments

Array = NDArray[np.floating]


def points(count: int = 60, width: int = 12, seed: int = 0) -> NDArray[np.float32]:
    generator = np.random.default_rng(seed)
    return (generator.normal(size=(count, width)) * np.geomspace(3, 0.3, width)).astype(np.float32)


def cosine(a: Array, b: Array) -> float:
    return float(a.astype(np.float64) @ b / (np.linalg.norm(a) * np.linalg.norm(b)))


def nearest(vectors: Array, text: int) -> list[int]:
    """The other texts, the most similar first."""
    others = [other for other in range(len(vectors)) if other != text]
    return sorted(others, key=lambda other: -cosine(vectors[text], vectors[other]))


def similarities(old: Array, new: Array) -> tuple[list[list[float]], list[list[float]]]:
    """Of each text the similarities to partners at up to 24 ranks, from the nearest to the farthest, old and new."""
    last = len(old) - 1
    ranks = sorted({round(last ** (step / (min(24, last) - 1))) for step in range(min(24, last))})
    pairs = [[(text, nearest(old, text)[rank - 1]) for rank in ranks] for text in range(len(old))]
    first, second = ([[cosine(rows[a], rows[b]) for a, b in row] for row in pairs] for rows in (old, new))
    return first, second


def test_what_is_lost_is_one_minus_spearman_of_the_listed_pairs() -> None:
    old = points()
    new = old[:, :5]
    first, second = similarities(old, new)
    measured = Held(old).measure(new, errors=True)
    assert measured.loss == pytest.approx(1 - spearmanr(np.ravel(first), np.ravel(second)).statistic, abs=2e-5)
    shares = [len({*nearest(old, text)[:10]} & {*nearest(new, text)[:10]}) / 10 for text in range(len(old))]
    assert measured.neighbors == pytest.approx(np.mean(shares), abs=1e-6)
    assert 0.001 < measured.loss < 0.5 and 0.2 < measured.neighbors < 0.9


def test_errors_are_a_jackknife_over_twenty_blocks() -> None:
    old = points()
    new = old[:, :5]
    first, second = (np.array(side) for side in similarities(old, new))
    a, b = (np.argsort(np.argsort(side.ravel())).reshape(side.shape) for side in (first, second))
    blocks = np.array_split(np.random.default_rng(0).permutation(60), 20)
    losses, kept = [], []
    for block in blocks:
        rest = [text for text in range(60) if text not in block]
        losses.append(1 - np.corrcoef(a[rest].ravel(), b[rest].ravel())[0, 1])
        kept.append(np.mean([len({*nearest(old, t)[:10]} & {*nearest(new, t)[:10]}) / 10 for t in rest]))

    def error(values: Any) -> float:
        mean = sum(values) / 20
        return float(np.sqrt(19 / 20 * sum((value - mean) ** 2 for value in values)))

    measured = Held(old).measure(new, errors=True)
    assert measured.loss_error == pytest.approx(error(losses), rel=0.02) and measured.loss_error > 0
    assert measured.neighbors_error == pytest.approx(error(kept), rel=1e-4)
    assert Held(old).measure(new).loss == measured.loss and Held(old).measure(new).loss_error == 0


def test_nothing_is_lost_where_nothing_or_only_lengths_and_axes_change() -> None:
    old = points()
    rotation, _ = np.linalg.qr(np.random.default_rng(1).normal(size=(12, 12)))
    lengths = np.linspace(0.1, 9, 60)[:, None]
    for new in (old, old * lengths, old @ rotation):
        measured = Held(old).measure(new)
        assert measured.loss == pytest.approx(0, abs=1e-5) and measured.neighbors > 0.995
    assert Held(old * lengths.astype(np.float32)).measure(old).loss == pytest.approx(0, abs=1e-5)
    assert Held(old).measure(np.zeros((60, 3))).loss == 1  # of vectors that say nothing everything is lost
    assert Held(old).measure(-points(seed=9)).loss > 0.5


def test_few_texts_have_fewer_neighbors() -> None:
    old = points(5)
    measured = Held(old).measure(old, errors=True)
    assert measured.neighbors == 1 and measured.loss == pytest.approx(0, abs=1e-6)


def test_copies_are_recognized_by_the_mean_of_one_over_rank() -> None:
    first = points(20)
    second = (first + 2 * points(20, seed=1)).astype(np.float32)
    expected = []
    for one, other in ((first, second), (second, first)):
        for text in range(20):
            own = cosine(one[text], other[text])
            expected.append(1 / sum(cosine(one[text], other[k]) >= own for k in range(20)))
    assert recognized(first, second) == pytest.approx(np.mean(expected), rel=1e-6) and np.mean(expected) < 0.95
    assert recognized(np.ones((20, 3)), np.ones((20, 3))) == pytest.approx(1 / 20)


def test_half_of_the_words_are_left_out_and_of_chinese_half_of_the_letters() -> None:
    import torch

    texts = [
        "the boy eats red apples now",
        "今天天气很好",
        "我们 去公园玩",
        "cheap flights",
        "",
        "a b c",
        "Привет мир",
    ]
    first, second = mutilated(texts, torch.Generator().manual_seed(0))
    assert len(first) == len(second) == 3  # the words of scripts with capitals are set apart, and two are too few
    for copy in (first, second):
        words = copy[0].split()
        assert len(words) == 3 and [word for word in texts[0].split() if word in words] == words
        for letters, whole in ((copy[1], texts[1]), (copy[2], "我们去公园玩")):
            assert len(letters) == 3 and [letter for letter in whole if letter in letters] == [*letters]


def test_a_sample_sums_up_what_it_was_given_whatever_the_blocks() -> None:
    rows = points(9000, 8) + np.float32(1)
    texts = [f"text {number}" for number in range(9000)]
    whole = Sample(8).add(rows, texts)
    split = Sample(8)
    for start in range(0, 9000, 4096):
        split.add(rows[start : start + 4096], texts[start : start + 4096])
    for sample in (whole, split):
        moments, expected = sample.whole, Moments.of(rows.astype(np.float64))
        assert sample.count == 9000 and sum(one.count for one in sample.moments) == 9000
        np.testing.assert_allclose(moments.second(), expected.second(), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(moments.mean, expected.mean, rtol=1e-5)
        for held, names in zip(sample.held, sample.texts, strict=True):
            places = [texts.index(name) for name in names]
            assert held.tobytes() == rows[places].tobytes() and len({*places}) == len(places) == 1000
        assert not {*sample.texts[0]} & {*sample.texts[1]}
    assert whole.held[0].tobytes() == split.held[0].tobytes()


def test_the_groups_are_apart_along_the_direction_in_which_texts_differ_most() -> None:
    rows = points(400, 8)
    sample = Sample(8).add(rows, [str(row) for row in range(400)])
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    _, _, directions = np.linalg.svd(unit - unit.mean(axis=0))
    along = unit @ directions[0]
    sides = [along[[int(name) for name in names]] > np.median(along) for names in sample.texts]
    assert {bool(side.all()) for side in sides} == {True, False} and all(len({*side}) == 1 for side in sides)


def test_a_row_that_is_not_finite_is_named_by_its_place_among_all() -> None:
    rows = points(100, 8)
    rows[7, 3] = np.nan
    with pytest.raises(ValueError, match="row 7 holds nan in column 3"):
        Sample(8).add(rows)
    with pytest.raises(ValueError, match="row 107 holds nan in column 3"):
        Sample(8).add(points(100, 8)).add(rows)
