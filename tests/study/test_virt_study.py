"""The VIRT study on a tiny model: recipe in, JSON, tables and picture out."""

from __future__ import annotations

import gzip
import json
import math
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from sentence_transformers import SentenceTransformer

from evaluation.__main__ import run, table
from evaluation.engine.pair_tables import difference_table
from evaluation.engine.pairs import Examples, training_and_dev
from evaluation.engine.scores import score, unpacked
from evaluation.engine.study import STUDIES, Place, read_study
from evaluation.studies.virt import setting as virt
from evaluation.studies.virt.setting import class_loss, soft_cross_entropy, student, trim, with_virt
from evaluation.studies.virt.study import Row
from st_plugins.evaluation.statistics import resample_counts
from st_plugins.losses import VIRTLoss

RECIPE = """
study = "virt"
title = "tiny"
model = "tiny"
seeds = [0, 1]
batch_size = 8
eval_limit = 10
agreement_pairs = 8
teacher_learning_rate = 1e-2
[task.nli]
train = ["nli.tsv"]
aside = 12
classes = ["entailment", "neutral", "contradiction"]
steps = 3
max_length = 9
[task.nli.tests]
nli-test = "nli.tsv"
[task.para]
train = ["para.tsv"]
dev = "para.tsv"
classes = ["0", "1"]
positive = "1"
epochs = 0.5
[task.para.tests]
para-test = "para.tsv"
[task.sts]
train = ["sts.tsv"]
dev = "sts.tsv"
steps = 3
teacher_steps = 2
[task.sts.tests]
sts-test = "sts.tsv"
[defaults]
learning_rate = 1e-2
"""
ROWS = {
    "cross-encoder": 'kind = "cross-encoder"\ntasks = ["nli", "sts"]',
    "Siamese": "",
    "score distillation": 'distillation = 0.5\ntasks = ["nli"]',
    "VIRT": 'weight = 100.0\ntasks = ["nli"]',
    "VIRT + scores": 'weight = 100.0\ndistillation = 1.0\ntasks = ["nli", "sts"]',
    "VIRT + interaction": 'kind = "interaction"\nweight = 100.0\ntasks = ["nli", "sts"]',
}
GRID = """
[grid]
task = "nli"
steps = 2
targets = ["softmax_slice"]
layers = [[-1]]
weights = [1.0]
"""


def _recipe(folder: Path, rows: dict[str, str], head: str = RECIPE, tail: str = "") -> Path:
    path = folder / "tiny.toml"
    text = "".join(f'\n[[row]]\nname = "{name}"\n{body}\n' for name, body in rows.items())
    path.write_text(head + text + tail, encoding="utf-8")
    return path


def _table(rows: list[str]) -> bytes:
    return gzip.compress("\n".join([*rows, ""]).encode())


@pytest.fixture
def folders(sentences: list[str], encoder_folder: Path, tmp_path: Path) -> dict[str, Path]:
    data = tmp_path / "data"
    data.mkdir()
    pairs = list(zip(sentences, reversed(sentences), strict=True))
    labels = ["contradiction", "entailment", "neutral"]
    files = {
        "nli": ["label", *(labels[i % 3] for i in range(60))],
        "para": ["label", *(str(int(i % 4 > 0)) for i in range(60))],
        "sts": ["score", *(str(i % 6) for i in range(60))],
    }
    for name, column in files.items():
        rows = [
            f"{label}\t{a}\t{b}" for label, (a, b) in zip(column, [("sentence1", "sentence2"), *pairs], strict=True)
        ]
        (data / f"{name}.tsv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    shutil.copytree(encoder_folder, tmp_path / "models" / "tiny")
    return {"models": tmp_path / "models", "data": data, "cache": tmp_path / "cache", "results": tmp_path / "out"}


def _setting(path: Path, folders: dict[str, Path], task: str = "nli", seed: int = 0) -> virt.Setting:
    study = read_study(path)
    study.place = Place(folders["models"], folders["data"], folders["cache"], "cpu")
    return virt.Setting(study, task, seed)


def _results(folders: dict[str, Path]) -> dict[str, Any]:
    return {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in folders["results"].rglob("*.json")}


def test_every_row_is_trained_scored_and_tabulated(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[str] = []
    real = virt.train
    monkeypatch.setattr(
        virt,
        "train",
        lambda model, *rest, **more: trained.append(type(model).__name__) or real(model, *rest, **more),
    )
    recipe = _recipe(tmp_path, ROWS, tail=GRID)
    run(recipe, **folders, device="cpu", only="seed0")
    results = _results(folders)
    assert len(results) == 13 and trained.count("CrossEncoder") == 3  # one teacher a task
    found = results["nli-virt-seed0"]
    assert found["steps"] == 3 and found["dev"]["pairs"] == 10 and found["tests"]["nli-test"]["pairs"] == 60
    assert [layer["student_layer"] for layer in found["agreement"]["after"]] == [0, 1]
    assert found["agreement"]["before"] == results["nli-siamese-seed0"]["agreement"]["before"]
    assert results["para-siamese-seed0"]["steps"] == 4 and "f1" in results["para-siamese-seed0"]["tests"]["para-test"]
    assert results["sts-cross-encoder-seed0"]["steps"] == 2
    assert results["sts-siamese-seed0"]["dev"]["metric"] == "spearman"
    for task, count in (("nli", 7), ("sts", 3)):  # every row trains in its own way
        rows = [name for name in results if name.startswith(task) and "cross" not in name]
        courses = {json.dumps(results[name]["agreement"]["after"]) for name in rows}
        assert len(courses) == len(rows) == count
    assert all("tests" not in found for name, found in results.items() if "grid" in name)

    table(recipe, folders["results"])
    page = (folders["results"] / "tiny" / "table.md").read_text(encoding="utf-8")
    assert "| VIRT + interaction | 1 |" in page and "| minus score distillation |" in page and "F1" in page
    assert "grid" not in page and str(tmp_path) not in page
    picture = (folders["results"] / "tiny" / "ablation.svg").read_bytes()
    table(recipe, folders["results"])
    assert (folders["results"] / "tiny" / "ablation.svg").read_bytes() == picture

    kept = {path: path.stat().st_mtime_ns for path in folders["results"].rglob("*.json")}
    before = len(trained)
    (folders["results"] / "tiny" / "nli-cross-encoder-seed0.json").unlink()
    run(recipe, **folders, device="cpu", only="seed0")  # what is there is kept, the teachers too
    assert len(trained) == before
    assert {path for path in kept if path.stat().st_mtime_ns != kept[path]} == {
        folders["results"] / "tiny" / "nli-cross-encoder-seed0.json"
    }


def test_all_seeds_may_learn_from_one_cross_encoder(folders: dict[str, Path], tmp_path: Path) -> None:
    recipe = _recipe(tmp_path, ROWS)
    recipe.write_text("teacher_seed = 0\n" + recipe.read_text(encoding="utf-8"), encoding="utf-8")
    first, second = (_setting(recipe, folders, seed=seed) for seed in (0, 1))
    pairs = first.dev.pairs
    answers = [m.predict(pairs) for m in (first.teacher, second.teacher, first.cross_encoder, second.cross_encoder)]
    assert (answers[0] == answers[1]).all() and (answers[0] == answers[2]).all()
    assert not (answers[0] == answers[3]).all()
    assert len(list(folders["cache"].iterdir())) == 2


def test_a_cross_encoder_may_start_from_that_of_another_task(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = RECIPE.replace("teacher_steps = 2\n", 'teacher_steps = 2\nteacher_from = "nli"\n')
    setting = _setting(_recipe(tmp_path, ROWS, head=text), folders, "sts")
    started: list[torch.Tensor] = []
    real = virt.train
    monkeypatch.setattr(
        virt,
        "train",
        lambda model, *rest, **more: started.append(_embedding(model).clone()) or real(model, *rest, **more),
    )
    trained = _embedding(setting.cross_encoder)
    nli = _embedding(_setting(tmp_path / "tiny.toml", folders, "nli").cross_encoder)
    assert len(started) == 2 and torch.equal(started[1], nli)
    assert not torch.equal(started[0], nli) and not torch.equal(trained, nli)
    assert setting.cross_encoder.num_labels == 1


def _embedding(model: Any) -> torch.Tensor:
    weight: torch.Tensor = model.transformers_model.base_model.embeddings.word_embeddings.weight.detach()
    return weight


def test_a_row_is_the_same_every_time(folders: dict[str, Path], tmp_path: Path) -> None:
    setting = _setting(_recipe(tmp_path, ROWS), folders)
    first, second = (setting.measure(Row("a", learning_rate=1e-2)) for _ in range(2))
    assert first["agreement"] == second["agreement"] and first["tests"] == second["tests"]


def test_shards_share_tasks_and_seeds(folders: dict[str, Path], tmp_path: Path) -> None:
    recipe = _recipe(tmp_path, {"cross-encoder": 'kind = "cross-encoder"'})
    run(recipe, **folders, device="cpu", shard="1/2", dev_only=True)
    assert set(_results(folders)) == {
        f"{name}-cross-encoder-seed{n}" for name, n in (("para", 0), ("nli", 1), ("sts", 1))
    }
    assert all("tests" not in found for found in _results(folders).values())


def test_targets_mix_gold_labels_and_the_teachers_answers(folders: dict[str, Path], tmp_path: Path) -> None:
    setting = _setting(_recipe(tmp_path, ROWS), folders)
    seen = setting.seen(3)
    logits = torch.tensor(setting.teacher.predict(seen.pairs, show_progress_bar=False)).double()
    found = setting.targets(Row("a", distillation=0.25), seen)
    for row, gold, values in zip(found, seen.gold, logits.tolist(), strict=True):
        total = sum(math.exp(value) for value in values)
        expected = [0.75 * (gold == index) + 0.25 * math.exp(value) / total for index, value in enumerate(values)]
        assert row == pytest.approx(expected, abs=1e-6)
    assert setting.targets(Row("a"), seen) == [int(label) for label in seen.gold]
    scores = _setting(_recipe(tmp_path, ROWS), folders, "sts")
    seen = scores.seen(3)
    answers = scores.teacher.predict(seen.pairs, show_progress_bar=False)
    expected = [0.5 * gold + 0.5 * answer for gold, answer in zip(seen.gold, answers, strict=True)]
    assert scores.targets(Row("a", distillation=0.5), seen) == pytest.approx(expected, abs=1e-6)
    assert min(answers) > 0 and max(answers) < 1


def test_soft_targets_cost_what_hard_and_teacher_cost_together() -> None:
    logits, teacher = torch.randn(5, 3).double(), torch.rand(5, 3).double().softmax(dim=1)
    hard = torch.nn.functional.one_hot(torch.tensor([0, 2, 1, 1, 0]), 3).double()
    losses = [
        soft_cross_entropy(logits, targets.flatten()).item() for targets in (hard, teacher, 0.3 * hard + 0.7 * teacher)
    ]
    assert losses[2] == pytest.approx(0.3 * losses[0] + 0.7 * losses[1])
    expected = -sum(t * math.log(p) for t, p in zip(teacher.flatten(), logits.softmax(dim=1).flatten(), strict=True))
    assert losses[1] == pytest.approx(float(expected) / 5)


def test_logits_and_margins_are_regressed_beside_the_labels(folders: dict[str, Path], tmp_path: Path) -> None:
    setting = _setting(_recipe(tmp_path, ROWS), folders)
    seen = setting.seen(3)
    row = Row("a", distillation=0.25, scores="margin")
    targets = torch.tensor(setting.targets(row, seen)).double()
    teacher = torch.tensor(setting.teacher.predict(seen.pairs, show_progress_bar=False)).double()
    gold = torch.tensor(seen.gold).long()
    assert torch.equal(targets[:, :3].argmax(dim=1), gold) and torch.allclose(targets[:, 3:], teacher)
    logits = torch.randn(len(seen), 3).double()
    task = torch.nn.functional.cross_entropy(logits, gold)
    distances = ((logits - teacher) ** 2).mean()
    found = class_loss(Row("a", distillation=0.25, scores="mse"))(logits, targets.flatten())
    assert found.item() == pytest.approx((0.75 * task + 0.25 * distances).item())
    pairs = [(0, 1), (0, 2), (1, 2)]
    margins = [((logits[:, i] - logits[:, j]) - (teacher[:, i] - teacher[:, j])) ** 2 for i, j in pairs]
    found = class_loss(row)(logits, targets.flatten())
    assert found.item() == pytest.approx((0.75 * task + 0.25 * torch.stack(margins).sum(dim=0).mean() / 9).item())


def test_maps_may_begin_later_than_scores(folders: dict[str, Path], tmp_path: Path) -> None:
    setting = _setting(_recipe(tmp_path, ROWS), folders)
    weights: list[float] = []

    def after(row: Row) -> Any:
        return setting.measure(row)["agreement"]["after"]

    real = virt.with_virt

    def watched(*arguments: Any) -> Any:
        loss = real(*arguments)
        if isinstance(loss, VIRTLoss):
            loss.register_forward_pre_hook(lambda module, _: weights.append(module.weight))
        return loss

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(virt, "with_virt", watched)
        late = after(Row("late", weight=100.0, virt_after=0.5, learning_rate=1e-2, steps=4))
    assert weights == [0.0, 0.0, 100.0, 100.0]
    assert late != after(Row("at once", weight=100.0, learning_rate=1e-2, steps=4))


def test_rows_share_the_teachers_maps(folders: dict[str, Path], tmp_path: Path) -> None:
    kept = _recipe(tmp_path, ROWS, head="cache_maps = true\n" + RECIPE)
    setting = _setting(kept, folders)
    rows = [Row(name, weight=100.0, layers=layers) for name, layers in (("a", "all"), ("b", "all"), ("c", (1,)))]
    records = [setting.measure(row) for row in rows]
    assert records[0]["agreement"] == records[1]["agreement"] != records[2]["agreement"]
    assert len(list((folders["cache"] / "maps").iterdir())) == 2
    assert setting.maps(rows[0]) != setting.maps(replace(rows[0], target="logits"))


def test_reported_sets_may_be_cut_to_their_first_pairs(folders: dict[str, Path], tmp_path: Path) -> None:
    whole = _setting(_recipe(tmp_path, ROWS), folders).tests["nli-test"]
    cut = _setting(_recipe(tmp_path, ROWS, head="test_limit = 20\n" + RECIPE), folders).tests["nli-test"]
    assert len(whole) == 60 and cut == whole.first_ones(20)


def test_both_models_read_the_same_tokens(folders: dict[str, Path], tmp_path: Path) -> None:
    setting = _setting(_recipe(tmp_path, ROWS), folders)
    tokenizer = setting.encoder().tokenizer
    whole, cut = training_and_dev(setting.task, folders["data"], 8, setting.study.eval_limit)[1], setting.dev
    assert cut.first != whole.first
    for text, original in zip([*cut.first, *cut.second], [*whole.first, *whole.second], strict=True):
        assert tokenizer(text)["input_ids"] == tokenizer(original, truncation=True, max_length=9)["input_ids"]
    for first, second in cut.pairs:
        assert len(tokenizer(first, second)["input_ids"]) <= 2 * setting.task.max_length
    assert trim(Examples([""], ["a"], [0]), tokenizer, 9).first == [""]


def test_dev_pairs_are_no_training_pairs_and_seeds_share_them(folders: dict[str, Path], tmp_path: Path) -> None:
    study = read_study(_recipe(tmp_path, ROWS))
    training, dev = training_and_dev(study.tasks["nli"], folders["data"], study.batch_size, study.eval_limit)
    assert len(training) == 48 and len(dev) == 10 and not set(training.pairs) & set(dev.pairs)
    assert training_and_dev(study.tasks["nli"], folders["data"], study.batch_size, study.eval_limit)[1] == dev


def test_accuracy_f1_and_spearman_are_those_of_plain_counts() -> None:
    rng = np.random.default_rng(0)
    gold, found = rng.integers(0, 2, 40), rng.integers(0, 2, 40)
    result = score("toy", gold, found, positive=1)
    counts = resample_counts(40, 1000, "toy", seed=0)

    def expected(weights: Any) -> tuple[float, float]:
        right = hit = claimed = real = 0
        for weight, label, answer in zip(weights.tolist(), gold, found, strict=True):
            right += weight * (label == answer)
            hit += weight * (label == answer == 1)
            claimed += weight * (answer == 1)
            real += weight * (label == 1)
        return right / 40, 2 * hit / (claimed + real)

    accuracy, f1 = expected(np.ones(40, dtype=int))
    assert result["value"][0] == pytest.approx(accuracy) and result["f1"][0] == pytest.approx(f1)
    resampled = [expected(weights) for weights in counts]
    assert unpacked(result) == pytest.approx([value for value, _ in resampled], abs=1e-4)
    assert result["f1"][1:] == pytest.approx(np.quantile([value for _, value in resampled], [0.025, 0.975]))
    scores = score("toy", gold + rng.random(40), found + gold, classes=False)
    assert scores["metric"] == "spearman" and scores["value"][1] < scores["value"][0] < scores["value"][2]
    again = score("toy", np.arange(9.0), np.array([0, 2, 1, 3, 4, 8, 5, 6, 7.0]), classes=False)
    assert again["value"][0] == pytest.approx(spearmanr(np.arange(9), [0, 2, 1, 3, 4, 8, 5, 6, 7]).statistic)


def test_differences_are_paired(folders: dict[str, Path], tmp_path: Path) -> None:
    """Two rows that err on the same pairs differ with certainty where one errs on a few more."""
    study = read_study(_recipe(tmp_path, {"Siamese": "", "VIRT": "weight = 1.0"}))
    gold = np.zeros(1000)
    worse, better = (np.where(np.arange(1000) < wrong, 1.0, 0.0) for wrong in (500, 480))
    results = {
        ("nli", name): [{"tests": {"nli-test": score("nli-test", gold, found)}}]
        for name, found in (("Siamese", worse), ("VIRT", better))
    }
    rows, columns = [row.name for row in study.rows], study.sets
    lines = difference_table(rows, "Siamese", columns, results)
    assert lines[-1].startswith("| VIRT | +2.00 better |")
    reverse = difference_table(rows, "VIRT", columns, results)
    assert reverse[-1].startswith("| Siamese | -2.00 worse |")


@pytest.mark.parametrize(
    ("rows", "head", "message"),
    [
        ({"a": 'kind = "magic"'}, RECIPE, "kind='magic'"),
        ({"a": 'tasks = ["lost"]'}, RECIPE, "lost"),
        ({"a": 'kind = "interaction"\ndistillation = 0.5'}, RECIPE, "the pair head takes labels"),
        ({"a": 'regression = "magic"'}, RECIPE, "regression='magic'"),
        ({"a": 'scores = "magic"'}, RECIPE, "scores='magic'"),
        ({"a": 'scores = "mse"'}, RECIPE, "rows with distillation"),
        ({"a": 'scores = "mse"\ndistillation = 0.5'}, RECIPE, "tasks with classes"),
        ({"a": "virt_after = 1.0\nweight = 1.0"}, RECIPE, "virt_after=1.0 must be"),
        ({"a": "virt_after = 0.5"}, RECIPE, "of a row with a weight"),
        ({"a": "colour = 1"}, RECIPE, "colour"),
        ({}, RECIPE, "row"),
        ({"a": ""}, RECIPE.replace("aside = 12\n", ""), "either a dev file or a number"),
    ],
)
def test_a_bad_recipe_is_named(tmp_path: Path, rows: dict[str, str], head: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_study(_recipe(tmp_path, rows, head))
    with pytest.raises(FileNotFoundError, match="does not exist"):
        read_study(tmp_path / "none.toml")


def test_bad_data_is_named(folders: dict[str, Path], tmp_path: Path) -> None:
    recipe = _recipe(tmp_path, ROWS)
    for task, old, new, message in (
        ("para", "batch_size = 8", "batch_size = 80", "fewer than one batch, batch_size=80"),
        ("nli", '"neutral", ', "", r"labels \['neutral'\] are not among the task's classes"),
        ("sts", "teacher_steps = 2", 'teacher_from = "rte"', "teacher_from='rte' must be a task"),
        ("sts", "teacher_steps = 2", "scale = [1.0, 5.0]", "outside the task's scale 1 to 5"),
    ):
        recipe.write_text(_recipe(tmp_path, ROWS).read_text(encoding="utf-8").replace(old, new), encoding="utf-8")
        with pytest.raises(ValueError, match=message):
            _setting(recipe, folders, task).seen(1)


def test_a_row_answers_with_its_own_head(make_model: Callable[..., SentenceTransformer]) -> None:
    model = make_model("bert")
    examples = Examples(["a man", "the dog ."], ["a dog", "a man"], [0, 1])
    u, v = (model.encode(side, convert_to_tensor=True) for side in (examples.first, examples.second))
    loss, answer = student(Row("a"), model, 3)
    features = torch.cat([u, v, (u - v).abs()], dim=1)
    assert answer(examples) == pytest.approx(loss.classifier(features).detach().numpy(), abs=1e-5)
    _, answer = student(Row("a", regression="cosent"), model, 0)
    assert answer(examples) == pytest.approx(torch.cosine_similarity(u, v).numpy(), abs=1e-6)


@pytest.mark.parametrize("path", sorted((STUDIES / "virt/recipes").glob("*.toml")), ids=lambda p: p.stem)
def test_committed_recipes_are_read(path: Path) -> None:
    study = read_study(path)
    assert study.model and study.tasks and len({row.name for row in study.rows}) == len(study.rows) > 0


@pytest.mark.slow
@pytest.mark.parametrize("path", sorted((STUDIES / "virt/recipes").glob("*.toml")), ids=lambda p: p.stem)
def test_committed_recipes_run(path: Path, encoder_folder: Path, sentences: list[str], tmp_path: Path) -> None:
    """Two steps of every row, with a tiny encoder in the place of the recipe's, and tiny files of the named forms."""
    small = re.sub(r"(batch_size|aside) = [0-9]+", r"\1 = 8", path.read_text(encoding="utf-8"))
    small = re.sub(r"max_length = [0-9]+", "max_length = 16", small)
    small = re.sub(r'layers = \["all".*', 'layers = ["all", [1]]', small)  # of the grid
    small = re.sub(r"layers = \[[0-9].*", "layers = [1]", small)  # of a row
    (tmp_path / path.name).write_text(small, encoding="utf-8")
    study = read_study(tmp_path / path.name)
    pairs = list(zip(sentences, reversed(sentences), strict=True))
    for task in study.tasks.values():
        for name in {*task.train, *task.tests.values(), *([task.dev] if task.dev else [])}:
            file = tmp_path / "data" / name
            file.parent.mkdir(parents=True, exist_ok=True)
            labels = task.classes or ("1.5", "4")
            rows = [f"{labels[number % len(labels)]}\t{a}\t{b}" for number, (a, b) in enumerate(pairs)]
            file.write_bytes(_table([f"{'label' if task.classes else 'score'}\tsentence1\tsentence2", *rows]))
    for name, mark in (study.reading.pairs if study.reading else {}).items():
        file, column = tmp_path / "data" / name, "label" if isinstance(mark, str) else "score"
        file.write_bytes(_table([f"{column}\tsentence1\tsentence2", *[f"{mark}\t{a}\t{b}" for a, b in pairs]]))
    shutil.copytree(encoder_folder, tmp_path / "models" / study.model)
    folders = {"models": tmp_path / "models", "data": tmp_path / "data", "cache": tmp_path / "cache"}
    run(tmp_path / path.name, **folders, results=tmp_path / "out", only="virt-score", dry_run=True, device="cpu")
    written = {file.stem for file in (tmp_path / "out").rglob("*.json")}
    assert written == {f"{task}-virt-score-distillation-seed0" for task in study.tasks}
    study.place = Place(**folders, device="cpu", dry_run=True)
    setting = virt.Setting(study, next(iter(study.tasks)), 0)
    model = setting.encoder()
    for row in study.rows:  # the rest differs in settings, which the losses check
        if row.kind != "cross-encoder":
            with_virt(row, model, setting.teacher, student(row, model, len(setting.task.classes))[0])
