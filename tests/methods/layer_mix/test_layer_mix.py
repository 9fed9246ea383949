"""The scalar mix against its formula, the published recipes against the encoder's own layers, and its penalty."""

from __future__ import annotations

import copy
import json
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.losses import CachedMultipleNegativesRankingLoss, CosineSimilarityLoss
from torch import Tensor, nn

import st_plugins
from st_plugins.core.dropout import without_dropout
from st_plugins.losses import LayerMixRegularizer
from st_plugins.methods.layer_mix.layer_mix import RECIPES, recipe_weights
from st_plugins.modules import LayerMix
from st_plugins.recipes import first_last_avg, pooling

TEXTS = ["a big dog is playing guitar in the park .", "the cat", "two women , three men", ""]
LAYERS = {"last": (2,), "first-last": (1, 2), "last-two": (1, 2), "embedding": (0,)}  # of an encoder with two


@pytest.fixture
def mixed(make_model: Callable[..., SentenceTransformer]) -> Callable[..., SentenceTransformer]:
    """Return a factory: a tiny encoder with a LayerMix and mean pooling."""

    def build(kind: str = "bert", recipe: str = "learned", **options: Any) -> SentenceTransformer:
        encoder: Any = make_model(kind)
        modules = [encoder[0], LayerMix.after(encoder[0], recipe, **options), encoder[1]]
        return SentenceTransformer(modules=modules, device="cpu").eval()

    return build


def features(lengths: list[int], layers: int = 3, width: int = 4, seed: int = 0) -> dict[str, Any]:
    """Random layers of a batch, NaN in what is padding, each text the same whatever it is padded to."""
    states = torch.full((layers + 1, len(lengths), max(lengths), width), torch.nan, dtype=torch.float64)
    for row, length in enumerate(lengths):
        text = torch.randn(
            layers + 1, 20, width, dtype=torch.float64, generator=torch.Generator().manual_seed(seed + row)
        )
        states[:, row, :length] = (3 * text + 1)[:, :length]
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    return {"all_layer_embeddings": tuple(states), "attention_mask": mask.long(), "token_embeddings": states[-1]}


def oracle(text: list[list[list[float]]], scalars: list[float], gamma: float, layer_norm: bool) -> list[list[float]]:
    """γ Σ softmax(s)_j h_j of one text without padding, one number after the other."""
    total = sum(math.exp(value) for value in scalars)
    result = [[0.0] * len(text[0][0]) for _ in text[0]]
    for layer, value in zip(text, scalars, strict=True):
        numbers = [number for token in layer for number in token]
        mean = sum(numbers) / len(numbers)
        deviation = math.sqrt(sum((number - mean) ** 2 for number in numbers) / len(numbers))
        for i, token in enumerate(layer):
            for k, number in enumerate(token):
                part = (number - mean) / deviation if layer_norm else number
                result[i][k] += gamma * math.exp(value) / total * part
    return result


def random_mix(layer_norm: bool = False) -> LayerMix:
    torch.manual_seed(0)
    module = LayerMix(4, 3, layer_norm=layer_norm).double()
    nn.init.normal_(module.scalars)
    nn.init.constant_(module.gamma, 1.7)
    return module


@pytest.mark.parametrize("layer_norm", [False, True])
def test_the_mix_is_the_formula(layer_norm: bool) -> None:
    module, lengths = random_mix(layer_norm), [5, 2, 1]
    batch = features(lengths)
    found = module(dict(batch))["token_embeddings"]
    for row, length in enumerate(lengths):
        text = [state[row, :length].tolist() for state in batch["all_layer_embeddings"]]
        expected = oracle(text, module.scalars.tolist(), 1.7, layer_norm)
        torch.testing.assert_close(found[row, :length], torch.tensor(expected, dtype=torch.float64), atol=1e-9, rtol=0)


def test_equal_numbers_are_the_mean_and_one_large_number_its_layer() -> None:
    batch = features([4])
    states = torch.stack(batch["all_layer_embeddings"])
    module = LayerMix(4, 3).double()
    torch.testing.assert_close(module(dict(batch))["token_embeddings"], states.mean(dim=0))
    for layer in range(4):
        module.scalars.data = torch.eye(4, dtype=torch.float64)[layer] * 80
        torch.testing.assert_close(module(dict(batch))["token_embeddings"], states[layer])
        assert module.weights().argmax() == layer


def test_gradients_reach_the_weights_the_scale_and_every_layer() -> None:
    module, batch = random_mix(), features([4, 4])
    states = [state.clone().requires_grad_() for state in batch["all_layer_embeddings"]]
    module({**batch, "all_layer_embeddings": tuple(states)})["token_embeddings"].square().sum().backward()
    assert module.scalars.grad is not None and (module.scalars.grad != 0).all()
    assert module.gamma.grad is not None and module.gamma.grad != 0
    assert all(state.grad is not None and state.grad.any() for state in states)
    assert abs(float(module.scalars.grad.sum())) < 1e-9  # softmax: what one layer gains, others lose


def test_layer_norm_is_of_one_text_and_not_of_its_batch_or_padding() -> None:
    module = random_mix(layer_norm=True)
    together = module(features([5, 2]))["token_embeddings"]
    alone = module(features([2], seed=1))["token_embeddings"]
    torch.testing.assert_close(together[1, :2], alone[0])
    assert together.isfinite().all()
    nothing = features([3])
    nothing["attention_mask"].zero_()
    assert module(nothing)["token_embeddings"].isfinite().all()


@pytest.mark.parametrize("layer_norm", [False, True])
def test_a_batch_flattened_by_flash_attention(layer_norm: bool) -> None:
    module, batch = random_mix(layer_norm), features([3, 1, 2])
    counted = batch["attention_mask"].bool()
    flat = {
        "all_layer_embeddings": tuple(state[counted][None] for state in batch["all_layer_embeddings"]),
        "input_ids": torch.ones(1, 6, dtype=torch.long),
        "cu_seq_lens_q": torch.tensor([0, 3, 4, 6]),
    }
    expected = module(dict(batch))["token_embeddings"][counted]
    torch.testing.assert_close(module(flat)["token_embeddings"][0], expected)


@pytest.mark.parametrize(
    ("recipe", "expected"),
    [
        ("last", [0, 0, 0, 0, 1]),
        ("first-last", [0, 0.5, 0, 0, 0.5]),
        ("last-two", [0, 0, 0, 0.5, 0.5]),
        ("embedding", [1, 0, 0, 0, 0]),
    ],
)
def test_recipes_are_these_layers_and_have_no_parameters(recipe: Any, expected: list[float]) -> None:
    module = LayerMix(4, 4, recipe)
    assert module.weights().tolist() == expected == recipe_weights(recipe, 4).tolist()
    assert not list(module.parameters()) and not module.learned
    batch = features([3, 2], layers=4)
    found = module(dict(batch))["token_embeddings"]
    used = [index for index, weight in enumerate(expected) if weight]
    mean = sum(batch["all_layer_embeddings"][index] for index in used) / len(used)
    torch.testing.assert_close(found, mean, equal_nan=True)


def test_recipes_of_the_smallest_encoders() -> None:
    assert recipe_weights("first-last", 1).tolist() == [0, 1] and recipe_weights("last-two", 1).tolist() == [0.5, 0.5]
    assert recipe_weights("last", 0).tolist() == recipe_weights("embedding", 0).tolist() == [1]
    for recipe in ("first-last", "last-two"):
        with pytest.raises(ValueError, match=f"'{recipe}' needs an encoder with layers, but num_hidden_layers is 0"):
            recipe_weights(recipe, 0)


@pytest.mark.parametrize(
    "kind",
    [
        "bert",
        "roberta",
        "distilbert",
        "albert",
        "electra",
        "mpnet",
        "deberta-v2",
        "modernbert",
        "xlnet",
        "gpt2",
        "t5",
        "llama",
    ],
)
def test_recipes_are_the_layers_of_an_encoder(
    mixed: Callable[..., SentenceTransformer], make_model: Callable[..., SentenceTransformer], kind: str
) -> None:
    plain: Any = make_model(kind)
    for recipe, layers in LAYERS.items():
        model = mixed(kind, recipe)
        for text in TEXTS[:2]:
            inputs = {
                key: value for key, value in plain.preprocess([text]).items() if key in ("input_ids", "attention_mask")
            }
            with torch.no_grad():
                states = plain[0].model(**inputs, output_hidden_states=True).hidden_states
            expected = sum(states[layer] for layer in layers)[0].mean(dim=0) / len(layers)
            torch.testing.assert_close(model.encode(text, convert_to_tensor=True), expected, atol=1e-5, rtol=0)
        torch.testing.assert_close(
            model.encode(TEXTS, convert_to_tensor=True),
            torch.stack([model.encode(text, convert_to_tensor=True) for text in TEXTS]),
            atol=1e-5,
            rtol=0,
        )


def test_the_last_layer_is_what_the_encoder_gives_anyway(
    mixed: Callable[..., SentenceTransformer], model: SentenceTransformer
) -> None:
    assert np.array_equal(mixed(recipe="last").encode(TEXTS), model.encode(TEXTS))


def test_first_last_is_the_same_as_with_stock_modules(
    mixed: Callable[..., SentenceTransformer], model: SentenceTransformer, sentences: list[str]
) -> None:
    stock = first_last_avg(model).encode(sentences)
    np.testing.assert_allclose(mixed(recipe="first-last").encode(sentences), stock, atol=1e-6)


def test_hidden_states_are_switched_on_and_stay_so_after_saving(
    mixed: Callable[..., SentenceTransformer], tmp_path: Path
) -> None:
    models = [mixed(), mixed(recipe="last-two", layer_norm=True)]
    nn.init.normal_(LayerMix.of(models[0]).scalars)
    expected = []
    for position, model in enumerate(models):
        assert model[0].model.config.output_hidden_states  # type: ignore[union-attr]
        model.save(str(tmp_path / str(position)), create_model_card=False)
        expected += [model.encode(TEXTS, convert_to_tensor=True)] * 2
    code = (
        "import sys, torch, st_plugins; from sentence_transformers import SentenceTransformer\n"
        "torch.set_num_threads(1)\n"
        "texts, result, *folders = sys.argv[1:]\n"
        "models = [model for folder in folders for model in (st_plugins.load(folder, device='cpu'),\n"
        "    SentenceTransformer(folder, device='cpu', trust_remote_code=True))]\n"
        "torch.save([m.encode(texts.split('|'), convert_to_tensor=True) for m in models], result)"
    )
    arguments = ["|".join(TEXTS), *(str(tmp_path / name) for name in ("result.pt", "0", "1"))]
    subprocess.run([sys.executable, "-c", code, *arguments], check=True)
    for found, wanted in zip(torch.load(tmp_path / "result.pt"), expected, strict=True):
        torch.testing.assert_close(found, wanted, atol=1e-7, rtol=0)
    again = st_plugins.load(tmp_path / "0")
    assert torch.equal(LayerMix.of(again).scalars, LayerMix.of(models[0]).scalars)
    assert torch.equal(again.encode(TEXTS, convert_to_tensor=True), expected[0])


def test_missing_layers_are_an_error_and_the_remedy_works(model: SentenceTransformer) -> None:
    mix = LayerMix.after(model[0], "embedding")  # type: ignore[arg-type]
    model.insert(1, mix)
    with pytest.raises(ValueError, match=r"encoder does not return its layers.*on_model_ready\(model\)"):
        model.encode("a dog")
    mix.on_model_ready(model)
    assert model.encode("a dog").shape == (16,)


def test_it_has_to_stand_between_the_encoder_and_the_pooling(make_model: Callable[..., SentenceTransformer]) -> None:
    encoder: Any = make_model()
    mix = LayerMix.after(encoder[0])
    for modules in ([encoder[0], encoder[1], mix], [mix, encoder[0], encoder[1]]):
        with pytest.raises(ValueError, match="right after the Transformer, before the pooling; the model is"):
            SentenceTransformer(modules=modules, device="cpu")
    with pytest.raises(TypeError, match="must be a Transformer module, got Pooling"):
        LayerMix.after(encoder[1])


@pytest.mark.parametrize(
    ("build", "change", "message"),
    [
        (lambda: LayerMix(4, 2), {}, r"returned 4 layers with the embedding layer.*made for 2 \+ 1"),
        (lambda: LayerMix(5, 3), {}, r"widths \[4, 4, 4, 4\], but this LayerMix was made for 5"),
        (lambda: LayerMix(4, 3), {"all_layer_embeddings": None}, "does not return its layers"),
    ],
)
def test_layers_that_do_not_fit(build: Callable[[], LayerMix], change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()({**features([2]), **change})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 2), "embedding_dimension must be at least 1, got 0"),
        ((4, -1), "num_hidden_layers must be at least 0, got -1"),
        ((4, 2, "first"), "recipe must be one of 'learned', 'last', .*, got 'first'"),
    ],
)
def test_bad_arguments(arguments: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LayerMix(*arguments)
    with pytest.raises(ValueError, match=r"recipe must be one of 'last', .*, got 'learned'"):
        recipe_weights("learned", 2)


def test_the_number_of_weights_is_checked_when_loading(tmp_path: Path) -> None:
    LayerMix(4, 3).save(str(tmp_path))
    assert json.loads((tmp_path / "config.json").read_text()) == {"embedding_dimension": 4, "num_hidden_layers": 3}
    (tmp_path / "config.json").write_text('{"embedding_dimension": 4, "num_hidden_layers": 2}')
    with pytest.raises(ValueError, match=r"(?s)model\.safetensors does not fit .*config\.json.*scalars"):
        LayerMix.load(str(tmp_path))
    (tmp_path / "config.json").write_text('{"embedding_dimension": 4, "num_hidden_layers": 3, "recipe": "best"}')
    with pytest.raises(ValueError, match=r"config\.json does not describe a LayerMix: recipe must be one of"):
        LayerMix.load(str(tmp_path))
    LayerMix(4, 3, "last-two").save(str(tmp_path))
    assert LayerMix.load(str(tmp_path)).weights().tolist() == [0, 0, 0.5, 0.5]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(mixed: Callable[..., SentenceTransformer], dtype: torch.dtype) -> None:
    for options in ({}, {"layer_norm": True}, {"recipe": "first-last"}):
        model = mixed(**options)
        expected = model.encode(TEXTS, convert_to_tensor=True)
        half = copy.deepcopy(model).to(dtype)
        found = half(half.preprocess(TEXTS))
        assert found["token_embeddings"].dtype == dtype
        torch.testing.assert_close(found["sentence_embedding"].float(), expected, atol=0.05, rtol=0)
        found["sentence_embedding"].float().square().sum().backward()
        assert all(parameter.grad.isfinite().all() for parameter in half[1].parameters())
    large = {"all_layer_embeddings": (torch.full((1, 2, 4), 60000.0).half(),) * 4}
    assert LayerMix(4, 3)(large)["token_embeddings"].tolist() == [[[60000.0] * 4] * 2]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert model(model.preprocess(TEXTS))["sentence_embedding"].isfinite().all()


def test_the_report_names_the_layers() -> None:
    module = LayerMix(4, 2)
    module.scalars.data = torch.tensor([math.log(1), math.log(2), math.log(5)])
    module.gamma.data = torch.tensor(0.5)
    assert module.report() == pytest.approx({"embedding": 0.125, "layer 1": 0.25, "layer 2": 0.625, "gamma": 0.5})
    assert LayerMix(4, 2, "first-last").report() == {"embedding": 0, "layer 1": 0.5, "layer 2": 0.5}
    assert not module.weights().requires_grad


def test_pooling_can_be_changed_back(mixed: Callable[..., SentenceTransformer], model: SentenceTransformer) -> None:
    back = pooling(mixed(recipe="first-last"), "mean")
    assert [type(module).__name__ for module in back] == ["Transformer", "Pooling"]
    assert np.array_equal(back.encode(TEXTS), model.encode(TEXTS))


# The penalty.


def columns(model: SentenceTransformer, sentences: list[str]) -> list[dict[str, Tensor]]:
    return [model.preprocess(sentences[:6]), model.preprocess(sentences[30:36])]


@pytest.mark.parametrize(
    "inner", [CosineSimilarityLoss, lambda model: CachedMultipleNegativesRankingLoss(model, mini_batch_size=2)]
)
def test_the_penalty_is_the_squared_length_of_the_numbers(
    mixed: Callable[..., SentenceTransformer], sentences: list[str], inner: Callable[[SentenceTransformer], Any]
) -> None:
    model, labels = mixed().train(), torch.linspace(0, 1, 6)
    mix = LayerMix.of(model)
    mix.scalars.data = torch.tensor([1.0, -2.0, 0.5])
    batch = columns(model, sentences)
    found = []
    with without_dropout(model):
        for loss in (inner(model), LayerMixRegularizer(inner(model), 0.3)):
            value = loss([dict(column) for column in batch], labels)
            terms = value if isinstance(value, dict) else {"plain": value}
            torch.stack(list(terms.values())).sum().backward()
            found.append((terms, mix.scalars.grad.clone(), mix.gamma.grad.clone()))  # type: ignore[union-attr]
            model.zero_grad()
    (plain, own, scale), (terms, both, same) = found
    name = type(inner(model)).__name__
    assert list(terms) == [name, "layer_weights"]
    assert terms[name].item() == pytest.approx(plain["plain"].item(), rel=1e-5)
    assert terms["layer_weights"].item() == pytest.approx(0.3 * (1 + 4 + 0.25))
    torch.testing.assert_close(both, own + 0.6 * mix.scalars.detach(), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(same, scale, atol=1e-5, rtol=1e-4)


def test_the_penalty_keeps_the_layers_together(
    mixed: Callable[..., SentenceTransformer], sentences: list[str]
) -> None:
    lengths = []
    for weight in (0.0, 10.0):
        model = mixed().train()
        loss = LayerMixRegularizer(CosineSimilarityLoss(model), weight)
        optimizer = torch.optim.SGD(LayerMix.of(model).parameters(), lr=0.04)
        LayerMix.of(model).scalars.data = torch.tensor([1.0, -2.0, 0.5])
        for _ in range(5):
            torch.stack(list(loss(columns(model, sentences), torch.ones(6)).values())).sum().backward()
            optimizer.step()
            optimizer.zero_grad()
        lengths.append(LayerMix.of(model).penalty().item())
    assert lengths[1] < 0.1 < 4 < lengths[0]


def test_what_the_penalty_refuses(
    mixed: Callable[..., SentenceTransformer], model: SentenceTransformer, sentences: list[str]
) -> None:
    own = mixed()
    with pytest.raises(ValueError, match="recipe='last-two' has no weights to learn; use recipe='learned'"):
        LayerMixRegularizer(CosineSimilarityLoss(mixed(recipe="last-two")), 0.1)
    with pytest.raises(ValueError, match=r"must have one LayerMix, but has 0; build it with"):
        LayerMixRegularizer(CosineSimilarityLoss(model), 0.1)
    with pytest.raises(ValueError, match=r"weight must be at least 0, got -1"):
        LayerMixRegularizer(CosineSimilarityLoss(own), -1)
    with pytest.raises(TypeError, match=r"model at loss\.model, got Linear"):
        LayerMixRegularizer(nn.Linear(2, 2), 0.1)
    once = LayerMixRegularizer(CosineSimilarityLoss(own), 0.1)
    with pytest.raises(ValueError, match="LayerMixRegularizer has a term 'layer_weights' already"):
        LayerMixRegularizer(once, 0.1)(columns(own, sentences), torch.ones(6))
    assert once.get_config_dict()["loss"] == "CosineSimilarityLoss" and once.get_config_dict()["weight"] == 0.1
    assert "Deep Contextualized" in once.citation


def test_every_recipe_is_tested() -> None:
    assert set(RECIPES) == set(LAYERS)
