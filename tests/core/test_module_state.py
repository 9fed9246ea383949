"""One state: what encodes, folds, is saved and computes in float64 is what ``load_state_dict`` brought."""

from __future__ import annotations

import copy
import doctest
import pickle
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from torch import nn

import st_plugins
from st_plugins import modules
from st_plugins.modules import LayerMix, NormalizingFlow, SpanPooling, TextCNNPooling, TextRNNPooling, Whitening
from st_plugins.recipes import fit_flow, whiten

POINTS = np.random.default_rng(0).normal(2.0, [3.0, 1.0, 0.5, 0.2, 2.0, 1.0], size=(80, 6))
OTHERS = np.random.default_rng(1).normal(-1.0, [0.3, 2.0, 1.5, 1.2, 1.0, 0.1], size=(70, 6))


def fitted(kind: str, points: Any = POINTS) -> Any:
    if kind == "whitening":
        return Whitening(6, 4).fit(points, "first")
    return NormalizingFlow(6, levels=1, depth=2, hidden_dimension=4).fit(points, "first", epochs=2)


def unfitted(kind: str) -> Any:
    return Whitening(6, 4) if kind == "whitening" else NormalizingFlow(6, levels=1, depth=2, hidden_dimension=4)


@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize("kind", ["whitening", "flow"])
def test_what_was_loaded_is_used_everywhere(kind: str, assign: bool, tmp_path: Path) -> None:
    wanted = fitted(kind)
    exact, single = wanted.transform(OTHERS), wanted.transform(OTHERS.astype(np.float32))
    for other in (fitted(kind, OTHERS), unfitted(kind), copy.deepcopy(fitted(kind, OTHERS)).half()):
        other.load_state_dict(copy.deepcopy(wanted.state_dict()), assign=assign)
        again = pickle.loads(pickle.dumps(copy.deepcopy(other)))  # noqa: S301 - what a process pool does
        again.save(str(tmp_path))
        for module in (other, again, again.double(), again.half(), type(other).load(str(tmp_path))):
            assert np.array_equal(module.transform(OTHERS), exact)
            assert np.array_equal(module.transform(OTHERS.astype(np.float32)), single)
            assert module.get_embedding_dimension() == exact.shape[1]
        assert other.sources == ({"state dict": 80} if kind == "whitening" else {})


def test_a_whitening_is_fitted_further_from_what_was_loaded() -> None:
    module = Whitening(6, 4).fit(OTHERS)
    module.load_state_dict(Whitening(6, 4).fit(POINTS).state_dict())
    module.partial_fit(OTHERS)
    whole = Whitening(6, 4).fit([POINTS, OTHERS])
    np.testing.assert_allclose(module.transform(POINTS), whole.transform(POINTS), atol=1e-9)
    np.testing.assert_allclose(module.merge(module).covariance, whole.covariance, atol=1e-9)
    assert module.count == 300 and module.sources == {"state dict": 160, "unnamed": 140}


def test_a_state_that_was_taken_does_not_change() -> None:
    module = Whitening(6, 4).fit(POINTS)
    state = module.state_dict()
    before = {name: tensor.clone() for name, tensor in state.items()}
    module.partial_fit(OTHERS)
    assert all(torch.equal(tensor, before[name]) for name, tensor in state.items())


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("kind", ["whitening", "flow"])
def test_parts_and_foreign_states_are_refused(kind: str, strict: bool) -> None:
    state = fitted(kind, OTHERS).state_dict()
    name = "state.weight" if kind == "whitening" else "flow.levels.0.0.mean"
    partial = {key: tensor for key, tensor in state.items() if key != name}
    for module in (fitted(kind), unfitted(kind)):
        before = None if not module.count else module.transform(OTHERS)
        for bad in (partial, {**state, name: state[name][:2]}, {**state, name: state[name] * float("nan")}):
            with pytest.raises(RuntimeError, match=name.replace("state.", "")):
                module.load_state_dict(bad, strict=strict)
        if before is not None:
            assert np.array_equal(module.transform(OTHERS), before)
        else:
            with pytest.raises(ValueError, match="fitted"):
                module.transform(OTHERS)


def test_other_sizes_and_types_of_a_state_are_refused() -> None:
    state = Whitening(6, 4).fit(POINTS).state_dict()
    with pytest.raises(
        RuntimeError, match=r"output_dimension 3 has weight of shape \(3, 6\), but here it is \(4, 6\)"
    ):
        Whitening(6, 3).load_state_dict(state)
    with pytest.raises(RuntimeError, match="half precision"):
        Whitening(6, 4).load_state_dict({name: tensor.half() for name, tensor in state.items()})
    rank = Whitening(6)
    rank.load_state_dict(state)
    assert rank.get_embedding_dimension() == 4
    fitted("whitening").load_state_dict({}, strict=False)  # a state without this module leaves it as it is


def test_fold_save_and_encode_after_load_state_dict(
    model: SentenceTransformer, sentences: list[str], tmp_path: Path
) -> None:
    for build in (lambda texts: whiten(model, texts, 4), lambda texts: fit_flow(model, texts, epochs=1)):
        a, b = build(sentences[:40]), build(sentences[20:])
        b.load_state_dict(a.state_dict())
        wanted = a.encode(sentences)
        b.save(str(tmp_path / "model"), create_model_card=False)
        assert np.array_equal(b.encode(sentences), wanted)
        assert np.array_equal(st_plugins.load(tmp_path / "model", device="cpu").encode(sentences), wanted)
        if isinstance(b[-1], Whitening):
            np.testing.assert_allclose(st_plugins.fold(b).encode(sentences), wanted, atol=1e-4)


@pytest.mark.parametrize("kind", ["whitening", "flow"])
@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int64, np.bool_, object])
def test_numbers_that_cannot_hold_the_result_are_refused(kind: str, dtype: Any) -> None:
    module = fitted(kind)
    for call in (module.transform, *([module.inverse, module.log_likelihood] if kind == "flow" else [])):
        with pytest.raises(TypeError, match=r"floating-point numbers, got (u?int|bool|object)"):
            call(np.ones((2, 6), dtype))
    with pytest.raises(TypeError, match=r"floating-point numbers, got torch\.int32"):
        module({"sentence_embedding": torch.ones(2, 6, dtype=torch.int32)})
    assert module.transform(np.ones((2, 6), np.float16)).dtype == np.float16
    numbers = module.transform(POINTS)
    assert np.array_equal(module.transform(POINTS.astype(">f8")), numbers)
    assert np.array_equal(
        module.transform(torch.ones(2, 6, dtype=torch.bfloat16)), module.transform(np.ones((2, 6), "f"))
    )


@pytest.mark.parametrize("kind", ["whitening", "flow"])
def test_a_module_is_fitted_as_well_without_gradients_and_of_arrays_of_any_order(kind: str) -> None:
    wanted = fitted(kind).transform(OTHERS)
    with torch.inference_mode():
        module = fitted(kind, np.ascontiguousarray(POINTS[:, ::-1]).astype(">f8")[:, ::-1])
    assert np.array_equal(module.transform(OTHERS), wanted)
    module.load_state_dict(fitted(kind, OTHERS).state_dict())
    assert np.array_equal(module.transform(OTHERS), fitted(kind, OTHERS).transform(OTHERS))


@pytest.mark.parametrize("kind", ["whitening", "flow"])
def test_a_state_comes_back_from_the_device_meta(kind: str) -> None:
    whole = fitted(kind)
    empty = fitted(kind).to("meta")
    assert all(tensor.is_meta for tensor in empty.state_dict().values())
    restored = empty.to_empty(device="cpu")
    restored.load_state_dict(whole.state_dict())
    assert np.array_equal(restored.transform(OTHERS), whole.transform(OTHERS))


@pytest.mark.parametrize(
    "build",
    [
        lambda model: Whitening(16, 4).fit(np.random.default_rng(0).normal(size=(99, 16))),
        lambda model: NormalizingFlow(16, levels=1, depth=1).fit(
            np.random.default_rng(0).normal(size=(99, 16)), epochs=1
        ),
        lambda model: SpanPooling(16),
        lambda model: TextCNNPooling(16, 4),
        lambda model: TextRNNPooling(16, 4),
        lambda model: LayerMix.after(model[0]),
    ],
)
def test_compiled_models_give_the_same_vectors(model: SentenceTransformer, sentences: list[str], build: Any) -> None:
    module = build(model)
    parts = [model[0], module]
    if isinstance(module, LayerMix):
        parts = [model[0], module, model[1]]
    elif isinstance(module, Whitening | NormalizingFlow):
        parts = [*model, module]
    built = SentenceTransformer(modules=parts, device="cpu").eval()
    wanted = built.encode(sentences[:5])
    built.compile(backend="eager")
    np.testing.assert_allclose(built.encode(sentences[:5]), wanted, atol=1e-6)


SAVED = [name for name in modules.__all__ if hasattr(getattr(modules, name), "save")]


@pytest.mark.parametrize("name", SAVED)
def test_examples_of_methods_run_although_the_class_is_public_elsewhere(name: str) -> None:
    kind = getattr(modules, name)
    home = sys.modules[kind.forward.__module__]
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    runner = doctest.DocTestRunner(optionflags=flags)
    found = doctest.DocTestFinder().find(kind, name, module=False, globs={**vars(home), name: kind})
    for example in found:
        runner.run(example)
    assert kind.__module__ == "st_plugins.modules" and any(example.examples for example in found)
    assert not runner.summarize(verbose=False).failed and isinstance(kind, type) and issubclass(kind, nn.Module)
