"""Loading: everything comes back, nothing in the folder runs, and damage is named."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Router
from sentence_transformers.sentence_transformer.modules import StaticEmbedding

import st_plugins
from st_plugins.core.loading.encoder import load_cross_encoder, load_encoder
from st_plugins.io import load_sentence_transformer
from st_plugins.modules import Whitening
from st_plugins.recipes import whiten


@pytest.fixture
def whitened(model: SentenceTransformer, sentences: list[str]) -> SentenceTransformer:
    model.prompts = {"query": "a ", "passage": "the "}
    model.default_prompt_name, model.similarity_fn_name = "passage", "euclidean"
    whitened = whiten(model, sentences, 4)
    whitened.truncate_dim = 3
    return whitened


@pytest.fixture
def folder(whitened: SentenceTransformer, tmp_path: Path) -> Path:
    whitened.save(str(tmp_path / "model"), create_model_card=False)
    return tmp_path / "model"


def rewrite(file: Path, change: dict[str, object], index: int | None = None) -> None:
    content = json.loads(file.read_text())
    (content if index is None else content[index]).update(change)
    file.write_text(json.dumps(content))


def test_round_trip_restores_everything(whitened: SentenceTransformer, folder: Path, sentences: list[str]) -> None:
    again = st_plugins.load(folder, device="cpu")
    assert np.array_equal(again.encode(sentences), whitened.encode(sentences))
    assert again.encode(sentences).shape == (60, 3)
    assert again.prompts["query"] == "a " and again.prompts["passage"] == "the "
    assert (again.default_prompt_name, again.similarity_fn_name, again.truncate_dim) == ("passage", "euclidean", 3)
    assert isinstance(again[2], Whitening) and again[2].count == 60
    assert not again.training


def test_stock_models_of_every_kind_load(
    model: SentenceTransformer, sentences: list[str], encoder_folder: Path, tmp_path: Path
) -> None:
    model.prompts = {"query": "a "}
    model.save(str(tmp_path / "stock"), create_model_card=False)
    stock = st_plugins.load(tmp_path / "stock", device="cpu")
    assert np.array_equal(stock.encode(sentences), model.encode(sentences)) and stock.prompts["query"] == "a "
    plain = st_plugins.load(str(encoder_folder), device="cpu")
    np.testing.assert_allclose(plain.encode(sentences), model.encode(sentences), atol=1e-6)
    static = SentenceTransformer(modules=[StaticEmbedding(model.tokenizer, embedding_dim=8)], device="cpu")
    static.save(str(tmp_path / "static"), create_model_card=False)
    again = st_plugins.load(tmp_path / "static", device="cpu")
    assert np.array_equal(again.encode(sentences), static.encode(sentences))


def test_module_keyword_arguments_survive(folder: Path) -> None:
    rewrite(folder / "modules.json", {"kwargs": ["task"]}, index=1)
    again = st_plugins.load(folder, device="cpu")
    assert again.module_kwargs == {"1": ["task"]}
    assert st_plugins.fold(again).module_kwargs == {"1": ["task"]}


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("evil.Module", "names the module type 'evil.Module'; allowed are"),
        ("os.system", "names the module type 'os.system'"),
        ("st_plugins_evil.Module", "names the module type 'st_plugins_evil.Module'"),
        ("Whitening", "names the module type 'Whitening'"),
        ("st_plugins.io.load", "'st_plugins.io.load', which is not a sentence-transformers module"),
        ("st_plugins.methods.whitening.moments.Moments", "which is not a sentence-transformers module"),
        ("sentence_transformers.SentenceTransformer", "which is not a sentence-transformers module"),
        ("st_plugins.modules.Missing", "'st_plugins.modules.Missing', which is not installed"),
        ("st_plugins.missing.Module", "which is not installed"),
    ],
)
def test_other_module_types_are_refused_by_name(
    folder: Path, kind: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran = folder / "ran"
    code = f"open({str(ran)!r}, 'w').write('x')\nclass Module: pass\n"
    for name in ("evil", "modeling", "st_plugins_evil", "Whitening"):
        (folder / f"{name}.py").write_text(code)
        (folder / "2_Whitening" / f"{name}.py").write_text(code)
    monkeypatch.syspath_prepend(str(folder))
    rewrite(folder / "modules.json", {"type": kind}, index=2)
    with pytest.raises(ValueError, match=message):
        st_plugins.load(folder, device="cpu")
    assert not ran.exists()


def test_code_in_the_folder_never_runs(folder: Path, whitened: SentenceTransformer, sentences: list[str]) -> None:
    ran = folder / "ran"
    (folder / "modeling.py").write_text(f"open({str(ran)!r}, 'w').write('x')\nclass Model: pass\nclass Config: pass\n")
    rewrite(folder / "config.json", {"auto_map": {"AutoModel": "modeling.Model", "AutoConfig": "modeling.Config"}})
    tokenizer = {"auto_map": {"AutoTokenizer": [None, "modeling.Model"]}, "trust_remote_code": True}
    rewrite(folder / "tokenizer_config.json", tokenizer)
    again = st_plugins.load(folder, device="cpu")
    assert np.array_equal(again.encode(sentences), whitened.encode(sentences))
    assert not ran.exists()


def test_types_nested_in_a_router(model: SentenceTransformer, whitened: SentenceTransformer, tmp_path: Path) -> None:
    router = SentenceTransformer(modules=[Router.for_query_document([*whitened], [*model])], device="cpu")
    router.save(str(tmp_path / "router"), create_model_card=False)
    (config,) = (tmp_path / "router").rglob("router_config.json")
    again = st_plugins.load(tmp_path / "router", device="cpu")
    assert np.array_equal(again.encode_query(["a dog"]), router.encode_query(["a dog"]))
    content = json.loads(config.read_text())
    (name,) = [name for name, kind in content["types"].items() if kind.startswith("st_plugins")]
    config.write_text(json.dumps(content | {"types": content["types"] | {name: "evil.Module"}}))
    with pytest.raises(ValueError, match=r"'evil\.Module'; allowed are"):
        st_plugins.load(tmp_path / "router", device="cpu")


@pytest.mark.parametrize(
    "name", ["modules.json", "config_sentence_transformers.json", "config.json", "model.safetensors"]
)
def test_truncated_files_are_named(folder: Path, name: str) -> None:
    whole = (folder / name).read_bytes()
    (folder / name).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=rf"{folder / name} is (damaged|not valid JSON)"):
        st_plugins.load(folder, device="cpu")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[]", "must hold a list with at least one module"),
        ("{}", "must hold a list with at least one module"),
        ('[{"path": ""}]', "without a 'path' and a 'type'"),
        ('[{"path": "../other", "type": "st_plugins.modules.Whitening"}]', "leads out of the folder"),
        ("\ufffe".encode("utf-16").decode("latin-1"), "not valid JSON"),
    ],
)
def test_modules_json_without_sense(folder: Path, content: str, message: str) -> None:
    (folder / "modules.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(ValueError, match=message):
        st_plugins.load(folder)


def test_missing_module_folder_and_other_model_types(folder: Path) -> None:
    rewrite(folder / "config_sentence_transformers.json", {"model_type": "SparseEncoder"})
    with pytest.raises(ValueError, match="model_type 'SparseEncoder'"):
        st_plugins.load(folder, device="cpu")
    rewrite(folder / "config_sentence_transformers.json", {"model_type": "SentenceTransformer"})
    shutil.rmtree(folder / "2_Whitening")
    with pytest.raises(ValueError, match=r"config\.json is missing from"):
        st_plugins.load(folder, device="cpu")


def test_paths_that_are_no_model(tmp_path: Path) -> None:
    for path in (tmp_path / "none", str(tmp_path / "none"), "./none", "~/no-such-model", "a/b/c", "models\\none"):
        with pytest.raises(FileNotFoundError, match="does not exist"):
            st_plugins.load(path)
    with pytest.raises(FileNotFoundError, match="contains no model"):
        st_plugins.load(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="is a file"):
        st_plugins.load(tmp_path / "file")


@pytest.mark.parametrize("device", ["nowhere", "", "cpu\x1b[2J", "cuda:99"])
def test_a_device_that_is_not_there_is_named_before_anything_is_read(device: str, tmp_path: Path) -> None:
    for read in (st_plugins.load, load_sentence_transformer, load_encoder, load_cross_encoder):
        with pytest.raises(ValueError, match=r"device=.* is not there, torch says"):
            read(tmp_path / "nothing", device)


def test_an_empty_path_is_not_this_folder() -> None:
    with pytest.raises(ValueError, match="path '' is empty"):
        st_plugins.load("")
