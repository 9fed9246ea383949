"""Every measure against its definition written out slowly: loops, quadrature, matrix square roots."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.integrate
import scipy.linalg
import scipy.stats
import torch
from numpy.typing import NDArray

import st_plugins.geometry.embeddings as embeddings_module
from st_plugins.geometry import (
    Gaussian,
    alignment,
    bhattacharyya_distance,
    describe,
    effective_rank,
    isoscore,
    kl_divergence,
    mean_random_cosine,
    participation_ratio,
    spectrum,
    uniformity,
    wasserstein_distance,
)

Array = NDArray[np.float64]
DISTANCES = (kl_divergence, bhattacharyya_distance, wasserstein_distance)
DIRECTED = (uniformity, mean_random_cosine)
ALL_SINGLE = (*DIRECTED, spectrum, effective_rank, participation_ratio, isoscore, describe, Gaussian.fit)


@pytest.fixture
def x() -> Array:
    generator = np.random.default_rng(1)
    return generator.normal(size=(23, 5)) * [3.0, 2.0, 1.0, 0.5, 0.1] + [1.0, -2.0, 0.0, 0.5, 0.0]


def unit(row: Array) -> Array:
    return row / math.sqrt(sum(value * value for value in row))


def slow_covariance(x: Array) -> Array:
    count, width = x.shape
    mean = [sum(x[i, a] for i in range(count)) / count for a in range(width)]
    return np.array(
        [
            [sum((x[i, a] - mean[a]) * (x[i, b] - mean[b]) for i in range(count)) / count for b in range(width)]
            for a in range(width)
        ]
    )


def random_gaussian(width: int, rank: int, seed: int, basis: Array | None = None) -> Gaussian:
    """A Gaussian of the given rank; with ``basis`` (width, rank) inside its span."""
    generator = np.random.default_rng(seed)
    factor = generator.normal(size=(rank, rank)) + np.eye(rank)
    basis = np.linalg.qr(generator.normal(size=(width, rank)))[0] if basis is None else basis
    return Gaussian(basis @ generator.normal(size=rank), basis @ factor @ factor.T @ basis.T)


# --- one set ---


@pytest.mark.parametrize("alpha", [1.0, 2.0, 3.0])
def test_alignment_is_its_definition(x: Array, alpha: float) -> None:
    y = x[::-1] + 0.3
    expected = sum(np.linalg.norm(unit(a) - unit(b)) ** alpha for a, b in zip(x, y, strict=True)) / len(x)
    assert alignment(x, y, alpha) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("block", [3, 2**21])
@pytest.mark.parametrize("t", [0.5, 2.0, 400.0])
def test_uniformity_is_its_definition_in_any_blocks(
    x: Array, t: float, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embeddings_module, "_BLOCK_ENTRIES", block * len(x))
    x = np.abs(x)  # one orthant, or every term would underflow at t = 400
    terms = [
        math.exp(-t * float(np.sum((unit(x[i]) - unit(x[j])) ** 2)))
        for i in range(len(x))
        for j in range(i + 1, len(x))
    ]
    assert len(terms) == 23 * 22 / 2
    assert uniformity(x, t) == pytest.approx(math.log(math.fsum(terms) / len(terms)), rel=1e-10)


def test_uniformity_survives_where_every_term_underflows() -> None:
    assert uniformity([[1.0, 0.0], [-1.0, 0.0]], t=1000.0) == -4000.0


def test_uniformity_of_a_subset_is_seeded_and_near(x: Array) -> None:
    many = np.random.default_rng(0).normal(size=(600, 8))
    whole = uniformity(many)
    assert uniformity(many, max_rows=300, seed=1) == uniformity(many, max_rows=300, seed=1)
    assert uniformity(many, max_rows=300, seed=1) != uniformity(many, max_rows=300, seed=2)
    assert uniformity(many, max_rows=300) == pytest.approx(whole, abs=0.05)
    assert uniformity(many, max_rows=600) == whole
    with pytest.raises(ValueError, match="max_rows=1 leaves no pair"):
        uniformity(x, max_rows=1)


def test_mean_random_cosine_is_the_mean_over_all_pairs(x: Array) -> None:
    cosines = [float(unit(x[i]) @ unit(x[j])) for i in range(len(x)) for j in range(len(x)) if i != j]
    assert mean_random_cosine(x) == pytest.approx(math.fsum(cosines) / len(cosines), rel=1e-12)


def test_spectrum_is_that_of_the_slow_covariance(x: Array) -> None:
    expected = sorted(scipy.linalg.eigvals(slow_covariance(x)).real, reverse=True)
    np.testing.assert_allclose(spectrum(x), expected, rtol=1e-10)


def test_ranks_are_their_definitions(x: Array) -> None:
    values = scipy.linalg.eigvals(slow_covariance(x)).real
    shares = [value / sum(values) for value in values]
    assert effective_rank(x) == pytest.approx(math.exp(-sum(p * math.log(p) for p in shares)), rel=1e-10)
    assert participation_ratio(x) == pytest.approx(sum(values) ** 2 / sum(v * v for v in values), rel=1e-10)


def published_isoscore(x: Array) -> float:
    """The six published steps, one by one."""
    covariance = slow_covariance(x)
    _, rotation = np.linalg.eigh(covariance)
    variances = np.diag(rotation.T @ covariance @ rotation)
    n = len(variances)
    scaled = math.sqrt(n) * variances / np.linalg.norm(variances)
    defect = np.linalg.norm(scaled - np.ones(n)) / math.sqrt(2 * (n - math.sqrt(n)))
    fraction = (n - defect**2 * (n - math.sqrt(n))) ** 2 / n**2
    return float((n * fraction - 1) / (n - 1))


def test_isoscore_follows_the_published_steps(x: Array) -> None:
    assert 0.05 < published_isoscore(x) < 0.95
    assert isoscore(x) == pytest.approx(published_isoscore(x), rel=1e-10)
    assert isoscore(np.outer(np.arange(5.0), [1.0, 2.0])) == pytest.approx(0.0, abs=1e-12)


def test_geometry_gathers_the_single_measures(x: Array) -> None:
    found = describe(x, positives=(x, x + 1.0), leading=2)
    assert found["uniformity"] == uniformity(x)
    assert found["mean_random_cosine"] == mean_random_cosine(x)
    assert found["alignment"] == alignment(x, x + 1.0)
    assert found["spectrum"] == spectrum(x)[:2].tolist()
    assert found["effective_rank"] == effective_rank(x)
    assert found["participation_ratio"] == participation_ratio(x)
    assert found["isoscore"] == isoscore(x)
    assert found["total_variance"] == pytest.approx(float(np.trace(slow_covariance(x))))
    assert found["mean_norm"] == pytest.approx(sum(math.sqrt(row @ row) for row in x) / len(x))
    assert (found["rows"], found["dimension"], found["zero_rows"], found["uniformity_rows"]) == (23, 5, 0, 23)
    assert "alignment" not in describe(x)
    assert describe(x, max_rows=7)["uniformity_rows"] == 7


def test_geometry_leaves_zero_rows_out_and_counts_them(x: Array) -> None:
    holed = np.insert(x, 4, 0.0, axis=0)
    found = describe(holed, positives=(holed, np.roll(holed, 1, axis=0)))
    kept = [i for i in range(len(holed)) if holed[i].any() and holed[i - 1].any()]
    assert found["zero_rows"] == 1
    assert found["uniformity"] == uniformity(x)
    assert found["alignment"] == alignment(holed[kept], np.roll(holed, 1, axis=0)[kept])
    assert found["total_variance"] == pytest.approx(float(np.trace(slow_covariance(holed))))
    nothing = describe(np.zeros((3, 2)))
    assert nothing["zero_rows"] == 3
    assert all(math.isnan(nothing[key]) for key in ("uniformity", "mean_random_cosine", "isoscore", "effective_rank"))


def test_equal_rows_have_no_rank() -> None:
    equal = np.full((7, 3), 0.1)
    assert spectrum(equal).tolist() == [0.0, 0.0, 0.0]
    assert all(math.isnan(measure(equal)) for measure in (effective_rank, participation_ratio, isoscore))
    assert mean_random_cosine(equal) == pytest.approx(1.0)
    assert uniformity(equal) == pytest.approx(0.0, abs=1e-12)


def test_one_dimension_and_fewer_rows_than_dimensions(x: Array) -> None:
    assert math.isnan(isoscore(x[:, :1]))
    assert effective_rank(x[:, :1]) == 1.0
    wide = spectrum(x[:3])
    assert wide.shape == (5,) and (wide >= 0).all()
    assert wide[2:].max() < 1e-12 * wide[0]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_tensors_are_read_exactly(x: Array, dtype: torch.dtype) -> None:
    tensor = torch.tensor(x, requires_grad=True).to(dtype)
    same = tensor.detach().double().numpy()
    for measure in (uniformity, mean_random_cosine, effective_rank, isoscore):
        assert measure(tensor) == measure(same)


def test_tiny_and_huge_vectors_keep_their_direction(x: Array) -> None:
    for scale in (1e-200, 1e200):
        assert mean_random_cosine(x * scale) == pytest.approx(mean_random_cosine(x), rel=1e-12)
        assert uniformity(x * scale) == pytest.approx(uniformity(x), rel=1e-12)


# --- two sets ---


def density(gaussian: Gaussian, *point: float) -> float:
    shift = np.array(point) - gaussian.mean
    covariance = gaussian.covariance
    scale = math.sqrt((2 * math.pi) ** len(shift) * np.linalg.det(covariance))
    return math.exp(-0.5 * shift @ np.linalg.inv(covariance) @ shift) / scale


def test_fit_is_the_slow_mean_and_covariance(x: Array) -> None:
    fitted = Gaussian.fit(torch.tensor(x))
    np.testing.assert_allclose(fitted.mean, [sum(column) / len(column) for column in x.T], rtol=1e-12)
    np.testing.assert_allclose(fitted.covariance, slow_covariance(x), rtol=1e-10, atol=1e-14)
    assert fitted.count == 23


def test_shrinkage_mixes_in_a_ball_of_the_same_trace(x: Array) -> None:
    covariance = slow_covariance(x)
    expected = 0.7 * covariance + 0.3 * np.eye(5) * np.trace(covariance) / 5
    np.testing.assert_allclose(Gaussian.fit(x, shrinkage=0.3).covariance, expected, rtol=1e-10, atol=1e-14)
    flat = Gaussian.fit(x[:3]), Gaussian.fit(x[3:6])
    assert kl_divergence(*flat) == math.inf
    assert 0 < kl_divergence(flat[0].shrunk(0.1), flat[1].shrunk(0.1)) < 1000
    with pytest.raises(ValueError, match=r"shrinkage=1\.5 must lie in \[0, 1\]"):
        Gaussian.fit(x, shrinkage=1.5)


def test_one_dimension_agrees_with_quadrature() -> None:
    p, q = Gaussian([0.3], [[0.8]]), Gaussian([-0.5], [[2.0]])
    kl, _ = scipy.integrate.quad(lambda z: density(p, z) * math.log(density(p, z) / density(q, z)), -9, 9)
    overlap, _ = scipy.integrate.quad(lambda z: math.sqrt(density(p, z) * density(q, z)), -12, 12)
    assert kl_divergence(p, q) == pytest.approx(kl, rel=1e-8)
    assert bhattacharyya_distance(p, q) == pytest.approx(-math.log(overlap), rel=1e-8)
    # In one dimension the best transport is between quantiles.
    normal = scipy.stats.norm
    squares, _ = scipy.integrate.quad(
        lambda u: (normal.ppf(u, 0.3, math.sqrt(0.8)) - normal.ppf(u, -0.5, math.sqrt(2.0))) ** 2, 0, 1
    )
    assert wasserstein_distance(p, q) == pytest.approx(math.sqrt(squares), rel=1e-6)


def test_two_dimensions_agree_with_quadrature() -> None:
    p = Gaussian([0.3, -0.2], [[0.8, 0.3], [0.3, 0.5]])
    q = Gaussian([-0.1, 0.4], [[1.0, -0.2], [-0.2, 0.7]])
    axis = np.linspace(-8, 8, 161)  # the trapezoid rule converges fast for smooth functions that vanish at the ends
    values = np.array([[(density(p, a, b), density(q, a, b)) for b in axis] for a in axis])
    step = (axis[1] - axis[0]) ** 2
    kl = float(np.sum(values[..., 0] * np.log(values[..., 0] / values[..., 1])) * step)
    overlap = float(np.sum(np.sqrt(values[..., 0] * values[..., 1])) * step)
    assert kl_divergence(p, q) == pytest.approx(kl, rel=1e-8)
    assert bhattacharyya_distance(p, q) == pytest.approx(-math.log(overlap), rel=1e-8)


def textbook(p: Gaussian, q: Gaussian) -> tuple[float, float, float]:
    """The three formulas as books print them, with inverses, determinants and matrix square roots."""
    shift = q.mean - p.mean
    middle = (p.covariance + q.covariance) / 2
    det = np.linalg.det
    kl = 0.5 * (
        np.trace(np.linalg.inv(q.covariance) @ p.covariance)
        + shift @ np.linalg.inv(q.covariance) @ shift
        - len(shift)
        + math.log(det(q.covariance) / det(p.covariance))
    )
    bhattacharyya = shift @ np.linalg.inv(middle) @ shift / 8 + 0.5 * math.log(
        det(middle) / math.sqrt(det(p.covariance) * det(q.covariance))
    )
    root = scipy.linalg.sqrtm(p.covariance)
    cross = scipy.linalg.sqrtm(root @ q.covariance @ root).real
    return kl, bhattacharyya, math.sqrt(shift @ shift + np.trace(p.covariance + q.covariance - 2 * cross))


@pytest.mark.parametrize("seed", range(4))
def test_six_dimensions_agree_with_the_textbook(seed: int) -> None:
    p, q = random_gaussian(6, 6, seed), random_gaussian(6, 6, seed + 100)
    found = [distance(p, q) for distance in DISTANCES]
    assert found == pytest.approx(textbook(p, q), rel=1e-8)
    assert kl_divergence(p, q) != pytest.approx(kl_divergence(q, p), rel=1e-3)
    assert bhattacharyya_distance(q, p) == pytest.approx(found[1], rel=1e-10)
    assert wasserstein_distance(q, p) == pytest.approx(found[2], rel=1e-10)


def test_nothing_lies_between_equal_gaussians(x: Array) -> None:
    for fitted in (Gaussian.fit(x), Gaussian.fit(x[:3]), Gaussian.fit(np.full((4, 5), 0.1))):
        for distance in DISTANCES:
            assert 0 <= distance(fitted, fitted) < 1e-7


def test_common_flat_support_gives_the_values_inside_it() -> None:
    basis = np.linalg.qr(np.random.default_rng(5).normal(size=(7, 3)))[0]
    p, q = random_gaussian(7, 3, 1, basis), random_gaussian(7, 3, 2, basis)
    inside = [Gaussian(basis.T @ g.mean, basis.T @ g.covariance @ basis) for g in (p, q)]
    assert [distance(p, q) for distance in DISTANCES] == pytest.approx(textbook(*inside), rel=1e-8)


def test_different_supports_are_infinitely_far_except_for_transport() -> None:
    flat, across = (
        Gaussian([0.0, 0.0, 0.0], np.diag([1.0, 1e-9, 0.0])),
        Gaussian(np.zeros(3), np.diag([1.0, 0.0, 1.0])),
    )
    whole = Gaussian(np.zeros(3), np.eye(3))
    tilted = Gaussian(np.zeros(3), np.diag([1.0, 1.0, 0.0]))
    turn = np.array([[1.0, 0.0, 0.0], [0.0, 0.995, -0.1], [0.0, 0.1, 0.995]])
    turned = Gaussian(np.zeros(3), turn @ tilted.covariance @ turn.T)
    assert kl_divergence(tilted, turned) == bhattacharyya_distance(tilted, turned) == math.inf
    parallel = Gaussian([0.0, 0.0, 2.0], flat.covariance)
    for p, q in [(flat, across), (across, flat), (whole, flat), (flat, whole), (flat, parallel)]:
        assert kl_divergence(p, q) == math.inf
        assert bhattacharyya_distance(p, q) == math.inf
    assert wasserstein_distance(flat, parallel) == pytest.approx(2.0)
    assert wasserstein_distance(whole, across) == pytest.approx(1.0)
    point = Gaussian(np.zeros(3), np.zeros((3, 3)))
    assert wasserstein_distance(whole, point) == pytest.approx(math.sqrt(3))
    assert kl_divergence(point, whole) == kl_divergence(whole, point) == math.inf
    assert kl_divergence(point, point) == 0.0


def test_distances_do_not_depend_on_the_scale() -> None:
    p, q = random_gaussian(4, 4, 3), random_gaussian(4, 4, 4)
    for scale in (1e-6, 1e6):
        scaled = [Gaussian(scale * g.mean, scale**2 * g.covariance) for g in (p, q)]
        assert kl_divergence(*scaled) == pytest.approx(kl_divergence(p, q), rel=1e-9)
        assert bhattacharyya_distance(*scaled) == pytest.approx(bhattacharyya_distance(p, q), rel=1e-9)
        assert wasserstein_distance(*scaled) == pytest.approx(scale * wasserstein_distance(p, q), rel=1e-9)


# --- bad input ---


@pytest.mark.parametrize("measure", ALL_SINGLE)
def test_bad_embeddings_are_refused_with_the_row(x: Array, measure: object) -> None:
    for value in (math.nan, math.inf):
        broken = x.copy()
        broken[3, 1] = broken[9, 0] = value
        with pytest.raises(ValueError, match=r"x: row 3 has NaN or an infinity \(2 such rows\)"):
            measure(broken)
    with pytest.raises(ValueError, match="x has 1 rows; give at least 2"):
        measure(x[:1])
    with pytest.raises(ValueError, match=r"x has shape \(5,\); give one row a text"):
        measure(x[0])
    with pytest.raises(ValueError, match=r"x has shape \(0,\)"):
        measure([])
    with pytest.raises(ValueError, match=r"x has shape \(3, 0\)"):
        measure(np.ones((3, 0)))


@pytest.mark.parametrize("measure", DIRECTED)
def test_zero_vectors_are_refused_with_the_row(x: Array, measure: object) -> None:
    x[6] = 0.0
    with pytest.raises(ValueError, match=r"x: row 6 is a zero vector \(1 such rows\)"):
        measure(x)
    with pytest.raises(ValueError, match="second: row 6 is a zero vector"):
        alignment(x + 9.0, x)


def test_widths_must_match(x: Array) -> None:
    with pytest.raises(ValueError, match=r"first has shape \(23, 5\) and second \(23, 4\)"):
        alignment(x, x[:, :4])
    with pytest.raises(ValueError, match=r"positives have the shapes \(23, 5\) and \(22, 5\)"):
        describe(x, positives=(x, x[1:]))
    for distance in DISTANCES:
        with pytest.raises(ValueError, match="p has 5 dimensions and q 4"):
            distance(Gaussian.fit(x), Gaussian.fit(x[:, :4]))


def test_what_is_no_gaussian_is_refused() -> None:
    with pytest.raises(ValueError, match=r"mean has shape \(2,\) and covariance \(3, 3\)"):
        Gaussian([0.0, 0.0], np.eye(3))
    with pytest.raises(ValueError, match="NaN or an infinity"):
        Gaussian([math.nan], [[1.0]])
    with pytest.raises(ValueError, match="not symmetric"):
        Gaussian([0.0, 0.0], [[1.0, 0.5], [0.0, 1.0]])
    negative = Gaussian([0.0, 0.0], np.diag([1.0, -0.5]))
    for distance in DISTANCES:
        with pytest.raises(ValueError, match=r"eigenvalue -0\.5"):
            distance(negative, Gaussian([0.0, 0.0], np.eye(2)))
