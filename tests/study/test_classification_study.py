"""The classification study on a tiny model: recipe in, JSON, table and pictures out."""

from __future__ import annotations

import gzip
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import typer

from evaluation.__main__ import run, table
from evaluation.engine.study import STUDIES, read_study

RECIPES = STUDIES / "self_explaining" / "recipes"

HEAD = """
study = "self_explaining"
title = "tiny"
model = "tiny"
train = "train.tsv"
dev = "train.tsv"
test = "test.tsv"
columns = ["sentence"]
labels = ["bad", "good"]
batch_size = 8
max_length = 32
epochs = 8
learning_rate = 1e-2
seeds = [0]
explained = 6
pictures = 1
"""
RUNS = """
[[row]]
name = "spans"
pooling = "span"
weight = 0.01
seeds = [0, 1]
paper = {encoder = "RoBERTa-large", value = 59.1}
[[row]]
name = "mean"
pooling = "mean"
[[row]]
name = "cls"
pooling = "cls"
"""


@pytest.fixture
def folders(encoder_folder: Path, tmp_path: Path) -> dict[str, Path]:
    shutil.copytree(encoder_folder, tmp_path / "models" / "tiny")
    data = tmp_path / "data"
    data.mkdir()
    texts = [f"the {animal} is {what} today ." for animal in ("dog", "cat", "man") for what in ("happy", "sad .")] * 4
    rows = [("good" if "happy" in text else "bad", text) for text in texts]
    for name, part in (("train.tsv", rows), ("test.tsv", rows[:6])):
        lines = ["label\tsentence", *("\t".join(row) for row in part)]
        (data / name).write_text("\n".join(lines), encoding="utf-8")
    return {"models": tmp_path / "models", "data": data, "results": tmp_path / "out"}


def test_a_study(folders: dict[str, Path], tmp_path: Path) -> None:
    recipe = tmp_path / "tiny.toml"
    recipe.write_text(HEAD + RUNS, encoding="utf-8")
    with pytest.raises(typer.BadParameter, match="holds no result"):
        table(recipe, folders["results"])
    for shard in ("0/2", "1/2"):
        run(recipe, **folders, device="cpu", shard=shard)
    results = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in folders["results"].rglob("*.json")}
    assert set(results) == {"spans-seed0", "spans-seed1", "mean-seed0", "cls-seed0"}
    for name, found in results.items():
        assert len(found["dev"]) == 8
        # The weights that are measured are those of the best epoch, head included: the test texts are dev texts.
        assert found["accuracy"] == np.mean([int(flag) for flag in found["correct"]])
        assert found["accuracy"] == 1.0 and max(found["dev"]) == 1.0
        rankings = {"explanation", "gradient", "random"} if "spans" in name else {"gradient", "random"}
        assert set(found["faithfulness"]) == rankings
        assert all(len(pairs) == 6 for pairs in found["faithfulness"].values())
    assert results["spans-seed0"]["sharpness"] != results["spans-seed1"]["sharpness"]
    assert "pictures" in results["spans-seed0"] and "pictures" not in results["spans-seed1"]

    table(recipe, folders["results"])
    page = (folders["results"] / "tiny" / "table.md").read_text(encoding="utf-8")
    assert "| spans | 2 | 100.00 ± 0.00 | **100.00 ± 0.00** | 100.0 [100.0, 100.0] | +0.0 [+0.0, +0.0] |" in page
    assert "59.1 with RoBERTa-large" in page
    assert "| mean | gradient × input |" in page and "| mean | span weights |" not in page
    pictures = list((folders["results"] / "tiny" / "examples").glob("*.svg"))
    assert [path.name for path in pictures] == ["01-right.svg"]  # there is no wrong one
    assert "predicted" in pictures[0].read_text(encoding="utf-8")

    (folders["data"] / "train.tsv").unlink()  # what is there is kept: nothing is trained again
    run(recipe, **folders, device="cpu")


def test_pairs_full_stops_and_unknown_labels(folders: dict[str, Path], tmp_path: Path) -> None:
    recipe = tmp_path / "tiny.toml"
    recipe.write_text(HEAD.replace('["sentence"]', '["a", "b"]') + "strip_full_stop = true" + RUNS, encoding="utf-8")
    study = read_study(recipe)
    table = folders["data"] / "pairs.tsv"
    table.write_text("label\ta\tb\ngood\tA dog .\t.\nbad\tA man\tRuns.", encoding="utf-8")
    assert study.read_labeled(table) == ([["A dog", "."], ["A man", "Runs"]], [1, 0])
    table.write_text("label\ta\tb\n-1\tA dog .\t.", encoding="utf-8")
    with pytest.raises(ValueError, match=r"labels \['-1'\] are not among labels=\['bad', 'good'\]"):
        study.read_labeled(table)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('["sentence"]', "[]", "must name one column"),
        ('pooling = "cls"', 'pooling = "max"', "pooling='max' must be one of mean, cls, span"),
        ('pooling = "cls"', 'pooling = "cls"\nweight = 1.0', "weight=1.0 needs pooling='span'"),
        ('name = "cls"', 'name = "mean"', "two rows have one name"),
        ('study = "self_explaining"', 'study = "self_explaining"\nbf16 = true', "this study computes in float32"),
        ("epochs", "epoches", "epoches"),
        ("pictures", 'pictured = "mean"\npictures', "pictured='mean' must be a row with pooling='span'"),
    ],
)
def test_wrong_recipes(tmp_path: Path, old: str, new: str, message: str) -> None:
    recipe = tmp_path / "tiny.toml"
    recipe.write_text((HEAD + RUNS).replace(old, new), encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        read_study(recipe)


@pytest.mark.parametrize("name", ["sst5-roberta-large", "snli-roberta-large"])
def test_the_published_recipes_run(folders: dict[str, Path], name: str) -> None:
    recipe = RECIPES / f"{name}.toml"
    study = read_study(recipe)
    settings = (list(study.adam), study.learning_rate, study.batch_size, study.epochs, study.rows[0].weight)
    assert settings == ([0.9, 0.98, 1e-9], 2e-5, 40, 20, 1.0)  # of the authors' code
    shutil.copytree(folders["models"] / "tiny", folders["models"] / study.model)
    for file in {study.train, study.dev, study.test}:
        path = folders["data"] / file.removesuffix(".gz")
        path.parent.mkdir(parents=True, exist_ok=True)
        rows = [[label, *("the dog is happy" for _ in study.columns)] for label in study.labels * 2]
        text = "\n".join("\t".join(row) for row in [["label", *study.columns], *rows])
        (folders["data"] / file).write_bytes(gzip.compress(text.encode()))
    short = folders["data"] / recipe.name  # the encoder in its place has 40 positions
    short.write_text(re.sub(r"max_length = [0-9]+", "max_length = 32", recipe.read_text(encoding="utf-8")), "utf-8")
    run(short, **folders, device="cpu", dry_run=True)
    assert len(list((folders["results"] / name).glob("*.json"))) == len(study.rows)
    table(recipe, folders["results"])


def test_the_committed_recipes_are_valid() -> None:
    names = sorted(path.stem for path in RECIPES.glob("*.toml"))
    assert names == [
        "snli-mini-bert-en",
        "snli-minilm",
        "snli-roberta-large",
        "sst5-mini-bert-en",
        "sst5-mini-bert-en-short",
        "sst5-minilm",
        "sst5-roberta-large",
        "sts-mini-bert-en",
    ]
    for name in names:
        assert read_study(RECIPES / f"{name}.toml").rows
