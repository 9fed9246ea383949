"""Train an RE2 matcher with the trainer of transformers."""

from __future__ import annotations

import logging
import math
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import torch
from sentence_transformers.util import batch_to_device
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy
from torch.nn.utils.rnn import pad_sequence
from torch.optim import Adam
from torch.optim.lr_scheduler import LambdaLR
from transformers import EvalPrediction, PrinterCallback, TrainerCallback, TrainerState, TrainingArguments

from st_plugins.core.devices import check_device, check_placement
from st_plugins.core.labeled import LabeledPairs
from st_plugins.core.nonfinite import NonFiniteLossError, refuse_damaged_weights
from st_plugins.core.pair_metrics import Accuracy, measure, measure_accuracy
from st_plugins.core.writing.checkpoints import CheckpointCallback, CheckpointFolder
from st_plugins.methods.re2.checkpoints import (
    BestWeightsCallback,
    MatcherTrainer,
    OrderOfLengths,
    SaveCallback,
    digest_of,
    digest_of_pairs,
    digest_of_state,
)
from st_plugins.methods.re2.config import RE2Schedule
from st_plugins.methods.re2.encoded_text import saying_cut
from st_plugins.methods.re2.layers import normalized_weights
from st_plugins.methods.re2.matcher_training import MatcherTraining
from st_plugins.methods.re2.transformer_tokens import TransformerTokens

logger = logging.getLogger(__name__)

# The published warm-up is one eighth of the published training; a shorter training has a shorter one.
_MOST_WARMUP = 1 / 8
_TRANSFORMER_LEARNING_RATE = 2e-5
_TEXTS_AT_A_TIME = 1024
_LOOKED_AT = 32  # pairs that the finished matcher has to score


def shortened(schedule: RE2Schedule, pairs: int) -> RE2Schedule:
    """Return a schedule whose warm-up ends in time."""
    # The published one for SNLI takes two million pairs; a training on few would never reach its learning rate.
    most = int(pairs * schedule.epochs * _MOST_WARMUP)
    if schedule.warmup_samples <= most:
        return schedule
    logger.info("Warm-up shortened from %d to %d pairs, an eighth of the training", schedule.warmup_samples, most)
    return replace(schedule, warmup_samples=most)


def train_matcher(
    matcher: Any,
    train: LabeledPairs,
    dev: LabeledPairs | None,
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
    checkpoints: str | Path | None,
    resume: bool,
    overwrite: bool,
    source: str = "",
) -> MatcherTraining:
    """Train a matcher in place; see `RE2Matcher.fit`."""
    # Its type is RE2Matcher, whose file imports this one.
    check_device(device)
    steps_an_epoch = math.ceil(len(train) / schedule.batch_size)
    best = None if dev is None else BestWeightsCallback(matcher, f"eval_{metric}", patience)
    tokens = _tokens(matcher, [pairs for pairs in (train, dev) if pairs is not None])
    with saying_cut(matcher.source, matcher.config) as read:
        read |= {text: len(ids) for text, ids in tokens.items()}
    rows, judged = _rows(tokens, train), None if dev is None else _rows(tokens, dev)
    kept: CheckpointFolder | None = None
    start: Path | None = None
    if checkpoints is not None:
        settings = {
            "train": digest_of_pairs(train, matcher.labels),
            "dev": digest_of_pairs(dev, matcher.labels),
            "labels": matcher.labels,
            **matcher.config.to_dict(),
            **schedule.to_dict(),
            "metric": metric,
            "patience": patience,
            "eval_steps": eval_steps,
            "source_learning_rate": source_learning_rate,
            "seed": seed,
            "bf16": bf16,
            "source": f"{type(matcher.source).__name__}, {digest_of_state(matcher.source)}",
            "train_tokens": digest_of([rows["first"][:], rows["second"][:]]),
            "weights": digest_of_state(matcher.network),
        }
        kept = CheckpointFolder(Path(checkpoints), settings)
        start = kept.open(resume=resume, overwrite=overwrite)
    schedule = shortened(schedule, len(train))
    try:
        with ExitStack() as stack:
            # Without checkpoints, the trainer wants a folder all the same, and writes nothing to it.
            folder = stack.enter_context(tempfile.TemporaryDirectory()) if kept is None else str(kept.path)
            stack.enter_context(normalized_weights(matcher.network))
            stack.enter_context(_finally_evaluating(matcher))
            arguments = TrainingArguments(
                output_dir=folder,
                num_train_epochs=schedule.epochs,
                per_device_train_batch_size=schedule.batch_size,
                per_device_eval_batch_size=schedule.batch_size,
                max_grad_norm=schedule.gradient_clipping,
                seed=seed,
                bf16=bf16,
                use_cpu=device == "cpu",
                eval_strategy="no" if dev is None else "steps",  # at an epoch's last step, before it is saved
                eval_steps=eval_steps or steps_an_epoch,
                save_strategy="no",  # SaveCallback says when
                logging_steps=max(1, steps_an_epoch * schedule.epochs // 20),
                label_names=["labels", "queries"],
                remove_unused_columns=False,
                report_to="none",
                disable_tqdm=not show_progress_bar,
            )
            check_placement(arguments, device, "fit uses one: set CUDA_VISIBLE_DEVICES=0")
            saving = [] if kept is None else [SaveCallback(steps_an_epoch), CheckpointCallback(kept)]
            trainer = MatcherTrainer(
                OrderOfLengths(rows["length"], schedule.batch_size, seed),
                model=_Objective(matcher),
                args=arguments,
                data_collator=_collate,
                train_dataset=rows,
                eval_dataset=judged,
                compute_metrics=_metrics(metric),
                optimizers=_optimizer(matcher, schedule, source_learning_rate),
                callbacks=[*([] if best is None else [best]), *callbacks, *saving],
            )
            if arguments.disable_tqdm:
                trainer.remove_callback(PrinterCallback)
            _train(trainer, best, start)
        _check_finished(matcher, list(rows.select(range(min(len(rows), _LOOKED_AT)))))
    except BaseException:
        if kept is not None:
            kept.keep_if_useful()
        raise
    steps = trainer.state.global_step
    found = MatcherTraining(
        pairs=len(train),
        dev_pairs=0 if dev is None else len(dev),
        steps=steps,
        step=steps if best is None else best.step,
        metric=metric,
        score=None if best is None else best.best,
        accuracy=None if best is None else _accuracy(best.metrics),
        history=trainer.state.log_history,
        checkpoints=None if kept is None else kept.path,
        source=source,
        checksum=str(digest_of_pairs(train, matcher.labels)).rpartition(" ")[2],
    )
    matcher.trained = found.record()
    return found


def _train(trainer: MatcherTrainer, best: BestWeightsCallback | None, start: Path | None) -> None:
    """Train from the beginning or from a checkpoint, and put the best weights into the model."""
    if start is not None and best is not None:
        state = TrainerState.load_from_json(str(start / "trainer_state.json"))
        best.resume(start, state.log_history)
        if best.is_over:  # it had ended when it was killed
            trainer.state = state
            best.restore()
            return
    trainer.train(resume_from_checkpoint=None if start is None else str(start))
    if best is not None:
        best.restore()


def _check_finished(matcher: Any, rows: list[dict[str, Any]]) -> None:
    """Refuse what a last step ruined: no loss was computed after it."""
    refuse_damaged_weights(matcher.network)
    batch, device = _collate(rows), next(matcher.network.parameters()).device
    with torch.no_grad():
        logits = matcher(*(batch_to_device(batch[side], device) for side in ("first", "second")))
    if not logits.isfinite().all():
        raise NonFiniteLossError(
            "what the last step left gives no finite scores; train with a lower learning rate", remedy=""
        )


def _accuracy(metrics: Mapping[str, float]) -> Accuracy | None:
    """Return the accuracy among the trainer's metrics, if it was measured."""
    if "eval_accuracy_value" not in metrics:
        return None
    return Accuracy(*(metrics[f"eval_accuracy_{field.name}"] for field in fields(Accuracy)))


@contextmanager
def _finally_evaluating(matcher: Any) -> Iterator[None]:
    """Leave a matcher in evaluation mode, after an error too."""
    try:
        yield
    finally:
        matcher.eval()


class _Objective(nn.Module):
    """A matcher and its loss, as the trainer calls them."""

    def __init__(self, matcher: Any) -> None:
        super().__init__()
        self.matcher = matcher

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Return what is trained: frozen vectors may be large, and a checkpoint does not need them."""
        frozen = {name for name, weight in self.named_parameters() if not weight.requires_grad}
        return {name: value for name, value in super().state_dict(*args, **kwargs).items() if name not in frozen}

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Read what `state_dict` gave."""
        missing = self.state_dict().keys() - state_dict.keys()
        found = super().load_state_dict(state_dict, strict=False, assign=assign)
        if missing or found.unexpected_keys:
            raise ValueError(f"the checkpoint is of another network: {sorted([*missing, *found.unexpected_keys])[:4]}")
        return type(found)([], [])

    def forward(
        self, first: dict[str, Tensor], second: dict[str, Tensor], labels: Tensor, queries: Tensor
    ) -> dict[str, Tensor]:
        logits: Tensor = self.matcher(first, second)
        if self.matcher.labels is None:
            loss = binary_cross_entropy_with_logits(logits[:, 0].float(), labels)
        else:
            loss = cross_entropy(logits.float(), labels)
        if not loss.isfinite():
            raise NonFiniteLossError(
                f"the loss became {loss.item()}, nothing was updated by this batch; train with a lower learning rate, "
                "and check that the source's vectors are finite",
                remedy="",
            )
        return {"loss": loss, "logits": logits}


def _tokens(matcher: Any, given: Sequence[LabeledPairs]) -> dict[str, list[int]]:
    """Tokenize each text once."""
    texts = list(dict.fromkeys(text for pairs in given for text in (*pairs.first, *pairs.second)))
    tokens: dict[str, list[int]] = {}
    for begin in range(0, len(texts), _TEXTS_AT_A_TIME):
        part = texts[begin : begin + _TEXTS_AT_A_TIME]
        features = matcher.source.tokenize(part, matcher.config.max_seq_length)
        kept = features["attention_mask"].bool()
        for text, ids, mask in zip(part, features["input_ids"], kept, strict=True):
            tokens[text] = ids[mask].tolist()
    return tokens


def _rows(tokens: Mapping[str, list[int]], pairs: LabeledPairs) -> Any:
    """Return the dataset of pairs; queries are numbers of the distinct first texts."""
    from datasets import Dataset

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


def _optimizer(matcher: Any, schedule: RE2Schedule, source_learning_rate: float | None) -> tuple[Adam, LambdaLR]:
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
