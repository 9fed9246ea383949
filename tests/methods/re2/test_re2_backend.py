"""RE2 matchers that predict and rank with the ONNX file of their network."""

from __future__ import annotations

import copy
import importlib.util
import logging
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from st_plugins.matching import LearnedEmbedding, RE2Config, RE2Matcher, TransformerTokens
from st_plugins.methods.re2 import onnx_network
from st_plugins.methods.re2.onnx_network import ONNX_FILE, OnnxNetwork

HAS_ONNX = all(importlib.util.find_spec(name) is not None for name in ("onnx", "onnxscript", "onnxruntime"))
needs_onnx = pytest.mark.skipif(not HAS_ONNX, reason="needs the extra onnx")

TEXTS = ["a dog runs", "", "a cat sleeps and sleeps and sleeps", "dogs", "a cat", "the dog of the cat runs"]
PAIRS = [(first, second) for first in TEXTS for second in TEXTS[::2]]


def untrained(source: Any = None) -> RE2Matcher:
    torch.manual_seed(0)
    source = source or LearnedEmbedding.from_texts(TEXTS, 6, minimum_frequency=1)
    matcher = RE2Matcher(source, RE2Config(blocks=1, hidden_dimension=8, max_seq_length=4))
    with torch.no_grad():
        for parameter in matcher.network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return matcher.eval()


@pytest.fixture(scope="module")
def exported() -> RE2Matcher:
    if not HAS_ONNX:
        pytest.skip("needs the extra onnx")
    return untrained().set_backend("onnx")


@pytest.fixture
def never_exported(monkeypatch: pytest.MonkeyPatch) -> None:
    def export(*_: Any) -> Any:
        raise AssertionError("exported anew")

    monkeypatch.setattr(onnx_network, "export_onnx", export)


@pytest.mark.parametrize("threads", [1, 2])
def test_the_scores_are_those_of_pytorch(
    exported: RE2Matcher, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, threads: int
) -> None:
    monkeypatch.setattr(onnx_network, "_ROWS", 10)  # a batch is computed in parts
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    expected = untrained().predict(PAIRS)
    assert np.ptp(expected) > 0.01
    for batch_size in (1, 3, 64):
        found = exported.predict(PAIRS, batch_size=batch_size)
        assert found.shape == expected.shape and found.dtype == expected.dtype
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)
    assert exported.predict([]).shape == (0,)
    assert exported.predict(PAIRS[4]) == pytest.approx(expected[4], abs=1e-4)
    # What is beyond max_seq_length is cut, and said to be.
    assert "more than 4 tokens" in caplog.text
    cut = exported.predict([("a cat sleeps and rests", "dogs"), ("a cat sleeps and sleeps", "dogs")])
    assert cut[0] == cut[1]


def test_the_network_is_not_called(exported: RE2Matcher, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("forward", "first_encoding"):
        monkeypatch.setattr(exported.network, name, None)
    exported.predict(PAIRS)
    exported.rank("a dog", TEXTS)


def test_ranks_are_those_of_pytorch(exported: RE2Matcher) -> None:
    plain = untrained()
    expected = plain.rank("a dog sleeps", TEXTS, return_documents=True)
    kept = exported.encode_texts(TEXTS)
    for documents in (TEXTS, kept, [*kept[:3], *TEXTS[3:]]):
        found = exported.rank("a dog sleeps", documents)
        assert [row["corpus_id"] for row in found] == [row["corpus_id"] for row in expected]
        assert [row["score"] for row in found] == pytest.approx([row["score"] for row in expected], abs=1e-4)
    # What was kept is whole, and serves a matcher in PyTorch too.
    assert [row["score"] for row in plain.rank("a dog sleeps", kept)] == [row["score"] for row in expected]
    other = [text._replace(vectors=text.vectors[:, :5]) for text in kept]
    with pytest.raises(ValueError, match="second must be token vectors of width 6, got 5; encode texts with the same"):
        exported.rank("a dog sleeps", other)
    assert exported.explain(("a dog", "a cat")).blocks


def test_a_transformers_tokens_are_matched_too(
    exported: RE2Matcher, monkeypatch: pytest.MonkeyPatch, model: Any
) -> None:
    source = TransformerTokens(model)
    width = source.embedding_dimension

    class Sum:
        def __call__(self, first: Any, second: Any) -> Any:
            assert {text.shape[1] for text in (*first, *second)} == {width}
            return torch.tensor([[one.sum() + two.sum()] for one, two in zip(first, second, strict=True)])

    matcher = RE2Matcher(source, RE2Config(blocks=1, hidden_dimension=8))
    matcher._onnx = Sum()  # type: ignore[assignment]
    assert matcher.predict(PAIRS).shape == (len(PAIRS),)


def test_the_file_is_saved_and_opened(exported: RE2Matcher, never_exported: None, tmp_path: Path) -> None:
    expected = exported.predict(PAIRS)
    exported.save(tmp_path / "saved")
    assert (tmp_path / "saved" / ONNX_FILE).is_file()
    again = RE2Matcher.load(tmp_path / "saved", backend="onnx")
    assert again.backend == "onnx" and np.array_equal(again.predict(PAIRS), expected)
    plain = RE2Matcher.load(tmp_path / "saved")
    assert plain.backend == "torch"
    np.testing.assert_allclose(plain.predict(PAIRS), expected, rtol=0, atol=1e-4)
    plain.save(tmp_path / "plain")
    assert not (tmp_path / "plain" / ONNX_FILE).exists()
    again.save(tmp_path / "saved", overwrite=True)
    assert np.array_equal(RE2Matcher.load(tmp_path / "saved", backend="onnx").predict(PAIRS), expected)
    again.set_backend("torch")
    assert again.backend == "torch"


def test_copies_have_the_file(exported: RE2Matcher, never_exported: None) -> None:
    expected = exported.predict(PAIRS)
    for again in (copy.deepcopy(exported), pickle.loads(pickle.dumps(exported))):  # noqa: S301 - our own
        assert again.backend == "onnx" and np.array_equal(again.predict(PAIRS), expected)


def test_a_folder_without_the_file_is_exported_on_the_way(
    exported: RE2Matcher, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    untrained().save(tmp_path / "saved")
    monkeypatch.setattr(OnnxNetwork, "exported", lambda network: exported._onnx)
    with caplog.at_level(logging.WARNING):
        matcher = RE2Matcher.load(tmp_path / "saved", backend="onnx")
    assert f"saved has no {ONNX_FILE}: the network is exported now. Save the matcher to keep the file." in caplog.text
    assert np.array_equal(matcher.predict(PAIRS), exported.predict(PAIRS))


def test_a_file_that_is_not_the_saved_one_is_named(exported: RE2Matcher, never_exported: None, tmp_path: Path) -> None:
    exported.save(tmp_path / "saved")
    file = tmp_path / "saved" / ONNX_FILE
    content = file.read_bytes()
    for changed in (content[:-1], content + b"\0", b""):
        file.write_bytes(changed)
        with pytest.raises(ValueError, match=r"model\.onnx is not what was saved with the matcher, or is damaged"):
            RE2Matcher.load(tmp_path / "saved", backend="onnx")
    file.unlink()
    with pytest.raises(FileNotFoundError, match=r"has no onnx/model\.onnx, but its record does; copy the folder"):
        RE2Matcher.load(tmp_path / "saved", backend="onnx")
    RE2Matcher.load(tmp_path / "saved")
    untrained().save(tmp_path / "plain")
    (tmp_path / "plain" / "onnx").mkdir()
    (tmp_path / "plain" / ONNX_FILE).write_bytes(content)  # of another matcher, it may be
    with pytest.raises(ValueError, match="is not what was saved with the matcher"):
        RE2Matcher.load(tmp_path / "plain", backend="onnx")
    with pytest.raises(ValueError, match="here cannot be read as an ONNX model"):
        OnnxNetwork(content[:100], "here")


def test_a_backend_that_there_is_not(exported: RE2Matcher, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    matcher = untrained()
    matcher.save(tmp_path / "saved")
    for call in (matcher.set_backend, lambda name: RE2Matcher.load(tmp_path / "saved", backend=name)):
        with pytest.raises(ValueError, match="backend must be 'torch' or 'onnx', got 'openvino'"):
            call("openvino")
    with pytest.raises(ValueError, match="backend='onnx' computes on the CPU, got device='cuda'; leave it out"):
        RE2Matcher.load(tmp_path / "saved", "cuda", backend="onnx")
    with pytest.raises(ValueError, match="fit needs the backend 'torch', got 'onnx'"):
        exported.fit([("a", "b", 1.0)])
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxruntime" else real(name))
    for call in (matcher.set_backend, lambda name: RE2Matcher.load(tmp_path / "saved", backend=name)):
        with pytest.raises(ImportError, match=r"backend='onnx' needs onnxruntime: pip install 'st-plugins\[onnx\]'"):
            call("onnx")
    assert matcher.backend == "torch"


def test_numbers_that_are_none_are_named(exported: RE2Matcher) -> None:
    matcher = copy.deepcopy(exported)
    with torch.no_grad():
        matcher.source.embedding.weight.fill_(float("nan"))  # type: ignore[union-attr]
    with pytest.raises(ValueError, match=r"the logits of pairs \[0\] are NaN or infinite"):
        matcher.predict([("a dog", "a cat")])
