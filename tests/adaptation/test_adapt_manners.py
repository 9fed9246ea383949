"""A race leaves no trace: not in the state of the process, not on the terminal, not of texts or paths in files."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling, WordEmbeddings
from sentence_transformers.sentence_transformer.modules.tokenizer import WhitespaceTokenizer
from transformers.utils import logging as transformers_logging

from st_plugins import adapt
from st_plugins.adaptation.race import course, training
from st_plugins.adaptation.race.entries import Entry
from st_plugins.core.nonfinite import NonFiniteLossError
from st_plugins.miniature import corpus, untrained_encoder
from tests.compression.toys import raw_like, trained_like

TEXTS = corpus(620)
QUICK: dict[str, Any] = {"batches": 2, "batch_size": 16, "device": "cpu", "show_progress_bar": False}
MAP, SIMCSE = Entry("soft whitening", map="soft whitening"), Entry("SimCSE", loss="SimCSE")
SHORT = training.Schedule(2, 16, 1e-3)


@pytest.fixture(autouse=True)
def two(monkeypatch: pytest.MonkeyPatch) -> None:
    """Race with two entries only, both of which may be taken."""
    monkeypatch.setattr(course, "entries", lambda: [MAP, SIMCSE])
    monkeypatch.setattr(course.gate.Rule, "refusal", staticmethod(lambda entry, strange: ""))


def state() -> list[Any]:
    numbers = np.random.get_state()  # noqa: NPY002 - the host draws from it
    return [
        torch.get_rng_state().tolist(),
        [numbers[0], numbers[1].tolist(), *numbers[2:]],
        random.getstate(),
        transformers_logging.get_verbosity(),
        transformers_logging.is_progress_bar_enabled(),
    ]


@pytest.mark.parametrize("killed", [False, True])
def test_the_state_of_the_process_is_as_before(killed: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    model = raw_like().train()
    model[0].eval()
    next(model.parameters()).requires_grad_(False)
    about = [(module.training, len(module._forward_hooks)) for module in model.modules()]
    grads = [parameter.requires_grad for parameter in model.parameters()]
    if killed:

        def stop(*args: Any, **kwargs: Any) -> Any:
            raise KeyboardInterrupt

        monkeypatch.setattr(training.NonFiniteLossCallback, "on_step_end", stop)
    # Else the generators are as the seed 0 of the tests leaves them, which is that of the race as well.
    random.random(), np.random.random(), torch.rand(1)  # noqa: NPY002, S311
    before = state()
    try:
        adapt(model, TEXTS, tmp_path / "out", **QUICK)
    except KeyboardInterrupt:
        assert killed
    assert state() == before
    assert [(module.training, len(module._forward_hooks)) for module in model.modules()] == about
    assert [parameter.requires_grad for parameter in model.parameters()] == grads


@pytest.mark.parametrize("kind", ["TSDAE", "low rank"])
def test_a_training_is_the_same_whatever_was_drawn_before(kind: str) -> None:
    # New weights (of the decoder, of adapters) are drawn before the host's trainer sets its seed.
    if kind == "low rank":
        pytest.importorskip("peft")
    entry = Entry(kind, loss="TSDAE" if kind == "TSDAE" else "ConSERT", low_rank=kind == "low rank")
    given, found = raw_like().float().eval(), []
    for seed in (1, 2):
        torch.manual_seed(seed)
        found.append(training.train(given, entry, TEXTS[:100], SHORT).encode(TEXTS[:9]))
    assert np.array_equal(*found)


@pytest.mark.parametrize("kind", ["TSDAE", "low rank", "ConSERT"])
def test_frozen_layers_are_not_trained(kind: str) -> None:
    if kind == "low rank":
        pytest.importorskip("peft")
    entry = Entry(kind, loss="TSDAE" if kind == "TSDAE" else "ConSERT", low_rank=kind == "low rank")
    given = raw_like().float().eval()
    frozen = [name for name, _ in given.named_parameters() if "layer.0" in name or "embeddings" in name]
    for name, parameter in given.named_parameters():
        parameter.requires_grad_(name not in frozen)
    before, after = given.state_dict(), training.train(given, entry, TEXTS[:100], SHORT).state_dict()
    changed = [name for name in before if not torch.equal(before[name], after[name])]
    assert changed and not {*changed} & {*frozen}


def test_nothing_is_said(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    transformers_logging.enable_progress_bar()
    raw_like().save(str(tmp_path / "model"), create_model_card=False)
    capfd.readouterr()
    adapt(tmp_path / "model", [text * 20 for text in TEXTS], tmp_path / "out", **QUICK)
    assert capfd.readouterr() == ("", "")


def test_files_hold_no_text_of_the_corpus_and_no_path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    errors = {
        "SimCSE": NonFiniteLossError("the loss is nan", [0], [TEXTS[0]], 3),
        "ConSERT": OSError(
            f"no such file: {tmp_path}/some/config.json, see https://example.org/a/b or ~/me/notes.txt"
        ),
        "no words": AttributeError(),
    }

    def failing(entry: Entry, *rest: Any) -> Any:
        raise errors[entry.name]

    monkeypatch.setattr(course, "entries", lambda: [MAP, *(Entry(name, loss=name) for name in errors)])
    monkeypatch.setattr(training, "loss_of", failing)
    found = adapt(raw_like(), TEXTS, tmp_path / "out", **QUICK)
    assert {one.name: one.out for one in found.tried if one.out} == {
        "SimCSE": "the loss is nan at step 3",
        "ConSERT": "no such file: config.json, see https://example.org/a/b or notes.txt",
        "no words": "AttributeError",
    }
    for name in ("README.md", "adaptation.json", "adaptation.html"):
        content = (tmp_path / "out" / name).read_text(encoding="utf-8")
        assert str(tmp_path) not in content and not any(text in content for text in TEXTS)


def test_where_nothing_could_be_tried_it_is_not_said_that_nothing_helps(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any) -> Any:
        raise AttributeError("odd")

    monkeypatch.setattr(course.Race, "run", fail)
    found = adapt(raw_like(), TEXTS, **QUICK)
    assert not found.changed and "2 failed" in found.reason and "none is better" not in found.reason


def test_truncation_stays(tmp_path: Path) -> None:
    model = raw_like()
    model.truncate_dim = 8
    found = adapt(model, TEXTS, **QUICK)
    assert found.changed and found.model.encode(["a dog"]).shape == (1, 8)


def test_a_model_with_an_adapter_is_written(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    untrained_encoder(16).save(str(tmp_path / "base"), create_model_card=False)
    model = SentenceTransformer(str(tmp_path / "base"), device="cpu")
    model.add_adapter(peft.LoraConfig(target_modules="all-linear"))
    found = adapt(model, TEXTS, tmp_path / "out", **QUICK)
    again = SentenceTransformer(str(tmp_path / "out"), device="cpu")
    assert np.array_equal(again.encode(TEXTS[:9]), found.model.encode(TEXTS[:9]))


def test_a_damaged_model_is_refused_as_one() -> None:
    model = trained_like()
    next(model.parameters()).data[:] = torch.nan
    with pytest.raises(ValueError, match="weights are damaged"):
        adapt(model, TEXTS, **QUICK)


def test_a_few_copies_decide_nothing() -> None:
    # The standard error of two or three is 0 by chance.
    words = [f"{a}{b}" for a in "abcdefghijklmnopqrstuvwxyz" for b in "abcdefghijklmnopqrstuvwxyz"]
    found = adapt(raw_like(), [*words, *TEXTS[:40]], **QUICK)
    assert not found.changed and "too short to judge" in found.reason


def test_a_single_batch_trains() -> None:
    given = raw_like().float().eval()
    trained = training.train(given, Entry("ConSERT", loss="ConSERT"), TEXTS[:100], training.Schedule(1, 16, 1e-3))
    assert not np.array_equal(trained.encode(TEXTS[:9]), given.encode(TEXTS[:9]))


def test_the_time_of_a_batch_is_measured_where_the_first_training_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    inner = training.loss_of

    def failing(entry: Entry, *rest: Any) -> Any:
        if entry.loss == "TSDAE":
            raise ValueError("odd")
        return inner(entry, *rest)

    monkeypatch.setattr(training, "loss_of", failing)
    monkeypatch.setattr(course, "entries", lambda: [Entry("TSDAE", loss="TSDAE"), SIMCSE])
    race = course.Race(raw_like().float().eval(), TEXTS[:200], SHORT)
    course_of = course.Course(race, course.Budget(1e6))
    course_of._plan(course.entries())
    assert course_of.seconds["TSDAE"] > course_of.seconds["SimCSE"]  # else they are what a look takes, both


def test_a_resumed_race_keeps_the_truncation(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def stop(*args: Any) -> Any:
        raise KeyboardInterrupt

    model = raw_like()
    model.truncate_dim = 8
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(course.Course, "_keep", _then(course.Course._keep, stop))
        adapt(model, TEXTS, tmp_path / "out", **QUICK)
    found = adapt(model, TEXTS, tmp_path / "out", resume=True, **QUICK)
    assert found.changed and found.model.encode(["a dog"]).shape == (1, 8)


def _then(first: Any, second: Any) -> Any:
    def both(self: Any, *args: Any) -> None:
        first(self, *args)
        second()

    return both


def test_the_record_is_json_as_others_read_it() -> None:
    found = adapt(raw_like(), TEXTS, **QUICK)
    found.tried[0].seen["copies"] = float("nan")

    def refuse(constant: str) -> Any:
        raise ValueError(constant)

    json.loads(found.to_json(), parse_constant=refuse)


def test_word_embeddings_without_a_decoding_tokenizer_can_race(monkeypatch: pytest.MonkeyPatch) -> None:
    words = sorted({word for text in TEXTS for word in text.lower().split()})
    vectors = np.random.default_rng(0).normal(size=(len(words), 16)).astype(np.float32)
    embeddings = WordEmbeddings(WhitespaceTokenizer(words), vectors, update_embeddings=True)
    model = SentenceTransformer(modules=[embeddings, Pooling(16)], device="cpu")
    monkeypatch.setattr(course.gate, "RAW", -1.0)  # vectors of nothing look like those of a trained encoder
    found = adapt(model, TEXTS, **QUICK)
    assert [one.name for one in found.tried if not one.out] == [MAP.name]  # there is no dropout for the other one


def test_a_name_cannot_break_the_card(tmp_path: Path) -> None:
    model = raw_like()
    model.model_card_data.model_name = "a`b\n# c"
    adapt(model, TEXTS, tmp_path / "out", **QUICK)
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert "`` a`b" in card and "\n# c" not in card
