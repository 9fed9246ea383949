"""``st-plugins train`` as a user meets it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sentence_transformers import SentenceTransformer

from st_plugins.cli import app as cli
from st_plugins.geometry import GeometryCallback

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], encoder_folder: Path) -> Run:
    """Run ``st-plugins train consert MODEL ARGS`` here; return exit code, standard output and standard error."""

    def call(*args: str) -> tuple[int, str, str]:
        fixed = (
            "train",
            "consert",
            str(encoder_folder),
            "--batch-size",
            "10",
            "--device",
            "cpu",
            "--learning-rate",
            "1e-3",
        )
        monkeypatch.setattr(sys, "argv", ["st-plugins", *fixed, *args])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        captured = capsys.readouterr()
        return int(stop.value.code or 0), captured.out, captured.err

    return call


@pytest.fixture
def texts(sentences: list[str], tmp_path: Path) -> str:
    path = tmp_path / "corpus.txt"
    path.write_text("\n".join([*sentences, sentences[3]]) + "\n", encoding="utf-8")
    return str(path)


@pytest.fixture
def pairs(sentences: list[str], tmp_path: Path) -> str:
    rows = [f'"{a}","{b}",{i % 6}' for i, (a, b) in enumerate(zip(sentences[:30], sentences[30:], strict=True))]
    path = tmp_path / "own.csv"
    path.write_text("\n".join(["left,right,gold", *rows]) + "\n", encoding="utf-8")
    return str(path)


COLUMNS = ("--first", "left", "--second", "right", "--score", "gold")


def test_the_command_writes_a_plain_model_and_judges_it(run: Run, texts: str, pairs: str, tmp_path: Path) -> None:
    output = tmp_path / "adapted"
    code, out, err = run("--texts", texts, "--output", str(output), "--epochs", "1", "--dev", pairs, *COLUMNS)
    assert code == 0, err
    assert SentenceTransformer(str(output), device="cpu").encode("a man").shape == (16,)
    assert "after ConSERT" in out and "floor" in out and "on these pairs" in out
    assert "'loss'" in out and "geometry_uniformity" in out  # the logged terms
    assert "trained on 60 texts (1 duplicates" in out and "labelled development pairs 'own'" in out
    card = (output / "README.md").read_text("utf-8")
    assert "corpus.txt" in card and str(tmp_path) not in card
    code, _, err = run("--texts", texts, "--output", str(output))
    assert code == 1 and "not empty" in err


def test_a_table_and_a_choice_without_labels(run: Run, sentences: list[str], tmp_path: Path) -> None:
    table = tmp_path / "table.tsv"
    table.write_text("\n".join(["id\tbody", *(f"{i}\t{text}" for i, text in enumerate(sentences))]), encoding="utf-8")
    options = ("--views", "token-cutoff:0.15+token-shuffle, none", "--no-dropout", "--select", "alignment+uniformity")
    output = tmp_path / "out"
    code, out, err = run(
        "--texts", str(table), "--column", "body", "--output", str(output), "--epochs", "1", "--seed", "5", *options
    )
    assert code == 0, err
    assert "whether the training helped was not measured" in out and "no labels took part" in out
    card = (output / "README.md").read_text("utf-8")
    assert "token-cutoff (rate 0.15" in card and "| encoder dropout | False |" in card and "| seed | 5 |" in card


def test_ctrl_c_and_resume(run: Run, texts: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = tmp_path / "out"
    args = ("--texts", texts, "--output", str(output), "--epochs", "1", "--eval-steps", "2")
    on_save = GeometryCallback.on_save

    def interrupted(self: GeometryCallback, args: Any, state: Any, *rest: Any, **kwargs: Any) -> None:
        on_save(self, args, state, *rest, **kwargs)
        if state.global_step == 4:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(GeometryCallback, "on_save", interrupted)
        code, _, err = run(*args)
    assert code == 130 and "Traceback" not in err and not output.exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["corpus.txt", "out.checkpoints"]
    code, _, err = run(*args)
    assert code == 1 and "unfinished training" in err
    code, out, err = run(*args, "--resume")
    assert code == 0, err
    assert "Step 6 of 6" in out and sorted(path.name for path in tmp_path.iterdir()) == ["corpus.txt", "out"]


def test_errors_are_one_line(run: Run, texts: str, pairs: str, tmp_path: Path) -> None:
    few = tmp_path / "few.txt"
    few.write_text("a dog\na cat\n", encoding="utf-8")
    output = tmp_path / "out"
    cases = [
        (("--texts", texts, "--views", "sparkle,token-shuffle"), "unknown view 'sparkle'"),
        (("--texts", texts, "--views", "feature-cutoff:1.5,token-shuffle"), "1.5"),
        (("--texts", texts, "--views", "token-shuffle"), "two views"),
        (("--texts", texts, "--select", "best"), "select='best' is unknown"),
        (("--texts", texts, "--select", "dev"), "needs development pairs"),
        (("--texts", str(few)), "2 distinct texts, fewer than one batch of 10"),
        (("--texts", str(tmp_path / "no.txt")), "no.txt"),
        (("--texts", texts, "--dev", pairs), "sentence1"),
        (("--texts", texts, "--warmup", "2"), "warmup=2.0"),
    ]
    for args, words in cases:
        code, _, err = run(*args, "--output", str(output))
        last = err.rstrip("\n").split("\n")[-1]
        assert code == 1 and last.startswith("error:") and words in last and "Traceback" not in err, err
    assert not output.exists() and not list(tmp_path.glob("out*"))


def test_help_has_examples(run: Run) -> None:
    code, out, err = run("--help")
    assert code == 0, err
    assert "st-plugins train consert ./my-model" in out and "--resume" in out
