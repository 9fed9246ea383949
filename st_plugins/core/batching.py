"""Batches of texts of similar length, which need little padding."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from sentence_transformers.base.sampler import DefaultBatchSampler

if TYPE_CHECKING:
    from datasets import Dataset

_POOL = 50


def text_length(texts: Any) -> int:
    """Return the number of characters of a text, or of several together."""
    return len("".join(texts))


def _is_text(value: Any) -> bool:
    return isinstance(value[0] if isinstance(value, list) and value else value, str)


class LengthGroupedBatchSampler(DefaultBatchSampler):
    """Sort 50 batches' worth of shuffled rows by length, cut them into batches, and shuffle the batches."""

    # The class goes into SentenceTransformerTrainingArguments(batch_sampler=...).

    def __init__(self, dataset: Dataset, **kwargs: Any) -> None:
        super().__init__(dataset, **kwargs)
        # Labels may be lists too, of numbers: only texts count.
        # With several datasets the host adds a dataset's name to its rows, which is no column.
        columns = [name for name in dataset.column_names if _is_text(dataset[0][name])]
        self.lengths = [
            sum(text_length(texts) for texts in row) for row in zip(*(dataset[c] for c in columns), strict=True)
        ]

    def __iter__(self) -> Iterator[list[int]]:
        """Yield batches of row numbers."""
        generator = (self.generator or torch.Generator()).manual_seed(self.seed + self.epoch)
        order = torch.randperm(len(self.lengths), generator=generator).tolist()
        batches: list[list[int]] = []
        for begin in range(0, len(order), _POOL * self.batch_size):
            pool = sorted(order[begin : begin + _POOL * self.batch_size], key=self.lengths.__getitem__)
            batches += [pool[k : k + self.batch_size] for k in range(0, len(pool), self.batch_size)]
        if self.drop_last:
            batches = [batch for batch in batches if len(batch) == self.batch_size]
        for number in torch.randperm(len(batches), generator=generator).tolist():
            yield batches[number]
