"""Whether runtimes give the same vectors, and what ``st-plugins export`` and ``verify`` say of it."""

from __future__ import annotations

import copy
import importlib.util
import re
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.text import Text
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Dense, Normalize
from sklearn.metrics.pairwise import paired_cosine_distances

from st_plugins.cli import app as cli
from st_plugins.miniature import corpus, untrained_encoder
from st_plugins.serving import OnnxEncoder, Verification, verification, verify
from st_plugins.serving.verification import agreement

Run = Callable[..., tuple[int, str, str]]

HAS_ONNX = all(importlib.util.find_spec(name) is not None for name in ("onnx", "onnxscript", "onnxruntime"))
needs_onnx = pytest.mark.skipif(not HAS_ONNX, reason="needs the extra onnx")
pytestmark = pytest.mark.timeout(300)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    def call(*args: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["st-plugins", *args])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        captured = capsys.readouterr()
        return int(stop.value.code or 0), captured.out, captured.err

    return call


def saved(model: SentenceTransformer, folder: Path) -> str:
    model.save(str(folder), create_model_card=False)
    return str(folder)


def test_the_figures_are_those_of_scikit_learn() -> None:
    a, b = np.random.default_rng(0).normal(size=(2, 9, 5)).astype(np.float32)
    a[0, 0] = 3.0
    found = agreement("one", a, "other", b)
    cosines = 1 - paired_cosine_distances(a.astype(float), b.astype(float))
    assert found.smallest_cosine == pytest.approx(cosines.min()) and not found.agrees
    assert found.mean_cosine == pytest.approx(cosines.mean())
    assert found.largest_difference == pytest.approx(abs(a - b).max() / abs(a).max(), rel=1e-6)
    near = agreement("one", a, "other", a + np.float32(2e-5), tolerance=1e-5)
    assert near.agrees  # of numbers up to 3
    assert not agreement("one", a, "other", a + np.float32(9e-5), tolerance=1e-5).agrees
    assert agreement("one", a, "other", a + np.float32(0.01), exact=False).agrees
    assert not agreement("one", a, "other", b, exact=False).agrees


def test_nan_is_no_agreement_and_no_vector_is_like_itself() -> None:
    a = np.ones((2, 3), dtype=np.float32)
    for exact in (True, False):
        assert not agreement("one", a, "other", a * np.float32("nan"), exact=exact).agrees
        assert agreement("one", 0 * a, "other", 0 * a, exact=exact).agrees
    with pytest.raises(ValueError, match="one gives 3 dimensions and other 2: they are two models"):
        agreement("one", a, "other", a[:, :2])
    assert not Verification(2, [], {"onnx": "not installed"}).agrees


def test_a_server_takes_linear_layers_before_the_length(model: SentenceTransformer, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model.append(Dense(16, 8))
    texts = corpus(5)
    before = saved(SentenceTransformer(modules=[*model, Normalize()], device="cpu"), tmp_path / "before")
    assert verify(before, ["server"], texts).agrees
    after = saved(
        SentenceTransformer(modules=[model[0], model[1], Normalize(), model[2]], device="cpu"), tmp_path / "after"
    )
    found = verify(after, ["server"], texts)
    assert not found.agrees and [*found.to_terminal().columns[-1].cells] == [Text("NO")]
    # What a server gives, by hand.
    pooled = SentenceTransformer(modules=[model[0], model[1]], device="cpu").encode(texts, convert_to_tensor=True)
    dense: Any = model[2]
    theirs = torch.tanh(dense.linear(pooled.clone())).detach().numpy()
    mine = SentenceTransformer(after, device="cpu").encode(texts)
    expected = 1 - paired_cosine_distances(mine.astype(float), theirs.astype(float))
    assert found.agreements[0].smallest_cosine == pytest.approx(expected.min(), abs=1e-6)


def test_what_servers_do_not_know_is_said(make_model: Callable[..., SentenceTransformer], tmp_path: Path) -> None:
    found = verify(saved(make_model("bert", pooling_mode="max"), tmp_path), ["server"], ["a dog"])
    assert not found.agreements and "not by 'max'" in found.missing["server"]


def test_the_backend_of_the_host_is_asked_where_it_works(
    model: SentenceTransformer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, asked = saved(model, tmp_path), []

    def host(path: str, **options: Any) -> SentenceTransformer:
        asked.append((path, options["backend"]))
        other: Any = copy.deepcopy(model)
        other[0].model.embeddings.word_embeddings.weight.data *= 2
        return other  # type: ignore[no-any-return]

    monkeypatch.setattr(verification, "SentenceTransformer", host)
    monkeypatch.setitem(sys.modules, "optimum", types.ModuleType("optimum"))
    monkeypatch.setitem(sys.modules, "optimum.onnxruntime", types.ModuleType("optimum.onnxruntime"))
    found = verify(folder, ["onnx"])
    assert "does not work with what is installed (cannot import name" in found.missing["onnx"]
    sys.modules["optimum.onnxruntime"].ORTModelForFeatureExtraction = None  # type: ignore[attr-defined]
    found = verify(folder, ["onnx"])
    assert asked == [(folder, "onnx")] and [one.second for one in found.agreements] == ["onnx"] and not found.agrees


def test_bad_arguments(model: SentenceTransformer, tmp_path: Path) -> None:
    folder = saved(model, tmp_path / "model")
    for runtimes, texts, message in (
        (["tensorrt"], None, "'tensorrt' is none of torch, onnx, server"),
        (["torch"], None, "nothing to compare torch with"),
        (["server"], [], "texts is empty"),
    ):
        with pytest.raises(ValueError, match=message):
            verify(folder, runtimes, texts)


def test_the_command_says_when_nothing_could_be_compared(
    run: Run, make_model: Callable[..., SentenceTransformer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "optimum", None)
    folder = saved(make_model("bert", pooling_mode="max"), tmp_path / "model")
    code, out, err = run("verify", folder, "--runtime", "onnx")
    assert code == 1 and "onnx: not installed" in out and "pip install" in out and "nothing was compared" in err
    code, out, err = run("verify", folder, "--column", "text")
    assert code == 1 and "--column has no effect without --texts" in err


@needs_onnx
def test_export_and_verify(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optimum", None)
    folder, file, small = str(tmp_path / "model"), str(tmp_path / "one.onnx"), str(tmp_path / "int8.onnx")
    untrained_encoder(32).save(folder, create_model_card=False)
    code, out, _ = run("export", folder, "--onnx", file, "--max-seq-length", "12")
    assert code == 0 and re.search(r"wrote .*one\.onnx: 0\.\d MB; largest difference \d\.\de-0\d to torch", out)
    assert OnnxEncoder(file).settings["max_seq_length"] == 12
    code, _, err = run("export", folder, "--onnx", file)
    assert code == 1 and "--onnx" in err and "choose another file or --overwrite" in err
    assert run("export", folder, "--onnx", file, "--overwrite")[0] == 0
    assert OnnxEncoder(file).settings["max_seq_length"] == 64
    code, _, err = run("export", folder, "--onnx", str(tmp_path / "model" / "model.onnx"))
    assert code == 1 and "lies in the input model" in err
    code, _, err = run("export", folder, "--onnx", str(tmp_path / "one.bin"))
    assert code == 1 and "--onnx" in err and "one.bin' must end in .onnx" in err
    assert not (tmp_path / "one.bin").exists()
    code, _, err = run("export", folder, "--onnx", ".")
    assert code == 1 and "--onnx '.' must end in .onnx" in err
    code, out, _ = run("export", folder, "--onnx", small, "--int8")
    assert code == 0 and re.search(r"mean cosine \d\.\d{4}, smallest \d\.\d{4} to torch", out)

    (tmp_path / "texts.txt").write_text("a dog runs\nthe man\n", encoding="utf-8")
    code, out, err = run(
        "verify", folder, "--runtime", f"torch,onnx,server,{file},{small}", "--texts", str(tmp_path / "texts.txt")
    )
    assert code == 0 and "Vectors of 2 texts" in out and "onnx: not installed" in out
    assert out.count("yes") == 4  # torch, the file and the small file with each other, and the server
    found = verify(folder, [file, small])
    assert [(one.exact, one.agrees) for one in found.agreements] == [(True, True), (False, True), (False, True)]

    other = str(tmp_path / "other")
    untrained_encoder(32, seed=1).save(other, create_model_card=False)
    code, out, err = run("verify", other, "--runtime", f"{file},{small}")
    assert code == 1 and out.count("NO") == 2 and "the vectors differ: torch and" in err
