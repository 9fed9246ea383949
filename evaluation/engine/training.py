"""Training with the host's trainers, and how trained models of pairs answer."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from datasets import Dataset, DatasetDict
from sentence_transformers import (
    CrossEncoder,
    CrossEncoderTrainer,
    CrossEncoderTrainingArguments,
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
)
from sentence_transformers.base.evaluation import BaseEvaluator
from sentence_transformers.sentence_transformer.losses import SoftmaxLoss
from torch import Tensor, nn
from transformers import PrinterCallback, TrainerCallback, TrainerState

from evaluation.engine.pairs import Answer, Array, Examples
from st_plugins.core.batching import LengthGroupedBatchSampler
from st_plugins.matching import RE2Matcher, VIRTPairClassifier

_EVALUATION_BATCH = 64


def train(
    model: SentenceTransformer | CrossEncoder,
    loss: nn.Module | dict[str, nn.Module],
    rows: Dataset | DatasetDict | dict[str, list[Any]],
    *,
    seed: int,
    batch_size: int,
    held_out: Dataset | None = None,
    evaluator: BaseEvaluator | None = None,
    callbacks: Sequence[TrainerCallback] = (),
    **arguments: Any,
) -> TrainerState:
    """Train a model in place, with the arguments of the host's trainer; nothing is written to disk.

    Several datasets, each with a loss of its name, take turns: a batch comes from one of them.
    """
    cross = isinstance(model, CrossEncoder)
    host: Any = CrossEncoderTrainer if cross else SentenceTransformerTrainer
    arguments_of_host: Any = CrossEncoderTrainingArguments if cross else SentenceTransformerTrainingArguments
    # What all studies share; a study that differs says so in its call.
    usual = {
        "warmup_steps": 0.1,  # a share of the steps
        "weight_decay": 0.01,
        "batch_sampler": LengthGroupedBatchSampler,
        "dataloader_drop_last": True,
        "save_strategy": "no",
        "logging_strategy": "no",
        "report_to": [],
        "use_cpu": model.device.type == "cpu",  # without it the host refuses bfloat16 there
        "disable_tqdm": True,
    }
    with tempfile.TemporaryDirectory() as folder:
        trainer = host(
            model=model,
            args=arguments_of_host(
                output_dir=folder, seed=seed, per_device_train_batch_size=batch_size, **{**usual, **arguments}
            ),
            train_dataset=rows if isinstance(rows, Dataset | DatasetDict) else Dataset.from_dict(rows),
            eval_dataset=held_out,
            loss=loss,
            evaluator=evaluator,
            callbacks=list(callbacks),
        )
        # Where there is no progress bar it would print all that is logged.
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    model.eval()
    state: TrainerState = trainer.state
    return state


def softmax_siamese(model: SentenceTransformer, classes: int, loss_fct: nn.Module | Any) -> tuple[nn.Module, Answer]:
    """Return the host's loss of a softmax on [u; v; |u - v|], and how the trained encoder and classifier answer."""
    loss = SoftmaxLoss(model, model.get_embedding_dimension() or 0, classes, loss_fct=loss_fct)

    def logits(first: Tensor, second: Tensor) -> Tensor:
        found: Tensor = loss.classifier(torch.cat([first, second, (first - second).abs()], dim=1))
        return found

    return loss, partial(compare, model, logits)


def predict(model: CrossEncoder | VIRTPairClassifier | RE2Matcher, examples: Examples, **options: Any) -> Array:
    """Ask a pair model for its logits (N, C) or scores (N,)."""
    found = model.predict(examples.pairs, batch_size=_EVALUATION_BATCH, show_progress_bar=False, **options)
    return np.asarray(found, dtype=np.float64)


def compare(model: SentenceTransformer, score: Callable[[Tensor, Tensor], Tensor], examples: Any) -> Array:
    """Return what ``score`` makes of the vectors of first and second texts; each distinct text is encoded once."""
    # Texts of real pairs come again and again, a question with each of its answers.
    places = {text: place for place, text in enumerate(dict.fromkeys([*examples.first, *examples.second]))}
    vectors = model.encode(list(places), batch_size=_EVALUATION_BATCH, show_progress_bar=False, convert_to_tensor=True)
    sides = (vectors[[places[text] for text in side]] for side in (examples.first, examples.second))
    with torch.no_grad():
        return score(*sides).double().cpu().numpy()
