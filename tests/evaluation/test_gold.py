"""What gold scores allow: two values, ties, and a scale that runs the other way."""

from __future__ import annotations

import csv
import io

import numpy as np
import pytest
from rich.console import Console
from scipy.stats import spearmanr
from sentence_transformers import SentenceTransformer
from sklearn.metrics import average_precision_score, roc_auc_score

from st_plugins.cli.console import print_result
from st_plugins.data import Pairs
from st_plugins.evaluation import STSSuiteEvaluator, SuiteResult
from st_plugins.evaluation.measuring.scoring import highest_spearman, reversed_scale
from st_plugins.evaluation.report import csv_text, html, markdown
from st_plugins.evaluation.result import Score
from st_plugins.evaluation.statistics import binary_bootstrap, resample_counts


def test_auc_and_average_precision_are_those_of_scikit_learn_on_every_resample() -> None:
    rng = np.random.default_rng(3)
    positive = rng.random(80) < 0.3
    similarities = np.round(rng.normal(size=80) + positive, 1)  # many ties
    counts = resample_counts(80, 30, "toy", seed=0)
    auc, precision = binary_bootstrap(positive, similarities, counts)
    for row, weights in enumerate(counts):
        drawn = np.repeat(np.arange(80), weights)
        assert auc[row] == pytest.approx(roc_auc_score(positive[drawn], similarities[drawn]), abs=1e-12)
        assert precision[row] == pytest.approx(
            average_precision_score(positive[drawn], similarities[drawn]), abs=1e-12
        )


def test_a_resample_of_one_class_is_undefined() -> None:
    auc, precision = binary_bootstrap(
        np.array([True, False]), np.array([0.3, 0.1]), np.array([[2, 0], [0, 2]], np.uint8)
    )
    assert np.isnan(auc).all() and np.isnan(precision).all()


@pytest.mark.parametrize("gold", [[0, 1] * 20, [0] * 35 + [1] * 5, [1, 1, 2, 3, 3, 3, 4, 5], [1, 2, 3]])
def test_the_highest_spearman_is_that_of_the_best_order(gold: list[float]) -> None:
    best = np.argsort(np.argsort(gold, kind="stable"))
    assert highest_spearman(np.array(gold)) == pytest.approx(spearmanr(gold, best)[0])


@pytest.fixture
def pairs(sentences: list[str]) -> Pairs:
    """Labels 2 (share most words) and 1."""
    first, second = sentences[:30], sentences[:29:-1]
    shared = np.array([len(set(a.split()) & set(b.split())) for a, b in zip(first, second, strict=True)])
    return Pairs("labels", first, second, 1.0 + (shared > np.median(shared)))


def _evaluate(model: SentenceTransformer, pairs: Pairs, **more: int) -> SuiteResult:
    return STSSuiteEvaluator([pairs], geometry=False, **({"bootstrap_samples": 200} | more)).evaluate(model)  # type: ignore[arg-type]


def test_two_gold_values_have_auc_and_average_precision(model: SentenceTransformer, pairs: Pairs) -> None:
    evaluator = STSSuiteEvaluator([pairs], bootstrap_samples=200)
    metrics = evaluator(model)
    assert evaluator.last_result is not None
    result = SuiteResult.from_json(evaluator.last_result.to_json())
    assert result.to_json() == evaluator.last_result.to_json()
    found = result.tasks[0].binary
    assert found is not None and (found.negative, found.positive) == (1.0, 2.0)
    positive = pairs.scores == 2
    assert found.positives == positive.sum()
    similarities = result.tasks[0].similarities
    assert found.auc.value == metrics["labels_auc_cosine"] == pytest.approx(roc_auc_score(positive, similarities))
    assert metrics["labels_ap_cosine"] == pytest.approx(average_precision_score(positive, similarities))
    assert found.auc.low < found.auc.value < found.auc.high and found.average_precision.low > 0
    graded = Pairs("labels", pairs.first, pairs.second, np.arange(30.0))
    assert _evaluate(model, graded).tasks[0].binary is None


def test_reports_of_two_gold_values_say_what_can_be_reached(
    model: SentenceTransformer, pairs: Pairs, sentences: list[str]
) -> None:
    graded = Pairs("graded", sentences[:30], sentences[30:], np.arange(30.0))
    result = STSSuiteEvaluator([pairs, graded], bootstrap_samples=50, geometry=False).evaluate(model)
    task = result.tasks[0]
    assert task.binary is not None
    highest = f"{100 * task.highest:.2f}"
    console = Console(file=io.StringIO(), width=200)
    print_result(console, result)
    assert isinstance(console.file, io.StringIO)
    for text in (markdown(result), html(result), console.file.getvalue()):
        assert "100 is a perfect ranking" not in text and f"{highest} for labels" in text
        for score in (task.binary.auc, task.binary.average_precision):
            assert f"{100 * score.value:.2f}" in text
    rows = {row["task"]: row for row in csv.DictReader(io.StringIO(csv_text(result))) if not row["subset"]}
    first = next(row for row in csv.DictReader(io.StringIO(csv_text(result))) if row["highest_spearman"])
    assert float(first["auc"]) == task.binary.auc.value and float(first["highest_spearman"]) == task.highest
    assert float(first["average_precision_low"]) == task.binary.average_precision.low and rows["avg"]["auc"] == ""
    alone = STSSuiteEvaluator([graded], bootstrap_samples=0, geometry=False).evaluate(model)
    assert "100 is a perfect ranking" in markdown(alone) and "Two gold values" not in markdown(alone)


@pytest.mark.parametrize("samples", [200, 0])
def test_a_reversed_scale_is_noticed(model: SentenceTransformer, pairs: Pairs, samples: int) -> None:
    shared = np.array([len(set(a.split()) & set(b.split())) for a, b in zip(pairs.first, pairs.second, strict=True)])
    for scores in (6.0 - shared, 3.0 - pairs.scores):
        turned = Pairs("turned", pairs.first, pairs.second, scores)
        result = _evaluate(model, turned, bootstrap_samples=samples)
        (warning,) = [text for text in result.warnings if "other way" in text]
        assert "the scale of the gold scores seems to run the other way" in warning and "floor, too" in warning
    right = _evaluate(model, Pairs("right", pairs.first, pairs.second, shared), bootstrap_samples=samples)
    assert not any("other way" in text for text in right.warnings)


@pytest.mark.parametrize("samples", [100, 0])
def test_a_few_pairs_say_nothing_about_the_scale(model: SentenceTransformer, pairs: Pairs, samples: int) -> None:
    for count in (2, 3, 4, 12):
        task = _evaluate(model, Pairs("few", pairs.first[:count], pairs.second[:count], np.arange(count)))
        similarities = np.array(task.tasks[0].similarities)
        turned = Pairs("few", pairs.first[:count], pairs.second[:count], -similarities)
        result = _evaluate(model, turned, bootstrap_samples=samples)
        assert result.average["spearman_all"].value == pytest.approx(-1)
        assert any("other way" in text for text in result.warnings) == (count == 12)


def test_one_gold_value_promises_no_ranking(model: SentenceTransformer, pairs: Pairs) -> None:
    result = _evaluate(model, Pairs("flat", pairs.first, pairs.second, np.ones(30)))
    for text in (markdown(result), html(result)):
        assert "perfect ranking" not in text and "no ranking to find" in text


def test_similarities_that_run_the_other_way_are_not_the_scales_fault(
    model: SentenceTransformer, pairs: Pairs
) -> None:
    shared = np.array([len(set(a.split()) & set(b.split())) for a, b in zip(pairs.first, pairs.second, strict=True)])
    evaluator = STSSuiteEvaluator([Pairs("own", pairs.first, pairs.second, shared)], bootstrap_samples=50)
    result = evaluator.evaluate(model)
    task = result.tasks[0]
    task.spearman["all"] = Score(-0.6, -0.8, -0.4)
    assert "the model's similarities seem to run the other way" in reversed_scale(task, result.floor)[0]
    task.spearman["all"] = Score(-0.3, -0.8, 0.1)
    assert reversed_scale(task, result.floor) == []
