"""How a row of the training study is trained, and how its checkpoints are chosen."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from datasets import Dataset
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.losses import CoSENTLoss, SoftmaxLoss
from transformers import TrainerCallback

from evaluation.engine import training
from evaluation.engine.corpus import draw_texts
from st_plugins.core.batching import LengthGroupedBatchSampler
from st_plugins.core.reading.tables import read_table
from st_plugins.evaluation import STSSuiteEvaluator
from st_plugins.geometry import GeometryCallback
from st_plugins.losses import (
    ConSERTJointLoss,
    ConSERTLoss,
    LayerMixRegularizer,
    RDropLoss,
    SimCSELoss,
    SpanSharpnessRegularizer,
)

if TYPE_CHECKING:
    from evaluation.studies.contrastive.study import Row, Study


PAIR_METHODS = ("supervised", "joint", "cosent")
RULES = {
    "dev": ("dev", max),
    "last": ("step", max),
    "effective rank": ("effective_rank", max),
    "uniformity": ("uniformity", min),
    "alignment + uniformity": ("alignment_uniformity", min),
    "held-out loss": ("loss", min),
}
"""How a checkpoint is chosen: on labelled dev pairs, not at all, or by a number that needs no labels."""

_LABELS = {"contradiction": 0, "entailment": 1, "neutral": 2}  # as in the published code
_HELD_OUT = 512
_AFTER_ENCODER = r"(^|\.)model\.[1-9]\."  # names of weights in a loss's model: model.0 is the encoder
_NUMBERS = {
    "eval_loss": "loss",
    "eval_dev_avg_spearman_cosine": "dev",
    "geometry_alignment": "alignment",
    "geometry_uniformity": "uniformity",
    "geometry_mean_random_cosine": "mean_random_cosine",
    "geometry_effective_rank": "effective_rank",
    "geometry_isoscore": "isoscore",
}
State = dict[str, torch.Tensor]


class _Snapshots(TrainerCallback):
    """Keep the weights of every evaluated step, on the CPU."""

    def __init__(self) -> None:
        self.states: dict[int, State] = {}

    def on_evaluate(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        self.states[state.global_step] = {key: value.cpu().clone() for key, value in model.state_dict().items()}


def _loss(row: Row, model: SentenceTransformer) -> torch.nn.Module:
    loss: torch.nn.Module
    if row.method == "simcse":
        loss = SimCSELoss(model, row.temperature)
    elif row.method == "supervised":
        loss = SoftmaxLoss(model, model.get_embedding_dimension() or 0, num_labels=3)
    elif row.method == "cosent":
        loss = CoSENTLoss(model)
    elif row.method == "joint":
        loss = ConSERTJointLoss(model, 3, row.views, row.weight, row.temperature, encoder_dropout=row.encoder_dropout)
    else:
        loss = ConSERTLoss(model, row.views, row.temperature, encoder_dropout=row.encoder_dropout)
    if row.r_drop:
        loss = RDropLoss(loss, row.r_drop)
    if row.mix_penalty:
        loss = LayerMixRegularizer(loss, row.mix_penalty)
    return SpanSharpnessRegularizer(loss, row.sharpness) if row.sharpness else loss


def _columns(source: dict[str, Any], method: str, data: Path) -> dict[str, list[Any]]:
    """Read texts, or pairs labelled with classes or scores."""
    if method not in PAIR_METHODS:
        return {"text": draw_texts(source["texts"], data, source.get("size", 0))}
    columns: dict[str, list[Any]] = {"sentence1": [], "sentence2": [], "label": []}
    for file in source["pairs"]:
        table = read_table(data / file)
        columns["sentence1"] += table.texts("sentence1")
        columns["sentence2"] += table.texts("sentence2")
        if method == "cosent":
            columns["label"] += [float(score) for score in table.texts("score")]
        else:
            columns["label"] += [_LABELS[label] for label in table.texts("label")]
    return columns


def train(
    study: Study, row: Row, seed: int, model: SentenceTransformer
) -> tuple[list[dict[str, float]], dict[int, State]]:
    """Train a model in place; return the numbers of each evaluated step, and the weights of these steps."""
    data = study.place.data
    torch.manual_seed(seed)
    rows = Dataset.from_dict(_columns(study.data[row.data], row.method, data)).shuffle(seed=seed)
    # A part of the training texts, never of the evaluated ones, for the loss that watches without labels.
    aside = min(_HELD_OUT, len(rows) // 5)
    held_out, rows = rows.select(range(aside)), rows.select(range(aside, len(rows)))
    if len(rows) < row.batch_size:
        raise ValueError(f"row {row.name!r}: {len(rows)} texts are fewer than one batch, batch_size={row.batch_size}")
    steps = row.max_steps or max(1, int(row.epochs * (len(rows) // row.batch_size)))
    steps = 2 if study.place.dry_run else steps
    dev = STSSuiteEvaluator(
        study.dev_task, data, 128, split="dev", name="dev", bootstrap_samples=0, floor=False, geometry=False
    )
    texts, snapshots = draw_texts(study.corpus, data, 500), _Snapshots()
    state = training.train(
        model,
        _loss(row, model),
        rows,
        seed=seed,
        batch_size=row.batch_size,
        held_out=held_out,
        evaluator=dev,
        callbacks=[GeometryCallback(texts, batch_size=128, on_collapse="ignore"), snapshots],
        max_steps=steps,
        per_device_eval_batch_size=min(128, aside),  # a smaller rest would be dropped
        learning_rate=row.learning_rate,
        learning_rate_mapping={_AFTER_ENCODER: row.pooling_learning_rate} if row.pooling_learning_rate else {},
        eval_strategy="steps",
        eval_steps=max(1, steps // study.evaluations),
        batch_sampler=LengthGroupedBatchSampler if row.grouped else "batch_sampler",
    )
    log: dict[int, dict[str, float]] = {}
    for entry in state.log_history:
        found = {short: float(entry[key]) for key, short in _NUMBERS.items() if key in entry}
        # Only a step that was evaluated has weights to choose.
        if found and entry["step"] in snapshots.states:
            log.setdefault(int(entry["step"]), {"step": int(entry["step"])}).update(found)
    for numbers in log.values():
        numbers["alignment_uniformity"] = numbers["alignment"] + numbers["uniformity"]
    return list(log.values()), snapshots.states


def choose(log: list[dict[str, float]], rule: str) -> int:
    """Return the step that a rule chooses."""
    key, best = RULES[rule]
    return int(best(log, key=lambda numbers: numbers[key])["step"])
