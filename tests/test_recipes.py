"""Whitening a model, and the published pooling, against loops over what the encoder returns."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Dense, Normalize, Router
from sentence_transformers.sentence_transformer.modules import Dropout, StaticEmbedding
from torch import nn

from st_plugins.methods.whitening.fold import fold
from st_plugins.modules import NormalizingFlow, Whitening
from st_plugins.recipes import first_last_avg, fit_flow, pooling, whiten

MakeModel = Callable[..., SentenceTransformer]


def test_embeddings_become_white_and_the_input_stays(model: SentenceTransformer, sentences: list[str]) -> None:
    before, state = model.encode(sentences), {k: v.clone() for k, v in model.state_dict().items()}
    whitened = whiten(model, sentences, 6, source="sixty sentences")
    output = whitened.encode(sentences).astype(np.float64)
    np.testing.assert_allclose(output.mean(axis=0), 0, atol=1e-3)
    np.testing.assert_allclose(np.cov(output.T, ddof=0), np.eye(6), atol=1e-3)
    assert whitened.get_embedding_dimension() == 6 and whitened[2].sources == {"sixty sentences": 60}
    with torch.no_grad():
        for parameter in whitened.parameters():
            parameter.zero_()
    assert [type(module).__name__ for module in model] == ["Transformer", "Pooling"]
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert np.array_equal(model.encode(sentences), before)


def test_equals_fitting_on_the_encoded_sentences(
    model: SentenceTransformer, sentences: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("st_plugins.core.appending._BLOCK", 7)
    duplicated = [*sentences, *sentences[:20]]
    whitened = whiten(model, duplicated, 5, shrinkage="ledoit-wolf", normalize=True)
    alone = Whitening(16, 5, shrinkage="ledoit-wolf", normalize=True).fit(model.encode(duplicated))
    np.testing.assert_allclose(whitened.encode(sentences), alone.transform(model.encode(sentences)), atol=1e-4)
    assert whitened[2].count == 80


@pytest.mark.parametrize("center", [True, False])
@pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
def test_center_and_power_are_the_modules(
    model: SentenceTransformer, sentences: list[str], center: bool, power: float
) -> None:
    whitened: Any = whiten(model, sentences, 5, center=center, power=power)
    vectors = model.encode(sentences).astype(np.float64)
    mean = vectors.mean(axis=0) if center else np.zeros(16)
    _, singular, directions = np.linalg.svd(vectors - mean)
    expected = (vectors - mean) @ directions[:5].T / (singular[:5] ** 2 / 60) ** (power / 2)
    np.testing.assert_allclose(np.abs(whitened.encode(sentences)), np.abs(expected), atol=1e-3)


def test_few_texts_are_enough_for_a_rotation(model: SentenceTransformer, sentences: list[str]) -> None:
    few = sentences[:9]
    for center in (True, False):
        rotated: Any = whiten(model, few, 16, center=center, power=0)
        weight = rotated[2].weight.numpy()
        np.testing.assert_allclose(weight @ weight.T, np.eye(16), atol=1e-12)
    assert whiten(model, few[:4], 4, center=False).get_embedding_dimension() == 4
    with pytest.raises(ValueError, match="output_dimension is 10, but 9 texts have rank 9 at most"):
        whiten(model, few, 10, center=False)
    with pytest.raises(ValueError, match="power must be a number"):
        whiten(model, few, 5, power=2)
    with pytest.raises(TypeError, match="center must be True or False"):
        whiten(model, few, 5, center="no")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="all equal"):
        whiten(model, few[:1] * 30, 5, center=False, power=0)


def unit_lengths(vectors: np.ndarray) -> np.ndarray:
    return np.asarray(np.abs(np.linalg.norm(vectors, axis=1) - 1))


def test_before_the_normalize_with_the_prompt(model: SentenceTransformer, sentences: list[str]) -> None:
    model.prompts, model.default_prompt_name = {"query": "the two men "}, "query"
    pooled, otherwise_prompted = model.encode(sentences), model.encode(sentences, prompt="a dog ")
    model.append(Normalize())
    model.similarity_fn_name = "dot"
    whitened: Any = whiten(model, sentences, 5)
    assert [type(module).__name__ for module in whitened][2:] == ["Whitening", "Normalize"]
    np.testing.assert_allclose(whitened[2].fitted_mean, pooled.mean(axis=0), atol=1e-5)
    white = Whitening(16, 5, normalize=True).fit(pooled).transform(pooled)
    np.testing.assert_allclose(whitened.encode(sentences), white, atol=1e-4)
    assert (whitened.default_prompt_name, whitened.similarity_fn_name) == ("query", "dot")
    assert [type(module).__name__ for module in model] == ["Transformer", "Pooling", "Normalize"]
    other: Any = whiten(model, sentences, 5, prompt="a dog ")
    np.testing.assert_allclose(other[2].fitted_mean, otherwise_prompted.mean(axis=0), atol=1e-5)


UNIT: dict[str, Callable[[SentenceTransformer], list[nn.Module]]] = {
    "Normalize": lambda model: [*model, Normalize()],
    "two Normalize": lambda model: [*model, Normalize(), Normalize()],
    "Whitening": lambda model: [
        *model,
        Whitening(16, 8, normalize=True).fit(np.random.default_rng(0).normal(size=(99, 16))),
    ],
    "Dense": lambda model: [*model, Normalize(), Dense(16, 16), Normalize()],
    "Dropout": lambda model: [*model, Normalize(), Dropout(0.3)],
    "Router": lambda model: [Router.for_query_document([*model, Normalize()], [*model, Normalize()])],
}


@pytest.mark.parametrize("kind", UNIT)
@pytest.mark.parametrize("change", ["whiten", "fold", "flow"])
def test_unit_length_is_kept(model: SentenceTransformer, sentences: list[str], kind: str, change: str) -> None:
    unit = SentenceTransformer(modules=UNIT[kind](model), device="cpu").eval()
    route = "document" if kind == "Router" else None
    for normalize in (False, True):
        if change == "flow":
            changed = fit_flow(unit, sentences, epochs=1, route=route, normalize=normalize)
        else:
            changed = whiten(unit, sentences, 5, route=route, normalize=normalize)
        changed = fold(changed) if change == "fold" else changed
        encode = changed.encode_document if route else changed.encode
        assert unit_lengths(encode(sentences)).max() < 1e-5
        assert [type(module).__name__ for module in changed].count("Normalize") <= 3


def test_dropout_alone_does_not_end_a_model(model: SentenceTransformer, sentences: list[str]) -> None:
    model.append(Dropout(0.3))
    assert [type(module).__name__ for module in whiten(model, sentences, 5)][2:] == ["Dropout", "Whitening"]


@pytest.mark.parametrize("fit", [whiten, fit_flow])
def test_what_is_no_list_of_sentences_is_named(
    model: SentenceTransformer, sentences: list[str], fit: Callable[..., Any]
) -> None:
    class Frame(list[str]):
        columns = ("text",)

    for table in ({"text": sentences, "more": sentences}, Frame(["text", "more", "label"])):
        with pytest.raises(TypeError, match="give one column of it"):
            fit(model, table)
    with pytest.raises(TypeError, match="prompt must be a string"):
        fit(model, sentences, prompt=5)
    with pytest.raises(ValueError, match="prompt holds half a character"):
        fit(model, sentences, prompt="\ud83d")
    for wrong, error in (("8", TypeError), (1.5, TypeError), (0, ValueError)):
        with pytest.raises(error, match="output_dimension must be"):
            whiten(model, sentences, wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="shrinkage must be"):
        whiten(model, sentences, 5, shrinkage=None)  # type: ignore[arg-type]


def test_a_model_without_unit_length_does_not_get_it(model: SentenceTransformer, sentences: list[str]) -> None:
    assert unit_lengths(whiten(model, sentences, 5).encode(sentences)).max() > 0.5


def test_a_folded_model_is_served_as_it_is(model: SentenceTransformer, sentences: list[str]) -> None:
    """Servers apply each Dense right after the pooling, and normalize last."""
    pooled = torch.from_numpy(model.encode(sentences))
    model.append(Normalize())
    folded = fold(whiten(model, sentences, 5))
    for module in folded:
        if isinstance(module, Dense):
            pooled = module({"sentence_embedding": pooled})["sentence_embedding"]
    served = nn.functional.normalize(pooled, dim=1).detach().numpy()
    np.testing.assert_allclose(folded.encode(sentences), served, atol=1e-5)


def test_truncation_does_not_cut_what_is_asked_for(model: SentenceTransformer, sentences: list[str]) -> None:
    model.truncate_dim = 3
    assert whiten(model, sentences, 5).encode(sentences).shape == (60, 5)
    assert whiten(model, sentences, 2).truncate_dim == whiten(model, sentences, 3).truncate_dim == 3
    whitened: Any = whiten(model, sentences)
    assert whitened.encode(sentences).shape == (60, 3) and whitened[2].get_embedding_dimension() == 15
    assert fold(whiten(model, sentences, 5)).encode(sentences).shape == (60, 5)
    assert model.truncate_dim == 3


def test_routes_are_named(model: SentenceTransformer, make_model: MakeModel, sentences: list[str]) -> None:
    router = Router.for_query_document([*make_model("roberta")], [*model], default_route="document")
    routed = SentenceTransformer(modules=[router], device="cpu").eval()
    for fit in (whiten, fit_flow):
        with pytest.raises(ValueError, match="the model has the routes 'document', 'query'"):
            fit(routed, sentences)
        with pytest.raises(ValueError, match="route is 'answer'"):
            fit(routed, sentences, route="answer")
        with pytest.raises(ValueError, match="the model has no routes"):
            fit(model, sentences, route="query")
    whitened: Any = whiten(routed, sentences, 5, route="query")
    np.testing.assert_allclose(whitened[1].fitted_mean, routed.encode_query(sentences).mean(axis=0), atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_models(model: SentenceTransformer, sentences: list[str], dtype: torch.dtype) -> None:
    whitened = whiten(model.to(dtype), sentences, 3)
    output = whitened.encode(sentences, convert_to_tensor=True)
    assert output.dtype == dtype and whitened[2].weight.dtype == torch.float64
    np.testing.assert_allclose(np.cov(output.double().numpy().T, ddof=0), np.eye(3), atol=0.05)


def test_full_rank_and_its_limits(model: SentenceTransformer, sentences: list[str]) -> None:
    few = sentences[:9]
    assert whiten(model, few, None).get_embedding_dimension() == 8
    assert whiten(model, few, 16, shrinkage=0.1).encode(few).shape == (9, 16)
    with pytest.raises(ValueError, match="output_dimension is 9, but 9 texts have rank 8 at most"):
        whiten(model, few, 9)
    with pytest.raises(ValueError, match="15 texts, 3 of them different, have rank 2 at most"):
        whiten(model, few[:3] * 5, 4)
    assert whiten(model, sentences).get_embedding_dimension() == 15  # of 16: LayerNorm takes one
    with pytest.raises(ValueError, match="output_dimension is 256, but the model's embeddings have only 16"):
        whiten(model, sentences, 256)
    with pytest.raises(ValueError, match="all equal"):
        whiten(model, ["a dog"] * 30, 1)


def test_empty_strings_are_sentences(model: SentenceTransformer, sentences: list[str]) -> None:
    assert np.isfinite(whiten(model, [*sentences, "", " "], 4).encode(["", "a dog"])).all()


def test_bad_sentences(model: SentenceTransformer) -> None:
    with pytest.raises(TypeError, match="got one string"):
        whiten(model, "a dog", 4)
    with pytest.raises(TypeError, match=r"texts\[1\] is a int"):
        whiten(model, ["a dog", 3], 4)  # type: ignore[list-item]
    with pytest.raises(ValueError, match="texts has 0 entries"):
        whiten(model, [], 4)
    with pytest.raises(ValueError, match="texts has 1 entries"):
        whiten(model, ["a dog"], 4)


def test_embeddings_that_are_not_finite_are_named(model: Any, sentences: list[str]) -> None:
    with torch.no_grad():
        model[0].model.embeddings.word_embeddings.weight[model.tokenizer.convert_tokens_to_ids("dog")] = torch.nan
    first = next(index for index, sentence in enumerate(sentences) if "dog" in sentence)
    with pytest.raises(ValueError, match=f"row {first} holds nan"):
        whiten(model, sentences, 4)


def test_progress_bar(model: SentenceTransformer, sentences: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    whiten(model, sentences, 4)
    assert "Whitening" not in capsys.readouterr().err
    whiten(model, sentences, 4, show_progress_bar=True)
    assert "60/60" in capsys.readouterr().err


def test_a_flow_is_fitted_on_the_encoded_sentences(
    model: SentenceTransformer, sentences: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("st_plugins.core.appending._BLOCK", 7)
    before, state = model.encode(sentences), {k: v.clone() for k, v in model.state_dict().items()}
    flowed: Any = fit_flow(model, sentences, "code", epochs=2, depth=1, normalize=True, source="sixty sentences")
    assert [type(module).__name__ for module in flowed] == ["Transformer", "Pooling", "NormalizingFlow"]
    alone = NormalizingFlow(16, levels=3, depth=1, permutation="reverse", normalize=True)
    alone.fit([model.encode(sentences[start : start + 7]) for start in range(0, 60, 7)], epochs=2)
    np.testing.assert_allclose(flowed.encode(sentences), alone.transform(before), atol=1e-4)
    assert flowed[2].sources == {"sixty sentences": 60} and not flowed[2].training
    assert [type(module).__name__ for module in model] == ["Transformer", "Pooling"]
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert all(torch.equal(value, state[key]) for key, value in flowed.state_dict().items() if key in state)
    other = fit_flow(model, sentences, epochs=2, generator=torch.Generator().manual_seed(1))
    assert np.abs(other.encode(sentences) - fit_flow(model, sentences, epochs=2).encode(sentences)).max() > 1e-3


def test_a_flow_of_a_half_precision_model_with_prompt_and_truncation(
    model: SentenceTransformer, sentences: list[str]
) -> None:
    model.prompts, model.default_prompt_name, model.truncate_dim = {"query": "the two men "}, "query", 3
    flowed: Any = fit_flow(model.half(), sentences, epochs=1)
    assert flowed.encode(sentences).shape == (60, 3) and flowed.default_prompt_name == "query"
    output = flowed.encode(sentences, truncate_dim=16, convert_to_tensor=True)
    assert output.dtype == torch.float16 and output.float().std(dim=0).mean().item() == pytest.approx(1, abs=0.2)


def test_bad_input_of_a_flow(model: SentenceTransformer, sentences: list[str]) -> None:
    with pytest.raises(TypeError, match="got one string"):
        fit_flow(model, "a dog")
    with pytest.raises(ValueError, match="texts has 2 entries, but a flow needs at least 3"):
        fit_flow(model, ["a dog", "a cat"])
    with pytest.raises(ValueError, match="preset must be one of"):
        fit_flow(model, sentences, "glow")
    with pytest.raises(ValueError, match="choose levels <= 4"):
        fit_flow(model, sentences, levels=5)
    with pytest.raises(ValueError, match="all equal"):
        fit_flow(model, ["a dog"] * 30)


def oracle_first_last(model: Any, sentences: list[str]) -> np.ndarray:
    """One sentence at a time, without padding: token after token, the mean of the first and the last layer."""
    rows = []
    for sentence in sentences:
        inputs = model.tokenizer([sentence], return_tensors="pt")
        with torch.no_grad():
            states = model[0].model(**inputs, output_hidden_states=True).hidden_states
        tokens = [(states[1][0, i] + states[-1][0, i]) / 2 for i in range(inputs["input_ids"].shape[1])]
        rows.append((sum(tokens) / len(tokens)).numpy())
    return np.stack(rows)


@pytest.mark.parametrize("kind", ["bert", "roberta", "distilbert", "modernbert", "mpnet", "llama"])
def test_first_last_avg_is_the_loop_with_padding_and_after_a_plain_reload(
    make_model: MakeModel, kind: str, sentences: list[str], tmp_path: Path
) -> None:
    model: Any = make_model(kind, pooling_mode="cls" if kind != "llama" else "mean")
    if kind == "llama":
        model.tokenizer.padding_side = "right"
    texts = ["a dog", *sentences[:5], "the man"]
    expected = oracle_first_last(model, texts)
    averaged = first_last_avg(model)
    np.testing.assert_allclose(averaged.encode(texts), expected, atol=1e-5)
    assert np.abs(model.encode(texts) - expected).max() > 1e-3
    assert not model[0].model.config.output_hidden_states
    averaged.save(str(tmp_path / "model"), create_model_card=False)
    again = SentenceTransformer(str(tmp_path / "model"), device="cpu")
    np.testing.assert_allclose(again.encode(texts), expected, atol=1e-5)


def test_first_last_avg_in_a_new_process(model: SentenceTransformer, tmp_path: Path) -> None:
    averaged = first_last_avg(model)
    averaged.save(str(tmp_path / "model"), create_model_card=False)
    assert all(
        row["type"].startswith("sentence_transformers.")
        for row in json.loads((tmp_path / "model" / "modules.json").read_text())
    )
    program = (
        "import sys, numpy as np; from sentence_transformers import SentenceTransformer\n"
        "np.save(sys.argv[2], SentenceTransformer(sys.argv[1], device='cpu').encode(['a dog', 'the man is reading']))"
    )
    arguments = [str(tmp_path / "model"), str(tmp_path / "out.npy")]
    subprocess.run([sys.executable, "-c", program, *arguments], check=True)
    output = np.load(tmp_path / "out.npy")
    np.testing.assert_allclose(output, averaged.encode(["a dog", "the man is reading"]), atol=1e-6)


def test_changing_the_pooling(model: SentenceTransformer, make_model: MakeModel, sentences: list[str]) -> None:
    model.append(Normalize())
    changed = pooling(model, "cls")
    expected = make_model("bert", pooling_mode="cls").encode(sentences, normalize_embeddings=True)
    np.testing.assert_allclose(changed.encode(sentences), expected, atol=1e-6)
    back = pooling(first_last_avg(changed), "mean")
    np.testing.assert_allclose(back.encode(sentences), model.encode(sentences), atol=1e-6)
    with pytest.raises(ValueError, match="median"):
        pooling(model, "median")


def test_pooling_needs_a_bare_transformer(model: SentenceTransformer, sentences: list[str]) -> None:
    with pytest.raises(ValueError, match="has a Whitening after its pooling"):
        first_last_avg(whiten(model, sentences, 4))
    static = SentenceTransformer(modules=[StaticEmbedding(model.tokenizer, embedding_dim=8)], device="cpu")
    with pytest.raises(ValueError, match="first module must be a Transformer, got StaticEmbedding"):
        first_last_avg(static)
