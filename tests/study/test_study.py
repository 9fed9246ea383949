"""The study script on a tiny model and a tiny copy of the data's format."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from transformers import AutoModel, AutoTokenizer

from evaluation.__main__ import run
from evaluation.engine.pipelines import Pipeline, build_model
from evaluation.engine.study import STUDIES, Place, read_study
from evaluation.studies.sts.study import target_texts
from st_plugins import first_last_avg
from st_plugins.evaluation import SuiteResult

RECIPE = """
study = "sts"
title = "tiny"
tasks = "stsb"
corpus = ["corpus.txt"]
corpus_size = 40
seeds = [1]
batch_size = 8
"""


def _pipelines(**rows: str) -> str:
    head = 'model = "tiny"\nmax_length = 32'
    return "".join(f'\n[[row]]\nname = "{name}"\n{head}\n{extra}\n' for name, extra in rows.items())


def test_recipe_in_results_out(sts_folder: Path, encoder_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(encoder_folder, tmp_path / "models" / "tiny")
    recipe = tmp_path / "tiny.toml"
    rows = _pipelines(
        raw="",
        first='pooling = "first-last-avg"',
        corpus='whitening = "corpus"\ndimension = 4',
        target='whitening = "target"\ndimension = 4',
        random="random_weights = true",
        pooled='whitening = "pooled"\ndimension = 3',
    )
    recipe.write_text(RECIPE + rows, encoding="utf-8")
    run(recipe, tmp_path / "models", sts_folder, results=tmp_path / "out")
    folder = tmp_path / "out" / "tiny"
    results = {
        name: SuiteResult.read(folder / f"{name}-seed1.json")
        for name in ("raw", "first", "corpus", "target", "random", "pooled")
    }
    values = {name: result.average["spearman_all"].value for name, result in results.items()}
    assert len(set(values.values())) == 6  # six different pipelines
    assert results["corpus"].model["dimension"] == 4 and results["target"].settings["target_whitening"] == 4
    table = (folder / "table.md").read_text(encoding="utf-8")
    for name, value in values.items():
        assert f"| {name} |" in table and f"{100 * value:.2f}" in table
    assert "evaluated sentences" in results["pooled"].floor.whitened_on
    assert str(tmp_path) not in table
    # What is there is kept, and makes the same table.
    (folder / "raw-seed1.json").unlink()
    kept = (folder / "target-seed1.json").stat().st_mtime_ns
    run(recipe, tmp_path / "models", sts_folder, results=tmp_path / "out")
    assert (folder / "table.md").read_text(encoding="utf-8") == table
    assert (folder / "raw-seed1.json").is_file() and (folder / "target-seed1.json").stat().st_mtime_ns == kept
    assert all(str(tmp_path) not in path.read_text(encoding="utf-8") for path in folder.iterdir())


def test_layers_keeps_the_lowest(encoder_folder: Path) -> None:
    folder, sentence = encoder_folder, ["the man is reading a book"]
    whole = AutoModel.from_pretrained(folder)
    tokens = AutoTokenizer.from_pretrained(folder)(sentence, return_tensors="pt")
    with torch.no_grad():
        states = whole(**tokens, output_hidden_states=True).hidden_states
    for layers in (0, 1, -1):
        row = Pipeline("row", folder.name, layers=layers)
        found = build_model(row, folder.parent, 0).encode(sentence, convert_to_tensor=True)
        assert torch.allclose(found, states[layers].mean(1), atol=1e-6), layers


def test_layer_recipes_are_the_averages_of_those_layers(
    model: SentenceTransformer, encoder_folder: Path, sentences: list[str]
) -> None:
    def encoded(pooling: str) -> np.ndarray:
        row = Pipeline("row", encoder_folder.name, pooling)
        return build_model(row, encoder_folder.parent, 0).encode(sentences)

    stock = first_last_avg(build_model(Pipeline("row", encoder_folder.name), encoder_folder.parent, 0))
    np.testing.assert_allclose(encoded("first-last-avg"), stock.encode(sentences), atol=1e-6)  # two layers
    np.testing.assert_allclose(encoded("last-two-avg"), stock.encode(sentences), atol=1e-6)
    with torch.no_grad():
        states = [
            model[0].model(**dict(model.tokenizer([text], return_tensors="pt")), output_hidden_states=True)  # type: ignore[union-attr]
            for text in sentences[:5]
        ]
    means = torch.cat([state.hidden_states[0].mean(dim=1) for state in states])
    np.testing.assert_allclose(encoded("embedding-avg")[:5], means, atol=1e-6)


def test_static_pooling_is_the_mean_of_the_word_embeddings(encoder_folder: Path) -> None:
    sentence = "the man is reading a book"
    model = build_model(Pipeline("row", encoder_folder.name, "static"), encoder_folder.parent, 0)
    ids = AutoTokenizer.from_pretrained(encoder_folder)(sentence, add_special_tokens=False)["input_ids"]
    table = AutoModel.from_pretrained(encoder_folder).get_input_embeddings().weight
    assert torch.allclose(torch.tensor(model.encode(sentence)), table[ids].mean(0), atol=1e-6)


def test_corpus_draw_is_seeded(sts_folder: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "r.toml"
    recipe.write_text(RECIPE + _pipelines(raw=""), encoding="utf-8")
    study = read_study(recipe)
    study.place = Place(tmp_path, sts_folder)
    first, second = (study.corpus_texts(1) for _ in range(2))
    assert first == second and len(first) == 40


def test_target_texts_are_train_and_dev(sts_folder: Path) -> None:
    texts = target_texts("stsb", sts_folder)
    assert list(texts) == ["stsb"] and len(texts["stsb"]) == 2 * 2 * 20


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (_pipelines(raw='whitening = "always"'), "whitening='always'"),
        (_pipelines(raw="colour = 1"), "colour"),
        ("", "row"),
        ("nonsense", "r.toml"),
    ],
)
def test_a_bad_recipe_is_named(tmp_path: Path, rows: str, message: str) -> None:
    recipe = tmp_path / "r.toml"
    recipe.write_text(RECIPE + rows, encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        read_study(recipe)
    with pytest.raises(FileNotFoundError, match="does not exist"):
        read_study(tmp_path / "none.toml")


@pytest.mark.parametrize("path", sorted((STUDIES / "sts/recipes").glob("*.toml")), ids=lambda path: path.stem)
def test_committed_recipes_are_valid(path: Path) -> None:
    recipe = read_study(path)
    assert recipe.rows and len({row.name for row in recipe.rows}) == len(recipe.rows)
