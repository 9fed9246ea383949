"""The study of anonymised pairs on a tiny model: recipe in, JSON and table out; AUC against plain loops."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score
from transformers import AutoTokenizer, BertConfig, BertForMaskedLM

from evaluation.__main__ import run
from evaluation.engine.scores import auc, score_auc, unpacked
from evaluation.engine.study import STUDIES, read_study
from evaluation.studies.label_token.study import as_integers, words_of
from st_plugins.evaluation.statistics import resample_counts

RECIPE = """
study = "label_token"
title = "tiny"
train = "pairs.tsv"
dev = "pairs.tsv"
test = "pairs.tsv"
model = "tiny"
layers = 1
frequencies = ["corpus.txt"]
max_length = 24
batch_size = 8
steps = 2
seeds = [0, 1]
notes = "What it means."
[[row]]
name = "TF-IDF"
kind = "tf-idf"
[[row]]
name = "Siamese"
kind = "siamese"
start = "ranks"
[[row]]
name = "label token"
kind = "label-token"
unlabelled = true
base = "Siamese"
"""


@pytest.fixture
def folders(sentences: list[str], encoder_folder: Path, tmp_path: Path) -> dict[str, Path]:
    data = tmp_path / "data"
    data.mkdir()
    pairs = zip(sentences, sentences[30:] + sentences[:30], strict=True)
    rows = [f"{row % 2}\t{first}\t{second}" for row, (first, second) in enumerate(pairs)]
    (data / "pairs.tsv").write_text("\n".join(["label\tsentence1\tsentence2", *rows]) + "\n", encoding="utf-8")
    (data / "corpus.txt").write_text("\n".join(sentences) + "\n", encoding="utf-8")
    tokenizer = AutoTokenizer.from_pretrained(encoder_folder)
    shape = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    config = BertConfig(vocab_size=len(tokenizer), max_position_embeddings=32, **shape)
    BertForMaskedLM(config).save_pretrained(tmp_path / "models" / "tiny")
    tokenizer.save_pretrained(tmp_path / "models" / "tiny")
    return {"models": tmp_path / "models", "data": data, "results": tmp_path / "out"}


def _recipe(folder: Path, text: str = RECIPE) -> Path:
    path = folder / "tiny.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_every_row_is_trained_scored_and_tabulated(folders: dict[str, Path], tmp_path: Path) -> None:
    recipe = _recipe(tmp_path)
    run(recipe, **folders)
    files = sorted(path.name for path in (folders["results"] / "tiny").iterdir())
    names = [f"{row}-seed{seed}.json" for row in ("label-token", "siamese") for seed in (0, 1)]
    assert files == sorted(["table.md", "tf-idf-seed0.json", *names])
    found = json.loads((folders["results"] / "tiny" / "label-token-seed1.json").read_text(encoding="utf-8"))
    assert found["steps"] == 2 and found["test"]["pairs"] == 60 and len(unpacked(found["sentence"])) == 1000
    table = (folders["results"] / "tiny" / "table.md").read_text(encoding="utf-8")
    lines = {line.split(" | ")[0].strip("| "): line.split(" | ") for line in table.splitlines() if line[:1] == "|"}
    assert lines["label token"][1:5] == ["random", "yes", "2", "2"] and "±" in lines["label token"][5]
    assert lines["label token"][7] != "" and lines["Siamese"][7] == "" and lines["TF-IDF"][6] == ""
    assert lines["Siamese"][1:3] == ["ranks", "no"] and lines["Siamese"][6] != ""
    assert "What it means." in table and "60 test pairs" in table and str(tmp_path) not in table
    stamps = {path: path.stat().st_mtime_ns for path in folders["results"].rglob("*.json")}
    run(recipe, **folders)  # what is there is kept
    assert {path: path.stat().st_mtime_ns for path in folders["results"].rglob("*.json")} == stamps


def test_dev_only_looks_at_no_test_label(folders: dict[str, Path], tmp_path: Path) -> None:
    run(_recipe(tmp_path), **folders, only="tf-idf", dev_only=True)
    (path,) = (folders["results"] / "tiny").iterdir()
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    assert path.name == "tf-idf-seed0-dev.json" and "dev" in found and "test" not in found


def test_a_dry_run(folders: dict[str, Path], tmp_path: Path) -> None:
    run(_recipe(tmp_path), **folders, only="label", dry_run=True)
    assert [path.name for path in folders["results"].rglob("*.json")] == ["label-token-seed0.json"]


def test_auc_counts_pairs_of_pairs() -> None:
    generator = np.random.default_rng(0)
    gold = generator.integers(2, size=40)
    found = generator.integers(6, size=40) / 4.0  # many ties
    counts = resample_counts(40, 150, "toy", seed=0)
    values = auc(gold, found, counts)
    for row in (0, 7, 149):
        won = compared = 0.0
        for i in range(40):
            for j in range(40):
                if gold[i] == 1 and gold[j] == 0:
                    weight = float(counts[row, i]) * float(counts[row, j])
                    won += weight * (1.0 if found[i] > found[j] else 0.5 if found[i] == found[j] else 0.0)
                    compared += weight
        assert values[row] == pytest.approx(won / compared, abs=1e-12)
    assert score_auc("toy", gold, found)["value"][0] == pytest.approx(roc_auc_score(gold, found), abs=1e-12)
    assert np.isnan(auc(np.ones(3), np.arange(3.0), np.ones((1, 3)))).all()


def test_words_become_the_same_integers_in_all_sets() -> None:
    sets = {"train": (["A dog, a cat"], ["dogs"], ["1"]), "test": (["the cat"], ["a DOG"], ["0"])}
    pairs = as_integers(sets, seed=3)
    meaning: dict[str, str] = {}
    for name, (first, second, _) in sets.items():
        for texts, coded in ((first, pairs[name].first), (second, pairs[name].second)):
            for text, integers in zip(texts, coded, strict=True):
                for word, integer in zip(words_of(text), integers.split(), strict=True):
                    assert meaning.setdefault(integer, word) == word
    assert len(set(meaning.values())) == len(meaning) == 6 and sorted(map(int, meaning)) == list(range(6))
    assert as_integers(sets, seed=4)["train"].first != pairs["train"].first


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('kind = "siamese"', 'kind = "triplet"', "kind='triplet' must be one of tf-idf, siamese, label-token"),
        ('start = "ranks"', 'start = "zero"', "start='zero' must be one of random, ranks"),
        ('base = "Siamese"', 'base = "nothing"', "base='nothing' must be one of"),
        ('name = "Siamese"', 'name = "TF-IDF"', "two rows have one name"),
        ("steps = 2", "stepps = 2", "stepps"),
        ("steps = 2", "steps = ", "Invalid value"),
    ],
)
def test_a_broken_recipe_is_refused(tmp_path: Path, old: str, new: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_study(_recipe(tmp_path, RECIPE.replace(old, new)))


def test_the_committed_recipe_can_be_read() -> None:
    study = read_study(STUDIES / "label_token" / "recipes" / "qqp.toml")
    assert [row.kind for row in study.rows[:2]] == ["tf-idf", "siamese"] and len(study.seeds) == 3
    with pytest.raises(FileNotFoundError, match="does not exist"):
        read_study(STUDIES / "nothing.toml")
