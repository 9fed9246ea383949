"""One ONNX file of a whole model, against the model's own ``encode``."""

from __future__ import annotations

import importlib.util
import json
import re
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
from sentence_transformers.sentence_transformer.modules import Pooling, StaticEmbedding
from torch import nn

from st_plugins.miniature import corpus, untrained_encoder
from st_plugins.modules import Whitening
from st_plugins.serving import OnnxEncoder, export_onnx
from st_plugins.serving.inner import graph

MakeModel = Callable[..., SentenceTransformer]

HAS_ONNX = all(importlib.util.find_spec(name) is not None for name in ("onnx", "onnxscript", "onnxruntime"))
needs_onnx = pytest.mark.skipif(not HAS_ONNX, reason="needs the extra onnx")
# The exporter takes a second or two, and a minute where others use the processor.
pytestmark = pytest.mark.timeout(300)
TEXTS = ["", "a", "The dog.", *corpus(20), "a man reads " * 60, "Ünïcode 今天 👩‍🔬 e\u0301"]


@pytest.fixture(scope="module")
def plain() -> SentenceTransformer:
    return untrained_encoder(32)


@pytest.fixture(scope="module")
def file(plain: SentenceTransformer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("onnx") / "model.onnx"
    export_onnx(plain, path)
    return path


@needs_onnx
@pytest.mark.parametrize("batch_size", [1, 7, 32])
def test_the_file_gives_the_vectors_of_the_model(plain: SentenceTransformer, file: Path, batch_size: int) -> None:
    found = OnnxEncoder(file).encode(TEXTS, batch_size=batch_size)
    np.testing.assert_allclose(found, plain.encode(TEXTS), atol=1e-5)
    assert OnnxEncoder(file, threads=1).encode([]).shape == (0, 32)
    assert [one.name for one in file.parent.iterdir()] == ["model.onnx"]


@needs_onnx
def test_everything_after_the_transformer_and_before_it_is_inside(make_model: MakeModel, tmp_path: Path) -> None:
    model = make_model("bert", pooling_mode=Pooling.POOLING_MODES)
    torch.manual_seed(0)
    model.append(Dense(6 * 16, 24))
    model.append(Whitening(24, 12).fit(np.random.default_rng(0).normal(size=(99, 24))))
    model.append(Normalize())
    model.truncate_dim, model.max_seq_length = 9, 20
    model.prompts, model.default_prompt_name = {"query": "the big ", "other": "a cat "}, "query"
    model.similarity_fn_name = "dot"
    found = export_onnx(model, tmp_path / "model.onnx")
    assert found.agrees and found.exact and found.largest_difference < 1e-5
    encoder = OnnxEncoder(tmp_path / "model.onnx")
    np.testing.assert_allclose(encoder.encode(TEXTS), model.encode(TEXTS), atol=1e-5)
    other = model.encode(TEXTS, prompt_name="other")
    assert abs(other - model.encode(TEXTS)).max() > 1e-2
    np.testing.assert_allclose(encoder.encode(TEXTS, prompt_name="other"), other, atol=1e-5)
    np.testing.assert_allclose(encoder.encode(TEXTS, prompt="a cat "), other, atol=1e-5)
    settings = encoder.settings
    assert (settings["embedding_dimension"], settings["max_seq_length"], settings["similarity"]) == (9, 20, "dot")
    assert settings["versions"]["torch"] == torch.__version__ and not settings["int8"]
    with pytest.raises(ValueError, match="prompt_name='none' is none of the model's prompts: query, other"):
        encoder.encode(["a"], prompt_name="none")
    with pytest.raises(ValueError, match="both given"):
        encoder.encode(["a"], prompt="x", prompt_name="query")


@needs_onnx
@pytest.mark.parametrize("kind", ["gpt2", "xlm-roberta"])  # the first counts positions from the left, padding or not
def test_padding_on_the_left_and_positions_of_their_own(make_model: MakeModel, tmp_path: Path, kind: str) -> None:
    model: Any = make_model(kind, pooling_mode="lasttoken")
    model.tokenizer.padding_side, model.tokenizer.truncation_side = "left", "left"
    export_onnx(model.half(), tmp_path / "model.onnx")  # float32 whatever the model is
    texts = [text for text in TEXTS if text]
    found = OnnxEncoder(tmp_path / "model.onnx").encode(texts, batch_size=4)
    np.testing.assert_allclose(found, model.float().encode(texts, batch_size=4), atol=1e-5)


@needs_onnx
@pytest.mark.slow
@pytest.mark.parametrize(
    "kind", ["distilbert", "albert", "electra", "mpnet", "deberta", "deberta-v2", "modernbert", "llama", "t5"]
)
def test_families_of_encoders(make_model: MakeModel, tmp_path: Path, kind: str) -> None:
    model = make_model(kind)
    assert export_onnx(model, tmp_path / "model.onnx").agrees
    found = OnnxEncoder(tmp_path / "model.onnx").encode(TEXTS)
    np.testing.assert_allclose(found, model.encode(TEXTS), atol=1e-5)


@needs_onnx
def test_a_process_that_encodes_imports_no_torch(file: Path, plain: SentenceTransformer) -> None:
    code = (
        "import sys, json; from st_plugins.serving import OnnxEncoder\n"
        f"vectors = OnnxEncoder({str(file)!r}).encode(['The dog.'])\n"
        "print(json.dumps([vectors.tolist(), [m for m in ('torch', 'transformers') if m in sys.modules]]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    vectors, imported = json.loads(done.stdout)
    assert imported == []
    np.testing.assert_allclose(vectors, plain.encode(["The dog."]), atol=1e-5)


@needs_onnx
def test_any_runtime_reads_the_file(file: Path, plain: SentenceTransformer, tmp_path: Path) -> None:
    import onnx
    from onnxruntime import InferenceSession
    from tokenizers import Tokenizer

    session = InferenceSession(str(file), providers=["CPUExecutionProvider"])
    assert {one.name: one.shape for one in session.get_inputs()} == {
        "input_ids": ["batch", "tokens"],
        "attention_mask": ["batch", "tokens"],
    }
    assert [one.name for one in session.get_outputs()] == ["sentence_embedding"]
    onnx.checker.check_model(file)
    written = {one.key: one.value for one in onnx.load(file).metadata_props}
    tokenizer = Tokenizer.from_str(written["tokenizer.json"])
    ids = np.array([tokenizer.encode("The dog runs.").ids])
    found = session.run(None, {"input_ids": ids, "attention_mask": np.ones_like(ids)})[0]
    np.testing.assert_allclose(found, plain.encode(["The dog runs."]), atol=1e-5)


@needs_onnx
def test_int8_keeps_what_comes_after_the_transformer(make_model: MakeModel, tmp_path: Path) -> None:
    import onnx

    model = make_model("bert")
    torch.manual_seed(0)
    model.append(Dense(16, 8))
    found = export_onnx(model, tmp_path / "int8.onnx", int8=True)
    assert not found.exact and 0.9 < found.smallest_cosine < found.mean_cosine < 1
    kinds = [node.op_type for node in onnx.load(tmp_path / "int8.onnx").graph.node]
    assert kinds.count("MatMulInteger") == 2 * 6  # query, key, value, output and two more in each layer
    assert kinds.count("Gemm") + kinds.count("MatMul") == 2 * 2 + 1  # attention, and the Dense
    assert OnnxEncoder(tmp_path / "int8.onnx").settings["int8"]
    assert [one.name for one in tmp_path.iterdir()] == ["int8.onnx"]


class _Draws(nn.Module):
    def forward(self, features: dict[str, Any]) -> dict[str, Any]:
        features["sentence_embedding"] = features["sentence_embedding"] + np.random.default_rng().random()
        return features


class _Branches(nn.Module):
    def forward(self, features: dict[str, Any]) -> dict[str, Any]:
        if features["sentence_embedding"].sum() > 0:
            features["sentence_embedding"] = -features["sentence_embedding"]
        return features


@needs_onnx
@pytest.mark.parametrize(
    ("module", "message"),
    [
        (_Draws(), "gives other vectors than the model .*; it is not written"),
        (_Branches(), "PyTorch cannot export this model .BertModel with Transformer, Pooling, _Branches.: .*[^\n]"),
    ],
)
def test_what_a_graph_cannot_say_is_not_written(
    model: SentenceTransformer, tmp_path: Path, module: nn.Module, message: str
) -> None:
    model.append(module)
    with pytest.raises(ValueError, match=message) as raised:
        export_onnx(model, tmp_path / "model.onnx")
    assert "\n" not in str(raised.value) and "\x1b" not in str(raised.value)
    assert list(tmp_path.iterdir()) == []


def _router(model: Any) -> SentenceTransformer:
    return SentenceTransformer(modules=[Router.for_query_document([*model], [*model])], device="cpu")


def _static(model: Any) -> SentenceTransformer:
    static = StaticEmbedding(model.tokenizer.backend_tokenizer, embedding_dim=4)
    return SentenceTransformer(modules=[static], device="cpu")


def _without_prompt(model: Any) -> SentenceTransformer:
    model[1].include_prompt, model.prompts = False, {"query": "the "}
    return model  # type: ignore[no-any-return]


def _chat(model: Any) -> SentenceTransformer:
    model[0].modality_config = {"message": {}, "text": {}}
    return model  # type: ignore[no-any-return]


@needs_onnx
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_router, "begins with a Router, and only a Transformer can be exported"),
        (_static, "begins with a StaticEmbedding"),
        (_without_prompt, r"include_prompt=False.*remove its prompts"),
        (_chat, "only a Transformer of plain texts"),
    ],
)
def test_what_cannot_be_exported_is_refused(
    model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Any, message: str
) -> None:
    monkeypatch.setattr(torch.onnx, "export", None)  # before any work
    with pytest.raises(ValueError, match=message):
        export_onnx(change(model), tmp_path / "model.onnx")


@needs_onnx
def test_a_model_that_one_file_cannot_hold(
    model: SentenceTransformer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(graph, "_LARGEST", 4 * sum(one.numel() for one in model.parameters()) - 1)
    with pytest.raises(ValueError, match="one ONNX file holds no more than 2 GB"):
        export_onnx(model, tmp_path / "model.onnx")


@needs_onnx
def test_files_are_replaced_only_when_they_are_ours(
    plain: SentenceTransformer, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, foreign = tmp_path / "ours.onnx", tmp_path / "foreign.onnx"
    ours.write_bytes(file.read_bytes())
    foreign.write_bytes(b"somebody's")
    with pytest.raises(FileExistsError, match=re.escape("exists; choose another file or overwrite")):
        export_onnx(plain, ours)
    with pytest.raises(FileExistsError, match="st-plugins did not write"):
        export_onnx(plain, foreign, overwrite=True)
    reached = []
    monkeypatch.setattr("st_plugins.serving.export.write_graph", lambda *_: reached.append(1) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        export_onnx(plain, ours, overwrite=True)
    assert reached and ours.read_bytes() == file.read_bytes()


@needs_onnx
def test_files_that_are_none_of_ours_are_not_read(tmp_path: Path, file: Path) -> None:
    import onnx

    with pytest.raises(FileNotFoundError, match="is no file"):
        OnnxEncoder(tmp_path / "none.onnx")
    (tmp_path / "text.onnx").write_text("no model", encoding="utf-8")
    with pytest.raises(ValueError, match="cannot be read as an ONNX model"):
        OnnxEncoder(tmp_path / "text.onnx")
    graph = onnx.load(file)
    written = {one.key: one.value for one in graph.metadata_props}
    for change, message in (
        ({"tokenizer.json": None}, "without tokenizer"),
        ({"st_plugins.encoder": written["st_plugins.encoder"].replace('"format": 1', '"format": 2')}, "newer"),
    ):
        changed = {key: value for key, value in (written | change).items() if value is not None}
        onnx.helper.set_model_props(graph, changed)
        onnx.save(graph, tmp_path / "changed.onnx")
        with pytest.raises(ValueError, match=message):
            OnnxEncoder(tmp_path / "changed.onnx")


@needs_onnx
def test_texts_that_are_none(file: Path) -> None:
    encoder = OnnxEncoder(file)
    with pytest.raises(TypeError, match="put it into a list"):
        encoder.encode("The dog.")
    with pytest.raises(ValueError, match=r"texts\[1\] holds half a character"):
        encoder.encode(["a", "\ud83d"])
    with pytest.raises(ValueError, match="batch_size=0 must be at least 1"):
        encoder.encode(["a"], batch_size=0)


@pytest.mark.parametrize("package", ["onnx", "onnxscript", "onnxruntime"])
def test_without_the_extra_it_says_what_to_install(
    model: SentenceTransformer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == package else real(name))
    with pytest.raises(ImportError, match=rf"needs .*{package}: pip install 'st-plugins\[onnx\]'"):
        export_onnx(model, tmp_path / "model.onnx")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ImportError, match=r"OnnxEncoder needs onnxruntime: pip install 'st-plugins\[onnx\]'"):
        OnnxEncoder(tmp_path / "model.onnx")
