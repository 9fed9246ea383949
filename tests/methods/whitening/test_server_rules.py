"""Folded models as text-embeddings-inference serves them: its published rules, written out without the host.

Of huggingface/text-embeddings-inference at commit 0d124dc (July 2026): ``modules.json`` and its four names in
backends/src/lib.rs, pooling and length in router/src/lib.rs, Dense in backends/candle/src/models/dense.rs, their order
in backends/candle/src/lib.rs, the normalization in core/src/infer.rs.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Dense, Normalize, Router
from sentence_transformers.sentence_transformer.modules import Dropout
from tokenizers import Tokenizer
from torch import nn
from transformers import AutoModel

from st_plugins import fold, load, save_for_servers, whiten

MakeModel = Callable[..., SentenceTransformer]


def read(file: Path) -> Any:
    return json.loads(file.read_text(encoding="utf-8"))


def dense_folders(folder: Path) -> list[Path]:
    """One entry that is not as expected, and no Dense is loaded; the server only logs that."""
    found = []
    for row in read(folder / "modules.json"):
        known = ("Dense", "Normalize", "Pooling", "Transformer")
        if row["type"] not in [f"sentence_transformers.models.{name}" for name in known]:
            return []
        if type(row["idx"]) is not int or not isinstance(row["name"], str):
            return []
        if row["type"].endswith("Dense"):
            found.append(folder / row["path"])
    return found


def served(folder: Path, text: str) -> NDArray[np.float64]:
    """Return what ``/embed`` answers; a KeyError is a server that does not start."""
    pooling = read(folder / "1_Pooling" / "config.json")
    cls, mean = pooling["pooling_mode_cls_token"], pooling["pooling_mode_mean_tokens"]
    last = pooling.get("pooling_mode_lasttoken", False)
    assert cls or mean or last
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(read(folder / "sentence_bert_config.json")["max_seq_length"])
    ids = torch.tensor([tokenizer.encode(text).ids])
    with torch.no_grad():
        hidden = AutoModel.from_pretrained(folder).eval()(ids).last_hidden_state[0].double().numpy()
    vector = hidden[0] if cls else hidden.mean(axis=0) if mean else hidden[-1]
    for dense in dense_folders(folder):
        config, tensors = read(dense / "config.json"), load_file(dense / "model.safetensors")
        assert tensors["linear.weight"].shape == (config["out_features"], config["in_features"])
        vector = tensors["linear.weight"].astype(np.float64) @ vector
        if config["bias"]:
            vector = vector + tensors["linear.bias"]
        if config.get("activation_function") == "torch.nn.modules.activation.Tanh":
            vector = np.tanh(vector)
        else:
            assert config.get("activation_function") in (None, "torch.nn.modules.linear.Identity")
    return np.asarray(vector / np.linalg.norm(vector))  # wherever the Normalize is, also without one


TAILS: dict[str, Callable[[], list[nn.Module]]] = {
    "Normalize": lambda: [Normalize()],
    "nothing": list,
    "Dense": lambda: [Dense(16, 12, activation_function=nn.Identity())],
    "LaBSE": lambda: [Dense(16, 12, activation_function=nn.Tanh()), Normalize()],
    "two Dense": lambda: [Dense(16, 12, bias=False), Dense(12, 12, activation_function=nn.Identity()), Normalize()],
}


@pytest.mark.parametrize(
    ("kind", "mode", "tail", "way"),
    [
        *(("bert", "mean", tail, {"center": False, "power": 0.0}) for tail in TAILS),
        ("bert", "mean", "Normalize", {}),
        ("bert", "lasttoken", "nothing", {}),
        ("roberta", "cls", "LaBSE", {}),
        ("mpnet", "mean", "Normalize", {"power": 0.5}),
    ],
)
def test_a_server_gives_the_vectors_of_the_host(
    make_model: MakeModel, sentences: list[str], tmp_path: Path, kind: str, mode: str, tail: str, way: dict[str, Any]
) -> None:
    torch.manual_seed(0)
    model = SentenceTransformer(modules=[*make_model(kind, pooling_mode=mode), *TAILS[tail]()], device="cpu").eval()
    model.double()  # whitening blows up what differs between the sentences of so small an encoder, and its rounding
    folded = fold(whiten(model, sentences, 6, **way))
    expected = folded.encode(sentences, normalize_embeddings=True)
    save_for_servers(folded, tmp_path / "model")
    assert dense_folders(tmp_path / "model")
    for text, vector in zip(sentences[:6], expected, strict=False):
        np.testing.assert_allclose(served(tmp_path / "model", text), vector, atol=1e-5)
    long = " ".join(sentences)
    cut = folded.encode(long, normalize_embeddings=True)
    np.testing.assert_allclose(served(tmp_path / "model", long), cut, atol=1e-5)
    folded.save(str(tmp_path / "stock"), create_model_card=False)
    stock = SentenceTransformer(str(tmp_path / "stock"), device="cpu")
    for again in (SentenceTransformer(str(tmp_path / "model"), device="cpu"), load(tmp_path / "model", device="cpu")):
        assert [type(module) for module in again] == [type(module) for module in folded]
        assert again.max_seq_length == folded.max_seq_length
        assert np.array_equal(again.encode(sentences), stock.encode(sentences))


def test_what_the_host_saves_is_not_served(model: SentenceTransformer, sentences: list[str], tmp_path: Path) -> None:
    """If this fails, the server's older names and keys are back, and `save_for_servers` has nothing left to do."""
    folded = fold(whiten(model, sentences, 6))
    folded.save(str(tmp_path), create_model_card=False)
    assert dense_folders(tmp_path) == []
    with pytest.raises(KeyError, match="pooling_mode_cls_token"):
        served(tmp_path, "a dog")


def test_before_the_normalize_there_is_no_bias_without_a_mean(
    model: SentenceTransformer, sentences: list[str]
) -> None:
    model.append(Normalize())
    rotated: Any = fold(whiten(model, sentences, 6, center=False, power=0))
    assert [type(module).__name__ for module in rotated][2:] == ["Dense", "Normalize"]
    assert rotated[2].linear.bias is None and not rotated[2].get_config_dict()["bias"]
    centered: Any = fold(whiten(model, sentences, 6, power=0))
    assert centered[2].linear.bias is not None


FAULTS: dict[str, tuple[Callable[[SentenceTransformer], list[nn.Module]], str]] = {
    "Whitening": (lambda model: [*model, white()], "servers know no Whitening; fold"),
    "Dropout": (lambda model: [*model, Dropout(0.1), Normalize()], "servers know no Dropout"),
    "Router": (lambda model: [Router.for_query_document([*model], [*model])], "servers know no Router"),
    "order": (lambda model: [*model, Normalize(), Dense(16, 4)], "it comes after the Normalize"),
    "activation": (
        lambda model: [*model, Dense(16, 4, activation_function=nn.ReLU())],
        "no activation function or tanh",
    ),
    "residual": (lambda model: [*model, Dense(16, 16, use_residual=True)], "without a residual"),
    "tokens": (lambda model: [*model, Dense(16, 4, module_input_name="token_embeddings")], "embeddings only"),
    "pooling": (lambda model: [model[0], pooled("max")], "cls, mean, lasttoken only, not by 'max'"),
    "poolings": (lambda model: [model[0], pooled(("cls", "mean"))], r"not by \('cls', 'mean'\)"),
    "no pooling": (lambda model: [model[0]], "begin with one Transformer and one Pooling"),
}


def white() -> nn.Module:
    from st_plugins.modules import Whitening

    return Whitening(16, 4).fit(np.random.default_rng(0).normal(size=(99, 16)))


def pooled(mode: Any) -> nn.Module:
    from sentence_transformers.sentence_transformer.modules import Pooling

    return Pooling(16, mode)  # type: ignore[no-any-return]


@pytest.mark.parametrize("fault", FAULTS)
def test_what_servers_would_do_otherwise_is_refused(model: SentenceTransformer, tmp_path: Path, fault: str) -> None:
    modules, message = FAULTS[fault]
    changed = SentenceTransformer(modules=modules(model), device="cpu")
    with pytest.raises(ValueError, match=message):
        save_for_servers(changed, tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_a_length_is_needed(make_model: MakeModel, tmp_path: Path) -> None:
    rotary = make_model("modernbert")
    save_for_servers(rotary, tmp_path / "model")
    rotary.max_seq_length = 10**30  # a tokenizer's word for no limit
    with pytest.raises(ValueError, match=r"a length to cut texts to; set model\.max_seq_length"):
        save_for_servers(rotary, tmp_path / "unlimited")


def test_prompts_truncation_and_length(
    model: Any, sentences: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model.prompts, model.default_prompt_name, model.truncate_dim = {"query": "the two men "}, "query", 3
    save_for_servers(model, tmp_path / "model")
    assert "default prompt name: query" in caplog.text and "'dimensions': 3" in caplog.text
    vector = served(tmp_path / "model", "the two men " + sentences[0])[:3]
    expected = model.encode(sentences[0], normalize_embeddings=True)
    np.testing.assert_allclose(vector / np.linalg.norm(vector), expected, atol=1e-5)
    with pytest.raises(FileExistsError, match="path"):
        save_for_servers(model, tmp_path / "model")
    save_for_servers(model, tmp_path / "model", overwrite=True)
    model.max_seq_length = 10**30
    save_for_servers(model, tmp_path / "long")
    assert read(tmp_path / "long" / "sentence_bert_config.json")["max_seq_length"] == 40
    model[1].include_prompt = False
    with pytest.raises(ValueError, match="pool the tokens of the prompt too"):
        save_for_servers(model, tmp_path / "prompt")
