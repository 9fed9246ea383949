"""The flow of the authors' code, layers and optimizer against their formulas; dead dimensions; useless fits."""

from __future__ import annotations

import copy
import logging
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer

import st_plugins
from st_plugins.methods.flow.fitting import FlowTraining, _measured
from st_plugins.methods.flow.flow import Flow
from st_plugins.methods.flow.layers import ActNorm
from st_plugins.methods.flow.published import PublishedAdam, PublishedCoupling
from st_plugins.modules import NormalizingFlow
from tests.methods.flow.test_normalizing_flow import curved, generator, saved


def normal(width: int = 16, rows: int = 1000) -> Any:
    return np.random.default_rng(0).normal(size=(rows, width)).astype(np.float32) * 0.05


# ----------------------------------------------------------------------------------------- the authors' code


def test_the_optimizer_is_its_formula() -> None:
    """Adam without correction of the moments, with decay of the weight itself, number by number."""
    rng = np.random.default_rng(0)
    parameter = torch.nn.Parameter(torch.tensor([0.7, -1.5, 0.0], dtype=torch.float64))
    optimizer = PublishedAdam([parameter], lr=0.03)
    weights, means, squares = [0.7, -1.5, 0.0], [0.0] * 3, [0.0] * 3
    for _ in range(20):
        gradients = rng.normal(size=3) * [1, 1e-3, 10]
        parameter.grad = torch.from_numpy(gradients.copy())
        optimizer.step()
        for index, gradient in enumerate(gradients):
            means[index] = 0.9 * means[index] + 0.1 * gradient
            squares[index] = 0.999 * squares[index] + 0.001 * gradient**2
            update = means[index] / (math.sqrt(squares[index]) + 1e-6) + 0.01 * weights[index]
            weights[index] -= 0.03 * update
        assert parameter.tolist() == pytest.approx(weights, rel=1e-12)


def test_the_coupling_is_its_formula() -> None:
    rows = torch.randn(50, 7, generator=generator(3), dtype=torch.float64)
    layer = PublishedCoupling(7, hidden_dimension=5).double()
    layer.reset(generator())
    assert torch.cat([weight.flatten() for weight in list(layer.weights)[:2]]).std().item() == pytest.approx(
        0.05, rel=0.5
    )
    layer.initialize(rows)
    assert torch.equal(layer(rows)[0], rows)  # the last layer starts at zero
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator(5), dtype=torch.float64)
    hidden = rows[:, :3].numpy()
    for weight, norm in zip(layer.weights, layer.norms, strict=False):
        hidden = (hidden @ weight.detach().numpy().T - norm.mean.detach().numpy()) * np.exp(
            3 * norm.log_scale.detach().numpy()
        )
        hidden = np.maximum(hidden, 0)
    shift = hidden @ layer.weights[2].detach().numpy().T + layer.bias.detach().numpy()
    shift = shift * np.exp(3 * layer.log_scale.detach().numpy())
    images, log_determinant = layer(rows)
    np.testing.assert_allclose(images.detach().numpy()[:, 3:], rows.numpy()[:, 3:] + shift, rtol=1e-12)
    assert log_determinant.item() == 0
    torch.testing.assert_close(layer.inverse(images), rows, atol=1e-12, rtol=0)


def test_the_hidden_layers_start_normalized() -> None:
    flow, rows = Flow(8, levels=2, depth=2, hidden_dimension=6, published=True), torch.from_numpy(curved(100, 8))
    flow.reset(generator())
    flow.initialize(rows)
    outputs: list[Any] = []
    norms = [layer for layer in flow.modules() if isinstance(layer, ActNorm)]
    hooks = [norm.register_forward_hook(lambda module, given, output: outputs.append(output[0])) for norm in norms]
    flow(rows)
    for hook in hooks:
        hook.remove()
    assert len(outputs) == 2 * 2 * 3
    for output in outputs:
        assert output.mean(dim=0).abs().max() < 1e-4 and (output.std(dim=0, correction=0) - 1).abs().max() < 1e-3


def test_one_step_of_the_published_fit_is_that_of_the_code() -> None:
    """Start from 32 rows; bits summed over both texts; clipped to norm 1; the authors' Adam; the rest is dropped."""
    points = torch.from_numpy(curved(70, 8)).float()
    module = NormalizingFlow.from_preset("published", 8).fit(points, generator=generator(4))
    draws = generator(4)
    order = torch.randperm(70, generator=draws)
    flow = Flow(8, 3, 3, 32, "additive", "reverse", published=True)
    flow.reset(draws)
    flow.initialize(points[order][torch.randperm(70, generator=draws)[:32]])
    batch = points[order][torch.randperm(70, generator=draws)[:64]]
    flow.requires_grad_(True)
    loss = -flow.log_likelihood(batch).mean() / 8 / math.log(2) * 2
    loss.backward()
    gradients = [parameter.grad for parameter in flow.parameters() if parameter.grad is not None]
    norm = math.sqrt(sum(float(gradient.square().sum()) for gradient in gradients))
    with torch.no_grad():
        for parameter in flow.parameters():
            gradient = parameter.grad / max(1, norm) if parameter.grad is not None else torch.zeros(())
            update = 0.1 * gradient / ((0.001 * gradient**2).sqrt() + 1e-6)
            parameter -= 1e-3 * (update + 0.01 * parameter)
    ours = dict(module.flow.named_parameters())
    for name, parameter in flow.named_parameters():
        torch.testing.assert_close(ours[name], parameter, rtol=1e-4, atol=1e-6, msg=name)
    assert [entry["epoch"] for entry in module.history] == [0, 1]


def test_the_preset_is_the_recipe(tmp_path: Path) -> None:
    module = NormalizingFlow.from_preset("published", 32)
    assert (module.levels, module.depth, module.hidden_dimension) == (3, 3, 32)
    assert (module.coupling, module.permutation, module.published) == ("additive", "reverse", True)
    assert FlowTraining.as_published() == FlowTraining(1, 64, 1e-3, 0.0, published=True)
    module.fit(normal(32, 300))
    assert len(module.history) == 2 and "held_out" not in module.history[1]
    again = NormalizingFlow.load(str(saved(module, tmp_path / "flow")))
    assert again.published and np.array_equal(again.transform(normal(32)), module.transform(normal(32)))
    np.testing.assert_allclose(again.inverse(again.transform(normal(32))), normal(32), atol=1e-5)
    assert len(module.fit(normal(32, 300), epochs=2, held_out=0.5).history) == 3


def test_the_recipe_on_a_model(model: SentenceTransformer, sentences: list[str]) -> None:
    flowed: Any = st_plugins.fit_flow(model, sentences, preset="published")
    assert flowed[-1].published and len(flowed[-1].history) == 2
    assert np.isfinite(flowed.encode(sentences)).all()


# --------------------------------------------------------------------- dimensions that vary little, or not at all


@pytest.mark.parametrize("size", [1e-31, 1e-12])
@pytest.mark.parametrize("dead", [8, 12])
def test_a_level_of_nearly_dead_dimensions_only_does_not_diverge(dead: int, size: float) -> None:
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(600, 16, generator=generator) @ torch.randn(16, 16, generator=generator) * 0.05
    rows[:, :dead] *= size
    module = NormalizingFlow.from_preset("published", 16).fit(rows, show_progress_bar=False)
    assert module.improved and abs(module.history[-1]["training"]) < 10
    assert float(abs(module.transform(rows.numpy())).max()) < 10


@pytest.mark.parametrize("preset", ["paper", "published"])
@pytest.mark.parametrize("size", [0.0, 1e-30, 1e-12, 1e-8])
def test_a_nearly_dead_dimension_is_a_constant_one(preset: str, size: float) -> None:
    points, constant = curved(width=8).astype(np.float32), curved(width=8).astype(np.float32)
    points[:, 3] = (points[:, 3] - 5) * size
    constant[:, 3] = 0
    module = NormalizingFlow.from_preset(preset, 8).fit(points, epochs=2, batch_size=32)
    expected = NormalizingFlow.from_preset(preset, 8).fit(constant, epochs=2, batch_size=32)
    assert module.improved and expected.improved
    for entry, other in zip(module.history, expected.history, strict=True):
        assert entry == pytest.approx(other, abs=0.01)
    assert np.abs(module.transform(points)[:, 3]).max() < 10


def test_the_scale_of_a_constant_has_a_limit_and_does_not_count(caplog: pytest.LogCaptureFixture) -> None:
    points = normal(8, 64)
    points[:, 2] = 7
    module = NormalizingFlow(8).fit(points, epochs=8, batch_size=8, learning_rate=0.1, held_out=0)
    first: Any = module.flow.levels[0]
    limit = (math.log(1000) - math.log(7)) / 3
    assert first[0].log_scale[2].item() == pytest.approx(limit, abs=1e-3)
    assert module.history[-1]["training"] < module.history[1]["training"] - 1
    assert not module.improved and "never became better" in caplog.text


def test_larger_scales_of_constants_are_no_progress() -> None:
    points = torch.from_numpy(curved())
    points[:, 2] = 7
    flow = Flow(6, levels=1, depth=1)
    flow.initialize(points)
    judged, value = _measured(flow, points)
    norm: Any = next(iter(flow.levels[0].children()))
    norm.log_scale[2] += 0.5
    assert _measured(flow, points) == pytest.approx((judged, value - 1.5 / 6))


@pytest.mark.parametrize("scale", [1e-20, 1e20])
def test_rounding_of_large_numbers_stays_small(scale: float) -> None:
    points = curved(width=8).astype(np.float32) * np.float32(scale)
    points[:, 3] = 5 * scale * (1 + 1e-6 * normal(1, 300)[:, 0])
    module = NormalizingFlow(8).fit(points, epochs=3, batch_size=64)
    first: Any = module.flow.levels[0]
    assert (first[0](torch.from_numpy(points))[0][:, 3].abs() < 0.01).all() and module.improved


@pytest.mark.parametrize("scale", [1e-12, 1e-4, 1.0, 1e6, 1e15])
def test_the_unit_of_measurement_does_not_matter(scale: float) -> None:
    points = curved(width=8).astype(np.float32)
    units = scale ** np.linspace(0.9, 1, 8)
    module = NormalizingFlow(8).fit((points * units).astype(np.float32), epochs=3, batch_size=64)
    expected = NormalizingFlow(8).fit(points, epochs=3, batch_size=64)
    gains = [fit.history[0]["held_out"] - fit.history[-1]["held_out"] for fit in (module, expected)]
    assert gains[0] == pytest.approx(gains[1], abs=1e-3) and gains[1] > 0.01


@pytest.mark.parametrize("case", ["twice", "half", "outlier"])
def test_awkward_embeddings_are_fitted(case: str) -> None:
    points: Any = curved(width=8)
    if case == "twice":
        points[:, 5] = points[:, 4]
    elif case == "half":
        points = points.astype(np.float16)
    else:
        points[:, 0] *= 1e4
    module = NormalizingFlow(8).fit(points, epochs=5, batch_size=64)
    assert module.improved and np.isfinite(module.transform(points)).all()


def test_resuming_knows_which_is_constant() -> None:
    points = curved()
    points[:, 2] = 7
    module = NormalizingFlow(6).fit(points, epochs=1)
    again = copy.deepcopy(module).fit(points[:80], epochs=8, learning_rate=0.1, batch_size=16, held_out=0, resume=True)
    before, after = (next(iter(fit.flow.levels[0].children())) for fit in (module, again))
    assert before.log_scale[2] < after.log_scale[2] == after.limit[2] < 2


# -------------------------------------------------------------------------------------------- fits of no use


@pytest.mark.parametrize("held_out", [0.1, 0.0])
def test_a_fit_that_never_improves_says_so(held_out: float, caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    module = NormalizingFlow(6, coupling="affine").fit(
        curved(60), epochs=2, learning_rate=0.5, held_out=held_out, batch_size=8
    )
    assert "never became better than it was before the fit" in caplog.text and "learning_rate than 0.5" in caplog.text
    assert not module.improved
    assert not NormalizingFlow.load(str(saved(module, tmp_path / "flow"))).improved


def test_a_fit_of_use_says_nothing(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert NormalizingFlow(6).fit(curved(), epochs=2).improved
    assert caplog.text == ""
    assert not NormalizingFlow(6).improved


def test_a_last_step_that_overflows_is_noticed() -> None:
    with pytest.raises(ValueError, match="NaN or infinite in epoch 1"):
        NormalizingFlow(6).fit(curved(40), epochs=1, batch_size=40, learning_rate=1e20, held_out=0)
