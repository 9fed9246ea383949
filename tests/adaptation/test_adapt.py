"""The race: what it returns, what drops out, what it goes on with after a kill, and what it refuses."""

from __future__ import annotations

import copy
import itertools
import json
import math
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Dense, Normalize
from sentence_transformers.sentence_transformer.modules import StaticEmbedding
from sklearn.covariance import LedoitWolf
from torch import nn

from st_plugins import adapt
from st_plugins.adaptation.adapted import Adapted, tried_table
from st_plugins.adaptation.race import course, training
from st_plugins.adaptation.race.budget import Budget, plan
from st_plugins.adaptation.race.entries import Entry, entries
from st_plugins.adaptation.race.gate import labeled_score
from st_plugins.adaptation.race.labeled import LabeledJudge
from st_plugins.data import Pairs
from st_plugins.evaluation.result import Difference
from st_plugins.evaluation.statistics import spearman
from st_plugins.miniature import corpus
from tests.compression.toys import encoder, raw_like, trained_like
from tests.passes import passes_of

TEXTS = corpus(620)
QUICK: dict[str, Any] = {"batches": 2, "batch_size": 16, "device": "cpu", "show_progress_bar": False}
FEW = [
    Entry("centering", map="centered rotation"),
    Entry("shrunk whitening", map="shrunk whitening"),
    Entry("SimCSE", loss="SimCSE"),
    Entry("ConSERT", loss="ConSERT"),
]
ANCHORED = Entry("ConSERT, anchored", loss="ConSERT", anchored=True)


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> list[Entry]:
    """Race with a few entries only."""
    monkeypatch.setattr(course, "entries", lambda: FEW)
    return FEW


def graded(seed: int = 0) -> Pairs:
    """Pairs of texts whose score is the share of their words that is the same."""
    order = np.random.default_rng(seed).permutation(len(TEXTS))[:240]
    first, second = ([TEXTS[place] for place in half] for half in (order[:120], order[120:]))
    first, second = [*first, *first], [*second, *(f"{text} {text.split()[0]}" for text in first)]
    share = [
        len({*a.split()} & {*b.split()}) / len({*a.split()} | {*b.split()}) for a, b in zip(first, second, strict=True)
    ]
    return Pairs("words", first, second, np.asarray(share))


def weights(model: SentenceTransformer) -> list[torch.Tensor]:
    return [tensor.clone() for tensor in model.state_dict().values()]


def same(one: SentenceTransformer, two: SentenceTransformer) -> bool:
    return bool(np.array_equal(one.encode(TEXTS[:20]), two.encode(TEXTS[:20])))


def test_a_raw_encoder_is_changed_and_the_model_given_stays(few: list[Entry]) -> None:
    model = raw_like()
    before = weights(model)
    found = adapt(model, TEXTS, **QUICK)
    assert found.changed and found.chosen in {entry.name for entry in FEW}
    assert found.model is not model and not same(found.model, model)
    assert all((old == new).all() for old, new in zip(before, weights(model), strict=True))
    assert [one.name for one in found.tried] == [entry.name for entry in FEW]
    taken = next(one for one in found.tried if one.name == found.chosen)
    assert taken.score == max(one.score for one in found.tried if one.score is not None)
    assert all(type(module).__module__.startswith("sentence_transformers.") for module in found.model)


@pytest.mark.parametrize("name", ["centered rotation", "soft whitening", "shrunk whitening"])
def test_maps_give_the_similarities_of_the_formula_in_the_given_dimension(name: str) -> None:
    model = raw_like(normalized=False)
    race = course.Race(model.eval(), TEXTS, training.Schedule(2))
    mapped = race.run(Entry(name, map=name)).encode(TEXTS[:30])
    rows = model.encode(race.training).astype(np.float64)
    if name == "centered rotation":
        wanted = model.encode(TEXTS[:30]) - rows.mean(axis=0)
    elif name == "soft whitening":  # scaled by λ^(-1/4) along the axes of the second moments, not centered
        values, axes = np.linalg.eigh(rows.T @ rows / len(rows))
        kept = values > 1e-6 * values.max()
        wanted = model.encode(TEXTS[:30]) @ axes[:, kept] / values[kept] ** 0.25
    else:
        shrunk = LedoitWolf().fit(rows).covariance_
        values, axes = np.linalg.eigh(shrunk)
        wanted = (model.encode(TEXTS[:30]) - rows.mean(axis=0)) @ axes / np.sqrt(values)
    assert mapped.shape == (30, 16)

    def cosines(vectors: np.ndarray) -> np.ndarray:
        unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        return unit @ unit.T

    np.testing.assert_allclose(cosines(mapped), cosines(wanted), atol=2e-3)


def test_what_nothing_helps_is_returned_itself(few: list[Entry]) -> None:
    model = trained_like()
    found = adapt(model, TEXTS, **QUICK)
    assert not found.changed and found.model is model
    assert "none is better on the texts held out" in found.summary()
    # Not anchored, none of them could have been taken: they were not made.
    assert all("not anchored" in one.out and not one.seen for one in found.tried)


def test_what_could_not_be_taken_is_not_made_unless_pairs_decide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(course, "entries", lambda: [*FEW, ANCHORED])
    found = adapt(trained_like(), TEXTS, **QUICK)
    assert [one.name for one in found.tried if not one.out] == ["ConSERT, anchored"]
    found = adapt(raw_like(), TEXTS, **QUICK)
    assert [one.name for one in found.tried if not one.out] == ["shrunk whitening"]
    found = adapt(trained_like(), TEXTS, pairs=graded(), **QUICK)
    assert not any(one.out for one in found.tried)


def test_the_time_of_what_cannot_be_taken_is_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []
    inner = course.Race.run

    def run(self: course.Race, entry: Entry, *rest: Any) -> SentenceTransformer:
        made.append(entry.name)
        return inner(self, entry, *rest)

    monkeypatch.setattr(course.Race, "run", run)
    entered = [*FEW, ANCHORED]
    for model, pairs, timed in (
        (raw_like(), None, []),
        (trained_like(), None, [ANCHORED]),
        (raw_like(), graded(), FEW[2:3]),
    ):
        race = course.Race(model.float().eval(), TEXTS[:200], training.Schedule(2, 16))
        judge = None if pairs is None else LabeledJudge(model, pairs, None, 32)
        course.Course(race, Budget(1e6), judge)._plan(entered)
        assert made == [entry.name for entry in timed]
        made.clear()


def tokens_of(features: dict[str, torch.Tensor]) -> list[tuple[int, ...]]:
    """What a model reads of each text, without padding."""
    rows = zip(features["input_ids"].tolist(), features["attention_mask"].tolist(), strict=True)
    return [tuple(token for token, there in zip(*row, strict=True) if there) for row in rows]


def test_of_many_texts_those_of_the_race_are_drawn_from_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["st_plugins.adaptation.adapt"], "_MOST_TEXTS", 310)
    races: list[course.Race] = []

    def stop(self: course.Course, *args: Any, **kwargs: Any) -> None:
        races.append(self.race)

    monkeypatch.setattr(course.Course, "run", stop)
    for seed in (0, 0, 1):
        assert adapt(raw_like(), TEXTS, seed=seed, **QUICK).texts == 310  # which is what the model card says
    places = [[TEXTS.index(text) for text in race.texts] for race in races]
    assert [len({*drawn}) for drawn in places] == [310] * 3 and len(races[0].held.texts) == 62
    assert places[0] == places[1] == sorted(places[0]) and places[0] != places[2]
    assert 100 < sum(place >= 310 for place in places[0]) < 210  # of half the texts half are of the second half


@pytest.fixture
def split() -> course.Race:
    """A race of few texts, of which those held out, and no others, are figures."""
    few = TEXTS[:200]
    schedule = training.Schedule(4, batch_size=40)  # four batches are all that is trained on
    # Which places are held out depends on the number of texts and the seed only.
    held = {*course.Race(raw_like().float().eval(), few, schedule).held.texts}
    figures = ["".join(row) for row in itertools.islice(itertools.permutations("0123456789"), len(few))]
    texts = [" ".join(number) if text in held else text for text, number in zip(few, figures, strict=True)]
    race = course.Race(raw_like().float().eval(), texts, schedule)
    assert len(race.held.texts) == 40 and not any(letter.isalpha() for text in race.held.texts for letter in text)
    assert {*race.training} == {*few} - held
    return race


@pytest.mark.parametrize("entry", [entry for entry in entries() if entry.loss], ids=lambda entry: entry.name)
def test_no_loss_gets_texts_held_out(split: course.Race, entry: Entry, monkeypatch: pytest.MonkeyPatch) -> None:
    inner, got = training.loss_of, defaultdict[int, list[tuple[int, ...]]](list)

    def watched(*given: Any) -> nn.Module:
        loss = inner(*given)
        loss.register_forward_pre_hook(look)
        return loss

    def look(loss: nn.Module, inputs: tuple[Any, ...]) -> None:
        for column, features in enumerate(inputs[0]):
            got[column] += tokens_of(features)

    monkeypatch.setattr(training, "loss_of", watched)
    trained = split.run(entry)
    assert not same(trained, split.given)
    read = tokens_of(split.given.preprocess(split.training))
    (figures,) = tokens_of(split.given.preprocess(["0 1 2 3 4 5 6 7 8 9"]))
    assert len(figures) == 12 and all({*figures[1:-1]}.isdisjoint(row) for row in read)
    assert got and all({*figures[1:-1]}.isdisjoint(row) for column in got.values() for row in column)
    if entry.loss != "found pairs":  # which trains on parts of the texts that have some
        assert sorted(got[max(got)]) == sorted(read)


@pytest.mark.parametrize("entry", [entry for entry in entries() if entry.map], ids=lambda entry: entry.name)
def test_no_map_is_fitted_on_texts_held_out(split: course.Race, entry: Entry) -> None:
    other = copy.copy(split)
    other.texts = [text if text in split.training else text[::-1] for text in split.texts]
    other.__post_init__()
    assert other.training == split.training and other.held.texts != split.held.texts
    assert same(split.run(entry), other.run(entry))


def test_labeled_pairs_are_judged_by_the_similarity_of_the_model() -> None:
    model, pairs = raw_like(normalized=False), graded()
    vectors = [model.encode(side).astype(np.float64) for side in (pairs.first, pairs.second)]
    model.similarity_fn_name = "dot"
    wanted = spearman(pairs.scores, np.einsum("nd,nd->n", *vectors))
    assert LabeledJudge(model, pairs, None, 32).value == pytest.approx(wanted, abs=1e-6)


def test_pairs_that_are_all_equally_similar_for_the_model_are_refused(few: list[Entry]) -> None:
    model = encoder(Dense(16, 2, activation_function=nn.Identity()), Normalize())
    model[-2].linear.weight.data[:] = 0
    with pytest.raises(ValueError, match="equally similar"):
        adapt(model, TEXTS, pairs=graded(), **QUICK)


def test_labeled_pairs_decide(few: list[Entry]) -> None:
    found = adapt(raw_like(), TEXTS, pairs=graded(), **QUICK)
    assert all(one.labeled is not None for one in found.tried)
    passing = {one.name: one.score for one in found.tried if one.labeled.verdict == "better"}
    assert passing and found.chosen == max(passing, key=lambda name: passing[name])
    assert "labelled pairs" in found.reason
    assert "Spearman on 240 pairs" in tried_table(found).columns


@pytest.mark.parametrize(
    ("difference", "score"),
    [
        (Difference(0.02, 0.01, 0.03, 0.001, "better"), 0.02),
        (Difference(0.02, -0.01, 0.05, 0.2, "not separable"), 0.0),
        (Difference(-0.02, -0.03, -0.01, 0.001, "worse"), 0.0),
        (Difference(math.nan, math.nan, math.nan, math.nan, "undefined"), 0.0),
    ],
)
def test_only_what_is_separably_better_on_pairs_passes(difference: Difference, score: float) -> None:
    assert labeled_score(difference) == score


class Broken(nn.Module):
    """A loss of NaN."""

    def __init__(self, model: SentenceTransformer) -> None:
        super().__init__()
        self.model = model

    def forward(self, features: Any, labels: Any = None) -> torch.Tensor:
        return self.model(next(iter(features)))["sentence_embedding"].sum() * math.nan


def test_an_entry_that_fails_drops_out_by_name(few: list[Entry], monkeypatch: pytest.MonkeyPatch) -> None:
    inner = training.loss_of
    monkeypatch.setattr(
        training, "loss_of", lambda entry, *rest: Broken(rest[0]) if entry.name == "SimCSE" else inner(entry, *rest)
    )
    found = adapt(raw_like(), TEXTS, pairs=graded(), **QUICK)
    out = {one.name: one.out for one in found.tried if one.out}
    assert list(out) == ["SimCSE"] and "not finite" in out["SimCSE"]
    assert found.changed and "out: " in found.to_html()


def test_a_killed_race_goes_on_where_it_stopped(
    few: list[Entry], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    quick = {**QUICK, "pairs": graded()}  # which lets all entries race
    whole = adapt(raw_like(), TEXTS, tmp_path / "whole", **quick)
    inner, made = course.Race.run, []

    def run(self: course.Race, entry: Entry, *rest: Any) -> SentenceTransformer:
        if rest:  # not the measuring of a batch's time
            made.append(entry.name)
            if entry.name == "SimCSE" and made.count("SimCSE") == 1:
                raise KeyboardInterrupt
        return inner(self, entry, *rest)

    monkeypatch.setattr(course.Race, "run", run)
    with pytest.raises(KeyboardInterrupt):
        adapt(raw_like(), TEXTS, tmp_path / "out", **quick)
    assert not (tmp_path / "out").exists() and (tmp_path / "out.checkpoints").is_dir()
    with pytest.raises(FileExistsError, match="resume"):
        adapt(raw_like(), TEXTS, tmp_path / "out", **quick)
    with pytest.raises(ValueError, match="seed was 0"):
        adapt(raw_like(), TEXTS, tmp_path / "out", resume=True, **{**quick, "seed": 1})
    found = adapt(raw_like(), TEXTS, tmp_path / "out", resume=True, **quick)
    assert made == ["centering", "shrunk whitening", "SimCSE", "SimCSE", "ConSERT"]
    assert found.chosen == whole.chosen and same(found.model, whole.model)
    assert [(one.name, one.seen, one.score) for one in found.tried] == [
        (one.name, one.seen, one.score) for one in whole.tried
    ]
    assert not (tmp_path / "out.checkpoints").exists()


def test_what_is_written_loads_plainly_and_says_how_it_was_made(few: list[Entry], tmp_path: Path) -> None:
    found = adapt(raw_like(), TEXTS, tmp_path / "out", source="mine.txt", **QUICK)
    again = SentenceTransformer(str(tmp_path / "out"), device="cpu")
    assert same(again, found.model)
    record = json.loads((tmp_path / "out" / "adaptation.json").read_text(encoding="utf-8"))
    assert record["chosen"] == found.chosen and len(record["tried"]) == len(FEW)
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert "How this model was made" in card and "mine.txt" in card and "| SimCSE |" in card
    assert not any(text in card for text in TEXTS[:200])
    page = (tmp_path / "out" / "adaptation.html").read_text(encoding="utf-8")
    assert found.reason.split(":")[0] in page
    with pytest.raises(FileExistsError):
        adapt(raw_like(), TEXTS, tmp_path / "out", **QUICK)


def test_an_unchanged_model_is_written_as_it_was(few: list[Entry], tmp_path: Path) -> None:
    model = trained_like()
    found = adapt(model, TEXTS, tmp_path / "out", **QUICK)
    assert not found.changed
    assert same(SentenceTransformer(str(tmp_path / "out"), device="cpu"), model)


def test_texts_that_the_model_cannot_read_are_said_to_be_so() -> None:
    strange = [f"{chr(0x4E00 + i)}{chr(0x5E00 + i)} {chr(0x6E00 + i)}{chr(0x7E00 + 2 * i)}" for i in range(600)]
    found = adapt(trained_like(), strange, **QUICK)
    assert not found.changed and not found.tried
    assert "unknown to the model" in found.summary() and "texts' language" in found.summary()


def test_long_texts_are_warned_of(few: list[Entry]) -> None:
    model = raw_like()
    model.max_seq_length = 6
    found = adapt(model, TEXTS, **QUICK)
    assert any("longer than the model's 6 tokens" in warning for warning in found.warnings)


def test_texts_of_one_word_decide_nothing(few: list[Entry]) -> None:
    words = [f"{a}{b}" for a in "abcdefghijklmnopqrstuvwxyz" for b in "abcdefghijklmnopqrstuvwxyz"]
    found = adapt(raw_like(), words, **QUICK)
    assert not found.changed and "too short to judge" in found.summary()


def test_static_embeddings_can_be_adapted_and_what_cannot_be_drops_out() -> None:
    tokenizer = raw_like().tokenizer.backend_tokenizer
    generator = torch.Generator().manual_seed(0)
    vectors = torch.randn(tokenizer.get_vocab_size(), 16, generator=generator).numpy() + 1
    model = SentenceTransformer(modules=[StaticEmbedding(tokenizer, embedding_weights=vectors)], device="cpu")
    found = adapt(model, TEXTS, pairs=graded(), **QUICK)
    out = {one.name: one.out for one in found.tried if one.out}
    assert {"SimCSE", "SimCSE, anchored", "TSDAE", "TSDAE, anchored", "ConSERT, low rank, anchored"} == {*out}
    assert "no dropout" in out["SimCSE"] and "no Transformer" in out["TSDAE"]
    assert found.model.encode(["a dog"]).shape == (1, 16)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"texts": TEXTS[:400]}, ValueError, "texts has 400 different ones .* give 500"),
        ({"texts": ["the dog barks"] * 1000}, ValueError, "1 different ones .999 duplicates"),
        ({"texts": "the dog barks"}, TypeError, "texts must be a list of strings"),
        ({"texts": [*TEXTS, None]}, TypeError, r"texts\[620\] is a NoneType"),
        ({"budget": 0}, ValueError, "budget=0 must be a number above 0"),
        ({"budget": math.nan}, ValueError, "budget=nan"),
        ({"batches": 0}, ValueError, "batches=0 must be a whole number of at least 1"),
        ({"batch_size": 1}, ValueError, "batch_size=1 must be a whole number of at least 2"),
        ({"learning_rate": -1.0}, ValueError, "learning_rate=-1.0"),
        ({"max_seq_length": 2}, ValueError, "max_seq_length=2"),
        ({"seed": -1}, ValueError, "seed=-1"),
        ({"seed": 2**32}, ValueError, "seed=4294967296"),
        ({"bf16": "no"}, ValueError, "bf16='no' must be True or False"),
        ({"max_seq_length": "64"}, ValueError, "max_seq_length='64'"),
        ({"budget": 10**400}, ValueError, "budget="),
        ({"batch_size": 300}, ValueError, "batch_size=300 is too large: 496 of the texts are trained on"),
        ({"device": "here"}, ValueError, "device='here'"),
        ({"resume": True}, ValueError, "resume=True goes on with what lies beside output"),
        ({"pairs": [("a", "b", 1.0)]}, TypeError, "pairs must be Pairs"),
        ({"pairs": Pairs("flat", ["a"] * 60, ["b"] * 60, np.ones(60))}, ValueError, "all scores are 1"),
        ({"pairs": Pairs("same", ["a"] * 60, ["b"] * 60, np.arange(60.0))}, ValueError, "of the same two texts"),
        ({"pairs": Pairs("self", TEXTS[:60], TEXTS[:60], np.arange(60.0))}, ValueError, "of equal ones"),
        ({"pairs": Pairs("few", ["a", "b"], ["c", "d"], np.array([0.0, 1.0]))}, ValueError, "2 pairs tell no model"),
    ],
)
def test_refused(change: dict[str, Any], error: type[Exception], message: str) -> None:
    arguments: dict[str, Any] = {"texts": TEXTS, **QUICK, **change}
    with pytest.raises(error, match=message):
        adapt(raw_like(), **arguments)


def test_a_place_that_cannot_be_written_is_refused_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(OSError, match="output"):
        adapt(raw_like(), TEXTS, tmp_path / "file" / "out", **QUICK)


def test_plan_makes_trainings_shorter_and_then_leaves_the_last_out() -> None:
    wanted = entries()
    batches, seconds = plan(wanted, 40, Budget(1e6), 1.0, 1.0)
    assert batches == 40 and list(seconds) == [entry.name for entry in wanted]
    batches, seconds = plan(wanted, 40, Budget(300.0), 1.0, 1.0)
    assert 10 <= batches < 40 and len(seconds) == len(wanted)
    batches, seconds = plan(wanted, 40, Budget(60.0), 1.0, 1.0)
    assert batches >= 10 and 3 < len(seconds) < len(wanted)
    assert sum(seconds.values()) <= 60
    batches, seconds = plan(wanted, 40, Budget(5.0), 1.0, 1.0)
    assert list(seconds) == [entry.name for entry in wanted if entry.map]
    assert plan(wanted, 40, Budget(0.1), 1.0, 1.0) == (0, {})
    assert plan(wanted, 40, Budget(1e308), 1e-3, 1e-3)[0] == 40


def test_what_there_was_no_time_for_is_named(few: list[Entry]) -> None:
    found = adapt(raw_like(), TEXTS, budget=1e-3, pairs=graded(), **QUICK)
    assert not found.changed and {one.out for one in found.tried} == {"the budget was spent"}
    assert "For 4 more there was no time; give a larger budget" in found.summary()


def test_trainings_and_looks_are_in_bfloat16_where_asked_for_and_the_weights_are_not(few: list[Entry]) -> None:
    # Pairs decide, so that trainings are made; they themselves are judged in float32.
    for bf16, wanted in ((False, torch.float32), (True, torch.bfloat16)):
        with passes_of(nn.Linear) as computed:
            found = adapt(encoder(), TEXTS, pairs=graded(), bf16=bf16, **QUICK)
        assert computed["training"] == {wanted} and computed["evaluation"] == {wanted, torch.float32}
    assert found.settings["bf16"] is True and any(one.seen for one in found.tried)
    assert {weights.dtype for weights in found.model.parameters()} == {torch.float32}


def test_low_rank_adapters_end_in_a_plain_model() -> None:
    pytest.importorskip("peft")
    given = raw_like().float().eval()
    names = set(given.state_dict())
    entry = Entry("ConSERT, low rank, anchored", loss="ConSERT", anchored=True, low_rank=True)
    trained = training.train(given, entry, TEXTS[:200], training.Schedule(4, 16, 1e-3))
    assert set(trained.state_dict()) == names
    changed = [name for name, tensor in trained.state_dict().items() if (tensor != given.state_dict()[name]).any()]
    assert changed and all(".weight" in name for name in changed)
    difference = trained.state_dict()[changed[0]] - given.state_dict()[changed[0]]
    assert torch.linalg.matrix_rank(difference) <= 16


def test_adapted_without_any_entry_has_a_table() -> None:
    found = Adapted(trained_like(), "unchanged", "Why.", [], 1, 0, 0, {}, [], "mine")
    assert "nothing" in found.to_markdown() and "<table" in found.to_html()
