"""Masked words of one text, recovered with the help of another that says the same.

It is the translation language modelling of Lample & Conneau (2019) within one language, with words masked in one of
the two texts only: a masked language model that has seen single sentences learns to look from one text to the other.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from datasets import Dataset
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader
from transformers import AutoModelForMaskedLM, AutoTokenizer, Trainer, TrainingArguments, set_seed

from st_plugins.core.batching import LengthGroupedBatchSampler

if TYPE_CHECKING:
    from evaluation.studies.virt.reading import Reading


_IGNORED = -100
_KEPT = 0.1  # of what is asked for stays visible, as in BERT


@dataclass
class Masking:
    """Turn pairs into batches in which words of the second text are masked; which text comes second is drawn."""

    tokenizer: Any
    share: float  # of the second text's tokens that are asked for
    max_length: int  # tokens of both texts
    generator: torch.Generator

    def __call__(self, rows: list[dict[str, str]]) -> dict[str, Tensor]:
        """Make a batch, with ``labels`` (N, n): what is asked for, and -100 elsewhere."""
        swapped = torch.rand(len(rows), generator=self.generator) < 0.5
        pairs = [
            (row["sentence2"], row["sentence1"]) if swap else (row["sentence1"], row["sentence2"])
            for row, swap in zip(rows, swapped.tolist(), strict=True)
        ]
        features = self.tokenizer(
            pairs, truncation=True, max_length=self.max_length, padding=True, return_tensors="pt"
        )
        second = torch.tensor([[place == 1 for place in features.sequence_ids(row)] for row in range(len(rows))])
        ids = features["input_ids"]
        asked = second & (torch.rand(ids.shape, generator=self.generator) < self.share)
        hidden = asked & (torch.rand(ids.shape, generator=self.generator) >= _KEPT)
        masked = ids.masked_fill(hidden, self.tokenizer.mask_token_id)
        return {**features, "input_ids": masked, "labels": ids.masked_fill(~asked, _IGNORED)}


class _Trainer(Trainer):
    """The host's trainer, with batches of similar length, and a head that looks at masked words only."""

    def get_train_dataloader(self) -> DataLoader[Any]:
        rows: Any = self.train_dataset
        size, seed = self.args.train_batch_size, self.args.seed
        batches = LengthGroupedBatchSampler(
            rows, batch_size=size, drop_last=True, generator=torch.Generator(), seed=seed
        )
        loader: DataLoader[Any] = DataLoader(rows, batch_sampler=batches, collate_fn=self.data_collator)
        prepared: DataLoader[Any] = self.accelerator.prepare(loader)
        return prepared

    def compute_loss(
        self, model: nn.Module, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        labels = inputs.pop("labels")
        asked = labels != _IGNORED
        inner: Any = self.accelerator.unwrap_model(model)
        # Logits of the whole vocabulary at every place would be most of the cost.
        logits = inner.cls(inner.base_model(**inputs).last_hidden_state[asked])
        loss = cross_entropy(logits, labels[asked])
        return (loss, {"logits": logits}) if return_outputs else loss


def train_masked(source: Path, pairs: list[tuple[str, str]], reading: Reading, steps: int, device: str) -> Any:
    """Train the masked language model of a folder on pairs that say the same, and return it on the CPU."""
    set_seed(0)
    model: Any = AutoModelForMaskedLM.from_pretrained(str(source), local_files_only=True)
    if not hasattr(model, "cls"):
        raise TypeError(f"[reading] needs a model with BERT's head, but {source.name!r} is a {type(model).__name__}")
    tokenizer = AutoTokenizer.from_pretrained(str(source), local_files_only=True)
    masking = Masking(tokenizer, reading.masked, reading.max_length, torch.Generator().manual_seed(0))
    first, second = zip(*pairs, strict=True)
    with tempfile.TemporaryDirectory() as folder:
        _Trainer(
            model=model,
            args=TrainingArguments(
                output_dir=folder,
                max_steps=steps,
                per_device_train_batch_size=reading.batch_size,
                learning_rate=reading.masked_learning_rate,
                warmup_steps=0.1,  # a share of the steps
                weight_decay=0.01,
                remove_unused_columns=False,
                save_strategy="no",
                logging_steps=50,
                report_to=[],
                use_cpu=device == "cpu",
            ),
            data_collator=masking,
            train_dataset=Dataset.from_dict({"sentence1": list(first), "sentence2": list(second)}),
        ).train()
    return model.cpu()
