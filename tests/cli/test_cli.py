"""The command line as a user meets it: results, exit codes, one-line errors, nothing half-written."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Router

from st_plugins import load
from st_plugins.cli import app as cli
from st_plugins.evaluation import SuiteResult
from st_plugins.report.table import number

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def model_folder(model: SentenceTransformer, tmp_path: Path) -> str:
    folder = tmp_path / "model"
    model.save(str(folder), create_model_card=False)
    return str(folder)


@pytest.fixture
def texts(sentences: list[str], tmp_path: Path) -> str:
    path = tmp_path / "texts.txt"
    path.write_text("\n".join(sentences) + "\n", encoding="utf-8")
    return str(path)


@pytest.fixture
def pairs(sentences: list[str], tmp_path: Path) -> str:
    path = tmp_path / "own.csv"
    rows = [f'"{a}","{b}",{i % 6}' for i, (a, b) in enumerate(zip(sentences[:30], sentences[30:], strict=True))]
    path.write_text("\n".join(["left,right,gold", *rows]) + "\n", encoding="utf-8")
    return str(path)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run ``st-plugins ARGS`` in this process; return exit code, standard output and standard error."""
    monkeypatch.delenv("ST_PLUGINS_DATA", raising=False)

    def call(*args: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["st-plugins", *args])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        captured = capsys.readouterr()
        return int(stop.value.code or 0), captured.out, captured.err

    return call


COLUMNS = ("--first", "left", "--second", "right", "--score", "gold")


def test_evaluate_writes_what_it_prints(run: Run, model_folder: str, pairs: str, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    code, out, _ = run("evaluate", model_folder, "--pairs", pairs, *COLUMNS, "--output", str(folder))
    assert code == 0
    result = SuiteResult.read(folder)
    assert f"{100 * result.average['spearman_all'].value:.2f}" in out
    assert "floor" in out
    assert {path.name for path in folder.iterdir()} == {"result.json", "result.csv", "result.md", "report.html"}


def test_compare_reads_results_and_models(run: Run, model_folder: str, pairs: str, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    run("evaluate", model_folder, "--pairs", pairs, *COLUMNS, "--output", str(folder), "--no-floor")
    file = tmp_path / "comparison.json"
    code, out, _ = run("compare", str(folder), model_folder, "--pairs", pairs, *COLUMNS, "--output", str(file))
    assert code == 0 and "not separable" in out
    assert json.loads(file.read_text(encoding="utf-8"))["average"]["value"] == pytest.approx(0, abs=1e-6)


def test_whiten_writes_a_stock_model_and_judges_it(
    run: Run,
    model_folder: str,
    texts: str,
    pairs: str,
    tmp_path: Path,
) -> None:
    output = tmp_path / "white"
    code, out, _ = run(
        "whiten",
        model_folder,
        "--texts",
        texts,
        "--output-dimension",
        "4",
        "--output",
        str(output),
        "--pairs",
        pairs,
        *COLUMNS,
    )
    assert code == 0 and "whitening" in out and "4 dimensions" in out
    assert SentenceTransformer(str(output), device="cpu").encode("a man").shape == (4,)
    types = [row["type"] for row in json.loads((output / "modules.json").read_text(encoding="utf-8"))]
    assert all(name.startswith("sentence_transformers.") for name in types)
    code, _, err = run("whiten", model_folder, "--texts", texts, "--output-dimension", "4", "--output", str(output))
    assert code == 1 and "not empty" in err


def test_keep_plugin_keeps_the_module(run: Run, model_folder: str, texts: str, tmp_path: Path) -> None:
    output = tmp_path / "white"
    args = (
        "whiten",
        model_folder,
        "--texts",
        texts,
        "--output-dimension",
        "4",
        "--output",
        str(output),
        "--keep-plugin",
    )
    code, out, _ = run(*args)
    assert code == 0 and "was not measured" in out
    assert "st_plugins.modules.Whitening" in (output / "modules.json").read_text(encoding="utf-8")
    assert run("geometry", str(output), "--texts", texts)[0] == 0


def test_whiten_encodes_and_measures_with_the_prompt(
    run: Run,
    model: SentenceTransformer,
    model_folder: str,
    sentences: list[str],
    texts: str,
    pairs: str,
    tmp_path: Path,
) -> None:
    lines = Path(texts).read_text(encoding="utf-8").splitlines()
    args = (
        "whiten",
        model_folder,
        "--texts",
        texts,
        "--prompt",
        "the man ",
        "--keep-plugin",
        "--pairs",
        pairs,
        *COLUMNS,
    )
    code, out, err = run(*args, "--output", str(tmp_path / "white"))
    assert code == 0, err
    module: Any = load(tmp_path / "white", device="cpu")[2]
    np.testing.assert_allclose(module.fitted_mean, model.encode(lines, prompt="the man ").mean(axis=0), atol=1e-5)
    assert run(*args[:7], "--output", str(tmp_path / "unmeasured"))[0] == 0  # without --pairs it has its effect too
    measured = ("--pairs", pairs, *COLUMNS, "--prompt", "the man ", "--no-floor", "--output", str(tmp_path / "result"))
    assert run("evaluate", model_folder, *measured)[0] == 0
    before = SuiteResult.read(tmp_path / "result").average["spearman_all"].value
    assert f"{100 * before:.2f}" in out


def test_whiten_takes_the_texts_of_one_route(
    run: Run, make_model: Callable[..., SentenceTransformer], sentences: list[str], texts: str, tmp_path: Path
) -> None:
    router = Router.for_query_document([*make_model("roberta")], [*make_model()], default_route="document")
    model = SentenceTransformer(modules=[router], device="cpu").eval()
    model.save(str(tmp_path / "routes"), create_model_card=False)
    args = ("whiten", str(tmp_path / "routes"), "--texts", texts, "--output-dimension", "4", "--keep-plugin")
    code, _, err = run(*args, "--output", str(tmp_path / "white"))
    assert code == 1 and "routes 'document', 'query'" in err
    assert run(*args, "--output", str(tmp_path / "white"), "--route", "query")[0] == 0
    module: Any = load(tmp_path / "white", device="cpu")[1]
    np.testing.assert_allclose(module.fitted_mean, model.encode_query(sentences).mean(axis=0), atol=1e-5)


def test_whitening_that_hurts_is_said(
    run: Run,
    model: SentenceTransformer,
    model_folder: str,
    sentences: list[str],
    texts: str,
    tmp_path: Path,
) -> None:
    """Gold scores that are the model's own cosines: any whitening must lose against them."""
    first, second = sentences[:30] * 2, sentences[30:] + sentences[:30][::-1]
    cosine = model.similarity_pairwise(model.encode(first), model.encode(second)).tolist()
    path = tmp_path / "own.tsv"
    rows = [f"{a}\t{b}\t{c}" for a, b, c in zip(first, second, cosine, strict=True)]
    path.write_text("\n".join(["sentence1\tsentence2\tscore", *rows]) + "\n", encoding="utf-8")
    code, out, _ = run(
        "whiten",
        model_folder,
        "--texts",
        texts,
        "--output-dimension",
        "8",
        "--output",
        str(tmp_path / "w"),
        "--pairs",
        str(path),
    )
    assert code == 0 and "whitening HURTS" in out
    assert f"st-plugins compress {model_folder} --texts {texts} --output-dimension 8\n" in out
    rotated = ("whiten", model_folder, "--texts", texts, "--no-center", "--power", "0", "--output-dimension", "16")
    code, out, _ = run(*rotated, "--output", str(tmp_path / "rotated"), "--pairs", str(path))
    assert code == 0 and "HURTS" not in out and "compress" not in out
    code, out, _ = run(*rotated[:-1], "2", "--output", str(tmp_path / "two"), "--pairs", str(path))
    assert code == 0 and "HURTS" in out and "compress" not in out  # which would be the same again
    kept = SentenceTransformer(str(tmp_path / "rotated"), device="cpu")
    assert [type(module).__name__ for module in kept] == ["Transformer", "Pooling", "Dense"]
    vectors, before = kept.encode(sentences), model.encode(sentences)
    np.testing.assert_allclose(vectors @ vectors.T, before @ before.T, rtol=1e-4)
    assert np.abs(vectors - before).max() > 0.1


def test_geometry_prints_and_writes(run: Run, model_folder: str, texts: str, tmp_path: Path) -> None:
    file = tmp_path / "geometry.json"
    code, out, _ = run("geometry", model_folder, "--texts", texts, "--output", str(file))
    numbers = json.loads(file.read_text(encoding="utf-8"))
    assert code == 0 and number(numbers["mean_random_cosine"]) in out


@pytest.mark.parametrize("command", ["", "evaluate", "compare", "whiten", "geometry", "demo"])
def test_help_explains_itself(run: Run, command: str) -> None:
    code, out, _ = run(*command.split(), "--help")
    assert code == 0 and "Usage" in out
    if command in ("evaluate", "compare", "whiten"):
        assert f"st-plugins {command}" in out


def test_errors_are_one_line_and_name_the_remedy(
    run: Run, model_folder: str, texts: str, pairs: str, tmp_path: Path
) -> None:
    output = tmp_path / "new"
    cases = [
        (("evaluate", str(tmp_path / "nothing"), "--pairs", pairs, *COLUMNS), "nothing"),
        (("evaluate", model_folder, "--pairs", pairs), "sentence1"),
        (("evaluate", model_folder, "--pairs", str(tmp_path / "no.csv")), "no.csv"),
        (("evaluate", model_folder, "--tasks", "sts99", "--data", str(tmp_path)), "sts99"),
        (("evaluate", model_folder, "--tasks", "sts12", "--data", str(tmp_path)), "sts12"),
        (("evaluate", model_folder, "--pairs", pairs, *COLUMNS, "--similarity", "x"), "similarity='x'"),
        (("evaluate", model_folder, "--pairs", pairs, *COLUMNS, "--output", texts), "texts.txt"),
        (("whiten", model_folder, "--texts", texts, "--output-dimension", "99", "--output", str(output)), "99"),
        (("whiten", model_folder, "--texts", texts, "--shrinkage", "much", "--output", str(output)), "much"),
        (("whiten", model_folder, "--texts", str(tmp_path / "no.txt"), "--output", str(output)), "no.txt"),
        (("compare", str(tmp_path / "no.json"), model_folder), "no.json"),
    ]
    for args, word in cases:
        code, _, err = run(*args)
        assert code == 1, args
        last = err.rstrip("\n").split("\n")[-1]  # progress bars of loading may stand before it
        assert last.startswith("error:") and word in last and "Traceback" not in err, err
    assert not output.exists()


def test_usage_errors_have_their_own_code(run: Run) -> None:
    assert run("evaluate")[0] == 2
    assert run("nonsense")[0] == 2


def test_debug_shows_the_traceback(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        sys, "argv", ["st-plugins", "--debug", "evaluate", str(tmp_path / "nothing"), "--pairs", "x.csv"]
    )
    monkeypatch.setitem(cli._state, "debug", False)
    with pytest.raises(FileNotFoundError):
        cli.main()


def test_interrupt_leaves_nothing_half_written(
    run: Run,
    model_folder: str,
    texts: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def save(self: SentenceTransformer, path: str, **kwargs: object) -> None:
        (Path(path) / "half.bin").write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(SentenceTransformer, "save", save)
    before = sorted(tmp_path.iterdir())
    code, _, err = run(
        "whiten", model_folder, "--texts", texts, "--output-dimension", "4", "--output", str(tmp_path / "white")
    )
    assert code != 0 and "Traceback" not in err
    assert sorted(tmp_path.iterdir()) == before


def test_an_unwritable_output_is_one_line(
    run: Run, model_folder: str, texts: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tests may run as root, whom no read-only folder stops; so the system's refusal is played."""

    def refuse(*_: object, dir: Path, **__: object) -> str:
        raise PermissionError(13, "Permission denied", str(dir))

    monkeypatch.setattr("tempfile.mkdtemp", refuse)
    code, _, err = run(
        "whiten", model_folder, "--texts", texts, "--output-dimension", "4", "--output", str(tmp_path / "ro" / "new")
    )
    assert code == 1 and "Permission denied" in err and "ro" in err and "Traceback" not in err
    assert not (tmp_path / "ro" / "new").exists()
