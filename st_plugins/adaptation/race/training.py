"""Training one entry of the race in the host's trainer."""

from __future__ import annotations

import contextlib
import copy
import random
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sentence_transformers import (
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
)
from torch import nn
from transformers import (
    PrinterCallback,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
    set_seed,
)

from st_plugins.adaptation.race.entries import LOW_RANK, LOW_RANK_RATE, STATIC_RATE, Entry, columns_of, loss_of
from st_plugins.core.batching import LengthGroupedBatchSampler
from st_plugins.core.devices import check_placement
from st_plugins.core.host import quiet, rebuild
from st_plugins.core.loss import forked_rng
from st_plugins.core.nan_guard import NonFiniteLossCallback


@dataclass(frozen=True)
class Schedule:
    """How each entry is trained."""

    batches: int
    batch_size: int = 64
    learning_rate: float = 3e-5
    warmup: float = 0.1  # share of the batches
    max_seq_length: int | None = 64  # tokens of a text that are trained on
    prompt: str | None = None
    seed: int = 0
    bf16: bool = False  # passes in bfloat16; weights stay float32


def train(
    given: SentenceTransformer,
    entry: Entry,
    texts: list[str],
    schedule: Schedule,
    on_batch: Callable[[], Any] = lambda: None,
) -> SentenceTransformer:
    """Return a trained copy of a model, in evaluation mode; the given one stays as it is."""
    from datasets import Dataset

    columns = columns_of(entry, texts, schedule.seed)
    rows = len(next(iter(columns.values())))
    if rows < 2 * schedule.batch_size:
        raise ValueError(f"only {rows} of the {len(texts)} texts can be used for it, fewer than two batches")
    model = rebuild(given, list(given)).train()
    # Else the host computes some from the texts for a card that nobody reads.
    model.model_card_data.widget = [{"text": ""}]
    with tempfile.TemporaryDirectory() as folder, _seeded(schedule.seed, given.device), quiet():
        if entry.low_rank:
            _add_low_rank(model)
        loss = loss_of(entry, model, Path(folder))
        trainer = SentenceTransformerTrainer(
            model=model,
            args=_arguments(folder, schedule, _rate(entry, model), given.device.type == "cpu"),
            train_dataset=Dataset.from_dict(columns),
            loss=loss,
            callbacks=[NonFiniteLossCallback(loss), _OnBatch(on_batch)],
        )
        collator: Any = trainer.data_collator
        collator.max_length = schedule.max_seq_length
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    trained: SentenceTransformer = _merged(model, given) if entry.low_rank else model
    # The host writes the training into the card, with samples of the texts: the race has a section of its own.
    return rebuild(trained, list(trained)).eval()


def _rate(entry: Entry, model: SentenceTransformer) -> float:
    if entry.low_rank:
        return LOW_RANK_RATE
    return STATIC_RATE if model.transformers_model is None else 1.0


def _arguments(folder: str, schedule: Schedule, rate: float, cpu: bool) -> SentenceTransformerTrainingArguments:
    arguments = SentenceTransformerTrainingArguments(
        output_dir=folder,
        max_steps=schedule.batches,
        per_device_train_batch_size=schedule.batch_size,
        dataloader_drop_last=True,
        batch_sampler=LengthGroupedBatchSampler,
        learning_rate=schedule.learning_rate * rate,
        # A share, as it is below 1; of a single batch it would be all, with a rate of 0.
        warmup_steps=schedule.warmup if schedule.batches > 1 else 0,
        weight_decay=0.01,
        max_grad_norm=1.0,
        seed=schedule.seed,
        prompts=schedule.prompt or None,
        bf16=schedule.bf16,
        use_cpu=cpu,
        dataloader_pin_memory=not cpu,  # which warns there
        eval_strategy="no",
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    check_placement(arguments, None, "a race uses one: set CUDA_VISIBLE_DEVICES=0")
    return arguments


@contextlib.contextmanager
def _seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seed all that draws inside the block, new weights of adapters and decoders too, and put it back after."""
    # The trainer seeds as well, but only after those were drawn, and leaves the seed to whoever called.
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002 - the host draws from it
    try:
        with forked_rng(device):
            set_seed(seed)
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002 - the host draws from it


class _OnBatch(TrainerCallback):
    """Tell the bar that a batch is done."""

    def __init__(self, told: Callable[[], Any]) -> None:
        self.told = told

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Tell it."""
        self.told()


def _add_low_rank(model: nn.Module) -> None:
    from peft import LoraConfig

    if any(getattr(module, "peft_config", None) for module in model.modules()):
        raise ValueError("the model has an adapter already; merge it first")
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    config = LoraConfig(r=LOW_RANK, lora_alpha=2 * LOW_RANK, target_modules="all-linear")
    model.add_adapter(config)  # type: ignore[operator]
    # Layers behind the encoder are no part of it, and would be trained whole; what was frozen stays as it is.
    for name, parameter in model.named_parameters():
        layer, found, _ = name.partition(".lora_")
        parameter.requires_grad_(bool(found) and f"{layer}.weight" not in frozen)


def _merged(model: SentenceTransformer, given: SentenceTransformer) -> SentenceTransformer:
    """Return the given model with the trained adapters added to its weights: a plain model again."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    for module in model.modules():
        if isinstance(module, BaseTunerLayer):
            module.merge()
    merged = copy.deepcopy(given)
    state = {
        name.replace(".base_layer.", "."): tensor for name, tensor in model.state_dict().items() if "lora_" not in name
    }
    merged.load_state_dict(state)
    return merged
