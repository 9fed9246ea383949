"""Many models on the same tasks: the results are those of one model after the other."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sentence_transformers import SentenceTransformer

from st_plugins.data import LabeledTexts, RetrievalData
from st_plugins.evaluation import (
    ClusteringEvaluator,
    RetrievalEvaluator,
    STSSuiteEvaluator,
    TasksResult,
    evaluate_models,
)
from st_plugins.evaluation.measuring.task_evaluator import TaskEvaluator
from st_plugins.io import load_sentence_transformer

Make = Callable[..., SentenceTransformer]


@pytest.fixture
def folders(make_model: Make, tmp_path: Path) -> list[str]:
    kinds = ("bert", "roberta", "mpnet")
    for kind in kinds:
        make_model(kind).save(str(tmp_path / kind), create_model_card=False)
    return [str(tmp_path / kind) for kind in kinds]


def suite(sentences: list[str]) -> STSSuiteEvaluator:
    return STSSuiteEvaluator.from_pairs(sentences[:20], sentences[20:40], list(range(20)), bootstrap_samples=20)


def others(sentences: list[str]) -> list[TaskEvaluator]:
    corpus = {f"d{row}": text for row, text in enumerate(sentences[:30])}
    queries = {f"q{row}": text for row, text in enumerate(sentences[30:])}
    data = RetrievalData("find", corpus, queries, {query: {f"d{i}": 1} for i, query in enumerate(queries)})
    labeled = LabeledTexts("sort", sentences[:30], ["ab"[i % 2] for i in range(30)])
    return [RetrievalEvaluator(data, bootstrap_samples=20), ClusteringEvaluator(labeled, bootstrap_samples=20)]


def test_results_are_those_of_one_after_another(folders: list[str], sentences: list[str]) -> None:
    found = evaluate_models([Path(folder) for folder in folders], suite(sentences))
    assert list(found.results) == folders and not found.missing
    for folder, result in found.results.items():
        assert result == suite(sentences).evaluate(load_sentence_transformer(folder), folder)
    tasks = evaluate_models(folders[:1], others(sentences)).results[folders[0]]
    one_by_one = [one.evaluate(load_sentence_transformer(folders[0]), folders[0]) for one in others(sentences)]
    assert tasks == TasksResult.joined(one_by_one)
    alone = evaluate_models(folders[0], others(sentences)[0]).results[folders[0]]
    assert [task.name for task in alone.tasks] == ["find"]


def test_a_model_that_fails_is_named(
    folders: list[str], sentences: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "empty").mkdir()
    given = [folders[0], str(tmp_path / "empty"), folders[1]]
    with pytest.raises(RuntimeError, match=r"model '.*/empty' cannot be evaluated: \w+: ") as stop:
        evaluate_models(given, suite(sentences))
    assert isinstance(stop.value.__cause__, OSError | ValueError)
    found = evaluate_models(given, suite(sentences), on_error="skip")
    assert list(found.results) == folders[:2] and list(found.missing) == given[1:2]
    assert "empty is left out" in caplog.text


def test_bad_input(sentences: list[str]) -> None:
    for models, evaluators, settings, words in (
        ([], suite(sentences), {}, "models is empty"),
        (["a", "a"], suite(sentences), {}, "models has 'a' twice"),
        (["a"], [], {}, "evaluators is empty"),
        (["a"], suite(sentences), {"on_error": "go on"}, "on_error='go on'"),
        (["a"], suite(sentences), {"engine": "sun"}, "engine='sun'"),
    ):
        with pytest.raises(ValueError, match=words):
            evaluate_models(models, evaluators, **settings)
    with pytest.raises(TypeError, match="evaluators has a STSSuiteEvaluator"):
        evaluate_models(["a"], [suite(sentences)])  # type: ignore[list-item]


@pytest.mark.slow
@pytest.mark.enable_socket
def test_ray_gives_the_same_results(
    ray_cluster: Any, folders: list[str], sentences: list[str], tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    for evaluators in (suite(sentences), others(sentences)):
        expected = evaluate_models(folders, evaluators).results
        given = [folders[2], str(tmp_path / "empty"), *folders[:2]]
        found = evaluate_models(given, evaluators, engine="ray", on_error="skip")
        assert found.results == expected and list(found.results) == [folders[2], *folders[:2]]
        assert list(found.missing) == given[1:2]
    with pytest.raises(RuntimeError, match=r"model '.*/empty' cannot be evaluated"):
        evaluate_models(given, suite(sentences), engine="ray")
