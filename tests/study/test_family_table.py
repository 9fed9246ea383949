"""The family's page, from made-up results of the studies that it joins."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer

from evaluation.__main__ import table
from evaluation.engine.scores import score
from evaluation.engine.study import STUDIES

RECIPE = """
study = "family"
title = "tiny family"
model = "tiny"
tasks = "en"
dev_task = "stsb"
corpus = ["corpus.txt"]
seeds = [0, 1]
[data.texts]
texts = ["corpus.txt"]
[data.stsb]
pairs = ["scores.tsv"]
[[row]]
name = "mean"
method = "none"
after = ["whitened", "flow"]
seeds = [0]
[[row]]
name = "ConSERT"
method = "consert"
data = "texts"
after = []
[[row]]
name = "CoSENT"
method = "cosent"
data = "stsb"
after = []
[[row]]
name = "not yet"
method = "cosent"
data = "stsb"
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """The tiny recipe, among copies of the real ones of the other studies."""
    for recipes in STUDIES.glob("*/recipes"):
        shutil.copytree(recipes, tmp_path / "studies" / recipes.parent.name / "recipes")
    path = tmp_path / "studies" / "family" / "recipes" / "tiny.toml"
    path.write_text(RECIPE, encoding="utf-8")
    return path


def _scores(average: float) -> dict[str, Any]:
    return {
        "tasks": {"sts12": average},
        "average": [average, average - 0.01, average + 0.01],
        "above_raw": {"value": average - 0.55, "verdict": "better" if average > 0.55 else "worse"},
        "above_whitened": {"value": average - 0.66, "verdict": "worse"},
        "floor": [0.55, 0.66],
    }


def _write(folder: Path, name: str, forms: dict[str, float], training: float, **fitting: float) -> None:
    found = {form: _scores(average) for form, average in forms.items()}
    result = {
        "log": [{"step": 3}] if training else [],
        "chosen": {"dev": 3} if training else {},
        "steps": {"3" if training else "0": {"dev": found, "test": found}},
        "seconds_training": training,
        "seconds_after": fitting,
        "parameters": 10,
        "device": "CPU",
        "versions": {"torch": "2"},
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(result), encoding="utf-8")


def _results(folder: Path) -> None:
    _write(folder / "tiny", "mean-seed0", {"plain": 0.53, "whitened": 0.61, "flow": 0.6}, 0.0, whitened=2.0, flow=40.0)
    for seed, average in enumerate((0.54, 0.56)):
        _write(folder / "tiny", f"consert-seed{seed}", {"plain": average}, 30.0 + 10 * seed)
    _write(folder / "tiny", "cosent-seed0", {"plain": 0.65}, 50.0)


def test_what_there_is_is_joined(recipe: Path, tmp_path: Path) -> None:
    results = tmp_path / "studies" / "family" / "results"
    _results(results)
    wrong = (np.arange(1000) < 200).astype(float)
    for study, name, test in (
        ("virt/results/virt-mini-bert-en", "nli-siamese-seed0", "snli"),
        ("virt/results/virt-mini-bert-en", "nli-grid-without-seed0", "snli"),
        ("re2/results/re2", "snli-re2-word-vectors-seed0", "snli"),
        ("re2/results/re2", "snli-plain-residual-seed0", "snli"),
    ):
        folder = tmp_path / "studies" / study
        folder.mkdir(parents=True, exist_ok=True)
        pair = {"seed": 0, "tests": {test: score(test, np.zeros(1000), wrong)}}
        (folder / f"{name}.json").write_text(json.dumps(pair), encoding="utf-8")
    table(recipe)
    page = (results / "tiny" / "table.md").read_text(encoding="utf-8")
    lines = page.splitlines()
    for expected in (
        "| | **not trained** | | | | | | | | | | |",
        "| 1 | mean | 1 | **53.00** | [52.0, 54.0] | -2.00 worse | -13.00 worse |  |  |  |  |  |",
        "| 2 | mean + whitening | 1 | **61.00** | [60.0, 62.0] | +6.00 better | -5.00 worse |  | 2 |  |  |  |",
        "| 3 | mean + flow | 1 | **60.00** | [59.0, 61.0] | +5.00 better | -6.00 worse |  | 40 |  |  |  |",
        "| | **trained without labels** | | | | | | | | | | |",
        "| 4 | ConSERT | 2 | **55.00 ± 1.41** | [53.0, 55.0] | +0.00 ± 1.41 better / worse | -11.00 ± 1.41 worse "
        "| 35 |  |  |  |  |",
        "| | **trained with labels** | | | | | | | | | | |",
        "| 5 | CoSENT | 1 | **65.00** | [64.0, 66.0] | +10.00 better | -1.00 worse | 50 |  |  |  |  |",
        "The floor: 55.00 raw, 66.00 whitened on the same corpus sample.",
    ):
        assert expected in lines, expected
    assert "not yet" not in page and "cost.svg" not in page and not (results / "tiny" / "cost.svg").exists()
    pairs = page.split("## Models of pairs")[1].split("## Classification")[0]
    named = [line.split("|")[1].strip() for line in pairs.splitlines() if line.startswith("| ")]
    assert named == ["row", "---", "Siamese", "RE2, word vectors"]  # no grid, no ablation


def test_costs_and_their_picture(recipe: Path, tmp_path: Path) -> None:
    results = tmp_path / "studies" / "family" / "results"
    _results(results)
    cost = {"parameters": 5_454_080, "dimension": 256, "texts_a_second": 300.0}
    costs = {
        "encoders": {"mean": {**cost, "times_the_first": 1.0}, "CoSENT": {**cost, "times_the_first": 0.25}},
        "pairs": {"cross-encoder": {"times_the_first": 1.0, "pairs_a_second": 151.2, "parameters": 5_454_594}},
        "versions": {"torch": "3"},
    }
    (tmp_path / "benchmarks" / "results").mkdir(parents=True)
    (tmp_path / "benchmarks" / "results" / "family_cost.json").write_text(json.dumps(costs), encoding="utf-8")
    table(recipe)
    page = (results / "tiny" / "table.md").read_text(encoding="utf-8")
    assert "| 50 |  | 5,454,080 | 256 | 0.25 |" in page and "| 40 |  |  |  |" in page
    assert "| cross-encoder | 151 | 1.0 | 5,454,594 |" in page
    assert "Trained on: CPU. torch 2." in page and "Costs measured on: CPU. torch 3." in page
    drawn = (results / "tiny" / "cost.svg").read_text(encoding="utf-8")
    table(recipe)
    assert drawn == (results / "tiny" / "cost.svg").read_text(encoding="utf-8")  # the same every time


def test_nothing_to_show_is_an_error(recipe: Path, tmp_path: Path) -> None:
    with pytest.raises(
        typer.BadParameter, match=r"holds no result of tiny\.toml; run `python -m evaluation run` first"
    ):
        table(recipe, tmp_path / "results")
