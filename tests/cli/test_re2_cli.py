"""``st-plugins train re2`` and ``st-plugins match`` as a user meets them."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer
from torch.optim.optimizer import register_optimizer_step_post_hook

from st_plugins.cli import app as cli
from st_plugins.core.reading.tables import read_table
from st_plugins.matching import LearnedEmbedding, RE2Matcher, TransformerTokens, WordVectors

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run ``st-plugins ARGS`` here; return exit code, standard output and standard error."""

    def call(*args: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["st-plugins", *map(str, args)])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        captured = capsys.readouterr()
        return int(stop.value.code or 0), captured.out, captured.err

    return call


@pytest.fixture
def pairs(sentences: list[str], tmp_path: Path) -> Path:
    """Forty pairs with a class and a score, as TSV."""
    rows = [
        f"{a}\t{b}\t{'yes' if i % 3 else 'no'}\t{i % 5 / 4}"
        for i, (a, b) in enumerate(zip(sentences[:40], sentences[20:], strict=True))
    ]
    path = tmp_path / "pairs.tsv"
    path.write_text("\n".join(["sentence1\tsentence2\tlabel\tscore", *rows, ""]), encoding="utf-8")
    return path


FAST = ("--epochs", 1, "--batch-size", 20, "--max-seq-length", 6, "--device", "cpu")


def test_train_and_match_classes(run: Run, pairs: Path, tmp_path: Path) -> None:
    output = tmp_path / "matcher"
    code, out, err = run(
        "train", "re2", "--train", pairs, "--dev", pairs, "--output", output, "--embedding-dimension", 8, *FAST
    )
    assert code == 0, err
    assert "trained on 40 pairs; step 2 of 2 is kept, the one with the highest accuracy" in out and "wrote" in out
    assert f"{pairs}: 2 classes: 'no' 14, 'yes' 26" in out and "]; majority class 65.0. They took" in out
    assert "configuration small: 64 wide, 2 blocks, batches of 20, as there are 40 training pairs, fewer than" in out
    matcher = RE2Matcher.load(output)
    assert isinstance(matcher.source, LearnedEmbedding) and matcher.source.embedding_dimension == 8
    assert (
        matcher.labels == ["no", "yes"]
        and matcher.config.max_seq_length == 6
        and matcher.config.hidden_dimension == 64
    )
    table = read_table(pairs)
    texts = list(zip(table.texts("sentence1"), table.texts("sentence2"), strict=True))
    expected = matcher.predict(texts, apply_softmax=True)
    for name in ("scored.tsv", "scored.csv.gz", "scored.jsonl"):
        code, out, err = run("match", output, pairs, "--output", tmp_path / name, "--device", "cpu")
        assert code == 0, err
        assert "scored" in out and "40 pairs" in out
        found = read_table(tmp_path / name)
        assert found.columns == [*table.columns, "predicted", "probability of no", "probability of yes"]
        assert [row[:4] for row in found.rows] == table.rows
        assert found.texts("predicted") == [["no", "yes"][k] for k in expected.argmax(1)]
        numbers = [found.scores(column) for column in found.columns[-2:]]
        np.testing.assert_allclose(np.transpose(numbers), expected, atol=1e-6)
    code, _, err = run("match", output, pairs, "--output", tmp_path / "scored.tsv")
    assert code == 1 and "exists; choose another file" in err
    assert run("match", output, pairs, "--output", tmp_path / "scored.tsv", "--overwrite")[0] == 0
    half = pairs.with_name("half.jsonl")
    half.write_text('{"sentence1": "a dog", "sentence2": "a cat", "note": "\\ud83d"}\n', encoding="utf-8")
    code, _, err = run("match", output, half, "--output", tmp_path / "half.tsv")
    assert code == 1 and "half.jsonl:1: a field holds half a character" in err
    code, _, err = run("match", output, tmp_path / "scored.tsv", "--output", tmp_path / "again.tsv")
    assert code == 1 and "there is a column 'predicted' already; rename it" in err
    code, _, err = run("train", "re2", "--train", pairs, "--output", output)
    assert code == 1 and "not empty" in err


@pytest.mark.skipif(find_spec("onnxscript") is None, reason="needs the extra onnx")
def test_train_and_match_with_onnx(run: Run, pairs: Path, tmp_path: Path) -> None:
    output = tmp_path / "matcher"
    code, _, err = run("train", "re2", "--train", pairs, "--output", output, "--onnx", *FAST)
    assert code == 0, err
    assert (output / "onnx/model.onnx").is_file() and RE2Matcher.load(output).backend == "torch"
    numbers = []
    for backend in ("torch", "onnx"):
        scored = tmp_path / f"{backend}.tsv"
        code, _, err = run("match", output, pairs, "--backend", backend, "--output", scored)
        assert code == 0, err
        numbers.append(read_table(scored).scores("probability of no"))
    np.testing.assert_allclose(*numbers, rtol=0, atol=1e-4)
    (output / "onnx/model.onnx").write_bytes(b"")
    code, _, err = run("match", output, pairs, "--backend", "onnx", "--output", tmp_path / "again.tsv")
    assert code == 1 and "model.onnx is not what was saved with the matcher" in err
    code, _, err = run("match", output, pairs, "--backend", "openvino", "--output", tmp_path / "again.tsv")
    assert code == 2 and "torch" in err and "onnx" in err


def test_train_a_score_on_word_vectors(run: Run, pairs: Path, tmp_path: Path) -> None:
    vectors = tmp_path / "vectors.txt"
    words = ("a", "the", "man", "dog", "cat", "is", "in", "at", "reading", "unused")
    vectors.write_text("".join(f"{word} {i} 0.5\n" for i, word in enumerate(words)), "utf-8")
    for number, extra in enumerate(((), ("--all-words", "--train-vectors"))):
        output = tmp_path / f"matcher{number}"
        options = ("--score", "--label", "score", "--metric", "map", "--config", "wikiqa", "--dev-share", 0.25)
        code, out, err = run(
            "train", "re2", "--train", pairs, "--output", output, "--vectors", vectors, *options, *extra, *FAST
        )
        assert code == 0, err
        assert "trained on 30 pairs" in out and "the highest map" in out
        matcher = RE2Matcher.load(output)
        assert isinstance(matcher.source, WordVectors) and matcher.labels is None
        rows = len(matcher.source.embedding.weight)
        assert rows == (11 if extra else 10) and matcher.source.embedding.weight.requires_grad == bool(extra)
    code, _, err = run("match", output, pairs, "--output", tmp_path / "scored.csv")
    assert code == 0, err
    found = read_table(tmp_path / "scored.csv")
    assert found.columns[-1] == "predicted" and all(0 <= score <= 1 for score in found.scores("predicted"))


def test_train_on_an_encoder(run: Run, pairs: Path, model: SentenceTransformer, tmp_path: Path) -> None:
    model.save(str(tmp_path / "encoder"), create_model_card=False)
    output = tmp_path / "matcher"
    code, out, err = run(
        "train", "re2", "--train", pairs, "--output", output, "--encoder", tmp_path / "encoder", *FAST
    )
    assert code == 0, err
    assert "no development pairs, the last step is kept" in out
    assert isinstance(RE2Matcher.load(output).source, TransformerTokens)
    options = ("--words", tmp_path / "encoder", "--embedding-dimension", 5)
    code, _, err = run("train", "re2", "--train", pairs, "--output", tmp_path / "words", *options, *FAST)
    assert code == 0, err
    source = RE2Matcher.load(tmp_path / "words").source
    assert isinstance(source, WordVectors) and source.embedding_dimension == 5


def test_errors_are_one_line_and_leave_nothing(run: Run, pairs: Path, tmp_path: Path) -> None:
    lines = pairs.read_text("utf-8").splitlines()
    files = {
        "one.tsv": ["text\tlabel", "a\tyes"],
        "nan.tsv": [*lines[:3], lines[3].rpartition("\t")[0] + "\tnan"],
        "empty.tsv": lines[:1],
        "blank.tsv": [*lines[:3], "\t\tyes\t0"],
        "unlabelled.tsv": [*lines[:3], "a\tb\t\t0"],
        "same.tsv": [line for line in lines if "\tyes\t" in line or "label" in line],
        "other.tsv": [*lines[:3], "a\tb\tmaybe\t0"],
        "dash.tsv": [*lines[:3], "a\tb\t-\t0"],
        "spelled.tsv": [*lines[:3], "a\tb\tYes \t0"],
        "five.tsv": [*lines[:3], "a\tb\tyes\t4"],
        "vectors.txt": ["dog 1 2", "cat 1"],
    }
    for name, content in files.items():
        (tmp_path / name).write_text("\n".join([*content, ""]), "utf-8")
    output = tmp_path / "out"

    def train(name: str, *rest: object) -> tuple[object, ...]:
        return ("train", "re2", "--train", tmp_path / name, "--output", output, *rest, *FAST)

    cases = [
        (train("none.tsv"), "none.tsv' does not exist"),
        (train("one.tsv"), "one.tsv:1: no column 'sentence1'; there are text, label"),
        (
            train("pairs.tsv", "--label", "gold"),
            "no column 'gold'; there are sentence1, sentence2, label, score; name",
        ),
        (train("nan.tsv", "--score", "--label", "score"), "nan.tsv:4: score 'nan' is not a finite number"),
        (train("empty.tsv"), "there is no row"),
        (train("blank.tsv"), "row 2 of train is an empty pair"),
        (train("blank.tsv"), "blank.tsv:4: row 2 of train is an empty pair"),
        (train("unlabelled.tsv"), "unlabelled.tsv:4: label is empty, which names no class; remove this row"),
        (train("dash.tsv"), "dash.tsv:4: label is '-', which names no class"),
        (train("spelled.tsv"), "spelled.tsv:4: label is 'Yes ', but 'yes' on line 3: two spellings"),
        (
            train("pairs.tsv", "--label", "score"),
            "pairs.tsv:3: score is '0.25': a score rather than a class? Then add",
        ),
        (train("five.tsv", "--score", "--label", "score"), "five.tsv:4: row 2 of train has the score 4; scores must"),
        (
            train("same.tsv"),
            "same.tsv: label is 'yes' in all 26 rows, but labels must be at least two different names",
        ),
        (
            train("pairs.tsv", "--dev", tmp_path / "other.tsv"),
            "other.tsv:4: row 2 of dev has the label 'maybe', which is none of the classes 'no', 'yes'",
        ),
        (train("pairs.tsv", "--metric", "map", "--dev-share", 0.25), "metric='map' needs a score"),
        (
            train("pairs.tsv", "--vectors", tmp_path / "vectors.txt"),
            "vectors.txt, line 2: expected a word and 2 numbers",
        ),
        (train("pairs.tsv", "--vectors", "a", "--words", "b"), "--vectors and --words are both given; choose one"),
        (train("pairs.tsv", "--vectors", "a", "--encoder", "b"), "--vectors and --encoder are both given; choose one"),
        (train("pairs.tsv", "--dev", "a", "--dev-share", 0.1), "--dev and --dev-share are both given; choose one"),
        (train("pairs.tsv", "--dev-share", 3), "must lie above 0 and below 1"),
        (("match", tmp_path / "none", pairs, "--output", tmp_path / "o.tsv"), "has no matcher.json"),
        (("match", tmp_path / "none", pairs, "--output", tmp_path / "o.txt"), "is none of .tsv, .csv, .jsonl"),
    ]
    before = sorted(path.name for path in tmp_path.iterdir())
    for args, words in cases:
        code, _, err = run(*args)
        last = err.rstrip("\n").split("\n")[-1]
        assert code == 1 and last.startswith("error:") and words in last and "Traceback" not in err, err
    code, _, err = run(*train("pairs.tsv", "--config", "msmarco"))
    words = " ".join(err.replace("│", "").split())
    assert code == 2 and "'msmarco' is not one of 'small', 'snli', 'quora', 'scitail', 'wikiqa'" in words
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_a_killed_training_is_resumed(run: Run, pairs: Path, tmp_path: Path) -> None:
    command = ("train", "re2", "--train", pairs, "--dev-share", 0.3, "--embedding-dimension", 8, "--batch-size", 10)
    command = (*command, "--epochs", 3, "--device", "cpu", "--output")
    assert run(*command, tmp_path / "whole")[0] == 0
    steps = iter(range(8))

    def kill(*_: object) -> None:
        if next(steps) == 4:
            raise KeyboardInterrupt

    hook = register_optimizer_step_post_hook(kill)
    try:
        assert run(*command, tmp_path / "cut")[0] == 130
    finally:
        hook.remove()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cut.checkpoints", "pairs.tsv", "whole"]
    code, _, err = run(*command, tmp_path / "cut")
    assert code == 1 and "holds the checkpoints of an unfinished training; go on with it (resume, --resume)" in err
    code, _, err = run(*command, tmp_path / "cut", "--resume", "--learning-rate", 0.1)
    assert code == 1 and "--learning-rate was 0.002 there and is 0.1 now" in err
    code, _, err = run(*command, tmp_path / "cut", "--resume")
    assert code == 0, err
    texts = [("a dog is reading", "a man"), ("", "a big cat")]
    whole, cut = (RE2Matcher.load(tmp_path / name).predict(texts) for name in ("whole", "cut"))
    assert np.array_equal(whole, cut)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cut", "pairs.tsv", "whole"]


def test_a_killed_prediction_leaves_nothing(
    run: Run, pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    matcher = RE2Matcher(LearnedEmbedding.from_texts(["a dog", "a cat"], 4), "wikiqa")
    matcher.save(tmp_path / "matcher")

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(RE2Matcher, "_score", interrupted)
    code, _, err = run("match", tmp_path / "matcher", pairs, "--output", tmp_path / "out.tsv")
    assert code == 130 and "Traceback" not in err, err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["matcher", "pairs.tsv"]


@pytest.mark.parametrize("name", ["out.tsv", "out.csv", "out.jsonl"])
def test_a_table_that_speaks_of_what_is_predicted_is_no_prediction(
    run: Run, pairs: Path, tmp_path: Path, name: str
) -> None:
    RE2Matcher(LearnedEmbedding.from_texts(["a dog", "a cat"], 4), "wikiqa").save(tmp_path / "matcher")
    output = tmp_path / name
    content = b'{"text": "rain was predicted"}\n' if name == "out.jsonl" else b"text\nrain was predicted\n"
    output.write_bytes(content)
    code, _, err = run("match", tmp_path / "matcher", pairs, "--output", output, "--overwrite")
    assert code == 1 and "is a file that st-plugins did not write" in err and output.read_bytes() == content
    output.unlink()
    for more in ((), ("--overwrite",)):
        assert run("match", tmp_path / "matcher", pairs, "--output", output, *more)[0] == 0


def test_jsonl_with_line_breaks_is_not_written_as_tsv(run: Run, tmp_path: Path) -> None:
    RE2Matcher(LearnedEmbedding.from_texts(["a dog", "a cat"], 4), "wikiqa").save(tmp_path / "matcher")
    row = {"sentence1": "a\ndog", "sentence2": "a\tcat", "id": 7}
    (tmp_path / "pairs.jsonl").write_text(json.dumps(row) + "\n", "utf-8")
    code, _, err = run("match", tmp_path / "matcher", tmp_path / "pairs.jsonl", "--output", tmp_path / "out.tsv")
    assert code == 1 and "which .tsv cannot say; write .csv or .jsonl" in err
    code, _, err = run("match", tmp_path / "matcher", tmp_path / "pairs.jsonl", "--output", tmp_path / "out.jsonl")
    assert code == 0, err
    found = json.loads((tmp_path / "out.jsonl").read_text("utf-8"))
    assert found["id"] == 7 and found["sentence1"] == "a\ndog" and 0 < found["predicted"] < 1


@pytest.mark.parametrize("command", ["train re2", "match"])
def test_help_has_examples(run: Run, command: str) -> None:
    code, out, err = run(*command.split(), "--help")
    assert code == 0, err
    assert f"st-plugins {command} " in out and "--output" in out
