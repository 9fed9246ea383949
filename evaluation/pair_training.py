"""Training of models of text pairs with the host's trainers, and how the trained ones answer."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from numpy.typing import NDArray
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
from transformers import PrinterCallback, TrainerCallback

from evaluation.batching import LengthGroupedBatchSampler
from evaluation.pair_tasks import Examples
from st_plugins.matching import RE2Matcher, VIRTPairClassifier

__all__ = ["Answer", "Array", "compare", "predict", "softmax_siamese", "train"]

Array = NDArray[np.float64]
Answer = Callable[[Examples], Array]
"""A trained row: logits (N, C) of the classes, or scores (N,)."""

_EVALUATION_BATCH = 64


def train(
    model: SentenceTransformer | CrossEncoder,
    loss: nn.Module,
    examples: Examples,
    targets: list[Any],
    steps: int,
    batch_size: int,
    learning_rate: float,
    seed: int,
    evaluator: BaseEvaluator | None = None,
    eval_steps: int = 0,
    callbacks: Sequence[TrainerCallback] = (),
) -> int:
    """Train a model in place with the host's trainer.

    Args:
        model: What to train.
        loss: Its loss.
        examples: The pairs.
        targets: What is learned for each.
        steps: Number of batches.
        batch_size: Pairs a batch.
        learning_rate: Its peak.
        seed: Seed of the order and the dropout.
        evaluator: What is measured after every ``eval_steps``.
        eval_steps: Steps between two evaluations; 0 for none.
        callbacks: What watches the training, and may end it.

    Returns:
        The number of batches it was trained on.
    """
    cross = isinstance(model, CrossEncoder)
    host: Any = CrossEncoderTrainer if cross else SentenceTransformerTrainer
    arguments: Any = CrossEncoderTrainingArguments if cross else SentenceTransformerTrainingArguments
    columns = {"sentence1": examples.first, "sentence2": examples.second, "label": targets}
    with tempfile.TemporaryDirectory() as folder:
        trainer = host(
            model=model,
            args=arguments(
                output_dir=folder,
                max_steps=steps,
                per_device_train_batch_size=batch_size,
                learning_rate=learning_rate,
                warmup_steps=0.1,  # a share of the steps
                weight_decay=0.01,
                seed=seed,
                batch_sampler=LengthGroupedBatchSampler,
                eval_strategy="steps" if eval_steps else "no",
                eval_steps=eval_steps or None,
                save_strategy="no",
                logging_strategy="no",
                dataloader_drop_last=True,
                report_to=[],
                disable_tqdm=True,
            ),
            train_dataset=Dataset.from_dict(columns),
            loss=loss,
            evaluator=evaluator,
            callbacks=list(callbacks),
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    model.eval()
    return int(trainer.state.global_step)


def softmax_siamese(model: SentenceTransformer, classes: int, loss_fct: nn.Module | Any) -> tuple[nn.Module, Answer]:
    """Return the host's loss of a softmax on [u; v; |u - v|], and how the trained encoder and classifier answer.

    Args:
        model: The encoder.
        classes: Number of classes.
        loss_fct: The loss of logits and targets.

    Returns:
        The loss, with the classifier in it, and the answer.
    """
    loss = SoftmaxLoss(model, model.get_embedding_dimension() or 0, classes, loss_fct=loss_fct)

    def logits(first: Tensor, second: Tensor) -> Tensor:
        found: Tensor = loss.classifier(torch.cat([first, second, (first - second).abs()], dim=1))
        return found

    return loss, partial(compare, model, logits)


def predict(model: CrossEncoder | VIRTPairClassifier | RE2Matcher, examples: Examples, **options: Any) -> Array:
    """Ask a pair model.

    Args:
        model: The model.
        examples: The pairs.
        **options: For its ``predict``.

    Returns:
        Logits (N, C), or scores (N,).
    """
    found = model.predict(examples.pairs, batch_size=_EVALUATION_BATCH, show_progress_bar=False, **options)
    return np.asarray(found, dtype=np.float64)


def compare(model: SentenceTransformer, score: Callable[[Tensor, Tensor], Tensor], examples: Examples) -> Array:
    """Compare sentence vectors; each distinct text is encoded once.

    Args:
        model: The encoder.
        score: What becomes of the vectors of the first and of the second texts.
        examples: The pairs.

    Returns:
        What ``score`` returned.
    """
    places = {text: place for place, text in enumerate(dict.fromkeys([*examples.first, *examples.second]))}
    vectors = model.encode(list(places), batch_size=_EVALUATION_BATCH, show_progress_bar=False, convert_to_tensor=True)
    sides = (vectors[[places[text] for text in side]] for side in (examples.first, examples.second))
    with torch.no_grad():
        return score(*sides).double().cpu().numpy()
