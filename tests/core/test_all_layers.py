"""All layers, wherever the model goes: copied, pickled, compiled, with an adapter, saved and loaded."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer
from transformers.utils import output_capturing

import st_plugins
from st_plugins import first_last_avg
from st_plugins.core import all_layers
from st_plugins.core.all_layers import keep_layers
from st_plugins.modules import LayerMix

MakeModel = Callable[..., SentenceTransformer]


def mixed(encoder: Any) -> SentenceTransformer:
    return SentenceTransformer(
        modules=[encoder[0], LayerMix.after(encoder[0], "first-last"), encoder[1]], device="cpu"
    ).eval()


RECIPES: dict[str, Callable[[SentenceTransformer], SentenceTransformer]] = {
    "first_last_avg": first_last_avg,
    "LayerMix": mixed,
}


@pytest.fixture(params=RECIPES)
def recipe(request: pytest.FixtureRequest) -> Callable[[SentenceTransformer], SentenceTransformer]:
    return RECIPES[request.param]


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], None]]:
    """Return what makes this process like one in which no encoder has been built yet."""
    registry = output_capturing._CAN_RECORD_REGISTRY
    known = dict(registry)

    def forget() -> None:
        registry.clear()
        monkeypatch.setattr(all_layers, "_PROCESS", "another process")

    yield forget
    registry.clear()
    dict.update(registry, known)


def unpickled(content: bytes) -> Any:
    return pickle.loads(content)  # noqa: S301 - our own


def lora() -> Any:
    peft = pytest.importorskip("peft")
    return peft.LoraConfig(task_type="FEATURE_EXTRACTION", target_modules=["query"], r=2)


def test_transformers_forgets_how_to_record_layers_in_a_new_process(
    model: SentenceTransformer, elsewhere: Callable[[], None]
) -> None:
    """The reason for all this: where it is no longer so, the hook can go."""
    encoder: Any = model[0]
    encoder.model.config.output_hidden_states = True
    features = model.preprocess(["a dog"])
    moved = unpickled(pickle.dumps(model))
    assert "all_layer_embeddings" in model(dict(features))
    with pytest.raises(AttributeError, match="local object"):
        pickle.dumps(model)
    elsewhere()
    assert "all_layer_embeddings" not in moved(dict(features))


def test_unpickled_elsewhere(
    model: SentenceTransformer, sentences: list[str], recipe: Any, elsewhere: Callable[[], None]
) -> None:
    layers = recipe(model)
    fresh = pickle.dumps(layers)
    expected = layers.encode(sentences)
    used = pickle.dumps(layers)
    assert np.abs(expected - model.encode(sentences)).max() > 1e-3
    elsewhere()
    for moved in (fresh, used):
        np.testing.assert_allclose(unpickled(moved).encode(sentences), expected, atol=1e-6)
    np.testing.assert_allclose(layers.encode(sentences), expected, atol=1e-6)


def test_copies(model: SentenceTransformer, sentences: list[str], recipe: Any) -> None:
    layers = recipe(model)
    expected = layers.encode(sentences)
    for twin in (copy.deepcopy(layers), copy.copy(layers), copy.deepcopy(copy.deepcopy(layers))):
        np.testing.assert_allclose(twin.encode(sentences), expected, atol=1e-6)
    assert copy.deepcopy(layers[0])._forward_pre_hooks.popitem()[1].transformer is not layers[0]


def test_with_another_encoder_inside(make_model: MakeModel, sentences: list[str], recipe: Any) -> None:
    layers, other = recipe(make_model("bert")), make_model("roberta")
    expected = recipe(other)
    layers[0].model = copy.deepcopy(other[0].model)
    layers[0].model.config.output_hidden_states = False
    np.testing.assert_allclose(layers.encode(sentences), expected.encode(sentences), atol=1e-6)


def test_with_an_adapter(model: SentenceTransformer, sentences: list[str], recipe: Any) -> None:
    layers = recipe(model)
    expected = layers.encode(sentences)
    layers.add_adapter(lora())
    np.testing.assert_allclose(layers.encode(sentences), expected, atol=1e-6)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
def test_inside_the_wrapper_of_peft(model: SentenceTransformer, sentences: list[str], recipe: Any) -> None:
    config = lora()
    from peft import get_peft_model

    layers = recipe(model)
    expected = layers.encode(sentences)
    layers[0].model = get_peft_model(layers[0].model, config)
    np.testing.assert_allclose(layers.encode(sentences), expected, atol=1e-6)


def test_saved_as_an_adapter(model: SentenceTransformer, sentences: list[str], recipe: Any, tmp_path: Path) -> None:
    model.save(str(tmp_path / "base"), create_model_card=False)
    layers = recipe(SentenceTransformer(str(tmp_path / "base"), device="cpu"))
    layers.add_adapter(lora())
    expected = layers.encode(sentences)
    layers.save(str(tmp_path / "model"), create_model_card=False)
    assert not (tmp_path / "model" / "config.json").exists()
    again = SentenceTransformer(str(tmp_path / "model"), device="cpu", trust_remote_code=True)
    np.testing.assert_allclose(again.encode(sentences), expected, atol=1e-6)


def test_compiled(
    model: SentenceTransformer, sentences: list[str], recipe: Any, elsewhere: Callable[[], None]
) -> None:
    layers = recipe(model)
    expected = layers.encode(sentences)
    moved = unpickled(pickle.dumps(layers))
    elsewhere()
    for one in (layers, moved):
        one.compile(backend="eager")
        np.testing.assert_allclose(one.encode(sentences), expected, atol=1e-6)


def test_a_plain_reload_fails_rather_than_read_the_last_layer(
    model: SentenceTransformer, sentences: list[str], tmp_path: Path, elsewhere: Callable[[], None]
) -> None:
    first_last_avg(model).save(str(tmp_path), create_model_card=False)
    plain = SentenceTransformer(str(tmp_path), device="cpu")
    kept = st_plugins.load(tmp_path, device="cpu")
    moved, kept_elsewhere, expected = pickle.dumps(plain), pickle.dumps(kept), kept.encode(sentences)
    elsewhere()
    with pytest.raises(TypeError):
        unpickled(moved).encode(sentences)
    np.testing.assert_allclose(unpickled(kept_elsewhere).encode(sentences), expected, atol=1e-6)


def test_an_encoder_without_its_layers_is_noticed(
    model: SentenceTransformer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    layers: Any = first_last_avg(model)
    keep_layers(layers)
    assert not caplog.records
    layers[0].model.config.output_hidden_states = False
    keep_layers(layers)
    assert "only the last one is read" in caplog.text
    keep_layers(model)
    assert len(caplog.records) == 1
