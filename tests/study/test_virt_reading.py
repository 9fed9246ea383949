"""Reading two texts at once: what is masked, what it costs, which pairs are shown, where the trained encoder goes."""

from __future__ import annotations

import json
import math
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from transformers import AutoModel, AutoTokenizer

from evaluation.__main__ import run
from evaluation.engine.study import Place, read_study
from evaluation.studies.virt import masking as virt_masking
from evaluation.studies.virt import reading as virt_reading
from evaluation.studies.virt.masking import Masking
from evaluation.studies.virt.reading import Reading, alike, mixed, reader
from evaluation.studies.virt.setting import Setting
from evaluation.studies.virt.study import Study, Task

ROWS = [("a man is eating", "the man is eating bread", "4.5"), ("a dog", "the cat is sleeping", "0.5")] * 10
READING = Reading({"pairs.tsv": "yes"}, masked_steps=3, steps=2, batch_size=4, learning_rate=1e-2, max_length=16)


@pytest.fixture
def folders(encoder_folder: Path, tmp_path: Path) -> dict[str, Path]:
    data = tmp_path / "data"
    data.mkdir()
    lines = ["sentence1\tsentence2\tlabel\tscore"]
    lines += [f"{a}\t{b}\t{'yes' if float(score) > 2 else 'no'}\t{score}" for a, b, score in ROWS]
    (data / "pairs.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    shutil.copytree(encoder_folder, tmp_path / "models" / "tiny")
    return {"models": tmp_path / "models", "data": data, "cache": tmp_path / "cache"}


def _study(folders: dict[str, Path], reading: Reading | None = READING) -> Study:
    tasks = {"sts": Task(["pairs.tsv"], {}, aside=4)}
    study = Study(title="tiny", model="tiny", tasks=tasks, rows=[], reading=reading, batch_size=4)
    study.place = Place(**folders, device="cpu")
    return study


@pytest.mark.parametrize("mark", ["yes", 4.5])
def test_only_pairs_with_the_mark_are_read(folders: dict[str, Path], mark: str | float) -> None:
    pairs = alike(Reading({"pairs.tsv": mark}, 1, 1), folders["data"])
    assert pairs == [ROWS[0][:2]] * 10


@pytest.mark.parametrize("mark", ["maybe", 9.0])
def test_a_mark_that_no_pair_has_is_an_error(folders: dict[str, Path], mark: str | float) -> None:
    with pytest.raises(ValueError, match=f"pairs.tsv: no pair has what .* asks for, {mark!r}"):
        alike(Reading({"pairs.tsv": mark}, 1, 1), folders["data"])


def test_only_words_of_the_second_text_are_asked_for(folders: dict[str, Path]) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folders["models"] / "tiny")
    masking = Masking(tokenizer, 0.5, 16, torch.Generator().manual_seed(0))
    asked = hidden = words = swaps = 0
    for _ in range(50):
        batch = masking([{"sentence1": a, "sentence2": b} for a, b, _ in ROWS])
        for row, (a, b, _) in enumerate(ROWS):
            ids, labels = batch["input_ids"][row].tolist(), batch["labels"][row].tolist()
            whole = [label if label != -100 else token for token, label in zip(ids, labels, strict=True)]
            text = [token for token in whole if token != tokenizer.pad_token_id]
            straight, swapped = tokenizer(a, b)["input_ids"], tokenizer(b, a)["input_ids"]
            assert text in (straight, swapped)
            swaps += text == swapped
            first = len(tokenizer(b if text == swapped else a)["input_ids"])  # [CLS] and [SEP] among them
            places = [place for place, label in enumerate(labels) if label != -100]
            assert all(first <= place < len(text) - 1 for place in places)
            changed = [place for place, token in enumerate(ids) if token != whole[place]]
            assert set(changed) <= set(places)
            assert all(ids[place] == tokenizer.mask_token_id for place in changed)
            asked, hidden, words = asked + len(places), hidden + len(changed), words + len(text) - 1 - first
    assert asked / words == pytest.approx(0.5, abs=0.03)
    assert hidden / asked == pytest.approx(0.9, abs=0.03)
    assert swaps / 1000 == pytest.approx(0.5, abs=0.06)


def test_the_cost_is_that_of_masked_words_alone(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    costs: list[tuple[float, float]] = []
    real = virt_masking._Trainer.compute_loss

    def compared(self: Any, model: Any, inputs: Any, *rest: Any, **more: Any) -> Any:
        model.eval()
        labels = inputs["labels"].tolist()
        features = {key: value for key, value in inputs.items() if key != "labels"}
        logits = model(**features).logits.double()
        losses = [
            -math.log(logits[row, place].softmax(0)[label].item())
            for row, line in enumerate(labels)
            for place, label in enumerate(line)
            if label != -100
        ]
        value, outputs = real(self, model, dict(inputs), True)
        assert outputs["logits"].shape[0] == len(losses)
        costs.append((value.item(), sum(losses) / len(losses)))
        return real(self, model, inputs, *rest, **more)

    monkeypatch.setattr(virt_masking._Trainer, "compute_loss", compared)
    reader(_study(folders))
    assert len(costs) == 3
    for value, expected in costs:
        assert value == pytest.approx(expected, rel=1e-4)


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
    first = reader(_study(folders))
    assert first.parent == folders["cache"]
    monkeypatch.setattr(virt_reading, "train", None)  # not needed again
    assert reader(_study(folders)) == first
    assert reader(_study(folders, None)) == folders["models"] / "tiny"
    before, after = (
        AutoModel.from_pretrained(path).embeddings.word_embeddings.weight
        for path in (folders["models"] / "tiny", first)
    )
    assert not torch.equal(before, after)
    setting = Setting(_study(folders), "sts", 0)
    assert torch.equal(setting.encoder()[0].model.embeddings.word_embeddings.weight, after)


def test_a_recipe_names_the_reading_and_the_command_trains_it(
    folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tmp_path / "tiny.toml"
    row = '[[row]]\nname = "a"\n[task.sts]\ntrain = ["pairs.tsv"]\naside = 4\ntests = {}\n'
    recipe.write_text(
        f'study = "virt"\ntitle = "t"\nmodel = "tiny"\n{row}[reading]\nmasked_steps = 1\nsteps = 1\nbatch_size = 4\n'
        'pairs = {"pairs.tsv" = "yes"}\n',
        encoding="utf-8",
    )
    assert read_study(recipe).reading == Reading({"pairs.tsv": "yes"}, 1, 1, batch_size=4)
    run(recipe, **folders, device="cpu", prepare=True)
    _, trained = sorted(folders["cache"].iterdir())
    assert str(trained) in capsys.readouterr().out
    config = json.loads((trained / "config.json").read_text(encoding="utf-8"))
    assert config["architectures"] == ["BertForSequenceClassification"]


def test_a_run_without_a_cache_says_what_it_needs(folders: dict[str, Path]) -> None:
    study = _study(folders)
    study.place = Place(folders["models"], folders["data"])
    with pytest.raises(typer.BadParameter, match="need a folder"):
        reader(study)


def test_a_head_that_is_not_berts_is_refused(make_model: Callable[..., Any], folders: dict[str, Path]) -> None:
    make_model("distilbert")[0].model.save_pretrained(folders["models"] / "tiny")
    with pytest.raises(TypeError, match="BERT's head, but 'tiny' is a DistilBertForMaskedLM"):
        reader(_study(folders))
