"""The rows of the RE2 study: matchers and Siamese encoders of word vectors, trained with early stopping on dev."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.evaluation import BaseEvaluator
from sentence_transformers.sentence_transformer.modules import StaticEmbedding
from torch import nn

from evaluation.engine.pairs import Answer, Array, Examples
from evaluation.engine.pipelines import Pipeline, build_model
from evaluation.engine.training import predict, softmax_siamese, train
from evaluation.studies.re2.word_embeddings import cosine_answer, word_embeddings
from st_plugins.core.pair_metrics import measure
from st_plugins.matching import LearnedEmbedding, RE2Matcher, TransformerTokens, WordVectors
from st_plugins.methods.re2.checkpoints import BestWeightsCallback

if TYPE_CHECKING:
    from evaluation.studies.re2.setting import Setting
    from evaluation.studies.re2.study import Row


@dataclass(frozen=True)
class Trained:
    """A trained row."""

    answer: Answer
    steps: int  # training steps made
    step: int  # the one of which the weights were kept
    parameters: dict[str, int]  # of the ``network``, of the ``embeddings``, and of those ``trained``
    coverage: float | None = None  # share of the training texts' tokens with a vector; None where the source knows all


def build_source(
    row: Row, training: Examples, models: Path, max_length: int
) -> WordVectors | LearnedEmbedding | TransformerTokens:
    """Return what gives a row its token vectors; subwords are learned on the training pairs."""
    if row.source == "words":
        return WordVectors.from_file(models / row.model / "vectors.txt.gz", trainable=row.trainable)
    if row.source == "embeddings":
        return word_embeddings(row.model, row.form, row.dimensions, training.texts, models)
    if row.source == "subwords":
        return LearnedEmbedding.from_texts(training.texts, row.width, row.vocabulary)
    # Its two special tokens are no tokens of a text.
    pipeline = Pipeline(row.name, row.model, max_length=max_length + 2)
    return TransformerTokens(build_model(pipeline, models, seed=0))


def train_matcher(row: Row, setting: Setting) -> Trained:
    """Train RE2; the weights of the best epoch on dev are kept."""
    study, task, training = setting.study, setting.task, setting.training
    torch.manual_seed(setting.seed)
    source = build_source(row, training, setting.place.models, task.max_length)
    config = study.config_of(row, setting.name)
    matcher = RE2Matcher(source, config, None if task.ranked else list(task.classes))
    given = (
        [(*pair, int(label)) for pair, label in zip(examples.pairs, examples.gold, strict=True)]
        for examples in (training, setting.dev)
    )
    done = matcher.fit(
        *given,
        metric="map" if task.ranked else "accuracy",
        schedule=setting.schedule(row),
        patience=study.patience,
        seed=setting.seed,
        device=setting.place.on,
        show_progress_bar=False,
    )
    # A score's logit: a sigmoid would tie the surest answers.
    options: dict[str, Any] = {"activation_fn": nn.Identity()} if task.ranked else {}
    return Trained(
        partial(predict, matcher, **options),
        done.steps,
        done.step,
        _parameters(matcher.network, source),
        source.covered(training.texts) if isinstance(source, WordVectors) else None,
    )


def train_siamese(row: Row, setting: Setting) -> Trained:
    """Train means of word vectors and a softmax on [u; v; |u - v|]; the weights of the best epoch on dev are kept.

    Unknown words share a vector of zeros, which is trained with the others where they are.
    """
    task, training, schedule = setting.task, setting.training, setting.schedule(row)
    torch.manual_seed(setting.seed)
    words = WordVectors.from_file(setting.place.models / row.model / "vectors.txt.gz")
    coverage = words.covered(training.texts)
    words.tokenizer.enable_truncation(task.max_length)
    static = StaticEmbedding(words.tokenizer, words.embedding.weight.detach().clone())
    static.requires_grad_(row.trainable)
    model = SentenceTransformer(modules=[static], device=setting.place.on)
    loss, logits = softmax_siamese(model, len(task.classes), nn.CrossEntropyLoss())
    loss.to(model.device)
    answer = partial(_score, logits) if task.ranked else logits
    epoch = len(training) // schedule.batch_size
    best = BestWeightsCallback(loss, "eval_dev", setting.study.patience)
    state = train(
        model,
        loss,
        training.columns([int(label) for label in training.gold]),
        seed=setting.seed,
        batch_size=schedule.batch_size,
        evaluator=_DevScore(answer, setting.dev, "map" if task.ranked else "accuracy"),
        callbacks=[best],
        max_steps=schedule.epochs * epoch,
        learning_rate=schedule.learning_rate,
        eval_strategy="steps",
        eval_steps=epoch,
    )
    best.restore()
    parameters = _parameters(loss.get_submodule("classifier"), static)
    return Trained(answer, int(state.global_step), best.step, parameters, coverage)


def choose_cosine(row: Row, setting: Setting) -> Trained:
    """Choose the thresholds of the cosine on dev; nothing is trained."""
    task, training = setting.task, setting.training
    source: Any = build_source(row, training, setting.place.models, task.max_length)
    answer = cosine_answer(source, setting.dev, len(task.classes), task.ranked, task.max_length)
    return Trained(answer, 0, 0, _parameters(nn.Identity(), source), source.covered(training.texts))


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
