"""Summaries against plain loops: sums in float64, the sample against all hashes, and what is refused."""

from __future__ import annotations

import hashlib
import itertools
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn.covariance import ledoit_wolf

from st_plugins.methods.whitening.moments import Moments
from st_plugins.modules import Whitening
from st_plugins.scale import Summary

Array = NDArray[np.floating]
DIRECTION = np.array([0.6, 0.8, 0.0])


def points(rows: int = 200, seed: int = 0) -> Any:
    """Correlated rows with a mean, three of them zero, in float32."""
    generator = np.random.default_rng(seed)
    found = (generator.normal(size=(rows, 3)) @ generator.normal(size=(3, 3)) + [2.0, -1.0, 0.5]).astype(np.float32)
    found[[row for row in (3, 50, 199) if row < rows]] = 0.0
    return found


def names(rows: int) -> list[str]:
    return [f"text {number}" for number in range(rows)]


def near(found: Any, wanted: Any, tolerance: float = 1e-12) -> bool:
    """Compare relative to the norm."""
    difference = np.linalg.norm(np.asarray(found, dtype=np.float64) - wanted)
    return bool(difference <= tolerance * max(float(np.linalg.norm(wanted)), 1e-300))


def hashed(content: bytes, seed: int = 0) -> int:
    salt = bytes([seed]) + bytes(15)
    return int.from_bytes(hashlib.blake2b(content, digest_size=8, salt=salt).digest(), "little")


def same(first: Summary, second: Summary) -> bool:
    return first.to_bytes() == second.to_bytes()


def test_sums_are_their_definitions() -> None:
    rows = points()
    summary = Summary(3).add(rows[:7]).add(rows[7:])
    exact = [[float(number) for number in row] for row in rows]
    mean = [sum(row[column] for row in exact) / 200 for column in range(3)]
    covariance, cubic, quartic = np.zeros((3, 3)), np.zeros(3), 0.0
    norms, directions, zeros = 0.0, np.zeros(3), 0
    for row in exact:
        away = [number - center for number, center in zip(row, mean, strict=True)]
        square = sum(number**2 for number in away)
        for left, right in itertools.product(range(3), range(3)):
            covariance[left, right] += away[left] * away[right] / 200
        cubic += [square * number for number in away]
        quartic += square**2
        length = sum(number**2 for number in row) ** 0.5
        norms += length
        if length:
            directions += [number / length for number in row]
        else:
            zeros += 1
    assert (summary.count, summary.zero_rows, zeros) == (200, 3, 3)
    assert near(summary.moments.mean, mean)
    assert near(summary.moments.second(), covariance)
    assert near(summary.moments.cubic, cubic)
    assert near(summary.moments.quartic, quartic)
    assert near(summary.norms, norms)
    assert near(summary.directions, directions)
    assert near(summary.moments.ledoit_wolf(), ledoit_wolf(rows.astype(np.float64))[1])


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_lengths_and_directions_of_very_small_and_large_rows(scale: float) -> None:
    rows = (np.array([[3.0, 4.0, 0.0], [0.0, 5.0, 12.0]]) * scale).astype(np.float32)
    summary = Summary(3).add(rows)
    assert near(summary.norms, 18.0 * scale, 1e-6)
    assert near(summary.directions, [0.6, 0.8 + 5 / 13, 12 / 13], 1e-6)


def test_any_order_and_division_give_the_same_sums_and_the_very_sample() -> None:
    rows, texts = points(), names(200)
    found = []
    for edges in ([0, 200], [0, 1, 2, 200], [0, 100, 200], [0, 3, 4, 50, 51, 199, 200]):
        parts = list(itertools.pairwise(edges))
        for order in (parts, parts[::-1]):
            summary = Summary(3, sample=10)
            for first, last in order:
                summary.merge(Summary(3, sample=10).add(rows[first:last], texts[first:last]))
            assert near(summary.moments.mean, rows.astype(np.float64).mean(axis=0))
            assert near(summary.moments.second(), np.cov(rows.T.astype(np.float64), ddof=0))
            found.append((summary.sample().tobytes(), tuple(summary.texts())))
    assert len(set(found)) == 1
    # The smallest of all hashes, in their order.
    chosen = sorted(range(200), key=lambda row: hashed(texts[row].encode()))[:10]
    assert found[0] == (rows[chosen].tobytes(), tuple(texts[row] for row in chosen))


def test_without_texts_the_embeddings_are_hashed() -> None:
    rows = points()[4:49]  # without the zero rows, which are equal
    chosen = sorted(range(45), key=lambda row: hashed(rows[row].tobytes()))[:8]
    summary = Summary(3, sample=8).add(rows[20:]).add(rows[:20])
    assert summary.sample().tolist() == rows[chosen].tolist()
    assert summary.texts() == []


def test_another_seed_gives_another_sample() -> None:
    rows, texts = points(), names(200)
    summary = Summary(3, sample=10, seed=7).add(rows, texts)
    assert summary.texts() == sorted(texts, key=lambda text: hashed(text.encode(), 7))[:10]
    assert summary.texts() != Summary(3, sample=10).add(rows, texts).texts()
    assert Summary.from_bytes(summary.to_bytes()).empty().merge(summary).texts() == summary.texts()


def test_more_rows_than_are_added_at_a_time() -> None:
    rows = points(10_000)
    texts = names(10_000)
    summary = Summary(3, sample=4).add(rows, texts)
    assert near(summary.moments.second(), np.cov(rows.T.astype(np.float64), ddof=0))
    assert summary.texts() == sorted(texts, key=lambda text: hashed(text.encode()))[:4]


def test_the_sample_is_fair() -> None:
    """A text with number i < 500 of 1000 is in a sample of 100 about 50 times; so is every tenth of the range."""
    picked = np.zeros(10)
    rows = np.ones((1000, 1), dtype=np.float32)
    for trial in range(50):
        summary = Summary(1, sample=100).add(rows, [f"{trial} {number}" for number in range(1000)])
        for text in summary.texts():
            picked[int(text.split()[1]) // 100] += 1
    # Hypergeometric: 500 expected in each tenth, with a standard deviation of 20; the hashes are fixed.
    assert picked.sum() == 5000
    assert np.abs(picked - 500).max() < 80


def test_a_text_that_occurs_twice_counts_twice_and_is_kept_once() -> None:
    rows, texts = points(20), names(20)
    summary = Summary(3, sample=15).add(rows, texts).merge(Summary(3, sample=15).add(rows, texts))
    assert summary.count == 40
    assert len(set(summary.texts())) == len(summary.sample()) == 15


def test_a_repeated_text_is_the_same_whichever_block_comes_first() -> None:
    """Another batch rounds an embedding differently; which one is kept must not depend on the order."""
    first, second = (Summary(3, sample=2).add(np.full((1, 3), value), ["a text"]) for value in (0.1, 0.2))
    one = Summary(3, sample=2).merge(first).merge(second).sample()
    assert one.tolist() == Summary(3, sample=2).merge(second).merge(first).sample().tolist()
    assert len(one) == 1


def test_a_small_corpus_is_kept_whole() -> None:
    rows, texts = points(6), names(6)
    summary = Summary(3, sample=100).add(rows, texts)
    assert sorted(summary.texts()) == texts
    assert sorted(map(tuple, summary.sample().tolist())) == sorted(map(tuple, rows.tolist()))


def test_groups_are_those_of_the_cosine_with_the_direction() -> None:
    rows, texts = points(), names(200)
    summary = Summary(3, sample=5, split=(DIRECTION, 0.4))
    for first in range(0, 200, 37):
        summary.merge(summary.empty().add(rows[first : first + 37], texts[first : first + 37]))
    beyond = []
    for row in rows.astype(np.float64):
        length = sum(number**2 for number in row) ** 0.5
        beyond.append(length > 0 and sum(row * DIRECTION) / length > 0.4)
    for number in (0, 1):
        chosen = np.flatnonzero(np.array(beyond) == bool(number))
        assert 20 < len(chosen) == summary.groups[number].count
        assert near(summary.groups[number].second(), np.cov(rows[chosen].T.astype(np.float64), ddof=0))
        in_order = sorted(chosen, key=lambda row: hashed(texts[row].encode()))[:5]
        assert summary.texts(number) == [texts[row] for row in in_order]
        assert summary.sample(number).tolist() == rows[in_order].tolist()
    assert summary.count == 200
    assert near(summary.moments.second(), np.cov(rows.T.astype(np.float64), ddof=0))


def test_merging_leaves_the_other_and_the_copy_alone() -> None:
    other = Summary(3, sample=4).add(points(), names(200))
    before = other.to_bytes()
    total = other.empty().merge(other).merge(other).add(points(50, seed=1), names(50))
    assert total.count == 450
    assert other.to_bytes() == before
    kept = total.moments
    total.add(points())
    assert kept.count == 450
    assert near(kept.second() * 450, kept.scatter)


@pytest.mark.parametrize(
    "other",
    [
        Summary(4, sample=2),
        Summary(3, sample=3),
        Summary(3, sample=2, seed=1),
        Summary(3, sample=2, split=(DIRECTION, 0.4)),
    ],
)
def test_summaries_of_other_settings_do_not_merge(other: Summary) -> None:
    with pytest.raises(ValueError, match="cannot merge"):
        Summary(3, sample=2).merge(other)
    with pytest.raises(ValueError, match="cannot merge"):
        other.merge(Summary(3, sample=2))


def test_groups_split_elsewhere_do_not_merge() -> None:
    for split in ((DIRECTION, 0.5), (DIRECTION[::-1], 0.4)):
        with pytest.raises(ValueError, match="their seeds or groups differ"):
            Summary(3, split=(DIRECTION, 0.4)).merge(Summary(3, split=split))
    Summary(3, split=(DIRECTION, 0.4)).merge(Summary(3, split=(DIRECTION.copy(), 0.4)))


@pytest.mark.parametrize("split", [None, (DIRECTION, 0.4)])
@pytest.mark.parametrize("rows", [0, 1, 200])
def test_bytes_are_read_back_to_the_bit_and_go_on(rows: int, split: Any) -> None:
    summary = Summary(3, sample=5, split=split).add(points()[:rows], names(rows))
    copy = Summary.from_bytes(summary.to_bytes())
    assert same(copy, summary)
    assert (copy.count, copy.size, copy.texts()) == (rows, 5, summary.texts())
    more = points(30, seed=4)
    assert same(copy.add(more, names(30)), summary.add(more, names(30)))
    third = Summary.from_bytes(summary.empty().merge(copy).to_bytes())
    assert near(third.moments.scatter, copy.moments.scatter)


def test_texts_of_any_characters_are_read_back() -> None:
    texts = ["häßlich", "猫", 'a "quote"', "two\nlines", "🦉"]
    summary = Summary(3, sample=9).add(points(5), texts)
    assert sorted(Summary.from_bytes(summary.to_bytes()).texts()) == sorted(texts)


def test_long_documents_are_small_bytes() -> None:
    """The header of a safetensors file has a limit of 100 MB, and JSON there six bytes for three of UTF-8."""
    texts = [f"{number} " + "猫" * 2000 for number in range(200)]
    summary = Summary(3, sample=200).add(points(), texts)
    data = summary.to_bytes()
    assert int.from_bytes(data[:8], "little") < 4096 and len(data) < sum(len(text.encode()) for text in texts) + 20_000
    found = Summary.from_bytes(data)
    assert found.texts() == summary.texts() and sorted(found.texts()) == sorted(texts) and found.to_bytes() == data


def test_texts_that_are_not_to_be_kept_decide_about_the_sample_all_the_same() -> None:
    with_texts, without = (Summary(3, sample=9, keep_texts=keep).add(points(), names(200)) for keep in (True, False))
    assert without.texts() == [] and np.array_equal(without.sample(), with_texts.sample())
    found = Summary.from_bytes(without.to_bytes())
    more = found.merge(without.empty().add(points(30, seed=4), [f"other {number}" for number in range(30)]))
    assert not more.keep_texts and more.texts() == [] and len(more.sample()) == 9
    for one, other in ((with_texts, without), (without, with_texts)):
        with pytest.raises(ValueError, match=r"cannot merge .* or keep_texts; make both alike"):
            one.merge(other)


def test_damaged_bytes_are_refused() -> None:
    from safetensors.numpy import save

    good = Summary(3, sample=5).add(points(), names(200)).to_bytes()
    foreign = save({"a": np.zeros(3)}, {"format": "something else 7"})
    flipped = good[:-100] + bytes([good[-100] ^ 1]) + good[-99:]
    renamed = good.replace(b"text 1", b"text 7", 1)
    for bad in (
        flipped,
        renamed,
        b"",
        b"no",
        good[:50],
        good[:-1],
        good[8:],
        good + b"x",
        b"\xff" * 8 + good[8:],
        foreign,
    ):
        with pytest.raises(ValueError, match="data is no summary, or a damaged one"):
            Summary.from_bytes(bad)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_tensors_of_any_precision_give_what_whitening_finds_in_them(dtype: torch.dtype) -> None:
    rows = torch.from_numpy(points().astype(np.float64) + 1e-9).to(dtype)
    summary = Summary(3, sample=5).add(rows)
    assert near(summary.moments.mean, rows.double().numpy().mean(axis=0))
    assert near(summary.moments.second(), np.cov(rows.double().numpy().T, ddof=0))
    # The size below which an eigenvalue is rounding noise depends on the precision.
    assert summary.moments.resolution == Moments.of(rows).resolution
    whitening = Whitening(3).fit_moments(summary.moments)
    assert near(whitening.weight.numpy(), Whitening(3).fit(rows).weight.numpy(), 1e-9)


def test_half_precision_arrays_and_gradients() -> None:
    rows = points().astype(np.float16)
    assert near(Summary(3).add(rows).moments.second(), np.cov(rows.T.astype(np.float64), ddof=0))
    assert Summary(3).add(torch.ones(2, 3, requires_grad=True)).count == 2


@pytest.mark.parametrize(
    ("vectors", "texts", "message"),
    [
        (np.full((2, 3), np.nan), None, "row 201 holds nan in column 1"),
        (np.ones((2, 4)), None, r"shape \(rows, 3\), got \(2, 4\)"),
        (np.ones(3), None, r"got \(3,\)"),
        (np.ones((2, 3), dtype=np.int64), None, "floating-point type, got int64"),
        (np.ones((2, 3)), ["one"], "texts has 1 entries, but vectors 2 rows"),
    ],
)
def test_what_is_refused_adds_nothing(vectors: Any, texts: Any, message: str) -> None:
    if np.isnan(vectors).any():
        vectors = np.ones((9000, 3))
        vectors[1, 1] = np.nan
        vectors[8999] = np.inf
    summary = Summary(3, sample=5).add(points(), names(200))
    before = summary.to_bytes()
    with pytest.raises(ValueError, match=message):
        summary.add(vectors, texts)
    assert summary.to_bytes() == before


@pytest.mark.filterwarnings("ignore:overflow")
def test_rows_whose_squares_overflow_add_nothing() -> None:
    summary = Summary(3, sample=5).add(points())
    before = summary.to_bytes()
    with pytest.raises(ValueError, match="overflow"):
        summary.add(np.array([[1.0, 1.0, 1.0], [1e200, 0.0, 0.0]]))
    assert summary.to_bytes() == before


def test_bad_settings() -> None:
    for settings in ({"dimension": 0}, {"dimension": 3, "sample": -1}):
        with pytest.raises(ValueError, match="must be at least"):
            Summary(**settings)
