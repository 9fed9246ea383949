"""Paired comparison of two results."""

from __future__ import annotations

import dataclasses
import io
import json
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from sentence_transformers import SentenceTransformer

from st_plugins.cli.console import verdict
from st_plugins.data.pairs import Pairs
from st_plugins.evaluation import STSSuiteEvaluator, SuiteResult, compare
from st_plugins.evaluation.pages.tables import comparison_table


@pytest.fixture
def result(model: SentenceTransformer, sentences: list[str]) -> SuiteResult:
    gold = np.random.default_rng(0).random(60)
    tasks = [
        Pairs("one", sentences[:30], sentences[30:], gold[:30]),
        Pairs("two", sentences[30:], sentences[:30], gold[30:]),
    ]
    return STSSuiteEvaluator(tasks, bootstrap_samples=0, floor=False).evaluate(model, "model")


def _with_similarities(result: SuiteResult, noise: float) -> SuiteResult:
    """Return the result of a made-up model: gold scores plus noise."""
    rng = np.random.default_rng(1)
    tasks = []
    for task in result.tasks:
        gold = np.array(task.gold)
        tasks.append(dataclasses.replace(task, similarities=(gold + noise * rng.normal(size=gold.size)).tolist()))
    return dataclasses.replace(result, tasks=tasks)


def test_better_worse_and_antisymmetry(result: SuiteResult) -> None:
    good, bad = _with_similarities(result, 0.05), _with_similarities(result, 5.0)
    forward, backward = compare(good, bad), compare(bad, good)
    assert forward.average.verdict == "better" and backward.average.verdict == "worse"
    assert forward.average.value == pytest.approx(-backward.average.value)
    assert forward.average.low == pytest.approx(-backward.average.high)
    assert forward.scores["avg"][0] == pytest.approx(np.mean([forward.scores[name][0] for name in ("one", "two")]))


def test_the_better_one_is_named_in_both_orders(result: SuiteResult) -> None:
    poor, good = _with_similarities(result, 2.0), _with_similarities(result, 0.0)
    poor.model["name"], good.model["name"] = "poor", "good"
    for first, second, said in ((poor, good, "good (B) is better by "), (good, poor, "good (A) is better by ")):
        sentence = verdict(compare(first, second)).plain
        assert sentence.startswith(said) and "-" not in sentence


def test_a_model_is_not_separable_from_itself(result: SuiteResult) -> None:
    comparison = compare(result, result)
    assert {value.verdict for value in [*comparison.tasks.values(), comparison.average]} == {"not separable"}
    assert comparison.average.value == 0 and comparison.average.p_value == 1
    console = Console(file=io.StringIO(), width=200)
    console.print(comparison_table(comparison, {}).to_terminal(), verdict(comparison))
    printed = console.file.getvalue()  # type: ignore[attr-defined]
    assert "B - A is +0.00 [+0.0, +0.0]" in printed and "-0.0" not in printed


def test_json_round_trip_keeps_the_comparison(result: SuiteResult, tmp_path: Path) -> None:
    good = _with_similarities(result, 0.05)
    (tmp_path / "result.json").write_text(good.to_json(), encoding="utf-8")
    assert compare(SuiteResult.read(tmp_path), result).to_json() == compare(good, result).to_json()
    assert json.loads(compare(good, result).to_json())["tasks"]["one"]["verdict"] in ("better", "not separable")


def test_different_pairs_are_refused(result: SuiteResult) -> None:
    other = dataclasses.replace(result, tasks=[dataclasses.replace(result.tasks[0], checksum="x"), result.tasks[1]])
    with pytest.raises(ValueError, match=r"'one'.*different pairs"):
        compare(result, other)
    with pytest.raises(ValueError, match="different tasks"):
        compare(result, dataclasses.replace(result, tasks=result.tasks[:1]))


def test_missing_similarities_are_refused(result: SuiteResult) -> None:
    bare = dataclasses.replace(result, tasks=[dataclasses.replace(task, similarities=None) for task in result.tasks])
    with pytest.raises(ValueError, match="keep_similarities=True"):
        compare(result, bare)


@pytest.mark.parametrize(
    ("content", "message"),
    [("{", "not a result.json"), ("[]", "no 'tasks'"), ('{"tasks": [], "schema_version": 99}', "schema_version 99")],
)
def test_a_file_that_is_no_result_is_named(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "result.json"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=message) as caught:
        SuiteResult.read(path)
    assert str(path) in str(caught.value)
    with pytest.raises(FileNotFoundError, match="does not exist"):
        SuiteResult.read(tmp_path / "nothing.json")
