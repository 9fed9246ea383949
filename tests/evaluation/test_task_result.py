"""Results of tasks other than STS travel to files and back, and are put together."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from sentence_transformers.base.evaluation import SequentialEvaluator

from st_plugins.data import LabeledTexts, Pairs, RetrievalData
from st_plugins.evaluation import (
    ClusteringEvaluator,
    PairClassificationEvaluator,
    RetrievalEvaluator,
    STSSuiteEvaluator,
    SuiteResult,
    TasksResult,
    read_result,
)
from st_plugins.miniature import untrained_encoder

RETRIEVAL = RetrievalData(
    "pets", {"d": "a dog", "e": "a cat"}, {"q": "a dog", "r": "cats"}, {"q": {"d": 2}, "r": {"e": 1}}
)
PAIRS = Pairs("twins", ["a dog", "a cat", "men"], ["dogs", "boats", "a man"], [1, 0, 1])
LABELED = LabeledTexts("kinds", ["a dog", "dogs", "a cat", "cats"], ["dog", "dog", "cat", "cat"])


def three(**settings: int) -> TasksResult:
    evaluators = [
        RetrievalEvaluator(RETRIEVAL, **settings),
        PairClassificationEvaluator(PAIRS, **settings),
        ClusteringEvaluator(LABELED, **settings),
    ]
    return TasksResult.joined([evaluator.evaluate(untrained_encoder(), "mine") for evaluator in evaluators])


def test_results_survive_json_with_nan(tmp_path: Path) -> None:
    result = three()
    result.tasks[1].per_unit["similarity"][0] = float("nan")
    result.tasks[1].details["precision_threshold"] = float("nan")
    (tmp_path / "result.json").write_text(result.to_json())
    for back in (TasksResult.read(tmp_path), read_result(tmp_path / "result.json")):
        assert isinstance(back, TasksResult)
        np.testing.assert_equal(vars(back.tasks[1]), vars(result.tasks[1]))
        assert back.to_json() == result.to_json()
        assert (back.model, back.settings, back.versions) == (result.model, result.settings, result.versions)


def test_each_kind_of_result_says_who_reads_it(tmp_path: Path) -> None:
    suite = STSSuiteEvaluator([PAIRS], bootstrap_samples=0, floor=False).evaluate(untrained_encoder())
    (tmp_path / "result.json").write_text(suite.to_json())
    assert isinstance(read_result(tmp_path), SuiteResult)
    with pytest.raises(ValueError, match="a result of the STS suite; read it with SuiteResult"):
        TasksResult.read(tmp_path)
    with pytest.raises(ValueError, match="read it with TasksResult"):
        SuiteResult.from_json(three().to_json())
    with pytest.raises(FileNotFoundError, match="does not exist"):
        read_result(tmp_path / "nowhere")
    (tmp_path / "result.json").write_text("[]")
    with pytest.raises(ValueError, match=r"result\.json: not a result\.json of st_plugins"):
        read_result(tmp_path)


def test_joined_refuses_what_does_not_belong_together() -> None:
    result = three()
    assert [task.kind for task in result.tasks] == ["retrieval", "pair classification", "clustering"]
    with pytest.raises(ValueError, match="two tasks have the name 'pets'"):
        TasksResult.joined([result, result])
    with pytest.raises(ValueError, match="different settings: 0 and 1"):
        TasksResult.joined([result, three(seed=1)])
    with pytest.raises(ValueError, match=r"different models: .*other"):
        TasksResult.joined([result, RetrievalEvaluator(RETRIEVAL).evaluate(untrained_encoder(), "other")])
    with pytest.raises(ValueError, match="results is empty"):
        TasksResult.joined([])


def test_the_host_runs_them_one_after_the_other_and_writes_a_row_each(tmp_path: Path) -> None:
    evaluators = [RetrievalEvaluator(RETRIEVAL, name="dev"), PairClassificationEvaluator(PAIRS)]
    host, model = SequentialEvaluator(evaluators), untrained_encoder()
    for epoch in (0, 1):
        metrics = host(model, output_path=str(tmp_path), epoch=epoch, steps=7)
    assert {"dev_cosine_ndcg@10", "twins_cosine_ap", "sequential_score"} <= metrics.keys()
    assert (evaluators[0].primary_metric, evaluators[1].primary_metric) == ("dev_cosine_ndcg@10", "twins_cosine_ap")
    rows = (tmp_path / "dev_results.csv").read_text().splitlines()
    assert rows[0].startswith("epoch,steps,cosine_ndcg@10") and [row[:4] for row in rows[1:]] == ["0,7,", "1,7,"]
