"""The RE2 study on tiny files: recipe in, JSON and tables out."""

from __future__ import annotations

import gzip
import json
import shutil
from itertools import chain, product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import typer

from evaluation.__main__ import run, table
from evaluation.engine.pipelines import Pipeline
from evaluation.engine.runner import load_seeds, pending
from evaluation.engine.scores import ranking_score, score, unpacked
from evaluation.engine.study import STUDIES, Place, read_study
from evaluation.studies.re2 import training as re2_training
from evaluation.studies.re2.setting import Setting
from evaluation.studies.re2.word_embeddings import thresholds
from st_plugins.evaluation.statistics import resample_counts
from st_plugins.matching import LearnedEmbedding, TransformerTokens, WordVectors

RECIPES = sorted((STUDIES / "re2/recipes").glob("*.toml"))

HEAD = """
study = "re2"
title = "tiny"
seeds = [0, 1]
patience = 2
eval_limit = 20
full = "RE2"
[config]
blocks = 1
encoder_layers = 1
hidden_dimension = 8
[schedule]
batch_size = 8
epochs = 2
learning_rate = 1e-2
[task.para]
train = ["pairs.tsv"]
aside = 20
classes = ["0", "1"]
positive = "1"
paper = { value = 0.892, deviation = 0.002, pairs = 384348 }
[task.para.tests]
para-test = "pairs.tsv"
[task.qa]
train = ["pairs.tsv"]
dev = "pairs.tsv"
classes = ["0", "1"]
ranked = true
config = { prediction = "simple" }
schedule = { epochs = 1 }
[task.qa.tests]
qa-test = "pairs.tsv"
[defaults]
model = "vectors"
"""
ROWS = {
    "RE2": "paper = { para = 0.894 }",
    "Siamese": 'kind = "siamese"\ntrainable = true\nschedule = { learning_rate = 0.05 }',
    "subwords": 'source = "subwords"\nwidth = 8\nvocabulary = 300\ntasks = ["para"]\nseeds = [0]',
    "plain": 'config = { residual = "plain", blocks = 2 }\ntasks = ["para"]\nseeds = [0]\nablation = true\n'
    "paper = { para = 0.892 }",
}
BESIDE = """
[[beside]]
name = "cross-encoder"
results = "other"
row = "cross-encoder"
tasks = { para = "paraphrase" }
"""


def _recipe(folder: Path, rows: dict[str, str] = ROWS, head: str = HEAD, tail: str = BESIDE) -> Path:
    path = folder / "tiny.toml"
    text = "".join(f'\n[[row]]\nname = "{name}"\n{body}\n' for name, body in rows.items())
    path.write_text(head + text + tail, encoding="utf-8")
    return path


@pytest.fixture
def folders(encoder_folder: Path, tmp_path: Path) -> dict[str, Path]:
    """Sixty pairs: twelve questions, five answers each; right is the answer that has the question's animal."""
    data, models = tmp_path / "data", tmp_path / "models"
    data.mkdir()
    animals = ["dog", "cat", "man", "woman"]
    questions = [f"is the {animal} {what}" for animal, what in product(animals, ("eating", "running", "sleeping"))]
    rows = [
        f"{int(animal in question.split())}\t{question}\tyes the {animal} is ."
        for question in questions
        for animal in [*animals, "apple"]
    ]
    (data / "pairs.tsv").write_text("\n".join(["label\tsentence1\tsentence2", *rows, ""]), encoding="utf-8")
    generator = np.random.default_rng(0)
    words = [*animals, "is", "the", "eating", "running", "sleeping"]
    lines = [" ".join([word, *(f"{number:.3f}" for number in generator.normal(size=6))]) for word in words]
    (models / "vectors").mkdir(parents=True)
    (models / "vectors" / "vectors.txt.gz").write_bytes(gzip.compress("\n".join([*lines, ""]).encode()))
    shutil.copytree(encoder_folder, models / "tiny")
    return {"models": models, "data": data, "results": tmp_path / "out"}


def _setting(study: Any, folders: dict[str, Path], **how: bool) -> Setting:
    study.place = Place(folders["models"], folders["data"], device="cpu", **how)
    return Setting(study, "para", 0)


def _results(folders: dict[str, Path]) -> dict[str, Any]:
    return {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in folders["results"].rglob("*.json")}


def test_every_row_is_trained_scored_and_tabulated(folders: dict[str, Path], tmp_path: Path) -> None:
    recipe = _recipe(tmp_path)
    with pytest.raises(typer.BadParameter, match=r"holds no result of tiny\.toml"):
        table(recipe, folders["results"])
    run(recipe, **folders, device="cpu", only="seed0")
    results = _results(folders)
    assert len(results) == 6
    found = results["para-re2-seed0"]
    assert found["pairs"] == 40 and found["steps"] == 10 and found["step"] in (5, 10)
    assert found["dev"]["pairs"] == 20 and "resamples" not in found["dev"]
    assert found["tests"]["para-test"]["pairs"] == 60 and "f1" in found["tests"]["para-test"]
    assert (
        found["config"]["hidden_dimension"] == 8 and found["schedule"]["epochs"] == 2 and found["seconds_training"] > 0
    )
    assert 0.5 < found["coverage"] < 1 and found["device"] == "CPU"
    # A table of nine words and a row for the others, frozen in the matcher, trained in the Siamese encoder.
    assert found["parameters"]["embeddings"] == 60
    assert found["parameters"]["trained"] == found["parameters"]["network"] > 500
    assert results["para-siamese-seed0"]["parameters"] == {"network": 38, "embeddings": 60, "trained": 98}
    assert "config" not in results["para-siamese-seed0"]
    assert results["qa-re2-seed0"]["config"]["prediction"] == "simple" and results["qa-re2-seed0"]["steps"] == 8
    for name in ("qa-re2-seed0", "qa-siamese-seed0"):
        ranked = results[name]["tests"]["qa-test"]
        assert ranked["metric"] == "map" and ranked["queries"] == 12
        assert results[name]["dev"]["value"][0] == pytest.approx(ranked["value"][0])  # the same pairs, not cut to 20
    assert "tests" not in results["para-plain-seed0"] and results["para-plain-seed0"]["config"]["residual"] == "plain"
    assert results["para-subwords-seed0"]["parameters"]["embeddings"] % 8 == 0
    dev = [results[f"para-{name}-seed0"]["seconds_training"] for name in ("re2", "subwords", "plain")]
    assert len(set(dev)) == 3

    table(recipe, folders["results"])
    page = (folders["results"] / "tiny" / "table.md").read_text(encoding="utf-8")
    assert "| RE2 | 1 |" in page and "| minus Siamese | para-test | qa-test |" in page
    assert "| cross-encoder | - | - | - |" in page and "minus cross-encoder" not in page
    assert str(tmp_path) not in page

    kept = {path: path.stat().st_mtime_ns for path in folders["results"].rglob("*.json")}
    lost = folders["results"] / "tiny" / "qa-siamese-seed0.json"
    lost.unlink()
    run(recipe, **folders, device="cpu", only="seed0")
    assert {path for path in kept if path.stat().st_mtime_ns != kept[path]} == {lost}
    again = json.loads(lost.read_text(encoding="utf-8"))
    assert again["tests"] == results["qa-siamese-seed0"]["tests"]


def test_a_dry_run_and_dev_only(folders: dict[str, Path], tmp_path: Path) -> None:
    recipe = _recipe(tmp_path)
    run(recipe, **folders, device="cpu", dry_run=True, dev_only=True, only="para-")
    results = _results(folders)
    assert set(results) == {f"para-{name}-seed0" for name in ("re2", "siamese", "subwords", "plain")}
    assert all("tests" not in found and found["steps"] == 5 for found in results.values())


def test_shards_share_tasks_and_seeds(tmp_path: Path) -> None:
    study = read_study(_recipe(tmp_path))
    whole = [(jobs[0].task, jobs[0].seed) for jobs in pending(study, tmp_path)]
    assert whole == [("para", 0), ("qa", 0), ("para", 1), ("qa", 1)]
    parts = [[(jobs[0].task, jobs[0].seed) for jobs in pending(study, tmp_path, shard=f"{n}/3")] for n in range(3)]
    assert sorted(chain.from_iterable(parts)) == sorted(whole) and parts[0] == [("para", 0), ("qa", 1)]
    named = {job.path.name for jobs in pending(study, tmp_path, only="para-") for job in jobs}
    assert "para-plain-seed0.json" in named and "para-plain-seed1.json" not in named


def test_the_best_epoch_on_dev_is_kept(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []
    real = re2_training.BestWeightsCallback

    class Watched(real):  # type: ignore[misc,valid-type]
        def on_evaluate(self, *args: Any, metrics: Any = None, **kwargs: Any) -> None:
            seen.append((metrics["eval_dev"], self.model, [weight.clone() for weight in self.model.parameters()]))
            if len(seen) == 2:  # a lucky epoch: the next ones are no better
                metrics = {"eval_dev": 2.0}
            super().on_evaluate(*args, metrics=metrics, **kwargs)

    monkeypatch.setattr(re2_training, "BestWeightsCallback", Watched)
    study = read_study(_recipe(tmp_path, head=HEAD.replace("epochs = 2", "epochs = 9")))
    setting = _setting(study, folders)
    found = setting.measure(study.rows[1])
    assert len(seen) == 4 and found["steps"] == 20 and found["step"] == 10  # patience is 2
    assert found["dev"]["value"][0] == seen[1][0]
    now = list(seen[0][1].parameters())
    for evaluation, same in ((1, True), (3, False)):
        assert all(torch.equal(*both) for both in zip(now, seen[evaluation][2], strict=True)) is same


def test_sources(folders: dict[str, Path], tmp_path: Path) -> None:
    rows = {**ROWS, "encoder": 'source = "transformer"\nmodel = "tiny"\ntasks = ["para"]\nseeds = [0]'}
    study = read_study(_recipe(tmp_path, rows))
    setting = _setting(study, folders, dry_run=True)
    kinds = {"RE2": WordVectors, "subwords": LearnedEmbedding, "encoder": TransformerTokens}
    for row in study.rows:
        if row.name in kinds:
            source = re2_training.build_source(row, setting.training, folders["models"], 4)
            assert type(source) is kinds[row.name]
            features = source.tokenize(["is the dog eating apple ."], 4)
            assert source(features)[1].sum() == 4
    found = setting.measure(study.rows[-1])
    assert found["parameters"]["trained"] == found["parameters"]["network"] and "coverage" not in found


def test_the_word_embeddings_of_an_encoder(folders: dict[str, Path], tmp_path: Path) -> None:
    shared = 'source = "embeddings"\nmodel = "tiny"'
    forms = {
        "RE2": shared,
        "whitened": f'{shared}\nform = "whitened"\ndimensions = 5',
    }
    study = read_study(_recipe(tmp_path, forms | {"floor": f'{shared}\nkind = "cosine"'}))
    setting = _setting(study, folders)
    encoder = re2_training.build_model(Pipeline("tiny", "tiny"), folders["models"], seed=0)
    table = encoder[0].model.get_input_embeddings().weight
    for row, width in zip(study.rows[:2], (table.shape[1], 5), strict=True):
        source = re2_training.build_source(row, setting.training, folders["models"], 8)
        vectors, mask = source(source.tokenize(setting.training.texts))
        found = vectors[mask].double()
        assert found.shape[1] == width
        if row.form == "raw":
            ids = encoder.tokenizer(setting.training.texts[0], add_special_tokens=False)["input_ids"]
            assert torch.equal(vectors[0][mask[0]], table[ids])
            continue
        # Over the tokens of the training texts, as often as they occur.
        assert found.mean(dim=0).abs().max() < 1e-5
        covariance = found.T @ found / len(found)
        torch.testing.assert_close(covariance, torch.eye(5).double(), rtol=0, atol=1e-5)
    record = setting.measure(study.rows[2])
    assert record["steps"] == 0 and record["parameters"]["trained"] == 0 and "config" not in record
    assert record["dev"]["value"][0] >= 0.5


def test_the_thresholds_of_the_cosine() -> None:
    cosines = np.array([0.9, 0.8, 0.85, 0.1, 0.2, 0.15, 0.5, 0.55])
    gold = np.array([0, 0, 0, 2, 2, 2, 1, 1])
    order, borders = thresholds(cosines, gold, 3)
    assert order.tolist() == [2, 1, 0] and 0.2 < borders[0] <= 0.5 and 0.55 < borders[1] <= 0.8
    gold[0] = 2  # a pair that no border can judge right
    assert thresholds(cosines, gold, 3)[0].tolist() == [2, 1, 0]
    order, borders = thresholds(cosines[3:], gold[3:] - 1, 2)
    assert order.tolist() == [1, 0] and 0.2 < borders[0] <= 0.5


def test_word_vectors_are_trained_or_not(folders: dict[str, Path], tmp_path: Path) -> None:
    rows = {"RE2": "trainable = true", "Siamese": 'kind = "siamese"'}
    study = read_study(_recipe(tmp_path, rows))
    setting = _setting(study, folders, dry_run=True)
    matcher, siamese = (setting.measure(row)["parameters"] for row in study.rows)
    assert matcher["trained"] == matcher["network"] + matcher["embeddings"]
    assert siamese == {"network": 38, "embeddings": 60, "trained": 38}


def _oracle(queries: list[str], gold: list[int], found: list[float]) -> list[tuple[float, float]]:
    """Average precision and reciprocal rank of each question with both kinds, from their definitions."""
    values = []
    for query in dict.fromkeys(queries):
        answers = [(-found[row], gold[row]) for row in range(len(queries)) if queries[row] == query]
        if len({label for _, label in answers}) < 2:
            continue
        hits, precisions = 0, []
        for place, (_, label) in enumerate(sorted(answers), start=1):  # of equal scores the wrong one first
            if label:
                hits += 1
                precisions.append((hits / place, place))
        values.append((sum(p for p, _ in precisions) / len(precisions), 1 / precisions[0][1]))
    return values


def test_map_and_mrr_are_those_of_their_definitions() -> None:
    rng = np.random.default_rng(0)
    queries = [f"q{number}" for number in rng.integers(0, 15, 90)]
    gold, found = rng.integers(0, 2, 90) * rng.integers(0, 2, 90), rng.integers(0, 6, 90) / 5
    queries += ["only right", "only right", "only wrong"]
    gold, found = np.append(gold, [1, 1, 0]), np.append(found, [0.3, 0.1, 0.2])
    expected = _oracle(queries, gold.tolist(), found.tolist())
    result = ranking_score("toy", queries, gold, found)
    assert result["queries"] == len(expected) < 17 and result["pairs"] == 93 and result["metric"] == "map"
    for key, column in (("value", 0), ("mrr", 1)):
        assert result[key][0] == pytest.approx(sum(pair[column] for pair in expected) / len(expected))
    counts = resample_counts(len(expected), 1000, "toy", seed=0).tolist()
    means = [sum(n * ap for n, (ap, _) in zip(row, expected, strict=True)) / len(expected) for row in counts]
    assert unpacked(result) == pytest.approx(means, abs=1e-4)
    assert result["value"][1:] == pytest.approx(np.quantile(means, [0.025, 0.975]))
    with pytest.raises(ValueError, match="toy: no query has both right and wrong"):
        ranking_score("toy", ["a", "b"], np.array([1, 0]), np.array([0.1, 0.2]))


def _write(folder: Path, name: str, test: str, found: np.ndarray[Any, Any], dev: float, **more: Any) -> None:
    seed = int(name[-1])
    result = {
        "seed": seed,
        "row": {"kind": "re2"},
        "schedule": {"batch_size": 10},
        "pairs": 95,
        "step": 20,
        "steps": 50,
        "seconds_training": 12.4,
        "parameters": {"network": 200_000, "embeddings": 519_150, "trained": 200_000},
        "dev": {"value": [dev, 0.0, 1.0]},
        "device": "CPU",
        "versions": {"torch": "2"},
        "tests": {test: score(test, np.zeros(1000), found, positive=1)},
        **more,
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(result), encoding="utf-8")


def test_the_tables(tmp_path: Path) -> None:
    recipe = _recipe(tmp_path, tail=BESIDE + BESIDE.replace("cross-encoder", "never run"))
    wrong = {n: (np.arange(1000) < n).astype(float) for n in (100, 120, 150, 200)}
    own, other = tmp_path / "out" / "tiny", tmp_path / "out" / "other"
    _write(own, "para-re2-seed0", "para-test", wrong[100], 0.80, coverage=0.9)
    _write(own, "para-re2-seed1", "para-test", wrong[120], 0.82)
    _write(own, "para-siamese-seed0", "para-test", wrong[200], 0.70, row={"kind": "siamese"})
    _write(own, "para-plain-seed0", "para-test", wrong[200], 0.79)
    _write(other, "paraphrase-cross-encoder-seed7", "para-test", wrong[150], 0.9)
    assert len(load_seeds(other, "paraphrase", "cross-encoder")) == 1 and not load_seeds(own, "para", "re")
    table(recipe, tmp_path / "out")
    lines = (own / "table.md").read_text(encoding="utf-8").splitlines()
    interval = np.quantile(
        np.mean([unpacked(score("para-test", np.zeros(1000), wrong[n])) for n in (100, 120)], axis=0), [0.025, 0.975]
    )
    for expected in (
        "| row | seeds | para-test | qa-test |",
        f"| RE2 | 2 | 89.00 ± 1.41 [{100 * interval[0]:.1f}, {100 * interval[1]:.1f}], F1 0.00 ± 0.00 | - |",
        "| never run | - | - | - |",
        "| *RE2 in the paper* | 10 | 89.20 ± 0.20 | - |",
        "| *training pairs here* |  | 95 | - |",
        "| *training pairs in the paper* |  | 384,348 | - |",
        "| RE2 | +9.00 better |  |",
        "| RE2 | +4.00 better |  |",
        "| Siamese | -5.00 worse |  |",
        "| para | RE2 | 81.00 ± 1.41 | 2.0 of 5.0 | 12 | 200,000 | 719,150 | 90.0 % |",
        "| para | Siamese | 70.00 | 2.2 of 5.6 | 12 | 200,000 | 719,150 |  |",
        "| RE2 | 2 | 81.00 ± 1.41 |  | 89.4 |  |",
        "| plain | 1 | 79.00 | -1.00 | 89.2 | -0.2 |",  # against seed 0 alone
    ):
        assert expected in lines, expected
    assert not any("| plain" in line for line in lines[: lines.index("## Ablations")])


@pytest.mark.parametrize(
    ("rows", "head", "message"),
    [
        ({"a": 'kind = "magic"'}, HEAD, "kind='magic' must be one of re2, siamese"),
        ({"a": 'source = "magic"'}, HEAD, "source='magic' must be one of words, subwords, embeddings"),
        ({"a": 'form = "magic"'}, HEAD, "form='magic' must be one of raw, whitened"),
        ({"a": 'form = "whitened"'}, HEAD, "form='whitened' is for source='embeddings'"),
        ({"a": 'source = "embeddings"\ndimensions = 5'}, HEAD, "dimensions=5 needs form='whitened'"),
        ({"a": 'kind = "cosine"\nsource = "subwords"'}, HEAD, "source='subwords' must be words or embeddings"),
        ({"a": 'kind = "siamese"\nsource = "subwords"'}, HEAD, "source='subwords' must be words in a siamese row"),
        ({"a": 'source = "subwords"\ntrainable = true'}, HEAD, "trainable=true is for words"),
        ({"a": 'model = ""'}, HEAD, "source='words' needs a model"),
        ({"a": 'tasks = ["lost"]'}, HEAD, r"row 'a': tasks=\['lost'\] must be among para, qa"),
        ({"a": "paper = { lost = 0.5 }"}, HEAD, r"paper=\['lost'\] must be among para, qa"),
        ({"a": "colour = 1"}, HEAD, "colour"),
        ({"a": "config = { colour = 1 }"}, HEAD, "row 'a': task 'para': RE2Config has no 'colour'"),
        ({"a": "config = { hidden_dimension = 0 }"}, HEAD, "row 'a': task 'para': hidden_dimension must be"),
        ({"a": "schedule = { epochs = 0 }"}, HEAD, "row 'a': task 'para': epochs must be"),
        ({"a": "", "b": "ablation = true"}, HEAD, "full='RE2' must be the row that ablations are compared with"),
        ({"RE2": "", "cross-encoder": ""}, HEAD, "two rows have one name"),
        ({}, HEAD, "row"),
        (ROWS, HEAD.replace("aside = 20\n", ""), "task 'para' needs either a dev file or a number of pairs"),
        (ROWS, HEAD.replace('["0", "1"]\nranked', '["1", "0"]\nranked'), "must be .* to be ranked"),
        (ROWS, HEAD.replace('classes = ["0", "1"]\nranked', "ranked"), "task 'qa' needs classes"),
        (ROWS, HEAD.replace("title", "[title"), "tiny.toml"),
    ],
)
def test_a_bad_recipe_is_named(tmp_path: Path, rows: dict[str, str], head: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_study(_recipe(tmp_path, rows, head))
    with pytest.raises(FileNotFoundError, match="does not exist"):
        read_study(tmp_path / "none.toml")


def test_a_bad_row_of_another_study_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"beside 'cross-encoder': tasks=\['lost'\] must be among para, qa"):
        read_study(_recipe(tmp_path, tail=BESIDE.replace("para =", "lost =")))


def test_too_few_pairs_are_named(folders: dict[str, Path], tmp_path: Path) -> None:
    study = read_study(_recipe(tmp_path, head=HEAD.replace("batch_size = 8", "batch_size = 64")))
    setting = _setting(study, folders)
    with pytest.raises(ValueError, match="40 training pairs are fewer than one batch, batch_size=64"):
        setting.training  # noqa: B018 - reading it reads the files


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_the_committed_recipes_are_valid(path: Path) -> None:
    study = read_study(path)
    virt = {name for name in study.tasks if name != "wikiqa"}
    if path.stem == "re2":
        assert set(study.tasks) == {"qqp", "snli", "wikiqa", "mrpc", "rte"}
        assert {task for row in study.rows if row.ablation for task in row.tasks} == {"qqp", "snli"}
    for other in study.beside:
        # A name alone is a recipe of this study.
        theirs = read_study((path.parent / other.results.replace("/results/", "/recipes/")).with_suffix(".toml"))
        assert other.row in {row.name for row in theirs.rows}
        for name in virt:  # the same sets under the same names, so that the pairs are the same
            task = theirs.tasks[other.tasks.get(name, name)]
            assert study.tasks[name].tests.items() <= task.tests.items()
            assert name == "snli" or (task.train, task.dev, task.aside) == (
                study.tasks[name].train,
                study.tasks[name].dev,
                study.tasks[name].aside,
            )
