"""Where nothing can be measured the verdict is "undefined", everywhere: no difference was found, nor none."""

from __future__ import annotations

import dataclasses
import io
import json
import logging
import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from sentence_transformers import SentenceTransformer
from transformers import TrainerControl, TrainerState

from st_plugins.cli.console import print_before_after
from st_plugins.data import Pairs
from st_plugins.evaluation import Difference, STSSuiteEvaluator, SuiteResult, compare
from st_plugins.evaluation.pages.tables import comparison_table
from st_plugins.evaluation.report import csv_text, markdown
from st_plugins.evaluation.statistics import difference, holm
from st_plugins.geometry import GeometryCallback
from st_plugins.methods.contrastive.train_result import selection_in_words
from st_plugins.training import train_consert

NAN = math.nan


@pytest.fixture
def result(model: SentenceTransformer, sentences: list[str]) -> SuiteResult:
    """Two tasks; the second has constant gold scores."""
    gold = np.random.default_rng(0).random(30)
    tasks = [
        Pairs("fine", sentences[:30], sentences[30:], gold),
        Pairs("flat", sentences[:30], sentences[30:], np.ones(30)),
    ]
    return STSSuiteEvaluator(tasks, bootstrap_samples=50, geometry=False).evaluate(model, "m")


def _printed(paint: Callable[[Console], object]) -> str:
    console = Console(file=io.StringIO(), width=200)
    paint(console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def _collapsed(result: SuiteResult, value: float) -> SuiteResult:
    tasks = [dataclasses.replace(task, similarities=[value] * task.pairs) for task in result.tasks]
    return dataclasses.replace(result, tasks=tasks)


def test_a_difference_that_does_not_exist_is_undefined() -> None:
    assert difference(NAN, np.zeros(9), 0.95).verdict == "undefined"
    assert difference(0.1, np.full(9, NAN), 0.95).verdict == "undefined"


def test_undefined_resamples_speak_for_neither_side() -> None:
    found = difference(2.0, np.array([2.0] * 60 + [NAN] * 40), 0.95)  # as of two pairs
    assert found.p_value == pytest.approx(2 * 41 / 101) and found.verdict == "not separable"
    assert difference(2.0, np.full(99, 2.0), 0.95).p_value == pytest.approx(0.02)


def test_without_resamples_nothing_is_tested(model: SentenceTransformer, sentences: list[str]) -> None:
    pairs = Pairs("own", sentences[:30], sentences[30:], np.arange(30.0))
    result = STSSuiteEvaluator([pairs], bootstrap_samples=0, geometry=False).evaluate(model)
    assert result.floor is not None
    above = result.floor.above_raw["own"]
    assert above.verdict == result.floor.above_whitened["avg"].verdict == "not tested" and not math.isnan(above.value)


def test_undefined_differences_are_no_tests_of_holm() -> None:
    raw = {"a": Difference(0.1, 0, 0.2, 0.03, "better"), "b": Difference(NAN, NAN, NAN, NAN, "undefined")}
    corrected = holm(raw, 0.95)
    assert (corrected["a"].p_value, corrected["a"].verdict) == (0.03, "better")
    assert corrected["b"].verdict == "undefined" and math.isnan(corrected["b"].p_value)


@pytest.mark.parametrize("value", [0.0, 1.0, NAN])
def test_compare_with_a_collapsed_model_is_undefined(result: SuiteResult, value: float) -> None:
    found = compare(result, _collapsed(result, value), bootstrap_samples=50)
    assert {judged.verdict for judged in [*found.tasks.values(), found.average]} == {"undefined"}
    assert json.loads(found.to_json())["tasks"]["fine"]["p_value"] is None


def test_one_flat_task_makes_the_average_undefined_not_the_other_task(result: SuiteResult) -> None:
    found = compare(result, result, bootstrap_samples=50)
    verdicts = {name: judged.verdict for name, judged in found.tasks.items()}
    assert verdicts == {"fine": "not separable", "flat": "undefined"}
    assert found.average.verdict == "undefined" and found.tasks["fine"].p_value == 1
    text = _printed(lambda console: console.print(comparison_table(found, {}).to_terminal()))
    assert "nan" not in text and text.count("undefined") == 8


def test_the_report_says_undefined_beside_the_floor(result: SuiteResult) -> None:
    assert result.floor is not None
    assert result.floor.above_raw["flat"].verdict == result.floor.above_whitened["avg"].verdict == "undefined"
    assert "distance from the whitened floor is undefined" in markdown(result)
    assert ",nan,nan,undefined" not in csv_text(result) and ",nan,undefined" in csv_text(result)


@pytest.mark.parametrize(
    ("first", "gold", "reason"),
    [
        (["a man", "a dog"], [3, 3], "all gold scores are equal"),
        (["a man", "a man"], [1, 2], "all similarities are equal"),
        (["a man"], [1], "fewer than two pairs"),
    ],
)
def test_the_warning_says_why(model: SentenceTransformer, first: list[str], gold: list[float], reason: str) -> None:
    evaluator = STSSuiteEvaluator.from_pairs(first, ["a man", "a man"][: len(first)], gold, bootstrap_samples=5)
    assert any(reason in warning for warning in evaluator.evaluate(model).warnings)


def test_resamples_without_a_correlation_are_counted(model: SentenceTransformer) -> None:
    pairs = (["a man", "a dog", "the park"], ["a woman", "the dog", "a house"], [1, 1, 5])
    evaluator = STSSuiteEvaluator.from_pairs(*pairs, bootstrap_samples=200)
    result = evaluator.evaluate(model)
    (warning,) = [warning for warning in result.warnings if "resamples" in warning]
    assert " of 200 resamples" in warning and not math.isnan(result.tasks[0].spearman["all"].low)
    (note,) = compare(result, result, bootstrap_samples=200).notes
    assert note.split(":")[1] == warning.split(":")[1].replace(
        "all gold scores or all similarities are equal", "a correlation is undefined"
    )


def test_before_and_after_say_that_nothing_was_measured(result: SuiteResult) -> None:
    text = _printed(lambda console: print_before_after(console, result, result, compare(result, result)))
    assert "could not be measured" in text and "no difference" not in text
    assert "all gold scores are equal" in text


# ---- choosing a checkpoint


def test_training_with_flat_dev_scores_says_so(
    model: SentenceTransformer, sentences: list[str], tmp_path: Path
) -> None:
    dev = Pairs("flat", sentences[:20], sentences[20:40], np.ones(20))
    settings: dict[str, Any] = {"epochs": 1, "batch_size": 20, "eval_steps": 1, "device": "cpu"}
    result = train_consert(
        model, sentences, tmp_path / "out", dev=dev, select="dev", show_progress_bar=False, **settings
    )
    assert result.selection == (
        "Step 3 of 3, the last one: Spearman on the development pairs was to choose, and was undefined at every step."
    )
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert "could not be measured" in card and "no difference" not in card


def test_a_criterion_that_was_never_defined_is_said() -> None:
    words = selection_in_words("isoscore", 9, 9, None, defined=False)
    assert (
        words
        == "Step 9 of 9, the last one: isoscore of the embeddings was to choose, and was undefined at every step."
    )


def test_the_callback_restores_nothing_and_says_so(
    model: SentenceTransformer, sentences: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    callback = GeometryCallback(sentences, criterion=lambda numbers: NAN, restore_at_end=True, every=1)
    arguments: Any = SimpleNamespace(load_best_model_at_end=False, output_dir="nowhere")
    control = TrainerControl()
    state = TrainerState(max_steps=1, is_world_process_zero=True)
    callback.on_train_begin(arguments, state, control, model=model)
    state.global_step = 1
    callback.on_step_end(arguments, state, control, model=model)
    with caplog.at_level(logging.WARNING):
        callback.on_train_end(arguments, state, control, model=model)
    assert "undefined at every step" in caplog.text and callback.best_step is None


def test_an_undefined_baseline_is_no_collapse(
    model: SentenceTransformer, sentences: list[str], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    callback = GeometryCallback(sentences, on_collapse="stop")
    measured = iter([NAN, NAN, 5.0])
    names = ("alignment", "effective_rank", "isoscore", "mean_random_cosine", "uniformity")
    monkeypatch.setattr(callback, "measure", lambda model: dict.fromkeys(names, next(measured)))
    control = TrainerControl()
    state = TrainerState(max_steps=1, is_world_process_zero=True)
    arguments: Any = SimpleNamespace(load_best_model_at_end=False, output_dir="nowhere")
    with caplog.at_level(logging.WARNING):
        callback.on_train_begin(arguments, state, control, model=model)
        for state.global_step in (1, 2):
            callback.on_evaluate(arguments, state, control, model=model)
    assert not control.should_training_stop and "has collapsed" not in caplog.text
    assert caplog.text.count("undefined before the training") == 1
