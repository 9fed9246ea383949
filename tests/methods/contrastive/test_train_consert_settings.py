"""What a training leaves as the user had it, and what of it the texts are trained and measured with."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Normalize, Router, Transformer

from st_plugins.data import Pairs
from st_plugins.evaluation import STSSuiteEvaluator
from st_plugins.geometry.probe import Probe
from st_plugins.methods.contrastive.train_preparation import training_length
from st_plugins.training import train_consert

Seen = list[tuple[bool, list[list[int]], Any]]


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Iterator[Seen]:
    """What each forward of a Transformer was given: whether in training, ids, prompt length."""
    found: Seen = []
    forward = Transformer.forward

    def record(self: Transformer, features: dict[str, Any], **kwargs: Any) -> Any:
        found.append((torch.is_grad_enabled(), features["input_ids"].tolist(), features.get("prompt_length")))
        return forward(self, features, **kwargs)

    monkeypatch.setattr(Transformer, "forward", record)
    yield found


def run(model: Any, texts: list[str], output: Path, **settings: Any) -> Any:
    defaults: dict[str, Any] = {"epochs": 1, "batch_size": 20, "learning_rate": 1e-3, "eval_steps": 3}
    return train_consert(model, texts, output, **(defaults | {"device": "cpu", "show_progress_bar": False} | settings))


def test_the_model_keeps_its_length(
    model: SentenceTransformer, sentences: list[str], tmp_path: Path, seen: Seen
) -> None:
    model.max_seq_length = 8
    assert run(model, sentences, tmp_path / "own").model.max_seq_length == 8
    assert max(len(row) for training, ids, _ in seen for row in ids if training) == 8
    seen.clear()
    assert run(model, sentences, tmp_path / "shorter", max_seq_length=5).model.max_seq_length == 8
    assert {len(row) for training, ids, _ in seen for row in ids if training} == {5}
    assert max(len(row) for training, ids, _ in seen for row in ids if not training) == 8  # the geometry
    seen.clear()
    assert run(model, sentences, tmp_path / "longer", max_seq_length=30).model.max_seq_length == 8
    assert max(len(row) for training, ids, _ in seen for row in ids if training) == 8
    with pytest.raises(ValueError, match="max_seq_length=2 leaves no token"):
        run(model, sentences, tmp_path / "none", max_seq_length=2)


def test_what_cannot_be_trained_is_said_before_the_first_step(
    model: SentenceTransformer, sentences: list[str], tmp_path: Path, seen: Seen
) -> None:
    with pytest.raises(TypeError, match="dev must be Pairs, got a str"):
        run(model, sentences, tmp_path / "out", dev="pairs.tsv")
    model.requires_grad_(False)
    with pytest.raises(ValueError, match="no weights to train"):
        run(model, sentences, tmp_path / "out")
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=2, target_modules=["query"])
    model.add_adapter(config)
    model[0].model.peft_config["default"].base_model_name_or_path = str(tmp_path / "gone")
    with pytest.raises(ValueError, match=r"base model '.*gone', which is not there"):
        run(model, sentences, tmp_path / "out")
    assert not seen and not any(tmp_path.iterdir())


def test_a_training_prompt_is_not_recorded_as_the_models_own(
    model: SentenceTransformer, sentences: list[str], tmp_path: Path
) -> None:
    dev = Pairs("dev", sentences[:20], sentences[20:40], np.arange(20.0))
    result = run(model, sentences, tmp_path / "out", dev=dev, prompt="a dog ")
    for found in (result.before, result.after):
        prompts = found.settings["measured"]["prompts"]
        assert prompts == {"used": {"dev": ["a dog ", "a dog "]}, "own": {"dev": [None, None]}}


def test_a_tokenizer_without_a_limit(make_model: Callable[..., SentenceTransformer]) -> None:
    model = make_model("llama")  # rotary positions
    model.max_seq_length = int(1e30)
    assert training_length(model, None) is None and training_length(model, 7) == 7


def test_settings_of_the_model_stay(model: SentenceTransformer, sentences: list[str], tmp_path: Path) -> None:
    model.append(Normalize())
    model.prompts, model.default_prompt_name = {"x": "the two men "}, "x"
    model.similarity_fn_name, model.truncate_dim = "dot", 5
    model.set_pooling_include_prompt(False)
    for prompt in (None, "a dog "):
        result = run(model, sentences, tmp_path / str(prompt), prompt=prompt).model
        assert result.prompts["x"] == "the two men " and set(result.prompts) <= {"x", "query", "document"}
        assert (result.default_prompt_name, result.similarity_fn_name, result.truncate_dim) == ("x", "dot", 5)
        assert [type(module).__name__ for module in result] == ["Transformer", "Pooling", "Normalize"]
        assert result[1].include_prompt is False


@pytest.mark.parametrize(
    ("prompt", "words", "settings"),
    [
        (None, "the two men ", {"views": ("none", "none")}),
        (None, "the two men ", {"mini_batch_size": 7}),
        ("a dog ", "a dog ", {}),
        ("", "", {}),
    ],
)
def test_every_text_carries_the_prompt(
    model: Any,
    sentences: list[str],
    tmp_path: Path,
    seen: Seen,
    prompt: str | None,
    words: str,
    settings: dict[str, Any],
) -> None:
    model.prompts, model.default_prompt_name = {"x": "the two men "}, "x"
    model.set_pooling_include_prompt(False)
    run(model, sentences, tmp_path / "out", prompt=prompt, **settings)
    start = [model.tokenizer.cls_token_id, *model.tokenizer(words, add_special_tokens=False)["input_ids"]]
    trained = [(ids, length) for training, ids, length in seen if training]
    assert {tuple(row[: len(start)]) for ids, _ in trained for row in ids} == {tuple(start)}
    assert {length for _, length in trained} == {len(start) if words else None}


def test_before_is_the_users_model(model: SentenceTransformer, sentences: list[str], tmp_path: Path) -> None:
    gold = np.random.default_rng(0).random(30)
    dev = Pairs("toy-dev", sentences[:30], sentences[30:], gold)
    model.bfloat16()
    model.prompts, model.default_prompt_name = {"x": "the two men "}, "x"
    evaluator = STSSuiteEvaluator([dev], floor=False, geometry=False, bootstrap_samples=0, show_progress_bar=False)
    expected = evaluator.evaluate(model).average["spearman_all"].value
    result = run(model, sentences, tmp_path / "own", dev=dev, max_seq_length=4)
    assert result.before.average["spearman_all"].value == expected
    assert model.dtype == torch.bfloat16 and result.model.dtype == torch.float32
    model.prompts["x"] = "a dog "
    other = evaluator.evaluate(model).average["spearman_all"].value
    model.prompts["x"] = "the two men "
    result = run(model, sentences, tmp_path / "asked", dev=dev, prompt="a dog ", learning_rate=1e-9)
    assert result.before.average["spearman_all"].value == other != expected
    assert result.after.average["spearman_all"].value == pytest.approx(other, abs=0.05)


def test_routes_are_refused(
    make_model: Callable[..., SentenceTransformer], sentences: list[str], tmp_path: Path
) -> None:
    router = Router.for_query_document([*make_model()], [*make_model("roberta")], default_route="document")
    with pytest.raises(ValueError, match="the model has the routes 'query', 'document'"):
        run(SentenceTransformer(modules=[router], device="cpu"), sentences, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_geometry_of_two_passes_has_the_prompt(model: Any, sentences: list[str], seen: Seen) -> None:
    model.prompts, model.default_prompt_name = {"x": "the two men "}, "x"
    Probe(sentences).measure(model)
    assert len({tuple(row[:4]) for _, ids, _ in seen for row in ids}) == 1
