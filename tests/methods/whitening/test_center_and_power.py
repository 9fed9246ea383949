"""Whitening without a mean, in part, or not at all: against NumPy's SVD of the data and scikit-learn's PCA."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn.covariance import LedoitWolf
from sklearn.decomposition import PCA

from st_plugins.modules import Whitening

Array = NDArray[np.floating]
WAYS = [(center, power) for center in (True, False) for power in (0.0, 0.3, 1.0)]


def points_about(mean: float = 3.0, rows: int = 300, width: int = 12, seed: int = 0) -> Any:
    generator = np.random.default_rng(seed)
    rotation, _ = np.linalg.qr(generator.normal(size=(width, width)))
    return generator.normal(size=(rows, width)) * np.geomspace(10, 0.05, width) @ rotation + mean


def oracle(points: Array, new: Array, center: bool, power: float) -> tuple[Any, Any]:
    """The singular values of the data themselves: no covariance is formed."""
    mean = points.mean(axis=0) if center else np.zeros(points.shape[1])
    _, singular, directions = np.linalg.svd(points - mean, full_matrices=False)
    values = singular**2 / len(points)
    return values, (new - mean) @ directions.T * values ** (-power / 2)


@pytest.mark.parametrize(("center", "power"), WAYS)
def test_is_the_svd_of_the_data_up_to_sign(center: bool, power: float) -> None:
    points, new = points_about(), points_about(rows=20, seed=1)
    module = Whitening(12, center=center, power=power).fit(np.array_split(points, 4))
    values, expected = oracle(points, new, center, power)
    np.testing.assert_allclose(module.eigenvalues, values, rtol=1e-9)
    np.testing.assert_allclose(module.explained_variance_ratio, values / values.sum(), rtol=1e-9)
    np.testing.assert_allclose(np.abs(module.transform(new)), np.abs(expected), rtol=1e-7, atol=1e-8)
    white = module.transform(points)
    np.testing.assert_allclose(white.T @ white / 300, np.diag(values ** (1 - power)), atol=1e-8)


def test_a_rotation_is_scikit_learns_principal_components() -> None:
    points, new = points_about(), points_about(rows=20, seed=1)
    for whitened in (False, True):
        pca = PCA(5, whiten=whitened, svd_solver="full").fit(points)
        module = Whitening(12, 5, power=float(whitened)).fit(points)
        scale = np.sqrt(300 / 299) if whitened else 1.0  # scikit-learn divides by N - 1
        np.testing.assert_allclose(np.abs(module.transform(new)), np.abs(pca.transform(new)) * scale, rtol=1e-8)
        np.testing.assert_allclose(module.explained_variance_ratio, pca.explained_variance_ratio_, rtol=1e-9)


@pytest.mark.parametrize(("center", "power"), WAYS)
def test_fewer_dimensions_are_the_first_of_more(center: bool, power: float) -> None:
    points = points_about()
    full = Whitening(12, center=center, power=power).fit(points)
    for fewer in (1, 5, 12):
        few = Whitening(12, fewer, center=center, power=power).fit(points)
        assert torch.equal(few.affine()[1], full.affine()[1][:fewer])
        assert torch.equal(few.affine()[0], full.affine()[0])
        np.testing.assert_allclose(few.transform(points), full.transform(points)[:, :fewer], rtol=0, atol=1e-12)


def test_without_centering_nothing_is_subtracted_and_the_statistics_stay() -> None:
    points = points_about()
    module = Whitening(12, 5, center=False, power=0.0).fit(points)
    assert module.mean.tolist() == [0.0] * 12 and module.affine()[0].dtype == torch.float64
    assert module.transform(np.zeros((1, 12))).tolist() == [[0.0] * 5]
    np.testing.assert_allclose(module.fitted_mean, points.mean(axis=0))
    np.testing.assert_allclose(module.covariance, np.cov(points.T, ddof=0), atol=1e-10)


@pytest.mark.parametrize("center", [True, False])
def test_a_rotation_goes_beyond_the_rank_and_keeps_every_distance(center: bool) -> None:
    points, new = points_about(rows=8), points_about(rows=20, seed=1)
    assert Whitening(12, center=center, power=0.0).fit(points).get_embedding_dimension() == 8 - center
    full = Whitening(12, 12, center=center, power=0.0).fit(points)
    weight = full.affine()[1].numpy()
    np.testing.assert_allclose(weight @ weight.T, np.eye(12), atol=1e-12)
    around = new - full.fitted_mean if center else new
    np.testing.assert_allclose(full.transform(new) @ full.transform(new).T, around @ around.T, rtol=1e-10)
    assert full.explained_variance_ratio.sum() == pytest.approx(1)
    with pytest.raises(ValueError, match=f"have rank {8 - center} .* or power=0"):
        Whitening(12, 12, center=center, power=0.1).fit(points).affine()


@pytest.mark.parametrize("center", [True, False])
@pytest.mark.parametrize("rows", [8, 40, 4000])
def test_ledoit_wolf_is_scikit_learns_also_without_a_mean(center: bool, rows: int) -> None:
    points = points_about(0.4, rows) * np.random.default_rng(5).gamma(1.0, size=(rows, 1))
    theirs = LedoitWolf(assume_centered=not center).fit(points)
    module = Whitening(12, center=center, shrinkage="ledoit-wolf").fit(np.array_split(points, 3))
    assert module.record()["shrinkage"] == pytest.approx(theirs.shrinkage_, rel=1e-9)
    assert 0 < theirs.shrinkage_ < 1
    np.testing.assert_allclose(np.sort(module.eigenvalues), np.linalg.eigvalsh(theirs.covariance_), rtol=1e-8)


def test_a_number_shrinks_the_second_moment() -> None:
    points = points_about(rows=8)
    second = points.T @ points / 8
    shrunk = 0.7 * second + 0.3 * np.trace(second) / 12 * np.eye(12)
    weight = Whitening(12, center=False, shrinkage=0.3).fit(points).affine()[1].numpy()
    np.testing.assert_allclose(weight @ shrunk @ weight.T, np.eye(12), atol=1e-8)


@pytest.mark.parametrize(("center", "power"), WAYS)
def test_save_load_merge_and_state_dict(tmp_path: Path, center: bool, power: float) -> None:
    points = points_about()
    module = Whitening(12, 5, center=center, power=power).fit(points[:200], "a")
    module.save(str(tmp_path))
    written = json.loads((tmp_path / "config.json").read_text())
    changed = ({} if center else {"center": False}) | ({} if power == 1 else {"power": power})
    assert written == {"embedding_dimension": 12, "output_dimension": 5} | changed
    again, empty = Whitening.load(str(tmp_path)), Whitening(12, 5, center=center, power=power)
    empty.load_state_dict(module.state_dict())
    for other in (again, empty):
        assert np.array_equal(other.transform(points), module.transform(points))
        other.partial_fit(points[200:250]).merge(Whitening(12).partial_fit(points[250:]))
        whole = Whitening(12, 5, center=center, power=power).fit(points)
        np.testing.assert_allclose(other.transform(points), whole.transform(points), atol=1e-8)
    assert again.sources == {"a": 200, "unnamed": 100}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_embeddings_that_are_all_equal_have_no_direction(dtype: torch.dtype) -> None:
    points = (torch.full((500, 4), 0.1) * torch.tensor([1.0, 2.0, 3.0, 1000.0])).to(dtype)
    for module in (Whitening(4, center=False), Whitening(4, 2, center=False, power=0.0)):
        with pytest.raises(ValueError, match="all equal up to rounding"):
            module.fit(points).affine()


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"power": -0.1}, ValueError, r"power must be a number in \[0, 1\].* got -0\.1"),
        ({"power": 1.5}, ValueError, "got 1.5"),
        ({"power": float("nan")}, ValueError, "got nan"),
        ({"power": float("inf")}, ValueError, "got inf"),
        ({"power": "half"}, ValueError, "got 'half'"),
        ({"power": None}, ValueError, "got None"),
        ({"center": "no"}, TypeError, "center must be True or False, got 'no'"),
        ({"center": 0}, TypeError, "center must be True or False, got 0"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], error: type[Exception], message: str, tmp_path: Path) -> None:
    with pytest.raises(error, match=message):
        Whitening(4, **arguments)
    Whitening(4).fit(np.eye(4)).save(str(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps({"embedding_dimension": 4} | arguments))
    with pytest.raises(ValueError, match=r"config\.json does not describe a Whitening"):
        Whitening.load(str(tmp_path))
