"""``st-plugins explain MODEL QUERY --texts FILE`` as a user meets it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from sentence_transformers import SentenceTransformer

from st_plugins.explain import explain_query

Run = Callable[..., tuple[int, str, str]]
QUERY = "a big dog is sleeping"


@pytest.fixture
def run(command: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    monkeypatch.chdir(tmp_path)
    return lambda *args: command("explain", *args)


@pytest.fixture(autouse=True)
def files(model: SentenceTransformer, sentences: list[str], tmp_path: Path) -> None:
    model.save(str(tmp_path / "m"), create_model_card=False)
    (tmp_path / "texts.txt").write_text("\n".join([*sentences, ""]), encoding="utf-8")
    rows = [f"{number}\t{text}" for number, text in enumerate(sentences)]
    (tmp_path / "texts.tsv").write_text("\n".join(["id\tbody", *rows, ""]), encoding="utf-8")
    lines = [json.dumps({"body": text}) for text in sentences]
    (tmp_path / "texts.jsonl").write_text("\n".join([*lines, ""]), encoding="utf-8")


def test_a_search(run: Run, model: SentenceTransformer, sentences: list[str]) -> None:
    expected = explain_query(model, QUERY, sentences, 3)
    for words in (["texts.txt"], ["texts.tsv", "--column", "body"], ["texts.jsonl", "--column", "body"]):
        more = ("--top", "3", "--html", "found.html", "--json", "found.jsonl", "--overwrite")
        code, out, err = run("m", QUERY, "--texts", *words, *more)
        assert code == 0 and "What separates rank 1 from rank 2" in out and "wrote found.jsonl" in out, err
        lines = [json.loads(line) for line in Path("found.jsonl").read_text("utf-8").splitlines()]
        assert [line["text"] for line in lines] == [hit.text for hit in expected.hits]
        assert [line["score"] for line in lines] == pytest.approx([hit.score for hit in expected.hits], abs=1e-5)
        assert Path("found.html").read_text("utf-8").startswith("<!DOCTYPE html>")
    code, _, err = run("m", QUERY, "--texts", "texts.txt", "--json", "found.jsonl")
    assert code == 1 and "--overwrite" in err


def test_words_of_ten_texts_are_the_default(run: Run) -> None:
    code, out, _ = run(
        "m", QUERY, "--texts", "texts.txt", "--max-seq-length", "5", "--by", "token", "--prompt", "the "
    )
    assert code == 0 and "10 of 60 texts by cosine similarity" in out and "cut off the last" in out


def test_what_does_not_go_together_is_refused_before_a_model_is_loaded(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(*_: object, **__: object) -> None:
        raise AssertionError("a model is loaded")

    monkeypatch.setattr(SentenceTransformer, "__init__", load)
    Path("mine.json").write_text('{"faithfulness": 1}', encoding="utf-8")
    Path("empty.txt").write_text("\n", encoding="utf-8")
    cases = [
        (("a cat", "--texts", "texts.txt"), "--texts and a second text 'a cat' are both given"),
        (("--texts", "texts.txt", "--faithfulness"), "--faithfulness has no effect with --texts"),
        (("--column", "body"), "--column has no effect without --texts"),
        (("--texts", "texts.txt", "--by", "span"), "--by='span' has no effect with --texts"),
        (("--texts", "missing.txt"), "missing.txt"),
        (("--texts", "empty.txt"), "there is no text in it"),
        (("--texts", "texts.tsv"), "--column="),
        (("--texts", "texts.txt", "--html", "texts.txt", "--overwrite"), "--html"),
        (("--texts", "texts.txt", "--json", "mine.json", "--overwrite"), "did not write"),
    ]
    for args, words in cases:
        code, _, err = run("m", QUERY, *args)
        assert code == 1 and err.startswith("error: ") and words in err and err.count("\n") == 1, err


def test_other_poolings_and_empty_queries(run: Run, make_model: Callable[..., SentenceTransformer]) -> None:
    make_model("bert", pooling_mode="cls").save("cls", create_model_card=False)
    code, out, _ = run("cls", QUERY, "--texts", "texts.txt")
    assert code == 0 and "There are no contributions: the model pools with 'cls'" in out
    code, _, err = run("m", " ", "--texts", "texts.txt")
    assert code == 1 and "query ' ' is empty" in err
