"""Training an RE2 matcher: schedule, loss, selection of weights, and what it refuses."""

from __future__ import annotations

import copy
import logging
import math
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from sentence_transformers import SentenceTransformer
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState

from st_plugins.matching import LearnedEmbedding, RE2Config, RE2Matcher, RE2Schedule, TransformerTokens, WordVectors
from st_plugins.methods.re2.checkpoints import BestWeightsCallback
from st_plugins.methods.re2.training import shortened

CONFIG = RE2Config(blocks=1, encoder_layers=1, hidden_dimension=8, dropout=0.0)
QUIET = {"device": "cpu", "show_progress_bar": False}
Rows = list[tuple[str, str, Any]]


class Watch(TrainerCallback):
    """What every step was made with."""

    def __init__(self) -> None:
        self.rates: list[list[float]] = []
        self.norms: list[float] = []
        self.weights: dict[int, torch.Tensor] = {}

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.rates.append([group["lr"] for group in kwargs["optimizer"].param_groups])
        gradients = [p.grad.double() for p in kwargs["model"].parameters() if p.grad is not None]
        self.norms.append(math.sqrt(sum(float((g * g).sum()) for g in gradients)))

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.weights[state.global_step] = kwargs["model"].matcher.network.prediction.outer.bias.detach().clone()


@pytest.fixture
def rows(sentences: list[str]) -> Rows:
    """Sixty pairs; it is "yes" where both are about the same subject."""
    pairs = [(a, b) for a in sentences[:12] for b in sentences[30:35]]
    return [(a, b, "yes" if a.split()[1:3] == b.split()[1:3] else "no") for a, b in pairs]


@pytest.fixture
def build(make_model: Callable[..., SentenceTransformer]) -> Callable[..., RE2Matcher]:
    tokenizer = make_model("bert").tokenizer

    def made(labels: list[str] | None = None, config: RE2Config | str = CONFIG) -> RE2Matcher:
        torch.manual_seed(0)
        return RE2Matcher(LearnedEmbedding.from_tokenizer(tokenizer, 8), config, labels)

    return made


def test_pairs_are_learned_by_heart(build: Callable[..., RE2Matcher], rows: Rows) -> None:
    labels = [label for _, _, label in rows]
    assert {"yes", "no"} == set(labels)
    matcher = build(["no", "yes"])
    schedule = RE2Schedule(learning_rate=1e-2, batch_size=16, epochs=15)
    found = matcher.fit(rows, schedule=schedule, **QUIET)
    pairs = [row[:2] for row in rows]
    assert [matcher.labels[k] for k in matcher.predict(pairs).argmax(1)] == labels  # type: ignore[index]
    assert not any(module.training for module in matcher.modules())
    assert (found.pairs, found.dev_pairs, found.steps, found.step, found.score) == (60, 0, 60, 60, None)
    assert "trained on 60 pairs, 60 steps; no development pairs, the last step is kept" in found.summary()
    losses = [entry["loss"] for entry in found.history if "loss" in entry]
    assert losses[0] > 0.1 > 0.05 > losses[-1]
    scores = build()
    scores.fit([(a, b, float(label == "yes")) for a, b, label in rows], schedule=schedule, **QUIET)
    np.testing.assert_array_equal(scores.predict(pairs) > 0.5, [label == "yes" for label in labels])


def test_the_first_loss_is_its_definition(build: Callable[..., RE2Matcher], rows: Rows) -> None:
    gold = np.linspace(0, 1, 60)
    for labels in (["no", "yes"], None):
        matcher = build(labels)
        logits = matcher.predict([row[:2] for row in rows], activation_fn=nn.Identity()).astype(np.float64)
        expected = 0.0
        for row, logit in enumerate(logits):
            if labels is None:
                probability = 1 / (1 + math.exp(-logit))
                expected -= gold[row] * math.log(probability) + (1 - gold[row]) * math.log(1 - probability)
            else:
                chosen = logit[labels.index(rows[row][2])]
                expected -= chosen - math.log(sum(math.exp(value) for value in logit))
        given = rows if labels else [(a, b, gold[row]) for row, (a, b, _) in enumerate(rows)]
        found = matcher.fit(given, batch_size=60, epochs=1, **QUIET)
        assert found.history[0]["loss"] == pytest.approx(expected / 60, abs=1e-4)


def test_the_learning_rate_follows_the_schedule(build: Callable[..., RE2Matcher], rows: Rows) -> None:
    schedule = RE2Schedule(
        learning_rate=1e-2,
        batch_size=10,
        decay_rate=0.5,
        decay_samples=50,
        warmup_samples=40,
        minimum_learning_rate=2e-3,
        epochs=6,
        gradient_clipping=1e-3,
    )
    watch = Watch()
    build(["no", "yes"]).fit(rows, schedule=schedule, source_learning_rate=1e-3, callbacks=[watch], **QUIET)
    assert len(watch.rates) == 36
    for step, (network, source) in enumerate(watch.rates):
        samples = 10 * step
        expected = 2e-3 + (1e-2 - 2e-3) * samples / 40 if samples < 40 else 1e-2
        for _ in range(max(0, samples - 40) // 50):
            expected /= 2
        expected = max(expected, 2e-3)
        assert network == pytest.approx(expected) and source == pytest.approx(expected / 10)
    assert watch.rates[-1][0] == pytest.approx(2e-3)
    assert max(watch.norms) == pytest.approx(1e-3, rel=1e-3)  # clipped


def test_published_schedules_and_what_is_given_instead(build: Callable[..., RE2Matcher], rows: Rows) -> None:
    watch = Watch()
    matcher = build(["no", "yes"], "wikiqa")
    found = matcher.fit(rows, epochs=1, callbacks=[watch], **QUIET)
    assert found.steps == 1 and watch.rates == [[1e-3, 1e-3]]
    watch = Watch()
    found = matcher.fit(rows, epochs=1, batch_size=20, learning_rate=5e-5, callbacks=[watch], **QUIET)
    assert found.steps == 3 and watch.rates == [[5e-5, 5e-5]] * 3
    assert matcher.schedule == RE2Schedule.named("wikiqa")


def test_a_long_warm_up_ends_in_time(caplog: pytest.LogCaptureFixture) -> None:
    published = RE2Schedule.named("snli")
    assert shortened(published, 549_367) == published
    with caplog.at_level(logging.INFO):
        short = shortened(published, 8000)
    assert short.warmup_samples == 30_000 and "Warm-up shortened from 2048000 to 30000 pairs" in caplog.text
    assert short.learning_rate_after(30_000) == published.learning_rate


def test_the_best_weights_are_kept_and_the_training_stops(
    build: Callable[..., RE2Matcher], rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = iter([0.5, 0.7, 0.7, 0.6, 0.9])
    monkeypatch.setattr("st_plugins.methods.re2.training.measure", lambda *_: next(values))
    matcher, watch = build(["no", "yes"]), Watch()
    options = {"batch_size": 20, "learning_rate": 1e-2, "callbacks": [watch], **QUIET}
    found = matcher.fit(rows[:40], rows[40:], patience=2, epochs=10, **options)
    assert (found.steps, found.step, found.score, found.dev_pairs) == (8, 4, 0.7, 20)
    assert torch.equal(matcher.network.prediction.outer.bias, watch.weights[4])
    assert not torch.equal(watch.weights[4], watch.weights[8])
    assert "step 4 of 8 is kept, the one with the highest accuracy (0.7000) on 20 development pairs" in found.summary()
    scores = [entry["eval_accuracy"] for entry in found.history if "eval_accuracy" in entry]
    assert scores == [0.5, 0.7, 0.7, 0.6]


def test_the_callback_counts_and_copies() -> None:
    model = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False))
    model[1].weight.requires_grad_(False)
    callback, control = BestWeightsCallback(model, "eval_f1", patience=None), TrainerControl()
    for step, value in enumerate([0.2, -1.0, 0.3, 0.3]):
        model[0].weight.data.fill_(step)
        model[1].weight.data.fill_(step)
        callback.on_evaluate(None, TrainerState(global_step=step), control, metrics={"eval_f1": value})  # type: ignore[arg-type]
    callback.restore()
    assert (callback.best, callback.step, control.should_training_stop) == (0.3, 2, False)
    assert [layer.weight.item() for layer in model] == [2.0, 3.0]


@pytest.mark.parametrize("metric", ["accuracy", "f1", "spearman", "map", "mrr"])
def test_the_score_on_dev_is_that_of_predict(build: Callable[..., RE2Matcher], rows: Rows, metric: str) -> None:
    from st_plugins.core.pair_metrics import measure

    scored = [(a, b, row * 3 % 5 / 4 if row % 7 else 1.0) for row, (a, b, _) in enumerate(rows)]
    matcher = build()
    found = matcher.fit(scored[:40], scored[40:], metric=metric, epochs=3, batch_size=7, learning_rate=1e-2, **QUIET)
    logits = matcher.predict([row[:2] for row in scored[40:]], activation_fn=nn.Identity())
    gold, queries = [row[2] for row in scored[40:]], [row[0] for row in scored[40:]]
    assert found.metric == metric and found.score == pytest.approx(measure(metric, logits[:, None], gold, queries))
    assert found.score != 0.0
    assert max(e[f"eval_{metric}"] for e in found.history if f"eval_{metric}" in e) == found.score


@pytest.mark.parametrize("metric", ["accuracy", "f1"])
def test_accuracy_stands_beside_chance(
    build: Callable[..., RE2Matcher], rows: Rows, tmp_path: Path, metric: str
) -> None:
    from st_plugins.core.pair_metrics import measure_accuracy

    matcher = build(["no", "yes"])
    found = matcher.fit(rows[:40], rows[40:], metric=metric, epochs=2, batch_size=20, learning_rate=1e-2, **QUIET)
    logits = matcher.predict([row[:2] for row in rows[40:]])
    expected = measure_accuracy(logits, [int(row[2] == "yes") for row in rows[40:]])
    assert found.accuracy == expected and f"development pairs: accuracy {expected}. They took part" in found.summary()
    logged = [entry for entry in found.history if "eval_accuracy_low" in entry]
    assert len(logged) == 2 and all(entry["eval_accuracy_majority"] == expected.majority for entry in logged)
    matcher.save(tmp_path / "saved")
    record = RE2Matcher.load(tmp_path / "saved").trained
    assert record == found.record() and record["accuracy"]["low"] == expected.low and "history" not in record


def test_a_share_is_put_aside(build: Callable[..., RE2Matcher], rows: Rows) -> None:
    found = build(["no", "yes"]).fit(rows, 0.25, epochs=1, eval_steps=1, batch_size=15, **QUIET)
    assert (found.pairs, found.dev_pairs, found.steps) == (45, 15, 3)
    assert len([entry for entry in found.history if "eval_accuracy" in entry]) == 3


def test_datasets_and_rows_train_alike_and_seeds_decide(build: Callable[..., RE2Matcher], rows: Rows) -> None:
    columns = {"a": [r[0] for r in rows], "b": [r[1] for r in rows], "label": [int(r[2] == "yes") for r in rows]}
    weights = []
    for data, seed in ((rows, 0), (Dataset.from_dict(columns), 0), (rows, 1)):
        matcher = build(["no", "yes"])
        matcher.fit(data, epochs=1, batch_size=8, seed=seed, learning_rate=1e-2, **QUIET)
        weights.append(matcher.network.prediction.outer.weight.detach().clone())
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])


def test_batches_are_of_similar_length(build: Callable[..., RE2Matcher], rows: Rows) -> None:
    matcher, seen = build(["no", "yes"]), []

    def see(module: Any, inputs: Any) -> None:
        if module.training:  # not the look at what the last step left
            seen.append([side["attention_mask"].sum(1) for side in inputs])

    matcher.register_forward_pre_hook(see)
    long = [(f"{a} {a} {a}", b, label) for a, b, label in rows]
    matcher.fit([*rows, *long], epochs=1, batch_size=5, **QUIET)
    spreads = [float((first + second).max() - (first + second).min()) for first, second in seen]
    assert len(seen) == 24 and sum(spread < 12 for spread in spreads) >= 18  # four groups are sorted apart


def test_frozen_vectors_stay_and_learned_ones_do_not(
    make_model: Callable[..., SentenceTransformer], rows: Rows, tmp_path: Path
) -> None:
    path = tmp_path / "vectors.txt"
    path.write_text("dog 1 2\nman 3 -1\nreading 0.5 0.5\n", "utf-8")
    texts = [text for row in rows for text in row[:2]]
    for trainable in (False, True):
        for source in (WordVectors.from_file(path, trainable=trainable), TransformerTokens(make_model(), trainable)):
            torch.manual_seed(0)
            matcher = RE2Matcher(source, CONFIG, ["no", "yes"])
            before, watch = copy.deepcopy(source.state_dict()), Watch()
            matcher.fit(rows, epochs=1, batch_size=30, learning_rate=1e-2, callbacks=[watch], **QUIET)
            changed = [name for name, value in source.state_dict().items() if not torch.equal(value, before[name])]
            assert bool(changed) == trainable, type(source)
            transformer = isinstance(source, TransformerTokens)
            expected = [1e-2] + ([2e-5 if transformer else 1e-2] if trainable else [])
            assert watch.rates[0] == pytest.approx(expected)
            assert matcher.predict([(texts[0], texts[1])]).shape == (1, 2)
            matcher.save(tmp_path / f"{type(source).__name__}-{trainable}")


def test_a_trained_matcher_can_be_trained_on(build: Callable[..., RE2Matcher], rows: Rows, tmp_path: Path) -> None:
    matcher = build(["no", "yes"])
    options: dict[str, Any] = {"batch_size": 20, "learning_rate": 1e-2, **QUIET}
    matcher.fit(rows, epochs=2, **options)
    pairs = [row[:2] for row in rows]
    expected = matcher.predict(pairs)
    matcher.save(tmp_path / "saved")
    again = RE2Matcher.load(tmp_path / "saved")
    assert np.array_equal(again.predict(pairs), expected)
    first: list[float] = []
    for found in (matcher.fit(rows, epochs=2, **options), again.fit(rows, epochs=2, **options)):
        first.append(found.history[0]["loss"])
    assert first[0] == pytest.approx(first[1], abs=1e-6)
    np.testing.assert_allclose(again.predict(pairs), matcher.predict(pairs), atol=1e-5)
    assert np.abs(again.predict(pairs) - expected).max() > 1e-3
    assert "weight_g" not in "".join(name for name, _ in matcher.named_parameters())


def test_training_a_copy_leaves_the_original_alone(build: Callable[..., RE2Matcher], rows: Rows) -> None:
    matcher, pairs = build(["no", "yes"]), [row[:2] for row in rows]
    expected = matcher.predict(pairs)
    twin = copy.deepcopy(matcher)
    twin.fit(rows, epochs=1, batch_size=20, learning_rate=1e-2, **QUIET)
    assert np.array_equal(matcher.predict(pairs), expected) and not np.array_equal(twin.predict(pairs), expected)
    matcher.fit(rows, epochs=1, batch_size=20, learning_rate=1e-2, **QUIET)
    assert np.array_equal(matcher.predict(pairs), twin.predict(pairs))


def test_every_training_is_of_the_same_weights(
    build: Callable[..., RE2Matcher], rows: Rows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[list[str]] = []
    options: dict[str, Any] = {"epochs": 1, "batch_size": 30, "learning_rate": 1e-2, **QUIET}

    class Names(TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            given = {id(weight) for group in kwargs["optimizer"].param_groups for weight in group["params"]}
            trained.append([name for name, weight in kwargs["model"].named_parameters() if id(weight) in given])

    def fit(matcher: RE2Matcher, **more: Any) -> RE2Matcher:
        matcher.fit(rows, callbacks=[Names()], **options, **more)
        return matcher

    config = RE2Config(blocks=2, encoder_layers=1, hidden_dimension=8, kernel_sizes=(1, 3), residual="plain")
    matcher = fit(fit(build(["no", "yes"], config)))
    assert "matcher.network.blocks.1.encoder.layers.0.windows.0.parametrizations.weight.original0" in trained[0]
    matcher.predict([row[:2] for row in rows])
    fit(matcher)
    fit(copy.deepcopy(matcher))
    fit(pickle.loads(pickle.dumps(matcher)))  # noqa: S301
    matcher.save(tmp_path / "saved")
    fit(RE2Matcher.load(tmp_path / "saved"))
    fresh = build(["no", "yes"], config)
    fresh.load_state_dict(matcher.state_dict())
    assert np.array_equal(fresh.predict(("a dog", "a man")), matcher.predict(("a dog", "a man")))
    fit(fresh)
    matcher.load_state_dict(build(["no", "yes"], config).state_dict())
    fit(matcher)
    monkeypatch.setattr("st_plugins.methods.re2.training.cross_entropy", lambda *_: torch.tensor(math.nan))
    with pytest.raises(ValueError, match="the loss became nan"):
        fit(matcher)
    assert not any(module.training for module in matcher.modules())
    monkeypatch.undo()
    fit(matcher)
    assert len(trained) == 10 and all(names == trained[0] for names in trained)


def test_frozen_layers_stay_frozen_and_the_same_to_the_bit(build: Callable[..., RE2Matcher], rows: Rows) -> None:
    matcher = build(["no", "yes"])
    matcher.network.blocks.requires_grad_(False)
    before = copy.deepcopy(matcher.state_dict())
    for _ in range(2):
        matcher.fit(rows, epochs=1, batch_size=30, learning_rate=1e-2, **QUIET)
    changed = [name for name, value in matcher.state_dict().items() if not torch.equal(value, before[name])]
    assert changed and not [name for name in changed if "blocks" in name]
    assert not any(weight.requires_grad for weight in matcher.network.blocks.parameters())


def test_bf16_trains(build: Callable[..., RE2Matcher], rows: Rows) -> None:
    matcher = build(["no", "yes"])
    found = matcher.fit(rows, epochs=1, batch_size=30, bf16=True, **QUIET)
    assert found.steps == 2 and {p.dtype for p in matcher.parameters()} == {torch.float32}


def test_progress_is_shown_on_demand(
    build: Callable[..., RE2Matcher], rows: Rows, capsys: pytest.CaptureFixture[str]
) -> None:
    for shown in (False, True):
        build(["no", "yes"]).fit(rows[::3], epochs=1, batch_size=10, device="cpu", show_progress_bar=shown)
        captured = capsys.readouterr()
        assert ("2/2" in captured.err) == shown and ("loss" in captured.out) == shown


def test_what_training_refuses(
    build: Callable[..., RE2Matcher], rows: Rows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    matcher = build(["no", "yes", "maybe"])
    for given, message in (
        ({"train": rows}, "train has no pair of the classes 'maybe'; give some, or leave the names out of labels"),
        ({"train": [("a", "b", "often")]}, "row 0 of train has the label 'often', which is none of the classes 'no'"),
        ({"train": rows, "dev": [("a", "b", "often")]}, "row 0 of dev has the label 'often'"),
        ({"train": rows, "dev": []}, "dev has no rows"),
        ({"train": []}, "train has no rows"),
        ({"train": [("a", "b")]}, r"row 0 of train must be \(text, text, label\)"),
        ({"train": [("", " ", "no")]}, "row 0 of train is an empty pair, both texts are blank; remove it"),
        ({"train": rows, "metric": "map"}, "metric='map' needs a score, but the model has 3 classes"),
        ({"train": rows, "metric": "auc"}, "metric must be 'accuracy', .* got 'auc'"),
        (
            {"train": Dataset.from_dict({"text": ["a"], "label": [1]})},
            "must have two columns of texts besides 'label'",
        ),
        ({"train": Dataset.from_dict({"a": ["a"], "b": ["b"], "gold": [1]})}, "must have one column named 'label'"),
        ({"train": rows, "dev": 1.5}, "dev=1.5 as a share of the training data must lie above 0 and below 1"),
    ):
        with pytest.raises(ValueError, match=message):
            matcher.fit(**given, **QUIET)
    two = build(["no", "yes"])
    for options, message in (
        ({"patience": 0}, "patience must be at least 1 or None, got 0"),
        ({"eval_steps": -1}, "eval_steps must be at least 1 or None, got -1"),
        ({"device": "gpu"}, "device='gpu' must be 'cpu', 'cuda', 'mps' or None"),
        ({"epochs": 0}, "epochs must be"),
        ({"batch_size": 0}, "batch_size must be"),
    ):
        with pytest.raises(ValueError, match=message):
            two.fit(rows, **{**QUIET, **options})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="row 1 of train: score nan is not a finite number"):
        build().fit([("a", "b", 0.5), ("a", "b", math.nan)], **QUIET)
    before = copy.deepcopy(two.state_dict())
    nn.init.constant_(two.source.embedding.weight, math.inf)
    with pytest.raises(ValueError, match="the loss became nan, nothing was updated by this batch; train with a lower"):
        two.fit(rows, batch_size=60, epochs=1, **QUIET)
    assert all(torch.equal(value, before[name]) for name, value in two.state_dict().items() if "network" in name)
    assert not list(tmp_path.iterdir())


def test_a_row_with_one_empty_text_trains(build: Callable[..., RE2Matcher], rows: Rows) -> None:
    matcher = build(["no", "yes"])
    found = matcher.fit([*rows, ("", "a dog", "no"), ("a dog", "", "no")], rows[:4], epochs=1, batch_size=31, **QUIET)
    assert found.steps == 2 and all(p.isfinite().all() for p in matcher.parameters())


def test_streams_batches_of_one_and_long_texts_train(build: Callable[..., RE2Matcher], rows: Rows) -> None:
    nine = rows[::7]
    columns = {"a": [r[0] for r in nine], "b": [r[1] for r in nine], "label": [r[2] for r in nine]}
    data = Dataset.from_dict(columns)
    weights = []
    for given in (data, data.to_iterable_dataset(), iter(data), nine, iter(nine)):
        matcher = build(["no", "yes"], RE2Config(blocks=1, encoder_layers=1, hidden_dimension=8, max_seq_length=3))
        found = matcher.fit(given, epochs=1, batch_size=4, learning_rate=1e-2, **QUIET)  # the last batch has one row
        assert found.steps == 3
        weights.append(matcher.network.prediction.outer.weight)
    assert all(weight.isfinite().all() and torch.equal(weight, weights[0]) for weight in weights)
    assert build(["no", "yes"]).fit(nine, epochs=2, batch_size=1000, **QUIET).steps == 2


def test_cut_texts_are_counted_once(
    build: Callable[..., RE2Matcher], rows: Rows, caplog: pytest.LogCaptureFixture
) -> None:
    matcher = build(None, RE2Config(blocks=1, encoder_layers=1, hidden_dimension=8, max_seq_length=3))
    three, four = "the dog runs", "the big dog runs"
    said = "texts have more than 3 tokens, of which the first 3 are read (max_seq_length, --max-seq-length)."
    for use, count in (
        (lambda: matcher.fit([(three, four, 1.0)] * 3, [(three, "the big dog is", 0.0)], epochs=1, **QUIET), "2 of 3"),
        (lambda: matcher.predict([(three, four), (four, three)] * 1100), "1 of 2"),
        (lambda: matcher.rank(four, [three, four, "a dog"]), "1 of 3"),
        (lambda: matcher.encode_texts([three, four, four]), "1 of 2"),
    ):
        caplog.clear()
        use()
        assert [r.getMessage() for r in caplog.records if "tokens" in r.message] == [f"{count} {said}"]
    caplog.clear()
    matcher.predict([(three, "a dog")])
    build(None).predict([(four, four)])
    assert "tokens" not in caplog.text
