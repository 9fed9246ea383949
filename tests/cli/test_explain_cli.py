"""``st-plugins explain`` as a user meets it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from sentence_transformers import SentenceTransformer

from st_plugins.explain import Explanation, PairExplanation

Run = Callable[..., tuple[int, str, str]]
A, B = "a big dog is sleeping", "the cat is playing guitar"


@pytest.fixture
def folder(model: SentenceTransformer, tmp_path: Path) -> str:
    model.save(str(tmp_path / "model"), create_model_card=False)
    return str(tmp_path / "model")


@pytest.fixture
def run(command: Run) -> Run:
    return lambda *args: command("explain", *args)


def test_a_pair(run: Run, model: SentenceTransformer, folder: str, tmp_path: Path) -> None:
    page, data = tmp_path / "new" / "why.html", tmp_path / "why.json"
    code, out, _ = run(folder, A, B, "--top", "3", "--html", str(page), "--json", str(data), "--faithfulness")
    similarity = float(model.similarity(model.encode(A), model.encode(B)))
    assert code == 0 and f"Cosine similarity {similarity:.4f}" in out and "Faithfulness" in out and str(page) in out
    found = PairExplanation.from_json(data.read_text(encoding="utf-8"))
    assert len(found.top_pairs) == 3 and found.to_html() == page.read_text(encoding="utf-8")


def test_one_text(run: Run, folder: str, tmp_path: Path) -> None:
    data = tmp_path / "why.json"
    code, out, _ = run(folder, A, "--json", str(data), "--prompt", "the ", "--max-seq-length", "5")
    found = Explanation.from_json(data.read_text(encoding="utf-8"))
    assert code == 0 and "Heaviest of 5 words" in out
    assert found.side.tokens[1].kind == "prompt" and found.side.unread > 0


def test_existing_files_are_kept(run: Run, folder: str, tmp_path: Path) -> None:
    page = tmp_path / "why.html"
    page.write_text("mine", encoding="utf-8")
    code, _, err = run(folder, A, B, "--html", str(page))
    assert code == 1 and "choose another file or --overwrite" in err and page.read_text(encoding="utf-8") == "mine"
    code, _, err = run(folder, A, B, "--html", str(page), "--overwrite")
    assert code == 1 and "is a file that st-plugins did not write" in err and page.read_text("utf-8") == "mine"
    page.unlink()
    assert run(folder, A, B, "--html", str(page))[0] == 0
    assert run(folder, A, "--html", str(page), "--overwrite")[0] == 0
    assert page.read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    assert run(folder, A, B, "--html", str(tmp_path), "--overwrite")[0] == 1


def test_errors_are_one_line(run: Run, make_model: Callable[..., SentenceTransformer], tmp_path: Path) -> None:
    for mode in ("mean", "cls"):
        make_model("bert", pooling_mode=mode).save(str(tmp_path / mode), create_model_card=False)
    page = tmp_path / "why.html"
    cases = [
        ((str(tmp_path / "none"), A, B), "does not exist"),
        ((str(tmp_path / "cls"), A, B), "pools with 'cls'"),
        ((str(tmp_path / "mean"), A, " "), "is empty"),
        ((str(tmp_path / "mean"), "dog", "--faithfulness"), "at least two tokens"),
        ((str(tmp_path / "mean"), A, B, "--json", str(page)), "choose two"),
    ]
    for args, word in cases:
        code, _, err = run(*args, "--html", str(page))
        last = err.rstrip("\n").split("\n")[-1]
        assert code == 1 and last.startswith("error:") and word in last and "Traceback" not in err, err
    assert not page.exists()
    assert run(str(tmp_path / "mean"))[0] == 2
    assert run(str(tmp_path / "mean"), A, "--top", "0")[0] == 2


def test_help(run: Run) -> None:
    code, out, _ = run("--help")
    assert code == 0 and "st-plugins explain" in out and "--faithfulness" in out


def test_views_and_depths_of_a_pair(run: Run, folder: str, tmp_path: Path) -> None:
    data = tmp_path / "why.json"
    code, out, _ = run(folder, A, B, "--view", "contribution", "--depth", "1", "--json", str(data))
    found = PairExplanation.from_json(data.read_text(encoding="utf-8"))
    assert code == 0 and found.view == "contribution" and found.depth == 1 and "add most" in out
    assert abs(found.contributions.sum() - found.similarity) < 1e-3
    for wrong in ("deep", "-1", "1.5"):
        code, _, err = run(folder, A, B, f"--depth={wrong}")
        assert code == 2 and "must be output, input or the number of a layer" in err
    code, _, err = run(folder, A, B, "--depth", "7")
    assert code == 1 and "1 to 2" in err
    code, _, err = run(folder, A, "--depth", "input")
    assert code == 1 and "--depth" in err and "for one text" in err
