"""Reading two texts at once: which pairs are shown, and where the trained encoder goes."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path

import pytest
import torch
from transformers import AutoModel

from evaluation import virt, virt_reading
from evaluation.virt_reading import alike, mixed, reader
from evaluation.virt_recipe import Reading, Study, Task, read_study

ROWS = [("a man is eating", "the man is eating bread", "4.5"), ("a dog", "the cat is sleeping", "0.5")] * 10
READING = Reading({"pairs.tsv": "yes"}, steps=3, batch_size=4, learning_rate=1e-2, max_length=16)


@pytest.fixture
def folders(encoder_folder: Path, tmp_path: Path) -> dict[str, Path]:
    data = tmp_path / "data"
    data.mkdir()
    lines = ["sentence1\tsentence2\tlabel\tscore"]
    lines += [f"{a}\t{b}\t{'yes' if float(score) > 2 else 'no'}\t{score}" for a, b, score in ROWS]
    (data / "pairs.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    shutil.copytree(encoder_folder, tmp_path / "models" / "tiny")
    return {"models": tmp_path / "models", "data": data, "cache": tmp_path / "cache"}


def _study(reading: Reading | None = READING) -> Study:
    return Study("tiny", "tiny", {"sts": Task(["pairs.tsv"], {}, aside=4)}, [], reading=reading, batch_size=4)


@pytest.mark.parametrize("mark", ["yes", 4.5])
def test_only_pairs_with_the_mark_are_read(folders: dict[str, Path], mark: str | float) -> None:
    pairs = alike(Reading({"pairs.tsv": mark}, steps=1), folders["data"])
    assert pairs == [ROWS[0][:2]] * 10


@pytest.mark.parametrize("mark", ["maybe", 9.0])
def test_a_mark_that_no_pair_has_is_an_error(folders: dict[str, Path], mark: str | float) -> None:
    with pytest.raises(ValueError, match=f"pairs.tsv: no pair has what .* asks for, {mark!r}"):
        alike(Reading({"pairs.tsv": mark}, steps=1), folders["data"])


def test_each_pair_is_drawn_as_often_right_as_wrong() -> None:
    pairs = [("left " + "x" * n, "right " + "y" * n) for n in range(40)]
    found = mixed(pairs, 81)
    assert len(found) == 81 and sum(found.gold) == 41
    assert found == mixed(pairs, 81) != mixed(pairs, 81, seed=1)
    seconds = dict(pairs)
    drawn: Counter[tuple[str, float]] = Counter()
    swapped = 0
    for a, b, gold in zip(found.first, found.second, found.gold, strict=True):
        first, second = (a, b) if a.startswith("left") else (b, a)
        swapped += a.startswith("right")
        assert (seconds[first] == second) == bool(gold)
        if not gold and len(first) < 5 + 39:
            assert len(second) == len(seconds[first]) + 1  # the next longer one
        drawn[first, gold] += 1
    assert [drawn[first, gold] for first, _ in pairs for gold in (0, 1)].count(1) == 79
    assert 20 < swapped < 60


def test_everything_starts_from_the_reader_which_is_trained_once(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = reader(_study(), **folders, device="cpu")
    assert first.parent == folders["cache"]
    monkeypatch.setattr(virt_reading, "train", None)  # not needed again
    assert reader(_study(), **folders, device="cpu") == first
    assert reader(_study(None), **folders) == folders["models"] / "tiny"
    before, after = (
        AutoModel.from_pretrained(path).embeddings.word_embeddings.weight
        for path in (folders["models"] / "tiny", first)
    )
    assert not torch.equal(before, after)
    setting = virt.Setting(_study(), "sts", 0, **folders, device="cpu")
    assert torch.equal(setting.encoder()[0].model.embeddings.word_embeddings.weight, after)


def test_a_recipe_names_the_reading_and_the_command_trains_it(
    folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tmp_path / "tiny.toml"
    row = '[[row]]\nname = "a"\n[task.sts]\ntrain = ["pairs.tsv"]\naside = 4\ntests = {}\n'
    recipe.write_text(
        f'title = "t"\nmodel = "tiny"\n{row}[reading]\nsteps = 1\nbatch_size = 4\npairs = {{"pairs.tsv" = "yes"}}\n',
        encoding="utf-8",
    )
    assert read_study(recipe).reading == Reading({"pairs.tsv": "yes"}, steps=1, batch_size=4)
    virt_reading.main(recipe, **folders, device="cpu")
    [trained] = folders["cache"].iterdir()
    assert str(trained) in capsys.readouterr().out
    assert json.loads((trained / "config.json").read_text(encoding="utf-8"))["architectures"] == ["BertModel"]
