"""The training study on a tiny model: recipe in, JSON, table and picture out."""

from __future__ import annotations

import gzip
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from evaluation.__main__ import run, table
from evaluation.engine.corpus import draw_texts
from evaluation.engine.study import STUDIES, read_study
from evaluation.studies.contrastive import study as contrastive
from evaluation.studies.contrastive.after import AFTER
from evaluation.studies.contrastive.training import RULES
from st_plugins.data.tasks import TASKS

RECIPES = sorted(
    path for name in ("contrastive", "family", "flow") for path in (STUDIES / name / "recipes").glob("*.toml")
)

RECIPE = """
study = "contrastive"
title = "tiny"
model = "tiny"
tasks = "stsb"
dev_task = "stsb"
corpus = ["corpus.txt"]
corpus_size = 40
seeds = [0, 1]
evaluations = 2
max_length = 32
[data.texts]
texts = ["corpus.txt"]
[data.nli]
pairs = ["nli.tsv"]
[data.stsb]
pairs = ["scores.tsv"]
[defaults]
data = "texts"
batch_size = 8
max_steps = 4
learning_rate = 1e-2
"""
RUNS = {
    "none": 'method = "none"',
    "consert": 'method = "consert"\npaper = {encoder = "BERT-base", value = 72.74}',
    "simcse": 'method = "simcse"\nseeds = [0]',
    "supervised": 'method = "supervised"\ndata = "nli"\nseeds = [0]',
    "joint": 'method = "joint"\ndata = "nli"\nseeds = [0]\nviews = ["none", "token-cutoff:0.1"]',
    "sup-unsup": 'method = "consert"\nstart = "supervised"\nseeds = [0]',
    "cosent": 'method = "cosent"\ndata = "stsb"\npooling = "span"\nsharpness = 0.5\nseeds = [0]',
    "views: shuffle x none": 'method = "consert"\nviews = ["token-shuffle", "none"]\ndev_only = true\nseeds = [0]',
}


def _recipe(folder: Path, runs: dict[str, str], head: str = RECIPE) -> Path:
    path = folder / "tiny.toml"
    rows = "".join(f'\n[[row]]\nname = "{name}"\n{body}\n' for name, body in runs.items())
    path.write_text(head + rows, encoding="utf-8")
    return path


FAMILY = {
    "flows": 'method = "none"\nafter = ["whitened to 128", "flow", "flow, learned permutation"]',
    "cosent": 'method = "cosent"\ndata = "stsb"\nafter = []\nseeds = [0]',
    "r-drop": 'method = "cosent"\ndata = "stsb"\nr_drop = 5.0\nafter = []\nseeds = [0]',
    "mix": 'method = "cosent"\ndata = "stsb"\npooling = "layer-mix"\nafter = []\nseeds = [0]',
    "mix, tied": 'method = "cosent"\ndata = "stsb"\npooling = "layer-mix"\nmix_penalty = 9.0\nafter = []\nseeds = [0]',
    "fast mix": 'method = "cosent"\ndata = "stsb"\npooling = "layer-mix"\nafter = []\nseeds = [0]'
    "\npooling_learning_rate = 0.5",
    "cnn": 'method = "cosent"\ndata = "stsb"\npooling = "text-cnn"\nafter = []\nseeds = [0]',
    "grouped": 'method = "cosent"\ndata = "stsb"\ngrouped = true\nafter = []\nseeds = [0]',
    "rcnn of words": 'method = "cosent"\ndata = "stsb"\npooling = "text-rcnn"\ntokens = true\nafter = []\nseeds = [0]',
}


@pytest.fixture
def folders(sts_folder: Path, sentences: list[str], encoder_folder: Path, tmp_path: Path) -> dict[str, Path]:
    labels = ["contradiction", "entailment", "neutral"]
    rows = [f"{labels[i % 3]}\t{text}\t{sentences[-i]}" for i, text in enumerate(sentences)]
    scores = [f"{i % 6}\t{text}\t{sentences[-i]}" for i, text in enumerate(sentences)]
    (sts_folder / "scores.tsv").write_text("\n".join(["score\tsentence1\tsentence2", *scores]), encoding="utf-8")
    (sts_folder / "nli.tsv").write_text("\n".join(["label\tsentence1\tsentence2", *rows]), encoding="utf-8")
    shutil.copytree(encoder_folder, tmp_path / "models" / "tiny")
    return {"models": tmp_path / "models", "data": sts_folder, "results": tmp_path / "out"}


def test_every_method_is_trained_measured_and_tabulated(folders: dict[str, Path], tmp_path: Path) -> None:
    recipe = _recipe(tmp_path, RUNS)
    run(recipe, **folders, device="cpu")
    results = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in folders["results"].rglob("*.json")}
    assert len(results) == 10  # two seeds of none and consert, one of the others
    consert = results["consert-seed0"]
    assert [numbers["step"] for numbers in consert["log"]] == [2, 4]
    assert set(consert["chosen"]) == set(RULES) and consert["chosen"]["last"] == 4
    dev = {numbers["step"]: numbers["dev"] for numbers in consert["log"]}
    assert dev[2] != dev[4]
    for step in consert["chosen"].values():
        # The weights put back for the scoring are those of the step that was chosen.
        assert consert["steps"][str(step)]["dev"]["plain"]["average"][0] == pytest.approx(dev[step], abs=1e-4)
    scored = consert["steps"][str(consert["chosen"]["dev"])]
    assert {"plain", "whitened"} == set(scored["test"])
    assert all("test" not in scores for scores in results["views-shuffle-x-none-seed0"]["steps"].values())
    names = ("consert-seed0", "consert-seed1", "simcse-seed0", "joint-seed0", "sup-unsup-seed0", "cosent-seed0")
    courses = {tuple(numbers["uniformity"] for numbers in results[name]["log"]) for name in names}
    assert len(courses) == len(names)  # every method, and every seed, trains in its own way
    for name in (
        "supervised-seed0",
        "joint-seed0",
        "sup-unsup-seed0",
        "cosent-seed0",
    ):  # rules without labels are not for these
        assert set(results[name]["steps"]) == {str(results[name]["chosen"]["dev"])}

    assert 0 < results["cosent-seed0"]["sharpness"] <= 1 and "sharpness" not in consert

    table(recipe, folders["results"])
    page = (folders["results"] / "tiny" / "table.md").read_text(encoding="utf-8")
    assert "| consert |" in page and "72.74 with BERT-base" in page and "| views" not in page.split("##")[0]
    assert (folders["results"] / "tiny" / "views.svg").is_file()
    assert str(tmp_path) not in page
    rules = page.split("## Choosing a checkpoint")[1]
    assert "| consert |" in rules and "| simcse |" in rules and "| joint |" not in rules

    kept = {path: path.stat().st_mtime_ns for path in folders["results"].rglob("*.json")}
    run(recipe, **folders, device="cpu")  # what is there is kept
    assert kept == {path: path.stat().st_mtime_ns for path in folders["results"].rglob("*.json")}


def test_poolings_wrappers_and_what_is_fitted_afterwards(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(AFTER, "whitened to 128", AFTER["whitened"])  # the tiny encoder has fewer dimensions
    recipe = _recipe(tmp_path, FAMILY)
    run(recipe, **folders, device="cpu")
    results = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in folders["results"].rglob("*.json")}
    assert len(results) == len(FAMILY) + 1  # two seeds of the flows
    again = results.pop("flows-seed1")
    assert set(again["steps"]["0"]["test"]) == {"flow", "flow, learned permutation"}  # the others would be the same
    flows = results["flows-seed0"]
    scores = flows["steps"]["0"]["test"]
    assert set(scores) == {"plain", "whitened to 128", "flow", "flow, learned permutation"}
    assert len({found["average"][0] for found in scores.values()}) == 4
    assert set(flows["seconds_after"]) == set(scores) - {"plain"} and flows["seconds_training"] == 0
    trained = {name: found for name, found in results.items() if name != "flows-seed0"}
    assert all(found["seconds_training"] > 0 and not found["seconds_after"] for found in trained.values())
    courses = {found["log"][-1]["uniformity"] for found in trained.values()}
    assert len(courses) == len(trained)  # each trains in its own way
    weights = results["mix-seed0"]["layers"]
    assert sum(weight for name, weight in weights.items() if name != "gamma") == pytest.approx(1)
    fast = results["fast-mix-seed0"]["layers"]
    assert abs(fast["embedding"] - 1 / 3) > 5 * abs(weights["embedding"] - 1 / 3) > 0  # two layers and the embeddings
    assert "layers" not in results["cnn-seed0"]
    assert results["rcnn-of-words-seed0"]["parameters"] != results["cnn-seed0"]["parameters"]

    table(recipe, folders["results"])
    page = (folders["results"] / "tiny" / "table.md").read_text(encoding="utf-8")
    assert (
        "| flows + flow | texts | 2 |" in page
        and "| flows + whitening to 128 | texts | 1 |" in page
        and "| flows + flow, learned permutation |" in page
    )
    assert "| cnn |" in page and "| cnn + " not in page


def test_a_start_is_trained_once_and_is_where_the_next_run_begins(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[tuple[str, dict[str, torch.Tensor]]] = []
    real = contrastive.train

    def watched(study: Any, row: Any, seed: int, model: Any) -> Any:
        begun.append((row.name, {key: value.clone() for key, value in model.state_dict().items()}))
        return real(study, row, seed, model)

    monkeypatch.setattr(contrastive, "train", watched)
    chain = {**{name: RUNS[name] for name in ("supervised", "sup-unsup")}, "again": RUNS["sup-unsup"]}
    run(_recipe(tmp_path, chain), **folders, device="cpu", dev_only=True)
    assert [name for name, _ in begun] == ["supervised", "sup-unsup", "again"]
    first, second, third = (state for _, state in begun)
    assert any(not torch.equal(first[key], second[key]) for key in first)
    assert all(torch.equal(second[key], third[key]) for key in second)


def test_shards_share_the_runs(folders: dict[str, Path], tmp_path: Path) -> None:
    recipe = _recipe(tmp_path, {"none": RUNS["none"]})
    run(recipe, **folders, device="cpu", shard="1/2", dev_only=True)
    assert [path.stem for path in folders["results"].rglob("*.json")] == ["none-seed1"]
    run(recipe, **folders, device="cpu", only="seed0", dev_only=True)
    assert {path.stem for path in folders["results"].rglob("*.json")} == {"none-seed0", "none-seed1"}


@pytest.mark.parametrize(
    ("runs", "message"),
    [
        ({"a": 'method = "magic"'}, "method='magic'"),
        ({"a": 'method = "consert"\ndata = "lost"'}, "data='lost'"),
        ({"a": 'method = "joint"'}, "has no pairs"),
        ({"a": 'method = "consert"\nstart = "b"'}, "must be a row above it"),
        ({"a": 'method = "simcse"\nr_drop = 1.0'}, "r_drop=1.0 is for"),
        ({"a": 'method = "simcse"\nmix_penalty = 1.0'}, 'needs pooling = "layer-mix"'),
        ({"a": 'method = "simcse"\npooling_learning_rate = 1.0'}, "needs a pooling with weights"),
        ({"a": 'method = "none"\nafter = ["magic"]'}, "after='magic' must be one of whitened"),
        ({"a": "colour = 1"}, "colour"),
        ({}, "row"),
    ],
)
def test_a_bad_recipe_is_named(tmp_path: Path, runs: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_study(_recipe(tmp_path, runs))
    with pytest.raises(FileNotFoundError, match="does not exist"):
        read_study(tmp_path / "none.toml")


def test_fewer_texts_than_a_batch_is_an_error(folders: dict[str, Path], tmp_path: Path) -> None:
    recipe = _recipe(tmp_path, {"a": 'method = "consert"\nbatch_size = 500'})
    with pytest.raises(ValueError, match="batch_size=500"):
        run(recipe, **folders, device="cpu")


def test_texts_are_distinct_and_drawn_with_a_seed(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\ntwo\none\nthree\n", encoding="utf-8")
    assert draw_texts(["a.txt"], tmp_path) == ["one", "two", "three"]
    assert draw_texts(["a.txt"], tmp_path, 2, seed=3) == draw_texts(["a.txt"], tmp_path, 2, seed=3)


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_committed_recipes_are_read(path: Path) -> None:
    study = read_study(path)
    assert study.model and study.dev_task in TASKS and len({row.name for row in study.rows}) == len(study.rows) > 0


@pytest.mark.slow
@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_committed_recipes_run(path: Path, encoder_folder: Path, sentences: list[str], tmp_path: Path) -> None:
    """Two steps of every run, with a tiny encoder in the place of the recipe's, and tiny files of the named forms."""
    study = read_study(path)
    pairs = list(zip(sentences, reversed(sentences), strict=True))
    rows = [f"x\t{i % 6}\tneutral\t{a}\t{b}" for i, (a, b) in enumerate(pairs)]
    table = "\n".join(["source\tscore\tlabel\tsentence1\tsentence2", *rows, ""])
    named = [*study.corpus, TASKS[study.dev_task].splits["dev"].file]
    for source in study.data.values():
        named += [*source.get("texts", []), *source.get("pairs", [])]
    for name in named:
        file = tmp_path / "data" / name.partition("#")[0]
        if not file.suffix:
            file /= "texts.txt"
        file.parent.mkdir(parents=True, exist_ok=True)
        text = table if ".tsv" in file.name else "\n".join(sentences)
        file.write_bytes(gzip.compress(text.encode()) if file.suffix == ".gz" else text.encode())
    shutil.copytree(encoder_folder, tmp_path / "models" / study.model)
    small = re.sub(r"(?m)^(batch_size|max_length) = [0-9]+.*\n", "", path.read_text(encoding="utf-8"))
    small = "max_length = 32\n" + small
    small = small.replace("[defaults]\n", "[defaults]\nbatch_size = 8\n").replace("whitened to 128", "whitened")
    (tmp_path / path.name).write_text(small, encoding="utf-8")
    folders = {"models": tmp_path / "models", "data": tmp_path / "data", "results": tmp_path / "out"}
    run(tmp_path / path.name, **folders, dry_run=True, dev_only=True, device="cpu")
    written = {file.stem for file in (tmp_path / "out").rglob("*.json")}
    assert written == {study.file_name(row.name, "", 0) for row in study.rows}
