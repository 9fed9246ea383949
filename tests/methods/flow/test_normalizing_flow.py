"""The flow against its formulas in plain loops, autograd's Jacobian, and an integral that has to be one."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from st_plugins.methods.flow.flow import Flow, level_widths
from st_plugins.methods.flow.layers import ActNorm
from st_plugins.modules import NormalizingFlow, Whitening

Array = NDArray[np.floating]
PERMUTATIONS: Any = ["reverse", "random", "learned", "learned-lu"]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def curved(rows: int = 300, width: int = 6, seed: int = 0) -> Any:
    """Correlated points with a large mean, bent so that no linear map makes them normal."""
    rng = np.random.default_rng(seed)
    points = rng.normal(size=(rows, width))
    points[:, 1:] += 0.5 * points[:, :-1] ** 2
    rotation, _ = np.linalg.qr(np.random.default_rng(9).normal(size=(width, width)))
    return points * np.geomspace(3, 0.3, width) @ rotation + 5


def perturbed(dimension: int, seed: int = 0, **options: Any) -> Flow:
    """A flow in float64 none of whose parameters is zero."""
    flow = Flow(dimension, **{"hidden_dimension": 4, **options})
    flow.reset(generator(seed))
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter += 0.2 * torch.randn(parameter.shape, generator=generator(seed + 1))
    return flow.double()


def fitted(width: int = 6, **options: Any) -> NormalizingFlow:
    return NormalizingFlow(width, **options).fit(curved(width=width), epochs=3, batch_size=64)


def saved(module: NormalizingFlow, folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    module.save(str(folder))
    return folder


def layer_oracle(layer: Any, row: list[float]) -> tuple[list[float], float]:
    """One layer on one row, one number after the other."""
    kind, state = type(layer).__name__, {name: value.tolist() for name, value in layer.state_dict().items()}
    if kind == "ActNorm":
        scales = [3 * logarithm for logarithm in state["log_scale"]]
        shifts = state.get("shift", [0.0] * len(row))
        moved = [(x - m) * math.exp(s) + t for x, m, s, t in zip(row, state["mean"], scales, shifts, strict=True)]
        return moved, sum(scales)
    if kind == "Permutation":
        return [row[index] for index in state["order"]], 0.0
    if kind == "Linear":
        weight = np.array(state["weight"])
        return [sum(w * x for w, x in zip(line, row, strict=True)) for line in weight], math.log(
            abs(np.linalg.det(weight))
        )
    if kind == "LULinear":
        size = len(row)
        permutation, lower, upper = np.zeros((size, size)), np.eye(size), np.zeros((size, size))
        for i in range(size):
            permutation[i, state["order"][i]] = 1
            upper[i, i] = state["signs"][i] * math.exp(state["log_diagonal"][i])
            for j in range(size):
                lower[i, j] = state["lower"][i][j] if j < i else lower[i, j]
                upper[i, j] = state["upper"][i][j] if j > i else upper[i, j]
        weight = permutation @ lower @ upper
        return [sum(w * x for w, x in zip(line, row, strict=True)) for line in weight], math.log(
            abs(np.linalg.det(weight))
        )
    half = len(row) // 2
    hidden = row[:half]
    for number in range(3):
        weight, bias = state[f"weights.{number}"], state[f"biases.{number}"]
        hidden = [
            sum(w * h for w, h in zip(line, hidden, strict=True)) + b for line, b in zip(weight, bias, strict=True)
        ]
        hidden = hidden if number == 2 else [max(h, 0.0) for h in hidden]
    count = len(row) - half
    shift, raw = hidden[:count], hidden[count:]
    scales = [2 * math.tanh(value / 2) for value in raw] if raw else [0.0] * count
    second = [x * math.exp(s) + t for x, s, t in zip(row[half:], scales, shift, strict=True)]
    return row[:half] + second, sum(scales)


def flow_oracle(flow: Flow, row: list[float]) -> tuple[list[float], float, float]:
    """Latents, log-determinant and log-likelihood of one row."""
    latents: list[float] = []
    total = 0.0
    for number, level in enumerate(flow.levels):
        for layer in level.children():
            row, change = layer_oracle(layer, row)
            total += change
        if number + 1 < len(flow.levels):
            kept = len(row) // 2 + len(row) % 2
            latents, row = latents + row[kept:], row[:kept]
    latents = latents + row
    densities = [-0.5 * (value**2) - 0.5 * math.log(2 * math.pi) for value in latents]
    return latents, total, sum(densities) + total


@pytest.mark.parametrize("permutation", PERMUTATIONS)
@pytest.mark.parametrize("coupling", ["additive", "affine"])
@pytest.mark.parametrize(("dimension", "levels"), [(5, 1), (7, 2), (11, 3), (8, 3)])
def test_the_flow_is_its_formulas(permutation: Any, coupling: Any, dimension: int, levels: int) -> None:
    flow = perturbed(dimension, levels=levels, depth=2, coupling=coupling, permutation=permutation)
    rows = torch.randn(3, dimension, generator=generator(7), dtype=torch.float64)
    latents, log_determinants = flow(rows)
    likelihoods = flow.log_likelihood(rows)
    assert latents.shape == rows.shape and log_determinants.shape == (3,)
    for index in range(3):
        expected, log_determinant, likelihood = flow_oracle(flow, rows[index].tolist())
        assert latents[index].tolist() == pytest.approx(expected, rel=1e-9, abs=1e-9)
        assert log_determinants[index].item() == pytest.approx(log_determinant, rel=1e-9, abs=1e-9)
        assert likelihoods[index].item() == pytest.approx(likelihood, rel=1e-9)


@pytest.mark.parametrize("permutation", PERMUTATIONS)
@pytest.mark.parametrize("coupling", ["additive", "affine"])
def test_the_inverse_and_the_jacobian(permutation: Any, coupling: Any) -> None:
    flow = perturbed(6, levels=2, depth=3, coupling=coupling, permutation=permutation)
    rows = torch.randn(20, 6, generator=generator(7), dtype=torch.float64)
    latents, log_determinants = flow(rows)
    torch.testing.assert_close(flow.inverse(latents), rows, atol=1e-9, rtol=0)
    torch.testing.assert_close(flow(flow.inverse(rows))[0], rows, atol=1e-9, rtol=0)
    for index in range(3):
        jacobian: Tensor = torch.autograd.functional.jacobian(lambda row: flow(row[None])[0][0], rows[index])
        assert log_determinants[index].item() == pytest.approx(torch.linalg.slogdet(jacobian)[1].item(), abs=1e-9)


@pytest.mark.parametrize("permutation", PERMUTATIONS)
def test_the_inverse_in_single_precision(permutation: Any) -> None:
    module = fitted(33, levels=3, permutation=permutation, coupling="affine")
    points = curved(40, 33, seed=3)
    np.testing.assert_allclose(module.inverse(module.transform(points)), points, atol=1e-10)
    single = points.astype(np.float32)
    error = np.abs(module.inverse(module.transform(single)) - single).max()
    assert error < 1e-5 * np.abs(points).max()


def test_the_density_integrates_to_one() -> None:
    flow = perturbed(2, levels=1, depth=3, coupling="affine", permutation="learned-lu", seed=2)
    step = 0.1
    axis = torch.arange(-25, 25, step, dtype=torch.float64)
    grid = torch.cartesian_prod(axis, axis)
    assert (flow.log_likelihood(grid).exp().sum() * step**2).item() == pytest.approx(1, abs=1e-3)


def test_actnorm_starts_from_the_data_once_also_after_a_reload(tmp_path: Path) -> None:
    flow, rows = Flow(6, levels=2, depth=2), torch.from_numpy(curved(100))
    flow.reset(generator())
    flow.initialize(rows)
    outputs: list[Tensor] = []
    norms = [layer for layer in flow.modules() if isinstance(layer, ActNorm)]
    for layer in norms:
        layer.register_forward_hook(lambda module, inputs, output: outputs.append(output[0]))
    flow(rows)
    assert len(outputs) == 4
    for output in outputs:
        for column in output.T.tolist():
            mean = sum(column) / 100
            assert mean == pytest.approx(0, abs=1e-5)
            assert sum((value - mean) ** 2 for value in column) / 100 == pytest.approx(1, abs=1e-5)
    before = copy.deepcopy(flow.state_dict())
    flow.initialize(10 * rows)
    assert all(torch.equal(value, before[name]) for name, value in flow.state_dict().items())
    module = NormalizingFlow.load(str(saved(fitted(), tmp_path / "flow")))
    before = copy.deepcopy(module.flow.state_dict())
    module.flow.initialize(10 * rows)
    assert all(torch.equal(value, before[name]) for name, value in module.flow.state_dict().items())
    module.fit(10 * curved(), epochs=1, learning_rate=1e-9, held_out=0, resume=True)
    torch.testing.assert_close(module.flow.state_dict(), before, atol=1e-6, rtol=0)


@pytest.mark.parametrize("coupling", ["additive", "affine"])
def test_it_starts_as_actnorm_and_permutation(coupling: Any) -> None:
    flow, rows = Flow(7, levels=2, depth=2, coupling=coupling), torch.from_numpy(curved(100, 7))
    flow.reset(generator())
    flow.initialize(rows)
    latents, log_determinants = flow(rows)
    parts, current, total = [], rows, 0.0
    for number, level in enumerate(flow.levels):
        for layer in level.children():
            if type(layer).__name__ == "ActNorm":
                total -= current.std(dim=0, correction=0).log().sum().item()
                current = (current - current.mean(dim=0)) / current.std(dim=0, correction=0)
            elif type(layer).__name__ == "Permutation":
                current = current[:, layer.order]
        if number == 0:
            parts, current = [current[:, 4:]], current[:, :4]
    torch.testing.assert_close(latents, torch.cat([*parts, current], dim=1), atol=1e-5, rtol=0)
    assert log_determinants.tolist() == pytest.approx([total] * 100, abs=1e-4)


def test_fitting_makes_held_out_points_more_likely_and_keeps_the_best_epoch() -> None:
    module = NormalizingFlow(6, coupling="affine").fit(
        curved(400), "points", epochs=12, batch_size=32, learning_rate=3e-3
    )
    history = module.history
    measured = [entry["held_out"] for entry in history]
    assert history[0].keys() == {"epoch", "held_out"} and history[1].keys() == {"epoch", "training", "held_out"}
    assert min(measured) < measured[0] - 0.05 and history[-1]["training"] < history[1]["training"]
    held = curved(400)[torch.randperm(400, generator=generator())[360:].numpy()]
    assert -module.log_likelihood(held).mean() / 6 == pytest.approx(min(measured), rel=1e-5)
    unseen = curved(500, seed=5)
    untrained = NormalizingFlow(6).fit(curved(400), epochs=1, learning_rate=1e-9)
    assert module.log_likelihood(unseen).mean() > untrained.log_likelihood(unseen).mean()
    assert (module.count, module.sources) == (400, {"points": 400})
    assert not any(parameter.requires_grad for parameter in module.parameters())


def test_early_stopping_and_its_absence() -> None:
    few = curved(24)
    stopped = NormalizingFlow(6, coupling="affine").fit(few, epochs=200, learning_rate=0.02, patience=2)
    measured = [entry["held_out"] for entry in stopped.history]
    assert len(measured) < 201 and len(measured) - 1 - measured.index(min(measured)) == 2
    through = NormalizingFlow(6).fit(few, epochs=7, held_out=0)
    assert [entry["epoch"] for entry in through.history] == list(range(8))
    assert through.history[0].keys() == {"epoch"} and through.history[7].keys() == {"epoch", "training"}


def test_full_linear_layers_find_about_what_whitening_finds() -> None:
    rng = np.random.default_rng(0)
    points = (rng.normal(size=(2000, 6)) * np.geomspace(3, 0.5, 6)) @ rng.normal(size=(6, 6)) + 4
    module = NormalizingFlow(6, levels=1, depth=1, permutation="learned").fit(points, epochs=60, learning_rate=1e-2)
    ours, white = module.transform(points[:200]), Whitening(6).fit(points).transform(points[:200])
    cosines = [x @ x.T for x in (v / np.linalg.norm(v, axis=1, keepdims=True) for v in (ours, white))]
    upper = np.triu_indices(200, 1)
    raw = points[:200] / np.linalg.norm(points[:200], axis=1, keepdims=True)
    agreement = np.corrcoef(cosines[0][upper], cosines[1][upper])[0, 1]
    assert agreement > 0.95 > 0.8 > np.corrcoef((raw @ raw.T)[upper], cosines[1][upper])[0, 1]


def test_a_fit_can_be_repeated_and_leaves_the_global_random_state_alone() -> None:
    state = torch.get_rng_state()
    one, two = fitted(), fitted()
    other = NormalizingFlow(6).fit(curved(), epochs=3, batch_size=64, generator=generator(1))
    assert torch.equal(torch.get_rng_state(), state)
    points = curved(20, seed=2)
    assert np.array_equal(one.transform(points), two.transform(points))
    assert np.abs(one.transform(points) - other.transform(points)).max() > 1e-3
    assert np.array_equal(one.fit(curved(), epochs=3, batch_size=64).transform(points), two.transform(points))


def test_resuming_goes_on_where_the_fit_ended() -> None:
    module = fitted()
    end = min(entry["held_out"] for entry in module.history)
    module.fit(curved(), "again", epochs=2, batch_size=64, resume=True)
    assert module.history[0]["held_out"] == pytest.approx(end, rel=1e-6)
    assert module.sources == {"unnamed": 300, "again": 300}
    assert module.fit(curved(), epochs=1).sources == {"unnamed": 300}
    with pytest.raises(ValueError, match="not fitted"):
        NormalizingFlow(6).fit(curved(), resume=True)


@pytest.mark.parametrize("dimension", [2, 3, 5, 13, 30])
@pytest.mark.parametrize("levels", [1, 2, 3])
def test_widths_that_powers_of_two_do_not_divide(dimension: int, levels: int) -> None:
    widths = [dimension]
    for _ in range(levels - 1):
        widths.append(math.ceil(widths[-1] / 2))
    if widths[-1] < 2:
        with pytest.raises(
            ValueError, match=f"with levels={levels} level .* would have 1 of {dimension}; choose levels <="
        ):
            NormalizingFlow(dimension, levels=levels)
        return
    assert level_widths(dimension, levels) == widths
    points = curved(60, dimension)
    module = NormalizingFlow(dimension, levels=levels, coupling="affine").fit(points, epochs=1, batch_size=16)
    latents = module.transform(points)
    assert latents.shape == (60, dimension) and module.get_embedding_dimension() == dimension
    np.testing.assert_allclose(module.inverse(latents), points, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_forward_keeps_the_type_and_computes_in_a_safe_one(dtype: torch.dtype) -> None:
    points = curved() * 1e-4
    module = NormalizingFlow(6, normalize=True).fit(points, epochs=2).to(dtype)
    assert {parameter.dtype for parameter in module.parameters()} == {torch.float32}
    given = torch.from_numpy(points).to(dtype)
    output = module({"sentence_embedding": given})["sentence_embedding"]
    rows = module.flow(given.double())[0]
    expected = rows / rows.norm(dim=1, keepdim=True)
    tolerance = {torch.float16: 2e-3, torch.bfloat16: 1e-2, torch.float32: 1e-4, torch.float64: 1e-12}[dtype]
    assert output.dtype == dtype and (output.double() - expected).abs().max().item() < tolerance
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(module({"sentence_embedding": given})["sentence_embedding"], output)


def test_row_order_blocks_and_inference_tensors() -> None:
    points = curved().astype(np.float32)
    module = fitted()
    latents = module.transform(points)
    np.testing.assert_allclose(module.transform(points[::-1]), latents[::-1], atol=1e-5)
    with torch.inference_mode():
        block = torch.from_numpy(points) + 0
    whole = NormalizingFlow(6).fit(points, epochs=2)
    for blocks in ([points[:100], torch.from_numpy(points[100:])], block, [block], iter([points[:0], points])):
        assert np.array_equal(NormalizingFlow(6).fit(blocks, epochs=2).transform(points), whole.transform(points))


def test_gradients_flow_to_the_encoder_and_to_an_unfrozen_flow() -> None:
    module = fitted()
    given = torch.from_numpy(curved(4)).float().requires_grad_()
    module({"sentence_embedding": given})["sentence_embedding"].sum().backward()
    assert given.grad is not None and given.grad.any()
    assert all(parameter.grad is None for parameter in module.parameters())  # nor is one left from the fit
    module.requires_grad_()
    module({"sentence_embedding": given})["sentence_embedding"].square().sum().backward()
    assert all(parameter.grad is not None for parameter in module.parameters())


def test_dimensions_that_do_not_vary(caplog: pytest.LogCaptureFixture) -> None:
    points = np.concatenate([curved(), np.full((300, 2), 0.7)], axis=1).astype(np.float32)
    module = NormalizingFlow(8).fit(points, epochs=5)
    assert "2 of 8 dimensions do not vary in the embeddings" in caplog.text
    latents = module.transform(points)
    assert np.isfinite(latents).all() and np.abs(latents).max() < 100


def test_a_large_mean_does_not_drown_the_spread() -> None:
    points = curved()
    far = NormalizingFlow(6).fit(points + 2.0**20, epochs=2)
    near = NormalizingFlow(6).fit(points, epochs=2)
    assert far.history[-1]["held_out"] == pytest.approx(near.history[-1]["held_out"], abs=0.01)
