"""The bootstrap against resampling by hand, and the decisions built on it."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import pearsonr, rankdata, spearmanr

from st_plugins.evaluation.result import Difference, Score
from st_plugins.evaluation.statistics import (
    bootstrap,
    correlation,
    difference,
    holm,
    interval,
    resample_counts,
    spearman,
)


def _loop_spearman(x: list[float], y: list[float]) -> float:
    """Spearman from the formula: mid-ranks by counting, then the plain sums."""

    def ranks(values: list[float]) -> list[float]:
        return [sum(v < value for v in values) + (sum(v == value for v in values) + 1) / 2 for value in values]

    a, b = ranks(x), ranks(y)
    ma, mb = sum(a) / len(a), sum(b) / len(b)
    top = sum((i - ma) * (j - mb) for i, j in zip(a, b, strict=True))
    return top / (sum((i - ma) ** 2 for i in a) * sum((j - mb) ** 2 for j in b)) ** 0.5


@pytest.fixture
def scores() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(1)
    gold = np.round(rng.random(60) * 5) / 2
    systems = np.stack([gold + rng.normal(size=60), np.round(gold) + rng.integers(0, 3, 60)])
    return gold, systems


def test_spearman_is_the_formula(scores: tuple[np.ndarray, np.ndarray]) -> None:
    gold, systems = scores
    for system in systems:
        assert spearman(gold, system) == pytest.approx(_loop_spearman(gold.tolist(), system.tolist()), abs=1e-12)


def test_every_resample_equals_scipy_on_the_resampled_pairs(scores: tuple[np.ndarray, np.ndarray]) -> None:
    gold, systems = scores
    counts = resample_counts(len(gold), 25, "task", seed=3)
    rho, r = bootstrap(gold, systems, counts)
    for sample in range(25):
        drawn = np.repeat(np.arange(len(gold)), counts[sample])
        for index, system in enumerate(systems):
            assert rho[index, sample] == pytest.approx(spearmanr(gold[drawn], system[drawn])[0], abs=1e-10)
            assert r[index, sample] == pytest.approx(pearsonr(gold[drawn], system[drawn])[0], abs=1e-10)


def test_bootstrap_is_exact_for_similarities_that_hardly_vary(scores: tuple[np.ndarray, np.ndarray]) -> None:
    """Anisotropic models have all cosines near 0.99: the digits that differ must not be lost."""
    gold, systems = scores
    counts = resample_counts(len(gold), 10, "task", seed=0)
    plain = bootstrap(gold, systems, counts)
    squeezed = bootstrap(gold, 0.99 + 1e-6 * systems, counts)
    np.testing.assert_allclose(squeezed[0], plain[0], atol=1e-12)
    np.testing.assert_allclose(squeezed[1], plain[1], atol=1e-7)


def test_resamples_depend_on_name_and_seed_only() -> None:
    first = resample_counts(40, 5, "sts12", seed=0)
    assert (first == resample_counts(40, 5, "sts12", seed=0)).all()
    assert (first != resample_counts(40, 5, "sts13", seed=0)).any()
    assert (first != resample_counts(40, 5, "sts12", seed=1)).any()
    assert (first.sum(axis=1) == 40).all()


def test_blocks_do_not_change_the_draw(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = resample_counts(40, 50, "task", seed=0)
    monkeypatch.setattr("st_plugins.evaluation.statistics._BLOCK_VALUES", 100)
    assert (resample_counts(40, 50, "task", seed=0) == whole).all()


@pytest.mark.parametrize("constant", [[1.0, 1.0, 1.0], [0.1, 0.1, 0.1]])
def test_constant_scores_are_undefined_not_zero(constant: list[float]) -> None:
    values = np.array([0.1, 0.2, 0.3])
    assert np.isnan(spearman(np.array(constant), values))
    assert np.isnan(correlation(values, np.array(constant)))
    rho, r = bootstrap(np.array(constant), values[None], resample_counts(3, 10, "task", 0))
    assert np.isnan(rho).all() and np.isnan(r).all()
    assert np.isnan(interval(float("nan"), rho[0], 0.95).low)


def test_one_pair_is_undefined() -> None:
    assert np.isnan(spearman(np.array([1.0]), np.array([2.0])))


def test_interval_covers_the_true_correlation() -> None:
    """A 90 % interval must hold the true value in about 90 % of 200 experiments."""
    rng = np.random.default_rng(0)
    truth, held = 0.6, 0
    for trial in range(200):
        x = rng.normal(size=150)
        y = truth * x + np.sqrt(1 - truth**2) * rng.normal(size=150)
        _, r = bootstrap(x, y[None], resample_counts(150, 200, str(trial), seed=0))
        score = interval(correlation(x, y), r[0], 0.9)
        held += score.low <= truth <= score.high
    assert 160 <= held <= 195


def test_paired_difference_separates_what_intervals_cannot() -> None:
    rng = np.random.default_rng(0)
    gold = rng.normal(size=1500)
    noise = rng.normal(size=1500)
    systems = np.stack([gold + noise, gold + noise + 0.3 * rng.normal(size=1500)])
    rho, _ = bootstrap(gold, systems, resample_counts(1500, 500, "task", 0))
    values = [spearman(gold, system) for system in systems]
    scores = [interval(value, row, 0.95) for value, row in zip(values, rho, strict=True)]
    assert scores[1].high > scores[0].low  # the intervals overlap ...
    assert difference(values[0] - values[1], rho[0] - rho[1], 0.95).verdict == "better"  # ... the difference does not
    assert difference(values[1] - values[0], rho[1] - rho[0], 0.95).verdict == "worse"
    assert difference(0.0, np.zeros(100), 0.95).verdict == "not separable"


def test_p_value_is_the_smaller_tail_doubled() -> None:
    distribution = np.array([-0.1] * 3 + [0.2] * 96)
    assert difference(0.1, distribution, 0.95).p_value == pytest.approx(2 * (3 + 1) / (99 + 1))


def test_holm_is_the_step_down_rule() -> None:
    raw = {name: Difference(0.1, 0, 0.2, p, "better") for name, p in {"a": 0.01, "b": 0.04, "c": 0.03}.items()}
    corrected = holm(raw, 0.95)
    assert {name: value.p_value for name, value in corrected.items()} == pytest.approx(
        {"a": 0.03, "b": 0.06, "c": 0.06}
    )
    assert [corrected[name].verdict for name in "abc"] == ["better", "not separable", "not separable"]


def test_ranks_agree_with_scipy_when_everything_is_tied_in_groups() -> None:
    values = np.repeat([3.0, 1.0, 2.0], 4)
    other = np.arange(12.0)
    assert spearman(values, other) == pytest.approx(correlation(rankdata(values), rankdata(other)))


def test_interval_leaves_the_same_share_out_on_both_sides() -> None:
    score = interval(0.4, np.random.default_rng(0).permutation(np.linspace(0.0, 1.0, 1001)), 0.9)
    assert (score.value, score.low, score.high) == (0.4, pytest.approx(0.05), pytest.approx(0.95))
    with_undefined = interval(0.4, np.array([0.0, np.nan, 1.0]), 0.5)
    assert (with_undefined.low, with_undefined.high) == (pytest.approx(0.25), pytest.approx(0.75))


def test_an_interval_reaches_to_its_score() -> None:
    assert interval(-1.0, np.full(9, -0.9999999999999998), 0.95) == Score(-1.0, -1.0, -0.9999999999999998)
    assert interval(0.5, np.full(9, 0.4), 0.95) == Score(0.5, 0.4, 0.5)
