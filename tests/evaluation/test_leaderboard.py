"""Result files of the public leaderboard: ours as its reader takes them, those of others in both layouts."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer

from st_plugins.data.pairs import Pairs
from st_plugins.data.tasks import TASKS
from st_plugins.evaluation import (
    STSSuiteEvaluator,
    SuiteResult,
    leaderboard_scores,
    read_leaderboard,
    write_leaderboard,
)
from st_plugins.evaluation.leaderboard import is_leaderboard, leaderboard_table

# Shortened from files that the leaderboard published: before release 1.11, with and without languages, and after.
OLD = {
    "dataset_revision": "0ff9",
    "mteb_dataset_name": "Assin2STS",
    "mteb_version": "1.10.1",
    "test": {"cos_sim": {"pearson": 0.785, "spearman": 0.7427}, "evaluation_time": 9.93, "main_score": 0.7427},
}
OLD_LANGUAGES = {
    "test": {"de": {"cos_sim": {"spearman": 0.31}}, "de-en": {"cos_sim": {"spearman": 0.44}}, "evaluation_time": 3},
    "mteb_version": "0.0.2",
    "mteb_dataset_name": "STS22",
}
OLD_CLUSTERING = {
    "mteb_dataset_name": "CLSClusteringP2P",
    "test": {"main_score": 0.392, "v_measure": 0.392, "v_measures": [0.383, 0.396], "evaluation_time": 156.89},
}
NEW = {
    "dataset_revision": "a0d5",
    "evaluation_time": 2.18,
    "kg_co2_emissions": None,
    "mteb_version": "1.12.67",
    "scores": {
        "test": [
            {
                "cosine_spearman": 0.535,
                "hf_subset": "default",
                "languages": ["eng-Latn"],
                "main_score": 0.535,
                "spearman": [0.5348, 1e-229],
                "max": {"ap": 0.5},
            }
        ]
    },
    "task_name": "STS12",
}


@pytest.fixture
def result(model: SentenceTransformer, sentences: list[str]) -> SuiteResult:
    gold = np.random.default_rng(0).random(30)
    tasks = [Pairs(name, sentences[:30], sentences[30:], gold) for name in ("stsb", "sickr", "sickr_all", "mine")]
    found = STSSuiteEvaluator(tasks, bootstrap_samples=20, floor=False).evaluate(model, "model")
    for task in found.tasks[:3]:  # as if these were the published pairs
        task.title, task.pairs = TASKS[task.name].title, TASKS[task.name].splits["test"].rows
    return found


def _written(content: dict[str, Any], path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


def test_what_is_written_has_the_layout_of_the_leaderboard(
    result: SuiteResult, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    files = write_leaderboard(result, tmp_path / "out")
    assert [file.name for file in files] == ["STSBenchmark.json", "sickr.json", "SICK-R.json", "mine.json"]
    assert "sickr is written under its own name" in caplog.text and "sickr_all" in caplog.text
    assert {file.name for file in (tmp_path / "out").iterdir()} == {file.name for file in files}
    with pytest.raises(FileExistsError, match=r"STSBenchmark.json' exists"):
        write_leaderboard(result, tmp_path / "out")
    write_leaderboard(result, tmp_path / "out", overwrite=True)
    files[3].write_text(json.dumps(NEW))
    with pytest.raises(FileExistsError, match=r"mine.json' is a file that st-plugins did not write"):
        write_leaderboard(result, tmp_path / "out", overwrite=True)
    write_leaderboard(dataclasses.replace(result, tasks=result.tasks[:1]), tmp_path / "out", overwrite=True)
    files[3].unlink()
    write_leaderboard(result, tmp_path / "out", overwrite=True)
    content = json.loads(files[0].read_text())
    scores = content["scores"]["test"][0]
    spearman, pearson = result.tasks[0].spearman["all"], result.tasks[0].pearson["all"]
    assert scores == {
        "cosine_spearman": spearman.value,
        "cosine_pearson": pearson.value,
        "main_score": spearman.value,
        "hf_subset": "default",
        "languages": ["eng-Latn"],
        "intervals": {
            "confidence": 0.95,
            "cosine_spearman": [spearman.low, spearman.high],
            "cosine_pearson": [pearson.low, pearson.high],
        },
    }
    del content["scores"]
    assert content == {
        "task_name": "STSBenchmark",
        "dataset_revision": "",
        "mteb_version": None,
        "evaluation_time": None,
        "kg_co2_emissions": None,
    }
    assert json.loads(files[3].read_text())["scores"]["test"][0]["languages"] == ["und"]


def test_what_is_written_is_read_back(result: SuiteResult, tmp_path: Path) -> None:
    write_leaderboard(result, tmp_path / "out")
    read = read_leaderboard(tmp_path / "out")
    for scores in read.values():
        assert scores.pop("main_score") == scores["cosine_spearman"]
    assert read == leaderboard_scores(result)


def test_other_pairs_of_a_task_do_not_get_its_name(result: SuiteResult) -> None:
    cut = dataclasses.replace(result, tasks=[dataclasses.replace(result.tasks[0], pairs=1378)])
    assert list(leaderboard_scores(cut)) == ["stsb"]


def test_the_development_split_has_the_name_of_the_leaderboard(result: SuiteResult, tmp_path: Path) -> None:
    result.tasks[0].pairs = 1500
    dev = dataclasses.replace(result, tasks=result.tasks[:1], settings=result.settings | {"split": "dev"})
    content = json.loads(write_leaderboard(dev, tmp_path / "out")[0].read_text())
    assert (content["task_name"], list(content["scores"])) == ("STSBenchmark", ["validation"])


def test_where_the_score_ranked_by_is_missing_nothing_takes_its_place(
    result: SuiteResult, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    dot = dataclasses.replace(result, tasks=result.tasks[:1], settings=result.settings | {"similarity": "dot"})
    scores = json.loads(write_leaderboard(dot, tmp_path / "out")[0].read_text())["scores"]["test"][0]
    assert scores["main_score"] is None and "dot_spearman" in scores
    assert "no cosine_spearman" in caplog.text


def test_both_layouts_are_read(tmp_path: Path) -> None:
    for number, content in enumerate((OLD, OLD_LANGUAGES, OLD_CLUSTERING, NEW)):
        _written(content, tmp_path / f"model/revision/{number}.json")
    _written({"name": "model"}, tmp_path / "model/revision/model_meta.json")
    assert read_leaderboard(tmp_path) == {
        "Assin2STS": {"cosine_pearson": 0.785, "cosine_spearman": 0.7427, "main_score": 0.7427},
        "STS22 (de)": {"cosine_spearman": 0.31},
        "STS22 (de-en)": {"cosine_spearman": 0.44},
        "CLSClusteringP2P": {"main_score": 0.392, "v_measure": 0.392},
        "STS12": {"cosine_spearman": 0.535, "main_score": 0.535, "max_ap": 0.5},
    }


def test_what_is_no_result_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="none' do not exist"):
        read_leaderboard(tmp_path / "none")
    meta = _written({"name": "model"}, tmp_path / "meta.json")
    for path in (meta, tmp_path):
        assert not is_leaderboard(path)
        with pytest.raises(ValueError, match="no result file of the leaderboard"):
            read_leaderboard(path)
    (tmp_path / "cut.json").write_text("{")
    assert not is_leaderboard(tmp_path)
    splits = _written({"task_name": "A", "scores": {"dev": [], "validation": []}}, tmp_path / "a.json")
    with pytest.raises(ValueError, match=r"a.json: A has the splits dev, validation; choose one with split="):
        read_leaderboard(splits)
    with pytest.raises(ValueError, match=r"b.json: its scores are not laid out"):
        read_leaderboard(_written({"task_name": "A", "scores": {"test": 0.5}}, tmp_path / "b.json"))
    with pytest.raises(ValueError, match=r"cut.json: not a result file"):
        read_leaderboard(tmp_path / "cut.json")
    for revision in ("one", "two"):
        _written(NEW, tmp_path / "models" / revision / "STS12.json")
    with pytest.raises(ValueError, match=r"STS12 is also in .*one"):
        read_leaderboard(tmp_path / "models")


def test_scores_of_both_are_laid_side_by_side() -> None:
    ours = {"STS12": {"cosine_spearman": 0.7237, "main_score": 0.7237}, "mine": {"cosine_spearman": 0.5}}
    theirs = {"STS12": {"cosine_spearman": 0.72, "cosine_pearson": 0.7, "main_score": 0.72}, "STS13": {}}
    table = leaderboard_table(ours, theirs, ("mine", "theirs"))
    assert table.rows == [["STS12", "cosine_spearman", "72.37", "72.00", "-0.37"]]
    assert "only in A: mine" in table.note and "only in B: STS13" in table.note and "cannot be tested" in table.note
    main = {"STS12": {"main_score": 0.7}}
    assert leaderboard_table(main, theirs, ("a", "b")).rows == [["STS12", "main_score", "70.00", "72.00", "+2.00"]]
    with pytest.raises(ValueError, match="no task and metric is in both: mine has STS12, mine, theirs BQ"):
        leaderboard_table(ours, {"BQ": {"cosine_spearman": 0.3}}, ("mine", "theirs"))
