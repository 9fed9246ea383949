"""RE2 outside eager PyTorch: as an ONNX file and compiled."""

from __future__ import annotations

import importlib.util
import logging
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from st_plugins.core.writing.atomic import file_target
from st_plugins.matching import LearnedEmbedding, TransformerTokens
from st_plugins.methods.re2.config import RE2Config
from st_plugins.methods.re2.export import OPSET, export_onnx
from st_plugins.methods.re2.network import RE2

WIDTH = 6
HAS_ONNX = all(importlib.util.find_spec(name) is not None for name in ("onnx", "onnxscript", "onnxruntime"))
needs_onnx = pytest.mark.skipif(not HAS_ONNX, reason="needs the extra onnx")


def network(**options: Any) -> RE2:
    torch.manual_seed(0)
    built = RE2(RE2Config(**({"hidden_dimension": 8, "blocks": 2} | options)), WIDTH, 3)
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return built.eval()


def batch(lengths: list[int]) -> tuple[Tensor, Tensor]:
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    return torch.randn(len(lengths), max(lengths), WIDTH), mask


def run(path: Path, **inputs: Tensor) -> Tensor:
    from onnxruntime import InferenceSession

    session = InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(["logits"], {name: value.numpy() for name, value in inputs.items()})[0])


@needs_onnx
def test_onnx_gives_the_same_logits_for_all_lengths(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    import onnx

    built = network()
    a, a_mask = batch([2])
    before = built(a, a_mask, a, a_mask)
    path = export_onnx(built, tmp_path / "re2.onnx")
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert torch.equal(built(a, a_mask, a, a_mask), before)  # the network keeps its own form
    assert any("parametrizations" in name for name in built.state_dict())
    assert [path.name for path in tmp_path.iterdir()] == ["re2.onnx"]
    assert {entry.domain: entry.version for entry in onnx.load(path).opset_import}[""] == OPSET
    for first, second in (([5, 3, 4], [4, 4, 4]), ([1], [1]), ([7, 2], [1, 9]), ([3, 0], [0, 2])):
        (a, a_mask), (b, b_mask) = batch(first), batch(second)
        with torch.no_grad():
            expected = built(a, a_mask, b, b_mask)
        found = run(path, first=a, first_mask=a_mask, second=b, second_mask=b_mask)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


@needs_onnx
@pytest.mark.slow
@pytest.mark.parametrize("name", ["snli", "quora", "scitail", "wikiqa"])
def test_onnx_of_the_authors_configurations(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    built = RE2(RE2Config.named(name), WIDTH, 3).eval()
    (a, a_mask), (b, b_mask) = batch([20, 7]), batch([30, 11])
    found = run(export_onnx(built, tmp_path / "re2.onnx"), first=a, first_mask=a_mask, second=b, second_mask=b_mask)
    torch.testing.assert_close(found, built(a, a_mask, b, b_mask), rtol=0, atol=1e-4)


@needs_onnx
def test_onnx_with_its_vectors_reads_ids(tmp_path: Path) -> None:
    source = LearnedEmbedding.from_texts(["a dog runs", "a cat sleeps"], WIDTH)
    built = network(blocks=1, alignment="identity", kernel_sizes=(1, 3), prediction="symmetric_exact")
    path = export_onnx(built, tmp_path / "re2.onnx", source)
    with pytest.raises(FileExistsError, match=r"path '.*re2\.onnx' exists; choose another file or overwrite"):
        export_onnx(built, path, source)
    file_target(path, overwrite=True, mark=b"first_mask")  # an export is known as one
    first, second = source.tokenize(["a dog runs", "dogs"]), source.tokenize(["a cat", "a cat sleeps"])
    with torch.no_grad():
        expected = built(*source(first), *source(second))
    found = run(
        path,
        first_ids=first["input_ids"],
        first_mask=first["attention_mask"].bool(),
        second_ids=second["input_ids"],
        second_mask=second["attention_mask"].bool(),
    )
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


@needs_onnx
def test_the_file_cuts_what_the_tokenizer_would_cut(tmp_path: Path) -> None:
    source = LearnedEmbedding.from_texts(["a dog runs", "a cat sleeps"], WIDTH)
    built = network(blocks=1, max_seq_length=3)
    path = export_onnx(built, tmp_path / "re2.onnx", source)
    texts = (["a dog runs and runs", "dog", ""], ["a cat", "a cat sleeps and sleeps and sleeps", "a cat sleeps"])
    whole = [source.tokenize(side) for side in texts]
    assert whole[0]["input_ids"].shape[1] > 3
    with torch.no_grad():
        expected = built(*source(source.tokenize(texts[0], 3)), *source(source.tokenize(texts[1], 3)))
        uncut = built(*source(whole[0]), *source(whole[1]))
    feeds = {}
    for name, side in zip(("first", "second"), whole, strict=True):
        feeds |= {f"{name}_ids": side["input_ids"], f"{name}_mask": side["attention_mask"].bool()}
    found = run(path, **feeds)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
    assert not torch.allclose(found[:2], uncut[:2], atol=1e-4)


def test_the_missing_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name.startswith("onnx") else real(name))
    with pytest.raises(ImportError, match=r"needs onnx and onnxscript: pip install 'st-plugins\[onnx\]'"):
        export_onnx(network(), tmp_path / "re2.onnx")
    assert not list(tmp_path.iterdir())


def test_a_transformer_is_not_exported(tmp_path: Path, model: Any) -> None:
    with pytest.raises(TypeError, match="source must be WordVectors or LearnedEmbedding, got TransformerTokens"):
        export_onnx(network(), tmp_path / "re2.onnx", TransformerTokens(model))  # type: ignore[arg-type]


def test_one_graph_serves_all_lengths() -> None:
    """Traced symbolically, as ``torch.compile`` and the exporter do, without a compiler for the machine."""
    built = network()
    graphs = []

    def backend(graph: torch.fx.GraphModule, _: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    torch.compiler.reset()
    compiled = torch.compile(built, backend=backend, dynamic=True, fullgraph=True)
    for first, second in (([5, 3], [4, 2]), ([7, 2], [3, 9]), ([4, 4], [6, 6])):
        (a, a_mask), (b, b_mask) = batch(first), batch(second)
        with torch.no_grad():
            torch.testing.assert_close(compiled(a, a_mask, b, b_mask), built(a, a_mask, b, b_mask), rtol=0, atol=1e-5)
    assert len(graphs) == 1


@pytest.mark.slow
def test_compiled_by_inductor_it_gives_the_same_logits() -> None:
    built = network(blocks=1)
    torch.compiler.reset()
    compiled = torch.compile(built, dynamic=True)
    (a, a_mask), (b, b_mask) = batch([5, 3]), batch([4, 2])
    try:
        with torch.no_grad():
            found = compiled(a, a_mask, b, b_mask)
    except Exception as error:
        pytest.skip(f"torch.compile cannot run here: {str(error)[:100]}")
    torch.testing.assert_close(found, built(a, a_mask, b, b_mask), rtol=0, atol=1e-5)
