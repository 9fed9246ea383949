"""A killed training of an RE2 matcher goes on as if it had not been killed, and only that training does."""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer
from transformers import TrainerCallback

from st_plugins.matching import LearnedEmbedding, RE2Config, RE2Matcher, RE2Schedule, TransformerTokens
from st_plugins.methods.re2 import checkpoints as checkpoints_module
from st_plugins.methods.re2.checkpoints import OrderOfLengths

CONFIG = RE2Config(blocks=1, encoder_layers=1, hidden_dimension=8, dropout=0.3)
SCHEDULE = RE2Schedule(
    learning_rate=2e-2, batch_size=16, decay_rate=0.8, decay_samples=32, warmup_samples=20, epochs=3
)
QUIET = {"device": "cpu", "show_progress_bar": False}
Rows = list[tuple[str, str, Any]]
Build = Callable[..., RE2Matcher]


class Kill(TrainerCallback):
    """Stop after so many steps, before anything is evaluated or saved."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            raise KeyboardInterrupt


class Count(TrainerCallback):
    """Count the steps."""

    def __init__(self) -> None:
        self.steps = 0

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.steps += 1


@pytest.fixture
def rows(sentences: list[str]) -> Rows:
    pairs = [(a, b) for a in sentences[:12] for b in sentences[30:35]]
    return [(a, b, "yes" if a.split()[1:3] == b.split()[1:3] else "no") for a, b in pairs]


@pytest.fixture
def split(rows: Rows) -> tuple[Rows, Rows]:
    """Of 48 pairs for training, which are three steps an epoch, and 12 to choose on."""
    return [row for number, row in enumerate(rows) if number % 5], rows[::5]


@pytest.fixture
def build(make_model: Callable[..., SentenceTransformer]) -> Build:
    tokenizer = make_model("bert").tokenizer

    def made(labels: tuple[str, ...] = ("no", "yes"), config: RE2Config = CONFIG, seed: int = 0) -> RE2Matcher:
        torch.manual_seed(seed)
        return RE2Matcher(LearnedEmbedding.from_tokenizer(tokenizer, 8), config, list(labels))

    return made


def same(a: RE2Matcher, b: RE2Matcher) -> bool:
    states = a.state_dict(), b.state_dict()
    return all(torch.equal(states[0][name], states[1][name]) for name in states[0].keys() | states[1].keys())


@pytest.mark.parametrize(("step", "often"), [(1, True), (3, True), (4, False), (5, True), (7, True), (9, False)])
def test_a_killed_training_goes_on_bit_for_bit(
    build: Build, split: tuple[Rows, Rows], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int, often: bool
) -> None:
    if often:
        monkeypatch.setattr(checkpoints_module, "_SECONDS_BETWEEN_SAVES", 0.0)
    options: dict[str, Any] = {"schedule": SCHEDULE, **QUIET}
    whole = build()
    expected = whole.fit(*split, **options)
    place: dict[str, Any] = {"checkpoints": tmp_path / "m"}
    with pytest.raises(KeyboardInterrupt):
        build().fit(*split, callbacks=[Kill(step)], **place, **options)
    matcher, count = build(), Count()
    found = matcher.fit(*split, callbacks=[count], resume=True, **place, **options)
    assert count.steps == 9 - (step - 1 if often else 3 * ((step - 1) // 3))  # it did not begin anew
    assert same(matcher, whole) and (found.step, found.steps) == (expected.step, expected.steps)
    assert (found.score, found.accuracy) == (expected.score, expected.accuracy)
    timings = ("runtime", "second")
    logged = [
        [{k: v for k, v in entry.items() if not any(word in k for word in timings)} for entry in history]
        for history in (expected.history, found.history)
    ]
    assert logged[0][:-1] == logged[1][:-1]  # the last one is a mean over the steps of this process
    assert [path.name for path in tmp_path.iterdir()] == ["m.checkpoints"]
    found.remove_checkpoints()
    assert not list(tmp_path.iterdir())


def test_a_training_that_had_ended_is_not_trained_on(
    build: Build, split: tuple[Rows, Rows], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {"schedule": SCHEDULE, "patience": 1, "checkpoints": tmp_path / "m", **QUIET}
    values = iter([0.7, 0.6])
    monkeypatch.setattr("st_plugins.methods.re2.training.measure", lambda *_: next(values))
    ended = build()
    expected = ended.fit(*split, **options)
    assert (expected.steps, expected.step) == (6, 3)
    matcher, count = build(), Count()  # the process was killed before it could save the matcher
    found = matcher.fit(*split, resume=True, callbacks=[count], **options)
    assert count.steps == 0 and same(matcher, ended)
    assert dataclasses.replace(found, history=expected.history) == expected and found.history == expected.history[:-1]
    last, count = build(), Count()
    options |= {"checkpoints": tmp_path / "n", "patience": None}
    last.fit(split[0], **options)
    again = build()
    again.fit(split[0], resume=True, callbacks=[count], **options)
    assert count.steps == 0 and same(again, last)


def test_checkpoints_behind_a_link_are_removed_where_they_are(
    build: Build, split: tuple[Rows, Rows], tmp_path: Path
) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "m.checkpoints").symlink_to("elsewhere")
    found = build().fit(split[0], schedule=SCHEDULE, epochs=1, checkpoints=tmp_path / "m", **QUIET)
    assert found.checkpoints == tmp_path / "elsewhere" and any(found.checkpoints.iterdir())
    found.remove_checkpoints()
    assert [path.name for path in tmp_path.iterdir()] == ["m.checkpoints"]


def test_only_the_same_training_is_resumed(
    build: Build, split: tuple[Rows, Rows], tmp_path: Path, make_model: Callable[..., SentenceTransformer]
) -> None:
    train, dev = split
    options: dict[str, Any] = {"schedule": SCHEDULE, "checkpoints": tmp_path / "m", **QUIET}
    with pytest.raises(KeyboardInterrupt):
        build().fit(train, dev, callbacks=[Kill(5)], **options)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    changed = [(a, b, "no" if row == 7 else label) for row, (a, b, label) in enumerate(train)]
    trained_on = build()
    torch.nn.init.ones_(trained_on.network.prediction.outer.bias)
    other = RE2Matcher(TransformerTokens(make_model("bert")), CONFIG, ["no", "yes"])
    cases: list[tuple[str, RE2Matcher, Any, Any, dict[str, Any]]] = [
        ("train", build(), changed, dev, {}),
        ("train", build(), train[1:], dev, {}),
        ("dev", build(), train, dev[1:], {}),
        ("dev", build(), train, None, {}),
        ("labels", build(("yes", "no")), train, dev, {}),
        ("blocks", build(config=RE2Config(blocks=2, encoder_layers=1, hidden_dimension=8)), train, dev, {}),
        ("learning_rate", build(), train, dev, {"learning_rate": 1e-3}),
        ("seed", build(), train, dev, {"seed": 1}),
        ("metric", build(), train, dev, {"metric": "f1"}),
        ("weights", trained_on, train, dev, {}),
        ("source", build(seed=1), train, dev, {}),
        ("source", other, train, dev, {}),
    ]
    for name, matcher, given, judged, more in cases:
        with pytest.raises(ValueError, match=rf"\b{name} was"):
            matcher.fit(given, judged, resume=True, **options, **more)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    with pytest.raises(FileExistsError, match=r"holds the checkpoints of an unfinished training; go on with it"):
        build().fit(train, dev, **options)
    with pytest.raises(ValueError, match="resume needs checkpoints, the folder that the matcher is going to be saved"):
        build().fit(train, dev, resume=True, schedule=SCHEDULE, **QUIET)
    build().fit(train, dev, overwrite=True, **options).remove_checkpoints()
    assert not list(tmp_path.iterdir())


def test_checkpoints_hold_what_is_trained(
    build: Build, split: tuple[Rows, Rows], tmp_path: Path, make_model: Callable[..., SentenceTransformer]
) -> None:
    torch.manual_seed(0)
    matcher = RE2Matcher(TransformerTokens(make_model("bert")), CONFIG, ["no", "yes"])
    before = copy.deepcopy(matcher)
    options: dict[str, Any] = {"schedule": SCHEDULE, "checkpoints": tmp_path / "m", **QUIET}
    found = matcher.fit(*split, **options)
    last = max(tmp_path.glob("m.checkpoints/checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    for name in ("model.safetensors", "best.safetensors"):
        tensors = load_file(last / name)
        assert tensors and not [key for key in tensors if "source" in key], name
    state = json.loads((last / "trainer_state.json").read_text("utf-8"))
    assert state["global_step"] == found.steps == 9
    assert before.fit(*split, resume=True, **options).steps == 9 and same(before, matcher)


def test_the_order_depends_on_seed_and_epoch_alone() -> None:
    lengths = [row * 7 % 31 for row in range(100)]

    def order(seed: int, epoch: int) -> list[int]:
        made = OrderOfLengths(lengths, 5, seed)
        made.epoch = epoch
        torch.rand(3)
        return list(made)

    assert order(0, 1) == order(0, 1) and len({tuple(order(seed, epoch)) for seed in (0, 1) for epoch in (0, 1)}) == 4
    assert sorted(order(0, 0)) == list(range(100))
    batches = [order(0, 0)[begin : begin + 5] for begin in range(0, 100, 5)]
    spreads = [max(lengths[row] for row in batch) - min(lengths[row] for row in batch) for batch in batches]
    assert sum(spreads) / 20 < 8  # at random: about 20
