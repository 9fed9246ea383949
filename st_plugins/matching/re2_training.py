"""Train an RE2 matcher with the trainer of transformers."""

from __future__ import annotations

import logging
import math
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy
from torch.nn.utils.rnn import pad_sequence
from torch.optim import Adam
from torch.optim.lr_scheduler import LambdaLR
from transformers import (
    EvalPrediction,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from st_plugins.matching.labelled import LabelledPairs
from st_plugins.matching.metrics import Accuracy, measure, measure_accuracy
from st_plugins.matching.re2 import RE2Schedule, normalized_weights
from st_plugins.matching.re2.embedding import TransformerTokens
from st_plugins.training.devices import check_device, check_placement

if TYPE_CHECKING:
    from st_plugins.matching.re2_matcher import RE2Matcher

__all__ = ["BestWeightsCallback", "MatcherTraining", "shortened", "train_matcher"]

logger = logging.getLogger(__name__)

# The published warm-up is one eighth of the published training; a shorter training has a shorter one.
_MOST_WARMUP = 1 / 8
_TRANSFORMER_LEARNING_RATE = 2e-5
_TEXTS_AT_A_TIME = 1024


@dataclass(frozen=True)
class MatcherTraining:
    """What a training of a matcher did.

    Args:
        pairs: Number of pairs trained on.
        dev_pairs: Number of pairs that the checkpoint was chosen on; 0 if none was chosen.
        steps: Optimiser steps made.
        step: The step whose weights the matcher has now.
        metric: What the checkpoints were judged by.
        score: The highest value of it on the development pairs; None without any.
        accuracy: Share of the development pairs that these weights judge right; None without any, and for a ``metric``
            of scores or ranks.
        history: What the trainer logged: losses, learning rates, and scores on the development pairs.
    """

    pairs: int
    dev_pairs: int
    steps: int
    step: int
    metric: str
    score: float | None
    accuracy: Accuracy | None
    history: list[dict[str, Any]]

    def summary(self) -> str:
        """Say in words what was done."""
        if self.score is None:
            return (
                f"trained on {self.pairs:,} pairs, {self.steps:,} steps; no development pairs, the last step is kept"
            )
        accuracy = "" if self.accuracy is None else f": accuracy {self.accuracy}"
        return (
            f"trained on {self.pairs:,} pairs; step {self.step:,} of {self.steps:,} is kept, the one with the highest "
            f"{self.metric} ({self.score:.4f}) on {self.dev_pairs:,} development pairs{accuracy}. They took part in "
            "this choice, so scores on them flatter the model"
        )

    def record(self) -> dict[str, Any]:
        """Return what belongs to a saved matcher, as plain JSON values: all but the history."""
        return {name: value for name, value in asdict(self).items() if name != "history"}


class BestWeightsCallback(TrainerCallback):
    """Keep the trained weights of the best evaluation, stop when there is none better, and put them back at the end.

    They are kept in memory, without frozen ones. Of equal evaluations the first counts.

    Args:
        model: What is trained.
        metric: Name of the number to judge by, as the trainer reports it; higher is better.
        patience: So many evaluations in a row may be no better than the best; None never stops.

    Example:
        >>> model = nn.Linear(1, 1, bias=False)
        >>> callback = BestWeightsCallback(model, "eval_f1", patience=1)
        >>> control = TrainerControl()
        >>> for weight, value in ((0.5, 0.7), (2.0, 0.6)):
        ...     _ = model.weight.data.fill_(weight)
        ...     _ = callback.on_evaluate(None, TrainerState(), control, metrics={"eval_f1": value})
        >>> callback.restore()
        >>> control.should_training_stop, model.weight.item()
        (True, 0.5)
    """

    def __init__(self, model: nn.Module, metric: str, patience: int | None) -> None:
        self.model, self.metric, self.patience = model, metric, patience
        self.best: float | None = None
        self.step = self._worse = 0
        self._weights: dict[str, Tensor] = {}
        self._metrics: dict[str, float] = {}

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: Mapping[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Keep the weights if they are the best so far; count the evaluations since."""
        value = (metrics or {})[self.metric]
        if self.best is None or value > self.best:
            self.best, self.step, self._worse = value, state.global_step, 0
            self._metrics = dict(metrics or {})
            self._weights = {
                name: weight.detach().clone() for name, weight in self.model.named_parameters() if weight.requires_grad
            }
            return
        self._worse += 1
        if self.patience is not None and self._worse >= self.patience:
            control.should_training_stop = True

    def accuracy(self) -> Accuracy | None:
        """Return the accuracy of the best evaluation, if it was measured."""
        if "eval_accuracy_value" not in self._metrics:
            return None
        return Accuracy(*(self._metrics[f"eval_accuracy_{field.name}"] for field in fields(Accuracy)))

    def restore(self) -> None:
        """Put the best weights into the model."""
        with torch.no_grad():
            for name, weight in self.model.named_parameters():
                if name in self._weights:
                    weight.copy_(self._weights[name])


def shortened(schedule: RE2Schedule, pairs: int) -> RE2Schedule:
    """Return a schedule whose warm-up ends in time.

    The published warm-up for SNLI takes two million pairs; a training on few would never reach its learning rate.

    Args:
        schedule: The schedule.
        pairs: Number of training pairs.

    Returns:
        The same, with a warm-up of at most an eighth of the training.

    Example:
        >>> shortened(RE2Schedule.named("snli"), 1600).warmup_samples  # 30 epochs
        6000
        >>> shortened(RE2Schedule.named("snli"), 549_367).warmup_samples
        2048000
    """
    most = int(pairs * schedule.epochs * _MOST_WARMUP)
    if schedule.warmup_samples <= most:
        return schedule
    logger.info("Warm-up shortened from %d to %d pairs, an eighth of the training", schedule.warmup_samples, most)
    return replace(schedule, warmup_samples=most)


def train_matcher(
    matcher: RE2Matcher,
    train: LabelledPairs,
    dev: LabelledPairs | None,
    *,
    schedule: RE2Schedule,
    metric: str,
    patience: int | None,
    eval_steps: int | None,
    source_learning_rate: float | None,
    seed: int,
    bf16: bool,
    device: str | None,
    show_progress_bar: bool,
    callbacks: Sequence[TrainerCallback],
) -> MatcherTraining:
    """Train a matcher in place; see `RE2Matcher.fit`.

    Args:
        matcher: The matcher.
        train: What to train on.
        dev: What to choose the weights on.
        schedule: Learning rate, batches, epochs.
        metric: What they are chosen by.
        patience: Evaluations without a better one until the training ends.
        eval_steps: Steps between evaluations; None for an epoch.
        source_learning_rate: The highest one of the source's own parameters.
        seed: Seed of order and dropout.
        bf16: Whether to compute in bfloat16.
        device: Where to train.
        show_progress_bar: Whether to show a progress bar and what is logged.
        callbacks: More callbacks.

    Returns:
        What was done.

    Raises:
        ValueError: The device is not there, or the loss is NaN or infinite.
    """
    check_device(device)
    schedule = shortened(schedule, len(train))
    steps_an_epoch = math.ceil(len(train) / schedule.batch_size)
    best = None if dev is None else BestWeightsCallback(matcher, f"eval_{metric}", patience)
    # The trainer wants a folder, and writes nothing to it.
    with tempfile.TemporaryDirectory() as folder, normalized_weights(matcher.network), _finally_evaluating(matcher):
        arguments = TrainingArguments(
            output_dir=folder,
            num_train_epochs=schedule.epochs,
            per_device_train_batch_size=schedule.batch_size,
            per_device_eval_batch_size=schedule.batch_size,
            train_sampling_strategy="group_by_length",
            max_grad_norm=schedule.gradient_clipping,
            seed=seed,
            bf16=bf16,
            use_cpu=device == "cpu",
            eval_strategy="no" if dev is None else "epoch" if eval_steps is None else "steps",
            eval_steps=eval_steps,
            save_strategy="no",
            logging_steps=max(1, steps_an_epoch * schedule.epochs // 20),
            label_names=["labels", "queries"],
            remove_unused_columns=False,
            report_to="none",
            disable_tqdm=not show_progress_bar,
        )
        check_placement(arguments, device, "fit uses one: set CUDA_VISIBLE_DEVICES=0")
        trainer = Trainer(
            model=_Objective(matcher),
            args=arguments,
            data_collator=_collate,
            train_dataset=_tokenized(matcher, train),
            eval_dataset=None if dev is None else _tokenized(matcher, dev),
            compute_metrics=_metrics(metric),
            optimizers=_optimizer(matcher, schedule, source_learning_rate),
            callbacks=[*([] if best is None else [best]), *callbacks],
        )
        if arguments.disable_tqdm:
            trainer.remove_callback(PrinterCallback)
        trainer.train()
        if best is not None:
            best.restore()
    steps = trainer.state.global_step
    found = MatcherTraining(
        pairs=len(train),
        dev_pairs=0 if dev is None else len(dev),
        steps=steps,
        step=steps if best is None else best.step,
        metric=metric,
        score=None if best is None else best.best,
        accuracy=None if best is None else best.accuracy(),
        history=trainer.state.log_history,
    )
    matcher.trained = found.record()
    return found


@contextmanager
def _finally_evaluating(matcher: RE2Matcher) -> Iterator[None]:
    """Leave a matcher in evaluation mode, after an error too."""
    try:
        yield
    finally:
        matcher.eval()


class _Objective(nn.Module):
    """A matcher and its loss, as the trainer calls them."""

    def __init__(self, matcher: RE2Matcher) -> None:
        super().__init__()
        self.matcher = matcher

    def forward(
        self, first: dict[str, Tensor], second: dict[str, Tensor], labels: Tensor, queries: Tensor
    ) -> dict[str, Tensor]:
        logits: Tensor = self.matcher(first, second)
        if self.matcher.labels is None:
            loss = binary_cross_entropy_with_logits(logits[:, 0].float(), labels)
        else:
            loss = cross_entropy(logits.float(), labels)
        if not loss.isfinite():
            raise ValueError(
                f"the loss became {loss.item()}, nothing was updated by this batch; train with a lower learning rate, "
                "and check that the source's vectors are finite"
            )
        return {"loss": loss, "logits": logits}


def _tokenized(matcher: RE2Matcher, pairs: LabelledPairs) -> Any:
    """Tokenize each text once; queries are numbers of the distinct first texts."""
    from datasets import Dataset

    texts = list(dict.fromkeys([*pairs.first, *pairs.second]))
    tokens: dict[str, list[int]] = {}
    for begin in range(0, len(texts), _TEXTS_AT_A_TIME):
        part = texts[begin : begin + _TEXTS_AT_A_TIME]
        features = matcher.source.tokenize(part, matcher.config.max_length)
        kept = features["attention_mask"].bool()
        for text, ids, mask in zip(part, features["input_ids"], kept, strict=True):
            tokens[text] = ids[mask].tolist()
    first, second = ([tokens[text] for text in column] for column in (pairs.first, pairs.second))
    numbers = {text: number for number, text in enumerate(dict.fromkeys(pairs.first))}
    return Dataset.from_dict(
        {
            "first": first,
            "second": second,
            "labels": pairs.labels,
            "queries": [numbers[text] for text in pairs.first],
            "length": [len(a) + len(b) for a, b in zip(first, second, strict=True)],
        }
    )


def _collate(rows: list[dict[str, Any]]) -> dict[str, Any]:
    batch: dict[str, Any] = {side: _padded([row[side] for row in rows]) for side in ("first", "second")}
    return batch | {name: torch.tensor([row[name] for row in rows]) for name in ("labels", "queries")}


def _padded(texts: list[list[int]]) -> dict[str, Tensor]:
    """Pad on the right; which token fills is of no influence."""
    ids = pad_sequence([torch.tensor(text or [0], dtype=torch.long) for text in texts], batch_first=True)
    lengths = torch.tensor([len(text) for text in texts])
    return {"input_ids": ids, "attention_mask": (torch.arange(ids.shape[1]) < lengths[:, None]).long()}


def _metrics(metric: str) -> Callable[[EvalPrediction], dict[str, float]]:
    def compute(found: EvalPrediction) -> dict[str, float]:
        given: Any = found.label_ids
        labels, queries = given  # the trainer evaluates in an order of its own
        measured = {metric: measure(metric, found.predictions, labels, [str(query) for query in queries])}
        if metric in ("accuracy", "f1"):
            accuracy = measure_accuracy(found.predictions, labels)
            measured |= {f"accuracy_{name}": value for name, value in asdict(accuracy).items()}
        return measured

    return compute


def _optimizer(
    matcher: RE2Matcher, schedule: RE2Schedule, source_learning_rate: float | None
) -> tuple[Adam, LambdaLR]:
    if source_learning_rate is None:
        transformer = isinstance(matcher.source, TransformerTokens)
        source_learning_rate = _TRANSFORMER_LEARNING_RATE if transformer else schedule.learning_rate
    groups: list[dict[str, Any]] = [
        {"params": [weight for weight in matcher.network.parameters() if weight.requires_grad]}
    ]
    trained = [weight for weight in matcher.source.parameters() if weight.requires_grad]
    if trained:
        groups.append({"params": trained, "lr": source_learning_rate})
    optimizer = Adam(groups, lr=schedule.learning_rate)

    def factor(step: int) -> float:
        return schedule.learning_rate_after(step * schedule.batch_size) / schedule.learning_rate

    return optimizer, LambdaLR(optimizer, factor)
