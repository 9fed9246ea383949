"""Whitening against its definition: formulas in float64, plain loops, scikit-learn for the shrinkage."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file
from sentence_transformers import SentenceTransformer
from sklearn.covariance import ledoit_wolf

from st_plugins.methods.whitening.moments import Moments
from st_plugins.modules import Whitening

Array = NDArray[np.floating]


def anisotropic(rows: int = 300, width: int = 12, seed: int = 0, mean: float = 3.0) -> Any:
    """Correlated points with a large mean and standard deviations from 10 to 0.01."""
    generator = np.random.default_rng(seed)
    rotation, _ = np.linalg.qr(generator.normal(size=(width, width)))
    return generator.normal(size=(rows, width)) * np.geomspace(10, 0.01, width) @ rotation + mean


def oracle_covariance(points: Array) -> tuple[Any, Any]:
    """Mean and covariance (ddof 0), one point after the other."""
    points = points.astype(np.float64)
    mean = sum(points) / len(points)
    covariance = np.zeros((points.shape[1], points.shape[1]))
    for point in points:
        covariance += np.outer(point - mean, point - mean) / len(points)
    return mean, covariance


def oracle_transform(points: Array, new: Array, dimension: int) -> Any:
    """The published recipe: singular value decomposition of the covariance."""
    mean, covariance = oracle_covariance(points)
    u, values, _ = np.linalg.svd(covariance)
    return (new - mean) @ (u / np.sqrt(values))[:, :dimension]


def cosines(vectors: Array) -> Any:
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return unit @ unit.T


def saved(module: Whitening, folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    module.save(str(folder))
    return folder


def test_fit_data_become_white() -> None:
    points = anisotropic()
    mean, covariance = oracle_covariance(Whitening(12).fit(points).transform(points))
    np.testing.assert_allclose(mean, 0, atol=1e-8)
    np.testing.assert_allclose(covariance, np.eye(12), atol=1e-8)


def test_agrees_with_the_published_recipe_up_to_sign() -> None:
    points, new = anisotropic(), anisotropic(20, seed=1)
    ours, theirs = Whitening(12, 7).fit(points).transform(new), oracle_transform(points, new, 7)
    np.testing.assert_allclose(np.abs(ours), np.abs(theirs), rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(cosines(ours), cosines(theirs), atol=1e-10)


def test_truncation_is_the_first_columns_and_the_variance_explained_descends() -> None:
    points = anisotropic()
    full, few = Whitening(12).fit(points), Whitening(12, 5).fit(points)
    assert np.array_equal(few.affine()[1], full.affine()[1][:5])
    np.testing.assert_allclose(few.transform(points), full.transform(points)[:, :5], atol=1e-12)
    share = full.explained_variance_ratio
    assert (np.diff(share) < 0).all() and share.sum() == pytest.approx(1) and len(few.explained_variance_ratio) == 5
    assert share[0] == pytest.approx(np.linalg.eigvalsh(oracle_covariance(points)[1])[-1] / points.var(axis=0).sum())


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_fewer_rows_than_dimensions(dtype: Any) -> None:
    generator = np.random.default_rng(0)
    points, new = generator.normal(size=(20, 64)).astype(dtype), generator.normal(size=(50, 64)).astype(dtype)
    module = Whitening(64).fit(points)
    assert module.get_embedding_dimension() == 19
    assert np.abs(module.transform(new)).max() < 100
    with pytest.raises(ValueError, match="have rank 19"):
        Whitening(64, 20).fit(points).transform(new)
    with pytest.raises(ValueError, match="choose output_dimension <= 19"):
        Whitening(64, 64).fit(points).affine()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_collinear_and_constant_features_are_dropped(dtype: torch.dtype) -> None:
    points = torch.from_numpy(np.random.default_rng(0).normal(size=(400, 6)))
    points = torch.cat([points, points[:, :2], torch.full((400, 1), 0.7)], dim=1).to(dtype)
    module = Whitening(9).fit(points)
    assert module.get_embedding_dimension() == 6
    assert module.transform(points.double().numpy()).std(axis=0) == pytest.approx(np.ones(6), rel=1e-6)


@pytest.mark.parametrize("rows", [300, 20_000])
def test_float32_products_of_large_blocks_find_the_same_rank(rows: int) -> None:
    basis = np.random.default_rng(1).normal(size=(8, 24))
    points = (np.random.default_rng(0).normal(size=(rows, 8)) @ basis + 5).astype(np.float32)
    assert Whitening(24).fit(points).get_embedding_dimension() == 8


def test_float32_products_are_as_good_as_float64_for_whitening() -> None:
    points = np.random.default_rng(0).normal(30, np.geomspace(10, 0.03, 32), (40_000, 32)).astype(np.float32)
    single = Moments.of(points)
    double = Moments.of(points.astype(np.float64))
    scale = np.sqrt(np.outer(double.scatter.diagonal(), double.scatter.diagonal()))
    # How the products are rounded is the processor's affair; without centring first they would be off by 1e-2.
    assert (np.abs(single.scatter - double.scatter) / scale).max() < 1e-5
    assert (np.abs(single.mean - double.mean) / double.mean).max() < 1e-5
    assert single.ledoit_wolf() == pytest.approx(double.ledoit_wolf(), rel=1e-3)
    white = Whitening(32).fit(points).transform(points.astype(np.float64))
    np.testing.assert_allclose(np.cov(white.T, ddof=0), np.eye(32), atol=1e-4)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("rows", [5000, 20_000])
def test_all_points_equal(dtype: Any, rows: int) -> None:
    module = Whitening(4).fit(np.full((rows, 4), 0.1, dtype) * np.array([1, 2, 3, 1000], dtype))
    with pytest.raises(ValueError, match="all equal up to rounding"):
        module.affine()


def test_no_cancellation_when_the_mean_is_huge() -> None:
    points = anisotropic(mean=0.0)
    far = Whitening(12).fit(points + 2.0**26)
    np.testing.assert_allclose(far.transform(points + 2.0**26), Whitening(12).fit(points).transform(points), atol=1e-4)


def test_any_split_and_merge_equal_one_shot() -> None:
    points = anisotropic(257)
    whole = Whitening(12, 6).fit(points)
    for sizes in ([1] * 257, [1, 256], [100, 57, 100], [0, 257]):
        blocks = np.split(points, np.cumsum(sizes)[:-1])
        streamed, merged = Whitening(12, 6), Whitening(12, 6)
        for block in blocks:
            streamed.partial_fit(block)
            merged.merge(Whitening(12).partial_fit(block))
        for other in (streamed, merged, Whitening(12, 6).fit(iter(blocks))):
            assert other.count == 257
            np.testing.assert_allclose(other.covariance, whole.covariance, rtol=1e-10, atol=1e-12)
            np.testing.assert_allclose(other.transform(points), whole.transform(points), atol=1e-8)
            assert other.state.moments().ledoit_wolf() == pytest.approx(whole.state.moments().ledoit_wolf(), rel=1e-9)


def test_moments_from_elsewhere_give_what_their_embeddings_give(tmp_path: Path) -> None:
    points = anisotropic().astype(np.float32)
    moments = Moments.of(points[:100]).merge(Moments.of(points[100:]))
    module = Whitening(12, 5).partial_fit(points[:7]).fit_moments(moments, source="elsewhere")
    mean, covariance = oracle_covariance(points)
    np.testing.assert_allclose(module.fitted_mean, mean, rtol=1e-12)
    np.testing.assert_allclose(module.covariance, covariance, rtol=0, atol=1e-12 * np.abs(covariance).max())
    np.testing.assert_allclose(module.weight, Whitening(12, 5).fit(points).weight, rtol=1e-9)
    moments.merge(Moments.of(points * 9)).scatter[:] = 0
    np.testing.assert_allclose(module.covariance, covariance, rtol=0, atol=1e-12 * np.abs(covariance).max())
    module.save(str(tmp_path))
    assert json.loads((tmp_path / "fit.json").read_text())["sources"] == {"elsewhere": 300}


def test_moments_that_do_not_fit_are_refused_and_leave_the_statistics_alone() -> None:
    module = Whitening(12).fit(anisotropic())
    before = module.record()["checksum"]
    with pytest.raises(TypeError, match="moments must be Moments, got ndarray"):
        module.fit_moments(anisotropic())  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="of width 3, but this Whitening reads embeddings of width 12"):
        module.fit_moments(Moments.of(np.ones((4, 3))))
    with pytest.raises(ValueError, match="of 1 rows"):
        module.fit_moments(Moments.of(anisotropic(1)))
    for part in ("mean", "scatter", "cubic", "quartic"):
        broken = Moments.of(anisotropic())
        setattr(broken, part, getattr(broken, part) * np.nan)
        with pytest.raises(ValueError, match="moments must be finite"):
            module.fit_moments(broken)
    assert module.record()["checksum"] == before


def test_many_chunks_in_parallel_equal_one(monkeypatch: pytest.MonkeyPatch) -> None:
    points = anisotropic(1000)
    whole = Moments.of(points)
    monkeypatch.setattr("st_plugins.methods.whitening.moments._WORKING_BYTES", 12 * 8 * 200)
    chunked = Moments.of(points)
    np.testing.assert_allclose(chunked.scatter, whole.scatter, rtol=1e-10)
    assert chunked.count == 1000 and chunked.quartic == pytest.approx(whole.quartic)
    points[777, 3] = np.nan
    with pytest.raises(ValueError, match="row 777 holds nan in column 3"):
        Moments.of(points)


def test_fourth_order_sums_are_their_definition() -> None:
    points = anisotropic(50, 4)
    moments = Moments.of(points[:20]).merge(Moments.of(points[20:]))
    mean = sum(points) / 50
    cubic, quartic = np.zeros(4), 0.0
    for point in points:
        squared = sum((point - mean) ** 2)
        cubic += squared * (point - mean)
        quartic += squared**2
    np.testing.assert_allclose(moments.cubic, cubic, atol=1e-8)
    assert moments.quartic == pytest.approx(quartic, rel=1e-12)


@pytest.mark.parametrize("rows", [8, 40, 4000])
def test_ledoit_wolf_is_scikit_learns(rows: int) -> None:
    points = anisotropic(rows) * np.random.default_rng(5).gamma(1.0, size=(rows, 1))
    covariance, intensity = ledoit_wolf(points)
    module = Whitening(12, shrinkage="ledoit-wolf").fit(np.array_split(points, 3))
    assert module.state.moments().ledoit_wolf() == pytest.approx(intensity, rel=1e-9)
    np.testing.assert_allclose(np.sort(module.eigenvalues), np.linalg.eigvalsh(covariance), rtol=1e-8)


def test_shrinkage_by_a_number() -> None:
    points, new = anisotropic(8), anisotropic(30, seed=2)
    module = Whitening(12, shrinkage=0.3).fit(points)
    _, covariance = oracle_covariance(points)
    shrunk = 0.7 * covariance + 0.3 * np.trace(covariance) / 12 * np.eye(12)
    assert module.get_embedding_dimension() == 12
    _, weight = module.affine()
    np.testing.assert_allclose(weight.numpy() @ shrunk @ weight.numpy().T, np.eye(12), atol=1e-8)
    full = Whitening(12, shrinkage=1.0).fit(points).transform(new)
    np.testing.assert_allclose(cosines(full), cosines(new - points.mean(axis=0)), atol=1e-10)


def test_cosines_at_full_size_do_not_depend_on_an_affine_map() -> None:
    points = anisotropic()
    generator = np.random.default_rng(3)
    mapped = points @ (generator.normal(size=(12, 12)) + 3 * np.eye(12)) + generator.normal(size=12)
    first = cosines(Whitening(12).fit(points).transform(points))
    np.testing.assert_allclose(cosines(Whitening(12).fit(mapped).transform(mapped)), first, atol=1e-6)


def test_rcond_sets_where_directions_end() -> None:
    points = anisotropic()
    values = np.linalg.eigvalsh(oracle_covariance(points)[1])[::-1]
    module = Whitening(12, rcond=(values[3] / values[0] + values[4] / values[0]) / 2).fit(points)
    assert module.get_embedding_dimension() == 4


def test_signs_do_not_depend_on_the_decomposition() -> None:
    points = anisotropic()
    weight = Whitening(12).fit(points).affine()[1].numpy()
    assert all(row[np.abs(row).argmax()] > 0 for row in weight)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_forward_keeps_the_type_and_computes_in_a_safe_one(dtype: torch.dtype) -> None:
    points = anisotropic() * 1e-5  # 1 / sqrt(eigenvalue) is far beyond float16
    module = Whitening(12, 12, normalize=True).fit(points).to(dtype)
    given = torch.from_numpy(points).to(dtype)
    output = module({"sentence_embedding": given})["sentence_embedding"]
    expected = oracle_transform(points, given.double().numpy(), 12)
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    assert output.dtype == dtype
    tolerance = {torch.float16: 2e-3, torch.bfloat16: 1e-2, torch.float32: 1e-3, torch.float64: 1e-6}[dtype]
    np.testing.assert_allclose(np.abs(output.double().numpy()), np.abs(expected), atol=tolerance)


def test_half_precision_leaves_buffers_and_statistics_alone() -> None:
    module = Whitening(12, 4).fit(anisotropic())
    weight = module.affine()[1].clone()
    module.half().to(torch.bfloat16)
    assert module.weight.dtype == torch.float64
    assert torch.equal(module.affine()[1], weight) and module.covariance.dtype == np.float64


def test_half_precision_autocast_does_not_reach_the_product() -> None:
    points = torch.from_numpy(anisotropic()).float()
    module = Whitening(12).fit(points)
    plain = module({"sentence_embedding": points})["sentence_embedding"]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(module({"sentence_embedding": points})["sentence_embedding"], plain)


def test_zero_vector_and_the_mean_itself_stay_finite() -> None:
    points = anisotropic().astype(np.float32)
    module = Whitening(12, normalize=True).fit(points)
    output = module.transform(np.stack([np.zeros(12, np.float32), module.fitted_mean.astype(np.float32)]))
    assert np.isfinite(output).all() and np.linalg.norm(output[0]) == pytest.approx(1, rel=1e-5)
    centered = Whitening(2, normalize=True).fit(np.array([[-1.0, 0.0], [1.0, 0.0], [0.0, 2.0], [0.0, -2.0]]))
    assert centered.transform(np.zeros((1, 2))).tolist() == [[0.0, 0.0]]


def test_gradients_flow_to_the_encoder() -> None:
    points = torch.from_numpy(anisotropic())
    module = Whitening(12, 3).fit(points)
    given = points[:2].clone().requires_grad_()
    module({"sentence_embedding": given})["sentence_embedding"].sum().backward()
    assert given.grad is not None
    torch.testing.assert_close(given.grad[0], module.affine()[1].sum(dim=0))


def test_save_and_load_in_a_new_process_are_exact(tmp_path: Path) -> None:
    points = anisotropic()
    module = Whitening(12, 5, shrinkage="ledoit-wolf", normalize=True)
    module.fit(points[:200], source="a").partial_fit(points[200:], "b")
    folder = saved(module, tmp_path / "whitening")
    np.save(tmp_path / "points.npy", points)
    program = (
        "import sys, numpy as np; from st_plugins.modules import Whitening\n"
        "module = Whitening.load(sys.argv[1]); points = np.load(sys.argv[2])\n"
        "np.savez(sys.argv[3], double=module.transform(points), single=module.transform(points.astype('f4')))"
    )
    arguments = [str(folder), str(tmp_path / "points.npy"), str(tmp_path / "out.npz")]
    subprocess.run([sys.executable, "-c", program, *arguments], check=True)
    output = np.load(tmp_path / "out.npz")
    assert np.array_equal(output["double"], module.transform(points))
    assert np.array_equal(output["single"], module.transform(points.astype(np.float32)))
    record = json.loads((folder / "fit.json").read_text())
    assert (record["count"], record["sources"], record["ddof"]) == (300, {"a": 200, "b": 100}, 0)
    assert record["library"].startswith("st-plugins ") and len(record["explained_variance_ratio"]) == 5
    assert json.loads((folder / "config.json").read_text()) == {
        "embedding_dimension": 12,
        "output_dimension": 5,
        "shrinkage": "ledoit-wolf",
        "normalize": True,
    }


def test_a_reloaded_module_goes_on_fitting(tmp_path: Path) -> None:
    points = anisotropic()
    half = Whitening.load(str(saved(Whitening(12).fit(points[:150]), tmp_path / "half")))
    assert half.sources == {"unnamed": 150}
    half.partial_fit(points[150:])
    np.testing.assert_allclose(half.transform(points), Whitening(12).fit(points).transform(points), atol=1e-8)


def test_more_data_changes_the_transform_and_copies_are_independent() -> None:
    points = anisotropic()
    module = Whitening(12).fit(points[:100])
    before, twin = module.transform(points), copy.deepcopy(module)
    module.partial_fit(points[100:])
    assert np.abs(module.transform(points) - before).max() > 1e-3
    assert np.array_equal(twin.transform(points), before)
    assert module.fit(points[:100]).count == 100
    assert np.array_equal(module.transform(points), before)


def test_state_dict_is_derived_from_the_latest_statistics() -> None:
    module = Whitening(12, 3).fit(anisotropic())
    state = module.state_dict()
    assert torch.equal(state["state.weight"], module.affine()[1])
    module.partial_fit(anisotropic(seed=1))
    assert not torch.equal(module.state_dict()["state.weight"], state["state.weight"])


def test_save_before_use_derives_the_transform(tmp_path: Path, model: SentenceTransformer) -> None:
    generator = np.random.default_rng(0)
    pipeline = SentenceTransformer(
        modules=[*model, Whitening(16, 4).fit(generator.normal(size=(99, 16)))], device="cpu"
    )
    assert pipeline.get_embedding_dimension() == 4
    pipeline.save(str(tmp_path / "model"), create_model_card=False)
    again = SentenceTransformer(str(tmp_path / "model"), device="cpu", trust_remote_code=True)
    assert np.array_equal(again.encode(["a dog"]), pipeline.encode(["a dog"]))
    with pytest.raises(ValueError, match="trust_remote_code"):
        SentenceTransformer(str(tmp_path / "model"), device="cpu")


def test_what_an_encoder_rounds_is_no_direction() -> None:
    rows = np.random.default_rng(0).normal(size=(500, 6))
    for size, rank in ((1.2, 5), (12.0, 5), (64.0, 6)):
        rows[:, 5] = size * np.finfo(np.float32).eps * rows[:, 0] * rows[:, 1]
        assert Whitening(6).fit(rows.astype(np.float32)).get_embedding_dimension() == rank
        assert Whitening(6).fit(rows).get_embedding_dimension() == (5 if size < 2 else 6)  # 500 · eps(float64)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"embedding_dimension": 0}, "embedding_dimension must be at least 1, got 0"),
        ({"embedding_dimension": 4, "output_dimension": 5}, "between 1 and embedding_dimension"),
        ({"embedding_dimension": 4, "output_dimension": 0}, "got 0"),
        ({"embedding_dimension": 4, "shrinkage": 1.5}, "got 1.5"),
        ({"embedding_dimension": 4, "shrinkage": "oas"}, "got 'oas'"),
        ({"embedding_dimension": 4, "rcond": -1.0}, "rcond must be in"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Whitening(**arguments)


@pytest.mark.parametrize(
    ("embeddings", "message"),
    [
        (np.zeros((0, 3)), "has 0 rows"),
        ([], "has 0 rows"),
        (np.zeros((1, 3)), "has 1 rows, but a covariance needs at least 2"),
        (np.zeros((5, 4)), r"must have shape \(rows, 3\), got \(5, 4\)"),
        ([np.zeros(3)], r"got \(3,\); stack single vectors"),
        (np.zeros((5, 3), dtype=int), "floating-point type, got int64"),
        (torch.zeros((5, 3), dtype=torch.long), "floating-point type, got torch.int64"),
        ([np.ones((4, 3)), np.array([[1, 2, 3], [1, np.inf, 3]])], "row 5 holds inf in column 1"),
        (torch.tensor([[1.0, 2.0, 3.0], [1.0, 2.0, torch.nan]]).half(), "row 1 holds nan in column 2"),
        (np.eye(3) * 1e200, "so large that their squares overflow"),
    ],
)
def test_bad_embeddings_are_refused_and_leave_the_statistics_alone(embeddings: Array, message: str) -> None:
    module = Whitening(3).fit(np.eye(3))
    with pytest.raises(ValueError, match=message):
        module.fit(embeddings)
    assert module.count == 3


def test_a_bad_block_of_a_stream_adds_nothing() -> None:
    module = Whitening(3).partial_fit(np.eye(3), "good")
    with pytest.raises(ValueError, match="row 3 holds nan"):
        module.partial_fit(np.full((2, 3), np.nan), "bad")
    assert module.sources == {"good": 3}


def test_float32_values_whose_squares_overflow_float32() -> None:
    points = anisotropic(20_000, 3) * 1e25
    single = Whitening(3).fit(points.astype(np.float32)).transform(points)
    np.testing.assert_allclose(single, Whitening(3).fit(points).transform(points), atol=1e-3)


def test_use_before_fit_and_wrong_width(tmp_path: Path) -> None:
    module = Whitening(3)
    given = {"sentence_embedding": torch.zeros(2, 3)}
    for use in (lambda: module(given), lambda: module.save(str(tmp_path)), module.get_embedding_dimension):
        with pytest.raises(ValueError, match="fitted on 0 embeddings"):
            use()
    with pytest.raises(ValueError, match="fitted on 1 embeddings, but a covariance needs at least 2"):
        module.partial_fit(np.zeros((1, 3)))(given)
    with pytest.raises(ValueError, match="width 4, but this Whitening was made for 3"):
        module.fit(np.eye(3))({"sentence_embedding": torch.zeros(2, 4)})
    with pytest.raises(ValueError, match="cannot merge statistics of width 4 into width 3"):
        module.merge(Whitening(4))


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "fit.json"])
def test_damaged_files_are_named(tmp_path: Path, name: str) -> None:
    folder = saved(Whitening(12).fit(anisotropic()), tmp_path / "whitening")
    whole = (folder / name).read_bytes()
    (folder / name).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=name.replace(".", r"\.")):
        Whitening.load(str(folder))
    (folder / name).unlink()
    with pytest.raises(ValueError, match=f"{name} is missing"):
        Whitening.load(str(folder))


def test_changed_statistics_and_foreign_shapes_are_refused(tmp_path: Path) -> None:
    folder = saved(Whitening(12, 4).fit(anisotropic()), tmp_path / "whitening")
    tensors = load_file(folder / "model.safetensors")
    save_file(
        tensors | {"state.statistics_scatter": tensors["state.statistics_scatter"] * 2}, folder / "model.safetensors"
    )
    with pytest.raises(ValueError, match="does not match the checksum"):
        Whitening.load(str(folder))
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text('{"embedding_dimension": 12, "output_dimension": 5}')
    with pytest.raises(ValueError, match=r"model\.safetensors does not fit .* output_dimension 5"):
        Whitening.load(str(folder))


def test_a_key_of_a_newer_version_warns(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    module = Whitening(12, 4).fit(anisotropic())
    folder = saved(module, tmp_path / "whitening")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"rotation": "zca"}))
    points = anisotropic(seed=4)
    assert np.array_equal(Whitening.load(str(folder)).transform(points), module.transform(points))
    assert "Ignoring ['rotation']" in caplog.text
