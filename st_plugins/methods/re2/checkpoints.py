"""What lets a killed training of an RE2 matcher go on as if nothing had happened."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader, Sampler
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

if TYPE_CHECKING:
    from st_plugins.core.labeled import LabeledPairs


_BEST = "best.safetensors"
_SECONDS_BETWEEN_SAVES = 120.0
_LONGEST_SORTED = 50  # batches: so many are sorted by length at a time, as by the host's trainer


class BestWeightsCallback(TrainerCallback):
    """Keep the trained weights of the best evaluation, stop when there is none better, and restore them at the end."""

    # Kept in memory, without frozen ones, and written into every checkpoint. Of equal evaluations the first counts.

    def __init__(self, model: nn.Module, metric: str, patience: int | None) -> None:
        self.model, self.metric, self.patience = model, metric, patience
        self.best: float | None = None
        self.metrics: dict[str, float] = {}
        self.step = self._worse = 0
        self._weights: dict[str, Tensor] = {}

    @property
    def is_over(self) -> bool:
        """Whether the last evaluations were no better than the best."""
        return self.patience is not None and self._worse >= self.patience

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: Mapping[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Keep the weights if they are the best so far; count the evaluations since."""
        if self._count(metrics or {}, state.global_step):
            self._weights = {
                name: weight.detach().clone() for name, weight in self.model.named_parameters() if weight.requires_grad
            }
        if self.is_over:
            control.should_training_stop = True

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Write the best weights into the checkpoint."""
        folder = Path(str(args.output_dir), f"checkpoint-{state.global_step}")
        save_file({name: weight.cpu().contiguous() for name, weight in self._weights.items()}, folder / _BEST)

    def resume(self, checkpoint: Path, history: Iterable[Mapping[str, Any]]) -> None:
        """Be as after the last evaluation before a checkpoint."""
        for entry in history:
            if self.metric in entry:
                self._count(entry, int(entry["step"]))
        self._weights = load_file(checkpoint / _BEST)

    def restore(self) -> None:
        """Put the best weights into the model."""
        with torch.no_grad():
            for name, weight in self.model.named_parameters():
                if name in self._weights:
                    weight.copy_(self._weights[name])

    def _count(self, metrics: Mapping[str, Any], step: int) -> bool:
        value = metrics[self.metric]
        better = self.best is None or value > self.best
        if better:
            self.best, self.step, self._worse, self.metrics = value, step, 0, dict(metrics)
        else:
            self._worse += 1
        return better


class SaveCallback(TrainerCallback):
    """Have the trainer save at the end of each epoch, and when two minutes have passed."""

    # Both at the end of a step, where the evaluation of that step comes first.

    def __init__(self, steps_an_epoch: int) -> None:
        self.steps_an_epoch = steps_an_epoch
        self._saved = time.monotonic()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Ask for a checkpoint if it is time for one."""
        late = time.monotonic() - self._saved >= _SECONDS_BETWEEN_SAVES
        if late or state.global_step % self.steps_an_epoch == 0:
            control.should_save = True
            self._saved = time.monotonic()


class OrderOfLengths(Sampler[int]):
    """An order of rows in which those of a batch are of similar length, another one in each epoch."""

    # It depends on seed and epoch alone: a resumed training has the order of the one that was killed.

    def __init__(self, lengths: list[int], batch_size: int, seed: int) -> None:
        self.lengths, self.batch_size, self.seed = lengths, batch_size, seed
        self.epoch = 0

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(1_000_003 * self.seed + self.epoch)
        rows = torch.randperm(len(self.lengths), generator=generator).tolist()
        size = self.batch_size * max(1, min(_LONGEST_SORTED, len(rows) // (4 * self.batch_size)))
        for begin in range(0, len(rows), size):
            yield from sorted(rows[begin : begin + size], key=self.lengths.__getitem__, reverse=True)


class MatcherTrainer(Trainer):
    """The trainer of transformers with an order of its own."""

    def __init__(self, order: OrderOfLengths, **options: Any) -> None:
        super().__init__(**options)
        self.order = order
        self.add_callback(_EpochCallback(order))

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Return the batches of an epoch; the trainer sets no epoch of a sampler that it does not know."""
        rows: Any = self.train_dataset
        loader = DataLoader(
            rows,
            batch_size=self.order.batch_size,
            sampler=self.order,
            collate_fn=self.data_collator,
            pin_memory=torch.cuda.is_available(),
        )
        prepared: DataLoader[Any] = self.accelerator.prepare(loader)
        return prepared


class _EpochCallback(TrainerCallback):
    def __init__(self, order: OrderOfLengths) -> None:
        self.order = order

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.order.epoch = state.global_step // -(-len(self.order) // self.order.batch_size)


def digest_of_pairs(pairs: LabeledPairs | None, classes: list[str] | None) -> str | None:
    """Return the number of pairs and the SHA-256 of their texts and labels, or None for none."""
    if pairs is None:
        return None
    labels = [classes[int(label)] for label in pairs.labels] if classes else pairs.labels
    return f"{len(pairs):,} pairs, {digest_of([pairs.first, pairs.second, labels])}"


def digest_of(values: Any) -> str:
    """Return the SHA-256 of plain JSON values."""
    return f"SHA-256 {hashlib.sha256(json.dumps(values).encode()).hexdigest()}"


def digest_of_state(module: nn.Module) -> str:
    """Return the SHA-256 of all that a module would save: names, types, shapes and bytes."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        plain = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {plain.dtype} {tuple(plain.shape)}\n".encode())
        digest.update(plain.flatten().view(torch.uint8).numpy().tobytes())
    return f"SHA-256 {digest.hexdigest()}"
