"""The rows of the RE2 study: matchers and Siamese encoders of word vectors, trained with early stopping on dev."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.evaluation import BaseEvaluator
from sentence_transformers.sentence_transformer.modules import StaticEmbedding
from torch import nn

from evaluation.pair_tasks import Examples
from evaluation.pair_training import Answer, Array, predict, softmax_siamese, train
from evaluation.pipelines import Pipeline, build_model
from evaluation.re2_recipe import Row, Task
from st_plugins.core.pair_metrics import measure
from st_plugins.matching import LearnedEmbedding, RE2Config, RE2Matcher, RE2Schedule, TransformerTokens, WordVectors
from st_plugins.methods.re2.checkpoints import BestWeightsCallback

__all__ = ["Trained", "build_source", "train_matcher", "train_siamese"]


@dataclass(frozen=True)
class Trained:
    """A trained row.

    Args:
        answer: How it answers.
        steps: Training steps made.
        step: The step of which the weights were kept.
        parameters: Numbers of the ``network``, of the ``embeddings``, and of those ``trained``.
        coverage: Share of the training texts' tokens that have a vector; None where the source knows all.
    """

    answer: Answer
    steps: int
    step: int
    parameters: dict[str, int]
    coverage: float | None = None


def build_source(
    row: Row, training: Examples, models: Path, max_length: int
) -> WordVectors | LearnedEmbedding | TransformerTokens:
    """Return what gives a row its token vectors.

    Args:
        row: The row.
        training: The training pairs, on which subwords are learned.
        models: Folder of the models.
        max_length: Tokens of a text.

    Returns:
        The source.
    """
    if row.source == "words":
        return WordVectors.from_file(models / row.model / "vectors.txt.gz", trainable=row.trainable)
    if row.source == "subwords":
        return LearnedEmbedding.from_texts([*training.first, *training.second], row.width, row.vocabulary)
    # Its two special tokens are no tokens of a text.
    pipeline = Pipeline(row.name, row.model, max_length=max_length + 2)
    return TransformerTokens(build_model(pipeline, models, seed=0))


def train_matcher(
    row: Row,
    task: Task,
    config: RE2Config,
    schedule: RE2Schedule,
    training: Examples,
    dev: Examples,
    models: Path,
    patience: int,
    seed: int,
    device: str | None,
) -> Trained:
    """Train RE2; the weights of the best epoch on dev are kept.

    Args:
        row: The row.
        task: The task.
        config: The network.
        schedule: Its schedule.
        training: Training pairs.
        dev: Dev pairs.
        models: Folder of the models.
        patience: Epochs without a better dev score after which the training ends.
        seed: Seed of weights, order and dropout.
        device: Where to compute.

    Returns:
        The trained row.
    """
    torch.manual_seed(seed)
    source = build_source(row, training, models, task.max_length)
    matcher = RE2Matcher(source, config, None if task.ranked else list(task.classes))
    metric = "map" if task.ranked else "accuracy"
    given = ([(*pair, int(label)) for pair, label in zip(e.pairs, e.gold, strict=True)] for e in (training, dev))
    done = matcher.fit(
        *given,
        metric=metric,
        schedule=schedule,
        patience=patience,
        seed=seed,
        device=device,
        show_progress_bar=False,
    )
    # A score's logit: a sigmoid would tie the surest answers.
    options: dict[str, Any] = {"activation_fn": nn.Identity()} if task.ranked else {}
    texts = [*training.first, *training.second]
    return Trained(
        partial(predict, matcher, **options),
        done.steps,
        done.step,
        _parameters(matcher.network, source),
        source.covered(texts) if isinstance(source, WordVectors) else None,
    )


def train_siamese(
    row: Row,
    task: Task,
    schedule: RE2Schedule,
    training: Examples,
    dev: Examples,
    models: Path,
    patience: int,
    seed: int,
    device: str | None,
) -> Trained:
    """Train means of word vectors and a softmax on [u; v; |u - v|]; the weights of the best epoch on dev are kept.

    Unknown words share a vector of zeros, which is trained with the others where they are.

    Args:
        row: The row.
        task: The task.
        schedule: Learning rate (with the host's warm-up and decay), batch size and epochs.
        training: Training pairs.
        dev: Dev pairs.
        models: Folder of the models.
        patience: Epochs without a better dev score after which the training ends.
        seed: Seed of weights and order.
        device: Where to compute.

    Returns:
        The trained row.
    """
    torch.manual_seed(seed)
    words = WordVectors.from_file(models / row.model / "vectors.txt.gz")
    coverage = words.covered([*training.first, *training.second])
    words.tokenizer.enable_truncation(task.max_length)
    static = StaticEmbedding(words.tokenizer, words.embedding.weight.detach().clone())
    static.requires_grad_(row.trainable)
    model = SentenceTransformer(modules=[static], device=device)
    loss, logits = softmax_siamese(model, len(task.classes), nn.CrossEntropyLoss())
    loss.to(model.device)
    answer = partial(_score, logits) if task.ranked else logits
    epoch = len(training) // schedule.batch_size
    best = BestWeightsCallback(loss, "eval_dev", patience)
    steps = train(
        model,
        loss,
        training,
        [int(label) for label in training.gold],
        schedule.epochs * epoch,
        schedule.batch_size,
        schedule.learning_rate,
        seed,
        _DevScore(answer, dev, "map" if task.ranked else "accuracy"),
        epoch,
        [best],
    )
    best.restore()
    return Trained(answer, steps, best.step, _parameters(loss.get_submodule("classifier"), static), coverage)


class _DevScore(BaseEvaluator):
    """The dev score that the matcher's own training is watched by."""

    def __init__(self, answer: Answer, dev: Examples, metric: str) -> None:
        super().__init__()
        self.answer, self.dev, self.metric = answer, dev, metric

    def __call__(self, model: Any, *args: Any, **kwargs: Any) -> dict[str, float]:
        found = self.answer(self.dev)
        found = found if found.ndim == 2 else found[:, None]
        return {"dev": measure(self.metric, found, np.array(self.dev.gold), self.dev.first)}


def _score(logits: Answer, examples: Examples) -> Array:
    found = logits(examples)
    return found[:, 1] - found[:, 0]


def _parameters(network: nn.Module, embeddings: nn.Module) -> dict[str, int]:
    every = [*network.parameters(), *embeddings.parameters()]
    return {
        "network": sum(weight.numel() for weight in network.parameters()),
        "embeddings": sum(weight.numel() for weight in embeddings.parameters()),
        "trained": sum(weight.numel() for weight in every if weight.requires_grad),
    }
