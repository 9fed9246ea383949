"""Retrieval, pair classification, classification, clustering and the leaderboard on the command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from sentence_transformers import SentenceTransformer

from st_plugins.evaluation import TasksResult, read_leaderboard, read_result

Run = Callable[..., tuple[int, str, str]]

RETRIEVAL = ("--retrieval", "pets")
PAIRS = ("--pair-classification", "same.tsv")
CLASSIFICATION = ("--classification", "train.csv", "--classification-test", "test.csv")
CLUSTERING = ("--clustering", "all.csv")
QUICK = ("--bootstrap-samples", "20", "--device", "cpu")


@pytest.fixture
def run(command: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    """Run ``st-plugins ARGS`` in the folder of the inputs; return exit code, standard output and standard error."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ST_PLUGINS_DATA", raising=False)
    return command


@pytest.fixture(autouse=True)
def inputs(model: SentenceTransformer, sentences: list[str], tmp_path: Path) -> None:
    model.save(str(tmp_path / "m"), create_model_card=False)
    (tmp_path / "pets").mkdir()
    for name, texts in (("corpus", sentences[:20]), ("queries", sentences[20:25])):
        lines = [json.dumps({"_id": f"{name}{i}", "text": text}) for i, text in enumerate(texts)]
        (tmp_path / "pets" / f"pets_{name}.jsonl").write_text("\n".join(lines))
    qrels = [f"queries{i}\tcorpus{i}\t{1 + i % 2}" for i in range(5)]
    (tmp_path / "pets" / "pets_qrels.tsv").write_text("\n".join(["query-id\tcorpus-id\tscore", *qrels]))
    rows = [f"{a}\t{b}\t{i % 2}" for i, (a, b) in enumerate(zip(sentences[:20], sentences[20:], strict=False))]
    (tmp_path / "same.tsv").write_text("\n".join(["sentence1\tsentence2\tscore", *rows]))
    for name, texts in (("train", sentences[:20]), ("test", sentences[20:40]), ("all", sentences)):
        rows = [f"{text},{'ab'[i % 2]}" for i, text in enumerate(texts)]
        (tmp_path / f"{name}.csv").write_text("\n".join(["text,label", *rows]))


def test_four_tasks_in_one_run_are_printed_written_and_compared(run: Run, tmp_path: Path) -> None:
    more = ("--precision", "0.4", "--output", "out", "--leaderboard", "board")
    code, out, err = run("evaluate", "m", *RETRIEVAL, *PAIRS, *CLASSIFICATION, *CLUSTERING, *QUICK, *more)
    assert code == 0, err
    result = read_result("out")
    assert isinstance(result, TasksResult)
    assert [task.name for task in result.tasks] == ["pets", "same", "test", "all"]
    for task in result.tasks:
        assert task.name in out and f"{100 * task.score.value:.2f}" in out
    assert {path.name for path in Path("out").iterdir()} == {"result.json", "result.csv", "result.md", "report.html"}
    board = read_leaderboard("board")
    assert set(board) == {"pets", "same", "test", "all"}
    for task, metric in zip(result.tasks, ("ndcg_at_10", "cosine_ap", "accuracy", "v_measure"), strict=True):
        assert board[task.name]["main_score"] == board[task.name][metric] == task.score.value
    assert "same: from a cosine similarity of" in out and "at least 40 % of the pairs" in out
    code, _, err = run("compare", "out", "m", "--pairs", "same.tsv")
    assert code == 1 and "'out' was measured on other tasks than STS; name the same data for 'm'" in err
    code, _, err = run("compare", "out", "out", *CLUSTERING)
    assert code == 1 and "--clustering has no effect beside two stored results" in err
    data = (*RETRIEVAL, *PAIRS, "--precision", "0.4", *CLASSIFICATION, *CLUSTERING)
    code, out, err = run("compare", "out", "m", *data, *QUICK)
    assert code == 0 and "not separable" in out, err
    code, out, err = run("compare", "out", "board")
    assert code == 0 and "ndcg_at_10" in out and "+0.00" in out and "cannot be tested" in " ".join(out.split()), err


def test_sts_is_written_for_the_leaderboard_and_laid_beside_it(run: Run) -> None:
    assert run("evaluate", "m", "--pairs", "same.tsv", "--no-floor", "--leaderboard", "board", *QUICK)[0] == 0
    assert sorted(read_leaderboard("board")["same"]) == ["cosine_pearson", "cosine_spearman", "main_score"]
    code, _, err = run("compare", "board", "m")
    assert code == 1 and "'m' is no stored result" in err
    code, _, err = run("compare", "board", "board", "--seed", "1")
    assert code == 1 and "--seed has no effect beside results of the leaderboard" in err


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ((*RETRIEVAL, "--tasks", "stsb"), "--tasks has no effect beside --retrieval"),
        ((*RETRIEVAL, "--pairs", "same.tsv"), "--pairs has no effect beside --retrieval"),
        ((*RETRIEVAL, "--texts", "all.csv"), "--texts has no effect"),
        ((*RETRIEVAL, "--score", "label"), "--score has no effect without --pair-classification"),
        ((*RETRIEVAL, "--label", "x"), "--label has no effect without --classification or --clustering"),
        ((*PAIRS, "--split", "dev"), "--split has no effect without --retrieval"),
        ((*CLUSTERING, "--precision", "0.8"), "--precision has no effect without --pair-classification"),
        ((*CLUSTERING, "--similarity", "dot"), "--similarity has no effect on classification and clustering"),
        (("--pairs", "same.tsv", "--text", "x"), "--text has no effect without one of --retrieval"),
        (CLASSIFICATION[:2], "--classification and --classification-test go together"),
        (CLASSIFICATION[2:], "--classification and --classification-test go together"),
        (("--retrieval", "nowhere"), "retrieval folder 'nowhere' does not exist"),
        (("--clustering", "nowhere.csv"), "nowhere.csv"),
        (
            (*CLUSTERING, "--label", "kind"),
            "no column 'kind'; there are text, label; name the right one with --label=",
        ),
        ((*PAIRS, "--precision", "2"), "--precision=2.0"),
        (("--pair-classification", "same.tsv", "--score", "sentence1"), "same.tsv:2: score"),
        (("--clustering", "test.csv", *CLASSIFICATION), "two tasks have the name 'test'"),
        ((*RETRIEVAL, "--leaderboard", "test.csv"), "--leaderboard 'test.csv/pets.json' cannot be written"),
        ((*RETRIEVAL, "--output", "test.csv"), "--output 'test.csv/result.json' cannot be written"),
    ],
)
def test_what_is_wrong_is_one_line_said_before_the_model_is_loaded(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, args: tuple[str, ...], words: str
) -> None:
    def load(*_: object) -> None:
        raise AssertionError("the model was loaded")

    monkeypatch.setattr("st_plugins.io.load_sentence_transformer", load)
    before = sorted(tmp_path.rglob("*"))
    code, _, err = run("evaluate", "m", *args)
    assert code == 1 and err.startswith("error: ") and words in err and err.count("\n") == 1, err
    assert sorted(tmp_path.rglob("*")) == before


def test_results_that_cannot_be_compared_are_told_what_would_do(run: Run) -> None:
    assert run("evaluate", "m", *PAIRS, *QUICK, "--output", "one")[0] == 0
    assert run("evaluate", "m", *CLUSTERING, *QUICK, "--output", "two")[0] == 0
    code, _, err = run("compare", "one", "two")
    assert code == 1 and "different tasks" in err and "measure both on the same" in err
    # What is to be compared is not there: other data would not help.
    code, _, err = run("compare", "one", "nowhere")
    assert code == 1 and "'nowhere' is neither a stored result nor the folder of a model" in err
