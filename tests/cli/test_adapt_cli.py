"""``st-plugins adapt``: what it writes and says, and what it refuses before it begins."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from sentence_transformers import SentenceTransformer

from st_plugins.adaptation.race import course
from st_plugins.adaptation.race.entries import Entry
from st_plugins.miniature import corpus
from tests.compression.toys import raw_like

Run = Callable[..., tuple[int, str]]
TEXTS = corpus(620)


@pytest.fixture
def run(command: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    """Run the command in a folder with texts, pairs, a model and a damaged one; return exit code and all it said."""
    raw_like().save(str(tmp_path / "model"), create_model_card=False)
    (tmp_path / "damaged").mkdir()  # an error about it comes after the work has begun
    (tmp_path / "damaged" / "modules.json").write_text("{", encoding="utf-8")
    (tmp_path / "texts.txt").write_text("\n".join(TEXTS) + "\n", encoding="utf-8")
    (tmp_path / "few.txt").write_text("\n".join(TEXTS[:300]) + "\n", encoding="utf-8")
    rows = [f"{a}\t{b}\t1" for a, b in zip(TEXTS[:60], TEXTS[60:120], strict=True)]
    (tmp_path / "flat.tsv").write_text("\n".join(["sentence1\tsentence2\tscore", *rows, ""]), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    maps = [Entry(name, map=name) for name in ("centered rotation", "shrunk whitening")]
    monkeypatch.setattr(course, "entries", lambda: [*maps, Entry("ConSERT", loss="ConSERT")])

    def call(*more: str, model: str = "model", texts: str = "texts.txt", output: str = "out") -> tuple[int, str]:
        code, out, err = command(
            "adapt", model, "--texts", texts, "--output", output, "--batches", "2", "--batch-size", "16", *more
        )
        return code, out + err

    return call


def test_writes_a_plain_model_and_says_what_was_tried(run: Run, tmp_path: Path) -> None:
    code, said = run()
    assert code == 0, said
    record = json.loads((tmp_path / "out" / "adaptation.json").read_text(encoding="utf-8"))
    assert record["source"] == "texts.txt" and len(record["tried"]) == 3
    assert "What was tried" in said and "wrote out: the" in said and record["reason"].split(":")[0] in said
    assert (tmp_path / "out" / "adaptation.html").is_file()
    assert SentenceTransformer(str(tmp_path / "out"), device="cpu").encode(["a dog"]).shape == (1, 16)
    code, said = run(model="damaged")
    assert code == 1 and "--output 'out'" in said and "--overwrite" in said


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--budget", "0"), "--budget=0.0 must be a number above 0"),
        (("--batches", "0"), "--batches=0 must be"),
        (("--batch-size", "1"), "--batch-size=1 must be"),
        (("--learning-rate", "nan"), "--learning-rate=nan must be"),
        (("--max-seq-length", "1"), "--max-seq-length=1 leaves"),
        (("--seed", "-1"), "--seed=-1 must be"),
        (("--score", "a"), "--score"),
        (("--prompt", "a", "--prompt-name", "b"), "leave one out"),
        (("--pairs", "flat.tsv"), "all scores are 1"),
    ],
)
def test_what_cannot_be_is_refused_before_the_model_is_read(run: Run, words: tuple[str, ...], told: str) -> None:
    code, said = run(*words, model="damaged")
    assert code != 0 and told in " ".join(said.split()) and "JSON" not in said and "Traceback" not in said


def test_too_few_texts_are_refused(run: Run, tmp_path: Path) -> None:
    code, said = run(texts="few.txt")
    assert code == 1 and "300 different ones" in said and "500 at least" in said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("output", ["/proc/out", "texts.txt", "model", "model/out"])
def test_a_bad_output_is_refused(run: Run, output: str) -> None:
    code, said = run(output=output, model="damaged" if not output.startswith("model") else "model")
    assert code == 1 and "--output" in said and "JSON" not in said, said
