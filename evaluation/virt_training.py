"""Models and training of the VIRT study: the host's trainers and losses, and what each row puts into them."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
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
from sentence_transformers.sentence_transformer.losses import CoSENTLoss, CosineSimilarityLoss, SoftmaxLoss
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, cross_entropy

from evaluation.batching import LengthGroupedBatchSampler
from evaluation.virt_recipe import Examples, Row
from st_plugins.losses import VIRTLoss
from st_plugins.matching import VIRTPairClassifier, VIRTPairLoss

__all__ = ["Answer", "predict", "student", "train", "trim", "with_virt"]

Array = NDArray[np.float64]
Answer = Callable[[Examples], Array]
"""A trained row: logits (N, C) of the classes, or scores (N,)."""

_EVALUATION_BATCH = 64


def trim(examples: Examples, tokenizer: Any, max_length: int) -> Examples:
    """Cut every text to what the bi-encoder reads of it, so that the cross-encoder reads the same.

    Args:
        examples: The pairs.
        tokenizer: A fast tokenizer.
        max_length: Tokens, special ones included.

    Returns:
        The pairs, each text cut at the end of a token.
    """
    texts = list(dict.fromkeys([*examples.first, *examples.second]))
    found = tokenizer(texts, truncation=True, max_length=max_length, return_offsets_mapping=True)["offset_mapping"]
    cut = {text: text[: max(end for _, end in offsets)] for text, offsets in zip(texts, found, strict=True)}
    first, second = ([cut[text] for text in side] for side in (examples.first, examples.second))
    return Examples(first, second, examples.gold)


def train(
    model: SentenceTransformer | CrossEncoder,
    loss: nn.Module,
    examples: Examples,
    targets: list[Any],
    steps: int,
    batch_size: int,
    learning_rate: float,
    seed: int,
) -> None:
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
    """
    cross = isinstance(model, CrossEncoder)
    trainer: Any = CrossEncoderTrainer if cross else SentenceTransformerTrainer
    arguments: Any = CrossEncoderTrainingArguments if cross else SentenceTransformerTrainingArguments
    columns = {"sentence1": examples.first, "sentence2": examples.second, "label": targets}
    with tempfile.TemporaryDirectory() as folder:
        trainer(
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
                save_strategy="no",
                logging_strategy="no",
                dataloader_drop_last=True,
                report_to=[],
                disable_tqdm=True,
            ),
            train_dataset=Dataset.from_dict(columns),
            loss=loss,
        ).train()
    model.eval()


def student(row: Row, model: SentenceTransformer, classes: int) -> tuple[nn.Module, Answer]:
    """Return a row's own loss, and how the trained row answers.

    Args:
        row: The row, not a cross-encoder.
        model: Its encoder.
        classes: Number of classes; 0 for scores.

    Returns:
        The loss and the answer.
    """
    if row.kind == "interaction":
        classifier = VIRTPairClassifier(model, classes or 1, fusion=row.fusion)
        return VIRTPairLoss(classifier), partial(predict, classifier)
    if classes:
        target_loss = soft_cross_entropy if row.distillation else nn.CrossEntropyLoss()
        loss = SoftmaxLoss(model, model.get_embedding_dimension() or 0, classes, loss_fct=target_loss)

        def logits(first: Tensor, second: Tensor) -> Tensor:
            found: Tensor = loss.classifier(torch.cat([first, second, (first - second).abs()], dim=1))
            return found

        return loss, partial(_compare, model, logits)
    regression: Any = CoSENTLoss if row.regression == "cosent" else CosineSimilarityLoss
    return regression(model), partial(_compare, model, cosine_similarity)


def with_virt(row: Row, model: SentenceTransformer, teacher: CrossEncoder, task_loss: nn.Module) -> nn.Module:
    """Return the loss of a row: its own, with VIRT's where the row has a weight for it.

    Args:
        row: The row.
        model: Its encoder.
        teacher: The cross-encoder.
        task_loss: Its own loss.

    Returns:
        The loss.
    """
    if not row.weight:
        return task_loss
    options: Any = {key: getattr(row, key) for key in ("weight", "heads", "target", "distance", "special_tokens")}
    layers: Any = row.layers if isinstance(row.layers, str) else list(row.layers)
    return VIRTLoss(model, teacher, task_loss, layers=layers, **options)


def soft_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the cross-entropy to class probabilities, which version 6.0 of the host hands over flattened.

    Args:
        logits: ``(N, C)``.
        targets: As many probabilities.

    Returns:
        A number.
    """
    return cross_entropy(logits, targets.view_as(logits).to(logits.dtype))


def predict(model: CrossEncoder | VIRTPairClassifier, examples: Examples, **options: Any) -> Array:
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


def _compare(model: SentenceTransformer, compare: Callable[[Tensor, Tensor], Tensor], examples: Examples) -> Array:
    """Compare sentence vectors; each distinct text is encoded once."""
    places = {text: place for place, text in enumerate(dict.fromkeys([*examples.first, *examples.second]))}
    vectors = model.encode(list(places), batch_size=_EVALUATION_BATCH, show_progress_bar=False, convert_to_tensor=True)
    sides = (vectors[[places[text] for text in side]] for side in (examples.first, examples.second))
    with torch.no_grad():
        return compare(*sides).double().cpu().numpy()
