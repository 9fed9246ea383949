"""The ways to make vectors smaller, against NumPy's SVD of the rows, and what is tried on which texts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import spearmanr
from sklearn.covariance import LedoitWolf

from st_plugins.compression.choice.candidates import MARGIN, METHODS, Candidate, Maps, Trial, of_size, random_rotation
from st_plugins.compression.choice.sample import Sample, applied
from st_plugins.compression.choice.wanted import Wanted
from st_plugins.core.quantization import BITS, Quantization, bytes_of
from st_plugins.methods.whitening.moments import Moments

Array = NDArray[np.floating]
WIDTH = 10
OTHERS = METHODS[1:]


def rows(count: int = 300, seed: int = 0) -> NDArray[np.float64]:
    generator = np.random.default_rng(seed)
    basis, _ = np.linalg.qr(np.random.default_rng(9).normal(size=(WIDTH, WIDTH)))
    return np.asarray(generator.normal(size=(count, WIDTH)) * np.geomspace(5, 0.2, WIDTH) @ basis + 0.7)


def oracle(method: str, points: Array, new: Array) -> Array:
    """The directions of largest variance by the SVD of the rows themselves; no covariance is formed."""
    center = method in ("centered rotation", "whitening", "shrunk whitening")
    mean = points.mean(axis=0) if center else np.zeros(WIDTH)
    _, singular, directions = np.linalg.svd(points - mean, full_matrices=False)
    values = singular**2 / len(points)
    if method == "shrunk whitening":
        shrinkage = LedoitWolf().fit(points).shrinkage_
        values = (1 - shrinkage) * values + shrinkage * values.mean()
    power = {"soft whitening": 0.25, "whitening": 0.5, "shrunk whitening": 0.5}.get(method, 0)
    return np.asarray((new - mean) @ directions.T / values**power)


@pytest.mark.parametrize("method", OTHERS)
@pytest.mark.parametrize("kept", [1, 4, WIDTH])
def test_a_map_is_the_svd_of_the_rows_up_to_sign(method: str, kept: int) -> None:
    points, new = rows(), rows(20, seed=1)
    found = applied(new, Maps(Moments.of(points)).of(Candidate(method, kept, "float32")))
    np.testing.assert_allclose(np.abs(found), np.abs(oracle(method, points, new)[:, :kept]), rtol=1e-6, atol=1e-8)


def test_truncation_keeps_the_first_numbers() -> None:
    new = rows(20, seed=1)
    assert (applied(new, Maps(Moments.of(rows())).of(Candidate("truncation", 4, "int8"))) == new[:, :4]).all()


@pytest.mark.parametrize("method", OTHERS)
def test_fewer_dimensions_are_the_first_of_more_but_for_bits(method: str) -> None:
    maps = Maps(Moments.of(rows()))
    for precision in ("float32", "int4"):
        more, fewer = (maps.of(Candidate(method, kept, precision)) for kept in (8, 3))
        assert (more[1][:3] == fewer[1]).all() and (more[0] == fewer[0]).all()
    plain, bits = (maps.of(Candidate(method, 4, precision))[1] for precision in ("int8", "binary"))
    np.testing.assert_allclose(random_rotation(4).T @ bits, plain, atol=1e-12)
    np.testing.assert_allclose(random_rotation(7) @ random_rotation(7).T, np.eye(7), atol=1e-12)
    assert (random_rotation(7) == random_rotation(7)).all() and np.abs(random_rotation(7) - np.eye(7)).max() > 0.3


def test_too_few_directions_are_refused() -> None:
    maps = Maps(Moments.of(rows(5)))
    assert maps.of(Candidate("rotation", WIDTH, "float32"))[1].shape == (WIDTH, WIDTH)
    with pytest.raises(ValueError, match="whitening to 8 dimensions needs as many directions, but the texts have 4"):
        maps.of(Candidate("whitening", 8, "float32"))


def test_each_group_is_judged_by_what_was_fitted_on_the_other() -> None:
    points = rows().astype(np.float32)
    trial = Trial(Sample(WIDTH).add(points))
    first, second = trial.sample.held
    assert len(first) + len(second) == 300  # all of them are held, so that the fit can be repeated
    losses = []
    for fitted, judged in ((first, second), (second, first)):
        unit = judged / np.linalg.norm(judged, axis=1, keepdims=True)
        new = oracle("rotation", fitted.astype(np.float64), unit)[:, :3]
        new /= np.linalg.norm(new, axis=1, keepdims=True)
        olds, news = unit @ unit.T, new @ new.T
        pairs: list[tuple[float, float]] = []
        for text in range(len(judged)):
            order = sorted((k for k in range(len(judged)) if k != text), key=lambda k: -olds[text, k])
            ranks = {round((len(judged) - 1) ** (step / 23)) for step in range(24)}
            pairs += [(olds[text, order[rank - 1]], news[text, order[rank - 1]]) for rank in ranks]
        losses.append(1 - spearmanr(np.array(pairs)).statistic)
    found = trial.measure(Candidate("rotation", 3, "float32"))
    assert found.loss == pytest.approx(np.mean(losses), rel=0.01) and found.loss > 0.005
    assert trial.measure(Candidate("rotation", WIDTH, "float32")).loss == pytest.approx(0, abs=1e-5)
    errors = trial.measure(Candidate("rotation", 3, "float32"), errors=True)
    assert errors.loss == found.loss and errors.loss_error > 0 and errors.neighbors_error > 0


def test_ranges_are_fitted_on_the_vectors_that_the_model_gives() -> None:
    points = 40 * rows().astype(np.float32)  # far longer than 1
    for normalized in (True, False):
        trial = Trial(Sample(WIDTH, normalized=normalized).add(points))
        for precision in ("int8", "int4"):
            assert trial.measure(Candidate("rotation", WIDTH, precision)).loss < 0.05
        given = trial.sample.given(points, trial.maps[0].of(Candidate("truncation", 4, "int8")))
        lengths = np.linalg.norm(given, axis=1)
        assert (np.abs(lengths - 1) < 1e-5).all() == normalized
        assert Quantization.fit("int8", given).ranges is not None


def test_copies_decide_whether_the_similarities_are_kept() -> None:
    generator = np.random.default_rng(0)
    noise = [generator.normal(size=(200, WIDTH)) for _ in range(2)]
    even = generator.normal(size=(300, WIDTH)).astype(np.float32)
    # Texts of a raw encoder share one long direction, along which copies differ as much as texts do.
    raw = even + 6 * np.eye(WIDTH, dtype=np.float32)[0] * (1 + generator.normal(size=(300, 1)).astype(np.float32))
    # Those of a trained one may vary mostly along one direction too, if they are of one kind, but on both sides.
    narrow = raw * generator.choice([-1, 1], size=(300, 1)).astype(np.float32)
    for points, kept, gained in ((even, True, False), (raw, False, True), (narrow, True, True)):
        sample = Sample(WIDTH).add(points)
        scale = 0.6 * points.std(axis=0)
        copies = [
            tuple((held[:100] + scale * one[: len(held[:100])]).astype(np.float32) for one in noise)
            for held in sample.held
        ]
        trial = Trial(sample, copies)
        assert (trial.shape == "rotation") == kept, trial.recognized
        assert (max(trial.recognized.values()) > trial.recognized["rotation"] + MARGIN) == gained
        assert ([*trial.limits] == ["truncation", "rotation"]) == kept
        assert trial.recognized.keys() == set(OTHERS)
    assert Trial(sample).shape == "rotation" and Trial(sample).recognized == {}


def test_a_size_is_filled_with_as_many_dimensions_as_there_is_room_for() -> None:
    for size in (1, 3, 4, 17, 10**6):
        found = of_size({"truncation": 64, "rotation": 48}, size, BITS)
        assert all(one.bytes <= size for one in found) and len({*found}) == len(found)
        for method, most in (("truncation", 64), ("rotation", 48)):
            for precision, bits in BITS.items():
                dims = [one.dimension for one in found if (one.method, one.precision) == (method, precision)]
                assert dims == ([min(most, size * 8 // bits)] if size * 8 >= bits else [])


def wanted(**arguments: Any) -> Wanted:
    given = {"output_dimension": None, "bytes": None, "precision": None, "max_loss": None, "method": "auto"}
    return Wanted(64, **{**given, **arguments})


def test_what_comes_into_question_for_what_is_asked() -> None:
    limits = {"truncation": 64, "rotation": 40}
    assert wanted(output_dimension=8).precisions == ("float32",)
    assert wanted(bytes=8).precisions == wanted(max_loss=1.0).precisions == tuple(BITS)
    assert wanted(output_dimension=8, bytes=9).precisions == tuple(BITS)
    assert wanted(bytes=8, precision="int8").precisions == ("int8",)
    (group,) = wanted(output_dimension=8, bytes=9).groups(limits)
    assert {one.dimension for one in group} == {8} and {one.precision for one in group} == {
        "int8",
        "int4",
        "int2",
        "binary",
    }
    (group,) = wanted(output_dimension=50).groups(limits)
    assert [str(one) for one in group] == ["truncation, 50 x float32"]  # there are only 40 directions
    with pytest.raises(ValueError, match="only 40 directions for whitening"):
        wanted(output_dimension=50, method="whitening").groups({"whitening": 40})
    groups = wanted(max_loss=1.0).groups(limits)
    sizes = [{one.bytes for one in group} for group in groups]
    assert all(len(size) == 1 for size in sizes) and sizes == sorted(sizes, key=min) and min(sizes[0]) == 1
    assert {one.dimension for group in groups for one in group} >= {8, 64}
    assert len(wanted(max_loss=1.0, bytes=16).groups(limits)) == 1


@pytest.mark.parametrize("precision", [None, "float32", "int8", "binary"])
def test_the_ladder_halves_down_to_what_can_be_had(precision: str | None) -> None:
    ladder = wanted(bytes=8, precision=precision).ladder
    full = bytes_of(precision or "float32", 64)
    least = bytes_of(precision or "binary", 8)
    assert ladder == [full // 2**step for step in range(9) if full // 2**step >= least] and ladder
    assert all(of_size({"truncation": 64}, size, wanted(bytes=8, precision=precision).precisions) for size in ladder)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({}, "give output_dimension, max_loss, or bytes=96"),
        ({"output_dimension": 65}, "have only 64"),
        ({"output_dimension": 0}, "at least 1"),
        ({"bytes": 0}, "nearest is 1, 1 x binary"),
        ({"bytes": 3, "precision": "float32"}, "nearest is 4, 1 x float32"),
        ({"bytes": 1, "output_dimension": 16}, "nearest is 2, 16 x binary"),
        ({"bytes": 8, "precision": "int3"}, "must be one of 'float32'"),
        ({"bytes": 8, "method": "pca"}, "must be one of 'auto'"),
        ({"max_loss": 0.0}, "above 0"),
        ({"max_loss": float("nan")}, "above 0"),
        ({"max_loss": float("inf")}, "above 0"),
    ],
)
def test_what_cannot_be_asked_for_is_refused(arguments: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        wanted(**arguments)


def test_only_whole_numbers_of_bytes_and_numpys_become_pythons() -> None:
    for bad in (8.0, True, "8"):
        with pytest.raises(TypeError, match="whole number"):
            wanted(bytes=bad)
    found = wanted(bytes=np.int64(8), output_dimension=np.int32(4))
    assert type(found.bytes) is int and type(found.output_dimension) is int


def test_a_score_is_the_geometric_mean_of_what_is_lost_among_texts_and_between_copies() -> None:
    points = rows().astype(np.float32)
    sample = Sample(WIDTH).add(points)
    generator = np.random.default_rng(3)
    copies = [
        tuple((held[:80] + generator.normal(size=(80, WIDTH)) / 4).astype(np.float32) for _ in range(2))
        for held in sample.held
    ]
    trial, candidate = Trial(sample, copies), Candidate("truncation", 4, "float32")
    between = []
    for first, second in copies:
        cosines = [
            [
                float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))
                for a, b in zip(first[:, :k], second[:, :k], strict=True)
            ]
            for k in (WIDTH, 4)
        ]
        between.append(1 - spearmanr(*cosines).statistic)
    expected = np.sqrt(trial.measure(candidate).loss * np.mean(between))
    assert trial.score(candidate) == pytest.approx(expected, rel=1e-4) and expected > 0.01
    assert Trial(sample).score(candidate) == trial.measure(candidate).loss
    whole = [trial.score(Candidate(method, WIDTH, "float32")) for method in ("truncation", "rotation")]
    assert whole == pytest.approx([0, 0], abs=1e-4)  # and not undefined
    assert trial.best([Candidate("truncation", 4, "float32"), Candidate("truncation", 9, "float32")]).dimension == 9
