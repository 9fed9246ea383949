"""Training of a masked language model on anonymised pairs, labels among the tokens it is asked for."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Sequence
from typing import Any

from torch import nn
from torch.nn.functional import cross_entropy
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from st_plugins.core.nonfinite import NonFiniteLossError
from st_plugins.methods.label_token.anonymized_pairs import AnonymizedPairs
from st_plugins.methods.label_token.masking import IGNORED, PairMasking, logits_at

logger = logging.getLogger(__name__)

AGAIN = "build the model again and train it with a lower learning_rate"


class _MaskedTrainer(Trainer):
    """The host's trainer, with an output layer that looks at the tokens asked for only."""

    def compute_loss(
        self, model: nn.Module, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        # Without labels the host's models compute logits of the whole vocabulary at every place.
        labels = inputs.pop("labels")
        asked = labels != IGNORED
        logits = logits_at(self.accelerator.unwrap_model(model), inputs, asked).float()
        # A batch of short unlabelled pairs may ask for nothing; its loss is zero, not NaN.
        loss = cross_entropy(logits, labels[asked], reduction="sum") / asked.sum().clamp(min=1)
        if not loss.isfinite():
            raise NonFiniteLossError(
                f"the loss is {loss.item()} after step {self.state.global_step}; {AGAIN}", remedy=""
            )
        return (loss, {"logits": logits}) if return_outputs else loss


def check_settings(settings: dict[str, Any]) -> None:
    """Refuse settings of a training that are out of their range."""
    ranges: dict[str, tuple[str, Any]] = {
        "epochs": ("above 0", lambda value: value > 0),
        "max_steps": ("at least 1, or None", lambda value: value is None or value >= 1),
        "batch_size": ("at least 1", lambda value: value >= 1),
        "learning_rate": ("above 0", lambda value: value > 0),
        "warmup": ("a share of the steps, at least 0 and below 1", lambda value: 0 <= value < 1),
        "masked_share": ("a share of the tokens, above 0 and below 1", lambda value: 0 < value < 1),
        "seed": ("at least 0", lambda value: value >= 0),
    }
    for name, value in settings.items():
        allowed, holds = ranges[name]
        if not holds(value):
            raise ValueError(f"{name} must be {allowed}; got {value}")


def train(
    model: Any,
    masking: PairMasking,
    pairs: AnonymizedPairs,
    *,
    epochs: float,
    max_steps: int | None,
    batch_size: int,
    learning_rate: float,
    warmup: float,
    seed: int,
    callbacks: Sequence[TrainerCallback],
    show_progress_bar: bool,
) -> list[dict[str, Any]]:
    """Train a masked language model in place, on the device it is on."""
    rows = list(zip(pairs.first, pairs.second, pairs.gold, strict=True))
    logger.info("Training on %d pairs, %d of them labelled", len(pairs), pairs.labeled)
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            num_train_epochs=epochs,
            max_steps=max_steps or -1,
            per_device_train_batch_size=batch_size,
            learning_rate=learning_rate,
            warmup_steps=warmup,
            weight_decay=0.01,
            seed=seed,
            use_cpu=model.device.type == "cpu",
            remove_unused_columns=False,
            save_strategy="no",  # so the folder, which the host asks for, stays empty
            logging_steps=0.05,
            report_to="none",
            disable_tqdm=not show_progress_bar,
        )
        dataset: Any = rows
        trainer = _MaskedTrainer(
            model=model, args=arguments, data_collator=masking, train_dataset=dataset, callbacks=list(callbacks)
        )
        if not show_progress_bar:
            trainer.remove_callback(PrinterCallback)
        trainer.train()
    log: list[dict[str, Any]] = trainer.state.log_history
    return log
