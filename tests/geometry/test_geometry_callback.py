"""The callback that watches the space: right numbers, an undisturbed training, collapse, choice, resume."""

from __future__ import annotations

import json
import logging
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from sentence_transformers import (
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
)
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
from torch import Tensor, nn
from transformers import TrainerCallback

from st_plugins.data import Pairs
from st_plugins.evaluation import STSSuiteEvaluator
from st_plugins.geometry import GeometryCallback
from st_plugins.geometry.probe import NUMBERS, Probe

MakeModel = Callable[..., SentenceTransformer]


class Collapse(nn.Module):
    """Pull every embedding to one point."""

    def __init__(self, model: SentenceTransformer) -> None:
        super().__init__()
        self.model = model

    def forward(self, sentence_features: Any, labels: Tensor | None = None) -> Tensor:
        embeddings = self.model(next(iter(sentence_features)))["sentence_embedding"]
        return ((embeddings - torch.ones(embeddings.shape[1])) ** 2).mean()


class Stop(TrainerCallback):
    """Pretend a kill right after the checkpoint of a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            raise KeyboardInterrupt


def trainer_for(
    model: SentenceTransformer,
    sentences: list[str],
    folder: Path,
    *,
    loss: type[nn.Module] = MultipleNegativesRankingLoss,
    callbacks: list[TrainerCallback] | None = None,
    evaluator: Any = None,
    **arguments: Any,
) -> SentenceTransformerTrainer:
    columns = {"text": sentences} if loss is Collapse else {"a": sentences, "b": sentences}
    defaults: dict[str, Any] = {
        "num_train_epochs": 1,
        "per_device_train_batch_size": 10,
        "learning_rate": 1e-3,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        "logging_steps": 2,
        "seed": 3,
    }
    return SentenceTransformerTrainer(
        model,
        SentenceTransformerTrainingArguments(output_dir=str(folder), **(defaults | arguments)),
        train_dataset=Dataset.from_dict(columns),
        loss=loss(model),
        callbacks=callbacks,
        evaluator=evaluator,
    )


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def dev(sentences: list[str]) -> STSSuiteEvaluator:
    pairs = Pairs("dev", sentences[:20], sentences[20:40], np.arange(20.0))
    return STSSuiteEvaluator([pairs], floor=False, geometry=False, bootstrap_samples=0)


def oracle(embeddings: Any, first: Any, second: Any) -> dict[str, float]:
    """The five numbers by their formulas, in plain loops."""
    rows = [[float(value) for value in row] for row in embeddings]
    length = [math.sqrt(sum(value**2 for value in row)) for row in rows]
    unit = [[value / norm for value in row] for row, norm in zip(rows, length, strict=True)]
    cosines = [sum(a * b for a, b in zip(unit[i], unit[j], strict=True)) for i in range(len(unit)) for j in range(i)]
    distances = []
    for one, other in zip(first, second, strict=True):
        left, right = (
            np.asarray(side, np.float64) / math.sqrt(sum(float(v) ** 2 for v in side)) for side in (one, other)
        )
        distances.append(sum((a - b) ** 2 for a, b in zip(left, right, strict=True)))
    mean = [sum(column) / len(rows) for column in zip(*rows, strict=True)]
    covariance = np.zeros((len(mean), len(mean)))
    for row in rows:
        centred = np.array(row) - mean
        covariance += np.outer(centred, centred) / len(rows)
    values = [value for value in np.linalg.eigvalsh(covariance) if value > 1e-15]
    shares = [value / sum(values) for value in values]
    participation = sum(values) ** 2 / sum(value**2 for value in values)
    return {
        "alignment": sum(distances) / len(distances),
        "effective_rank": math.exp(-sum(share * math.log(share) for share in shares)),
        "isoscore": (participation - 1) / (len(mean) - 1),
        "mean_random_cosine": sum(cosines) / len(cosines),
        "uniformity": math.log(sum(math.exp(-2 * (2 - 2 * cosine)) for cosine in cosines) / len(cosines)),
    }


def test_numbers_are_their_formulas(model: SentenceTransformer, sentences: list[str]) -> None:
    pairs = list(zip(sentences[:10], sentences[10:20], strict=True))
    found = Probe(sentences * 2, pairs).measure(model)  # duplicates count once
    sides = [model.encode(list(side)) for side in zip(*pairs, strict=True)]
    assert found == pytest.approx(oracle(model.encode(sentences), *sides), rel=1e-5)
    assert list(found) == list(NUMBERS)


def test_alignment_without_pairs_is_of_two_dropout_passes(make_model: MakeModel, sentences: list[str]) -> None:
    model = make_model("bert")
    probe = Probe(sentences, batch_size=7, seed=5)
    found = probe.measure(model)
    torch.manual_seed(5)
    sides: list[list[Any]] = [[], []]
    model.train()
    for start in range(0, len(sentences), 7):
        for side in sides:
            side += model(model.preprocess(sentences[start : start + 7]))["sentence_embedding"].detach().tolist()
    assert found["alignment"] == pytest.approx(oracle(sides[0], *sides)["alignment"], rel=1e-5)
    assert found["alignment"] > 1e-3 and probe.measure(model) == found
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    assert probe.measure(model)["alignment"] < 1e-12


def test_measuring_leaves_modes_and_random_states_alone(model: SentenceTransformer, sentences: list[str]) -> None:
    model.train()
    model[0].model.embeddings.eval()
    modes = [module.training for module in model.modules()]
    state = torch.get_rng_state()
    Probe(sentences).measure(model)
    assert [module.training for module in model.modules()] == modes and torch.equal(torch.get_rng_state(), state)
    with torch.no_grad():
        next(model.parameters()).fill_(math.nan)
    with pytest.raises(FloatingPointError):
        Probe(sentences).measure(model)
    assert [module.training for module in model.modules()] == modes


def test_a_run_with_the_callback_has_the_same_bits(
    make_model: MakeModel, sentences: list[str], tmp_path: Path
) -> None:
    plain, watched = make_model("bert"), make_model("bert")
    options = {"num_train_epochs": 2, "gradient_accumulation_steps": 2, "per_device_train_batch_size": 5}
    trainer_for(plain, sentences, tmp_path / "a", **options).train()
    callback = GeometryCallback(sentences, every=2, criterion="alignment+uniformity")
    trainer_for(watched, sentences, tmp_path / "b", callbacks=[callback], **options).train()
    assert [entry["step"] for entry in callback.history] == [0, 2, 4, 6, 8, 10, 12]
    assert same(weights(plain), weights(watched))


def test_numbers_reach_the_log_the_metrics_and_the_reporters(
    model: SentenceTransformer, sentences: list[str], tmp_path: Path
) -> None:
    seen = []

    class Reporter(TrainerCallback):
        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
            seen.append(dict(logs))

    trainer = trainer_for(
        model,
        sentences,
        tmp_path,
        callbacks=[Reporter()],
        evaluator=dev(sentences),
        eval_strategy="steps",
        eval_steps=3,
    )
    callback = GeometryCallback(sentences).attach(trainer)
    assert callback.attach(trainer) is callback
    assert sum(item is callback for item in trainer.callback_handler.callbacks) == 1
    trainer.train()
    logged = [entry for entry in trainer.state.log_history if "geometry_uniformity" in entry]
    assert [entry["step"] for entry in logged] == [0, 3, 6] == [entry["step"] for entry in callback.history]
    assert [entry["geometry_isoscore"] for entry in seen if "geometry_isoscore" in entry] == [
        entry["geometry_isoscore"] for entry in callback.history
    ]
    metrics = trainer.evaluate()  # after the training: measured and logged, not part of the history
    assert metrics["eval_geometry_uniformity"] == pytest.approx(callback.history[-1]["geometry_uniformity"])
    assert len(callback.history) == 3


def test_without_attach_the_log_has_them_too(model: SentenceTransformer, sentences: list[str], tmp_path: Path) -> None:
    trainer = trainer_for(model, sentences, tmp_path, callbacks=[GeometryCallback(sentences, every=4)])
    trainer.train()
    assert [entry["step"] for entry in trainer.state.log_history if "geometry_alignment" in entry] == [0, 4, 6]


@pytest.mark.parametrize("action", ["warn", "stop", "ignore"])
def test_collapse(
    model: SentenceTransformer,
    sentences: list[str],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    action: Any,
) -> None:
    callback = GeometryCallback(sentences, every=5, on_collapse=action, cosine_limit=0.99)
    trainer = trainer_for(
        model, sentences, tmp_path, loss=Collapse, callbacks=[callback], learning_rate=0.05, num_train_epochs=10
    )
    with caplog.at_level(logging.WARNING, logger="st_plugins"):
        trainer.train()
    messages = [record.getMessage() for record in caplog.records if "collapsed" in record.getMessage()]
    assert callback.history[-1]["geometry_mean_random_cosine"] > 0.99
    assert len(messages) == (0 if action == "ignore" else 1)
    assert (trainer.state.global_step < 60) == (action == "stop")
    if messages:
        assert "lower learning rate" in messages[0] and "Effective rank" in messages[0]


def test_a_narrow_cone_from_the_start_is_no_collapse(
    model: SentenceTransformer, sentences: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    callback = GeometryCallback(sentences, every=2, cosine_limit=0.0, rank_fraction=0.1)
    with caplog.at_level(logging.WARNING, logger="st_plugins"):
        trainer_for(model, sentences, tmp_path, callbacks=[callback]).train()
    assert callback.history[0]["geometry_mean_random_cosine"] > 0 and "collapsed" not in caplog.text


@pytest.mark.parametrize("criterion", ["effective_rank", "uniformity", "alignment+uniformity", "function"])
def test_best_step_and_its_bits(
    model: SentenceTransformer, sentences: list[str], tmp_path: Path, criterion: str
) -> None:
    kept: dict[int, dict[str, Tensor]] = {}

    class Keep(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
            kept[state.global_step] = weights(model)

    def preference(numbers: dict[str, float]) -> float:
        return -abs(numbers["effective_rank"] - 7)

    callback = GeometryCallback(
        sentences, every=1, criterion=preference if criterion == "function" else criterion, restore_at_end=True
    )
    # The weights wander off and back: the best step is not always the last.
    trainer_for(
        model, sentences, tmp_path, loss=Collapse, callbacks=[Keep(), callback], learning_rate=0.02, num_train_epochs=2
    ).train()
    values = {
        "effective_rank": lambda entry: entry["geometry_effective_rank"],
        "uniformity": lambda entry: -entry["geometry_uniformity"],
        "alignment+uniformity": lambda entry: -entry["geometry_alignment"] - entry["geometry_uniformity"],
        "function": lambda entry: -abs(entry["geometry_effective_rank"] - 7),
    }
    best = max(callback.history[1:], key=values[criterion])  # type: ignore[arg-type]
    assert callback.best_step == best["step"] and callback.best_score == pytest.approx(values[criterion](best))
    assert same(weights(model), kept[callback.best_step]) and callback.best_step < 12
    with torch.no_grad():
        next(model.parameters()).add_(1)
    callback.restore_best(model)
    assert same(weights(model), kept[callback.best_step])


def test_the_hosts_own_selection_by_a_geometry_number(
    model: SentenceTransformer, sentences: list[str], tmp_path: Path
) -> None:
    callback = GeometryCallback(sentences)
    trainer = trainer_for(
        model,
        sentences,
        tmp_path,
        loss=Collapse,
        callbacks=[callback],
        evaluator=dev(sentences),
        eval_strategy="steps",
        eval_steps=2,
        save_strategy="steps",
        save_steps=2,
        learning_rate=0.05,
        num_train_epochs=2,
        load_best_model_at_end=True,
        metric_for_best_model="geometry_effective_rank",
        greater_is_better=True,
    )
    trainer.train()
    best = max(callback.history[1:], key=lambda entry: entry["geometry_effective_rank"])
    assert trainer.state.best_global_step == best["step"] < 12
    assert callback.measure(model)["effective_rank"] == pytest.approx(best["geometry_effective_rank"], rel=1e-5)


@pytest.mark.parametrize("stop", [2, 6])
def test_resume_keeps_history_and_choice(
    make_model: MakeModel, sentences: list[str], tmp_path: Path, stop: int
) -> None:
    options: dict[str, Any] = {
        "loss": Collapse,
        "save_strategy": "steps",
        "save_steps": 2,
        "num_train_epochs": 2,
        "learning_rate": 0.02,
    }

    def watch() -> GeometryCallback:
        return GeometryCallback(sentences, every=1, criterion="effective_rank", restore_at_end=True)

    whole, cut, resumed = make_model("bert"), make_model("bert"), make_model("bert")
    straight, first, second = watch(), watch(), watch()
    trainer_for(whole, sentences, tmp_path / "whole", callbacks=[straight], **options).train()
    with pytest.raises(KeyboardInterrupt):
        trainer_for(cut, sentences, tmp_path / "cut", callbacks=[first, Stop(stop)], **options).train()
    trainer_for(resumed, sentences, tmp_path / "cut", callbacks=[second], **options).train(resume_from_checkpoint=True)
    assert second.history == straight.history and len(second.history) == 13
    assert second.best_step == straight.best_step and second.best_score == straight.best_score
    assert same(weights(whole), weights(resumed))


def test_resume_without_the_best_weights_says_so(
    model: SentenceTransformer, sentences: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    options: dict[str, Any] = {"loss": Collapse, "save_strategy": "steps", "save_steps": 4, "learning_rate": 0.05}
    callback = GeometryCallback(sentences, every=1, criterion="effective_rank")
    with pytest.raises(KeyboardInterrupt):
        trainer_for(model, sentences, tmp_path, callbacks=[callback, Stop(4)], **options).train()
    assert callback.best_step is not None and callback.best_step < 4
    (tmp_path / "checkpoint-4" / "geometry_best.safetensors").unlink()
    with caplog.at_level(logging.WARNING, logger="st_plugins"):
        trainer_for(model, sentences, tmp_path, callbacks=[callback], **options).train(resume_from_checkpoint=True)
    assert "are not found whole with the checkpoint of step 4" in caplog.text and (callback.best_step or 0) > 4


def test_nan_stops_before_anything_is_saved(model: SentenceTransformer, sentences: list[str], tmp_path: Path) -> None:
    class Break(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
            if state.global_step == 3:
                with torch.no_grad():
                    model[0].model.embeddings.word_embeddings.weight.fill_(math.nan)

    callback = GeometryCallback(sentences, every=2)
    trainer = trainer_for(
        model, sentences, tmp_path, callbacks=[Break(), callback], save_strategy="steps", save_steps=2
    )
    with pytest.raises(FloatingPointError, match=r"step 4: 60 of 60 probe texts have NaN .* 'a man is playing"):
        trainer.train()
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == ["checkpoint-2"]


def test_errors_name_the_argument(model: SentenceTransformer, sentences: list[str], tmp_path: Path) -> None:
    for wrong, words in (
        ({"on_collapse": "cry"}, "on_collapse='cry'"),
        ({"rank_fraction": 1.5}, "rank_fraction=1.5"),
        ({"every": 0}, "every=0"),
        ({"max_texts": 1}, "max_texts=1"),
        ({"pairs": [("a", "b")]}, "pairs has 1"),
        ({"criterion": "beauty"}, "'beauty' is unknown; there are alignment, effective_rank"),
        ({"criterion": "alignment+effective_rank"}, "give a function"),
        ({"restore_at_end": True}, "needs a criterion"),
    ):
        with pytest.raises(ValueError, match=words.replace("+", r"\+")):
            GeometryCallback(sentences, **wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="texts has 1 distinct"):
        GeometryCallback(["a", "a"])
    with pytest.raises(TypeError, match="one string"):
        GeometryCallback("a text")
    with pytest.raises(ValueError, match="no best step"):
        GeometryCallback(sentences).restore_best(model)
    assert len(GeometryCallback(sentences, max_texts=10).probe.texts) == 10
    trainer = trainer_for(
        model,
        sentences,
        tmp_path,
        callbacks=[GeometryCallback(sentences, criterion="isoscore", restore_at_end=True)],
        evaluator=dev(sentences),
        eval_strategy="epoch",
        save_strategy="epoch",
        load_best_model_at_end=True,
    )
    with pytest.raises(ValueError, match="both replace the final weights"):
        trainer.train()


def test_the_package_stays_light() -> None:
    code = "import sys, st_plugins.geometry; print([m for m in ('torch', 'transformers') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.slow
def test_two_processes_measure_once_and_agree(encoder_folder: Path, sentences: list[str], tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        """
import json, pathlib, sys
from datasets import Dataset
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
from st_plugins.geometry import GeometryCallback

texts, folder = json.loads(sys.argv[2]), pathlib.Path(sys.argv[3])
model = SentenceTransformer(sys.argv[1], device="cpu")
arguments = SentenceTransformerTrainingArguments(
    str(folder / "run"), num_train_epochs=3, per_device_train_batch_size=10, learning_rate=1e-3, use_cpu=True,
    report_to="none", disable_tqdm=True, save_strategy="no", ddp_find_unused_parameters=True,
)
data = Dataset.from_dict({"a": texts, "b": texts})
trainer = SentenceTransformerTrainer(model, arguments, train_dataset=data, loss=MultipleNegativesRankingLoss(model))
callback = GeometryCallback(
    texts, every=2, criterion="uniformity", restore_at_end=True, on_collapse="stop", cosine_limit=1, rank_fraction=1
).attach(trainer)
measure, calls = callback.probe.measure, []
callback.probe.measure = lambda model: calls.append(1) or measure(model)
trainer.train()
found = [trainer.state.global_step, callback.best_step, callback.history, model.encode("a dog").tolist(), len(calls)]
(folder / f"{arguments.process_index}.json").write_text(json.dumps(found))
""",
        encoding="utf-8",
    )
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(program)]
    subprocess.run([*command, str(encoder_folder), json.dumps(sentences), str(tmp_path)], check=True)
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text("utf-8")) for rank in (0, 1))
    assert first[:4] == second[:4] and first[4] == len(first[2]) and second[4] == 0
