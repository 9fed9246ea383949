"""``st-plugins compress``: what it writes and says, and what it refuses before it begins."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer

from st_plugins.cli import app as cli
from st_plugins.compression import Compressed
from tests.compression.toys import TEXTS, trained_like

Run = Callable[..., tuple[int, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """Run the command in a folder with texts, pairs, a model and a damaged one; return exit code and all it said."""
    trained_like().save(str(tmp_path / "model"), create_model_card=False)
    (tmp_path / "damaged").mkdir()  # an error about it comes after the work has begun
    (tmp_path / "damaged" / "modules.json").write_text("{", encoding="utf-8")
    (tmp_path / "texts.txt").write_text("\n".join(TEXTS) + "\n", encoding="utf-8")
    rows = [f"{a}\t{b}\t{i % 5}" for i, (a, b) in enumerate(zip(TEXTS[:40], TEXTS[40:80], strict=True))]
    (tmp_path / "pairs.tsv").write_text("\n".join(["sentence1\tsentence2\tscore", *rows, ""]), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")

    def call(*more: str, model: str = "model", output: str = "out") -> tuple[int, str]:
        words = ["compress", model, "--texts", "texts.txt", "--output", output, *more]
        monkeypatch.setattr(sys, "argv", ["st-plugins", *words])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        captured = capsys.readouterr()
        return int(stop.value.code or 0), captured.out + captured.err

    return call


def test_writes_a_plain_model_and_says_what_it_costs(run: Run, tmp_path: Path) -> None:
    code, said = run("--bytes", "6", "--pairs", "pairs.tsv")
    assert code == 0, said
    small = Compressed.load(tmp_path / "out", device="cpu")
    assert small.bytes <= 6 and small.source == "texts.txt" and small.texts == len({*TEXTS}) and small.metric
    assert small.summary() in " ".join(said.split()) and f"{small.bytes} (chosen)" in said
    assert "wrote out: " in said and "plain SentenceTransformer loads it" in said
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"compression.json", "compression.md", "compression.html", "quantization.json", "modules.json"} <= names
    plain = SentenceTransformer(str(tmp_path / "out"), device="cpu").encode(TEXTS[:5])
    assert (small.quantization.quantize(plain) == small.encode(TEXTS[:5])).all()
    np.testing.assert_allclose(np.linalg.norm(plain, axis=1), 1, atol=1e-5)


def test_a_loss_is_kept_and_a_second_result_only_replaces_when_asked(run: Run, tmp_path: Path) -> None:
    assert run("--max-loss", "3")[0] == 0
    record = tmp_path / "out" / "compression.json"
    assert json.loads(record.read_text(encoding="utf-8"))["chosen"]["certificate"]["loss_bound"] <= 3
    before = record.read_bytes()
    code, said = run("--output-dimension", "4", model="damaged")
    assert code == 1 and "--output 'out'" in said and "--overwrite" in said and record.read_bytes() == before
    assert run("--output-dimension", "4", "--overwrite")[0] == 0
    assert json.loads(record.read_text(encoding="utf-8"))["chosen"]["dimension"] == 4


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ((), "give --output-dimension, --max-loss, or --bytes=96"),
        (("--bytes", "0"), "--bytes=0 cannot be reached: the nearest is 1"),
        (("--bytes", "8", "--precision", "int3"), "--precision='int3' must be one of"),
        (("--bytes", "8", "--method", "pca"), "--method='pca' must be one of"),
        (("--max-loss", "0"), "--max-loss=0.0 must be"),
        (("--bytes", "8", "--first", "a"), "--first"),
        (("--bytes", "8", "--pairs", "pairs.tsv", "--retrieval", "texts"), "--pairs and --retrieval are both given"),
        (("--bytes", "8", "--prompt", "a", "--prompt-name", "b"), "leave one out"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_read(run: Run, words: tuple[str, ...], told: str) -> None:
    code, said = run(*words, model="damaged")
    assert code != 0 and told in " ".join(said.split()) and "JSON" not in said and "Traceback" not in said


@pytest.mark.parametrize("output", ["/proc/out", "texts.txt", "texts.txt/out", "mine", "model", "model/out", "."])
def test_a_bad_output_is_refused_before_the_model_is_opened(run: Run, output: str, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("precious", encoding="utf-8")
    model = "damaged" if not output.startswith("model") else "model"
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    for more in ((), ("--overwrite",)):
        code, said = run("--bytes", "6", *more, model=model, output=output)
        assert code == 1 and "--output" in said and "JSON" not in said, said
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(("precision", "warned"), [("int8", True), ("float32", False)])
def test_evaluate_says_that_it_does_not_measure_the_stored_bits(
    run: Run, precision: str, warned: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("--output-dimension", "4", "--precision", precision)[0] == 0
    words = ["evaluate", "out", "--pairs", "pairs.tsv", "--bootstrap-samples", "0", "--no-floor"]
    monkeypatch.setattr(sys, "argv", ["st-plugins", *words, "--output", "report"])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert (
        stop.value.code in (0, None)
        and ("to be stored as int8" in " ".join(capsys.readouterr().out.split())) == warned
    )
    warnings = json.loads(Path("report", "result.json").read_text(encoding="utf-8"))["warnings"]
    assert any("to be stored as int8" in text for text in warnings) == warned
