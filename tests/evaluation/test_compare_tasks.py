"""Two results on tasks other than STS are compared on the same units, and their reports written."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer

from st_plugins.cli.console import print_result
from st_plugins.data import LabeledTexts, Pairs, RetrievalData
from st_plugins.evaluation import (
    ClassificationEvaluator,
    ClusteringEvaluator,
    MeasuredTask,
    PairClassificationEvaluator,
    RetrievalEvaluator,
    STSSuiteEvaluator,
    TasksResult,
    compare,
    compare_tasks,
    score_classification,
    score_clustering,
    score_pairs,
    score_retrieval,
    write_reports,
)
from st_plugins.evaluation.pages.tables import comparison_table
from st_plugins.evaluation.report import html, markdown
from st_plugins.miniature import untrained_encoder
from st_plugins.report.terminal import terminal

Score = Callable[[float], MeasuredTask]

SIZE = 60
LABELS = [f"class {row % 3}" for row in range(SIZE)]
LABELED = LabeledTexts("kinds", [f"text {row}" for row in range(SIZE)], LABELS)
PAIRS = Pairs("twins", ["a"] * SIZE, ["b"] * SIZE, [row % 2 for row in range(SIZE)])
RETRIEVAL = RetrievalData(
    "library",
    {f"d{row}": f"document {row}" for row in range(SIZE)},
    {f"q{row}": f"query {row}" for row in range(SIZE)},
    {f"q{row}": {f"d{row}": 1 + row % 2} for row in range(SIZE)},
)


def vectors(noise: float, seed: int, centers: Any = None) -> np.ndarray:
    """Return vectors around centers, the same noise whatever its size."""
    around = np.eye(3)[np.arange(SIZE) % 3] if centers is None else centers
    return around + noise * np.random.default_rng(seed).normal(size=around.shape)


def retrieval(noise: float) -> MeasuredTask:
    centers = np.random.default_rng(9).normal(size=(SIZE, 5))
    return score_retrieval(vectors(noise, 0, centers), centers, RETRIEVAL)


def pairs(noise: float) -> MeasuredTask:
    centers = np.random.default_rng(9).normal(size=(SIZE, 5))
    second = np.where(np.arange(SIZE)[:, None] % 2 == 1, centers, centers[::-1])
    return score_pairs(vectors(noise, 1, second), centers, PAIRS)


def classification(noise: float) -> MeasuredTask:
    return score_classification(vectors(noise, 2), vectors(noise, 3), LABELED, LABELED, samples_per_label=4)


def clustering(noise: float) -> MeasuredTask:
    return score_clustering(vectors(noise, 4), LABELED, experiments=3)


EACH = pytest.mark.parametrize("score", [retrieval, pairs, classification, clustering])


@EACH
def test_better_and_worse_are_told_apart_and_equal_are_not(score: Score) -> None:
    good, bad, name = score(0.1), score(2.0), score(0.1).name
    better, worse = compare_tasks([good], [bad])[name], compare_tasks([bad], [good])[name]
    assert (better.verdict, worse.verdict) == ("better", "worse")
    assert better.value == pytest.approx(good.score.value - bad.score.value)
    assert better.low < better.value < better.high and better.value == -worse.value
    assert compare_tasks([good], [good])[name].verdict == "not separable"


def test_the_interval_is_that_of_differences_on_the_same_queries() -> None:
    one, two = retrieval(0.5), retrieval(0.7)
    found = compare_tasks([one], [two], bootstrap_samples=4000)["library"]
    differences = np.array(one.per_unit["ndcg_at_10"]) - two.per_unit["ndcg_at_10"]
    assert found.high - found.low == pytest.approx(3.92 * differences.std() / SIZE**0.5, rel=0.1)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"checksum": "other"}, r"different queries \(own texts: 60 queries, own texts: 60 queries\)"),
        ({"settings": {"similarity": "dot"}}, "settings is .*'cosine'.* and .*'dot'"),
        ({"kind": "clustering"}, "kind is 'retrieval' and 'clustering'"),
        ({"name": "else"}, "name is 'library' and 'else'"),
    ],
)
def test_what_was_measured_on_other_data_or_in_another_way_is_refused(changed: dict[str, Any], words: str) -> None:
    task = retrieval(0.5)
    with pytest.raises(ValueError, match=words):
        compare_tasks([task], [replace(task, **changed)])


def evaluated(model: SentenceTransformer, name: str = "mine", **settings: Any) -> TasksResult:
    toy = LabeledTexts("pets", ["a dog", "a dog runs", "a cat", "a cat sleeps"], ["dog", "dog", "cat", "cat"])
    evaluators = [
        RetrievalEvaluator(
            RetrievalData("find", {"d": "a dog", "e": "a cat"}, {"q": "a dog"}, {"q": {"d": 1}}), **settings
        ),
        PairClassificationEvaluator(Pairs("two", ["a dog", "a cat"], ["a dog", "a man"], [1, 0]), **settings),
        ClassificationEvaluator(toy, replace(toy, name="<b>tests|"), **settings),
        ClusteringEvaluator(toy, experiments=2, **settings),
    ]
    return TasksResult.joined([evaluator.evaluate(model, name) for evaluator in evaluators])


def test_compare_takes_results_of_all_kinds_and_refuses_unlike_ones() -> None:
    result = evaluated(untrained_encoder())
    found = compare(result, TasksResult.from_json(result.to_json()))
    assert found.metrics == {
        "find": "ndcg_at_10",
        "two": "average_precision",
        "<b>tests|": "accuracy",
        "pets": "v_measure",
    }
    assert {one.verdict for one in found.tasks.values()} == {"not separable"}
    assert found.scores["avg"][0] == pytest.approx(np.mean([task.score.value for task in result.tasks]))
    table = comparison_table(found, {"find": "Find"})
    assert table.rows[0][0] == "Find (nDCG@10)" and "Spearman" not in table.title
    with pytest.raises(ValueError, match="prompts is 'the man ' for 'mine'"):
        compare(evaluated(untrained_encoder(), prompt="the man "), result)
    suite = STSSuiteEvaluator([Pairs("find", ["a", "b"], ["c", "d"], [1, 0])], floor=False, bootstrap_samples=0)
    alone = RetrievalEvaluator(RetrievalData("find", {"d": "a dog"}, {"q": "a dog"}, {"q": {"d": 1}}))
    with pytest.raises(ValueError, match="one result is of STS"):
        compare(suite.evaluate(untrained_encoder()), alone.evaluate(untrained_encoder()))


def test_reports_hold_every_score_and_are_safe(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = evaluated(untrained_encoder(), "<script>x")
    result.tasks[0].scores["mrr_at_10"] = replace(result.tasks[0].scores["mrr_at_10"], value=float("nan"))
    files = write_reports(result, tmp_path / "out")
    assert [file.name for file in files] == ["result.json", "result.csv", "result.md", "report.html"]
    assert TasksResult.read(tmp_path / "out").to_json() == result.to_json()
    rows = list(csv.DictReader(files[1].open(encoding="utf-8")))
    scores = [(task.name, name, str(score.value)) for task in result.tasks for name, score in task.scores.items()]
    assert sorted((row["task"], row["metric"], row["value"]) for row in rows) == sorted(scores)
    page, text = (file.read_text(encoding="utf-8") for file in files[3:1:-1])
    assert "<script>" not in page and "<b>tests" not in page and "&lt;b>tests\\|" in text
    assert len(re.findall("<img", page)) == 1 and 'alt="Bars of the scores' in page
    for said in ("nDCG@10", "undefined", "average precision", "positive, which finds", "V-measure says"):
        assert said in page and said in text
    again = TasksResult.from_json(result.to_json())
    assert (html(again), markdown(again)) == (page, text)
    print_result(terminal(), result)
    shown = capsys.readouterr().out
    assert "nDCG@10" in shown and "F1 is best" in shown
    with pytest.raises(FileExistsError):
        write_reports(result, tmp_path / "out")
    suite = STSSuiteEvaluator([Pairs("sts", ["a", "b"], ["c", "d"], [1, 0])], floor=False, bootstrap_samples=0)
    write_reports(suite.evaluate(untrained_encoder()), tmp_path / "out", overwrite=True)
    write_reports(result, tmp_path / "out", overwrite=True)
