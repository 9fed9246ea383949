"""Batches by length: every row once, little padding, another order every epoch."""

from __future__ import annotations

import torch
from datasets import Dataset

from st_plugins.core.batching import LengthGroupedBatchSampler


def _sampler(drop_last: bool) -> LengthGroupedBatchSampler:
    texts = ["x" * (1 + 37 * row % 101) for row in range(101)]
    rows = Dataset.from_dict({"text": texts, "label": [0] * 101})
    return LengthGroupedBatchSampler(rows, batch_size=4, drop_last=drop_last, generator=torch.Generator(), seed=3)


def test_every_row_once_and_neighbours_in_length() -> None:
    sampler = _sampler(drop_last=False)
    batches = list(sampler)
    assert sorted(row for batch in batches for row in batch) == list(range(101))
    lengths = [[1 + 37 * row % 101 for row in batch] for batch in batches]
    assert all(max(batch) - min(batch) <= 3 for batch in lengths)  # all 101 lengths differ and are sorted as one pool
    means = [sum(batch) / len(batch) for batch in lengths]
    assert means != sorted(means)
    assert len(batches) == len(sampler)


def test_incomplete_batches_are_dropped_and_epochs_differ() -> None:
    sampler = _sampler(drop_last=True)
    first = list(sampler)
    assert len(first) == len(sampler) == 25 and all(len(batch) == 4 for batch in first)
    assert first == list(_sampler(drop_last=True))
    sampler.set_epoch(1)
    assert list(sampler) != first


def test_pairs_count_together() -> None:
    rows = Dataset.from_dict(
        {"pair": [["a", "b" * 9], ["c" * 5, "d" * 5], ["e", "f"], ["g", "h"]], "label": [0, 1, 0, 1]}
    )
    batches = LengthGroupedBatchSampler(rows, batch_size=2, drop_last=False, generator=torch.Generator())
    assert sorted(sorted(batch) for batch in batches) == [[0, 1], [2, 3]]


def test_labels_that_are_lists_of_numbers_do_not_count() -> None:
    columns = {"sentence1": ["a", "bb"], "sentence2": ["c", "d"], "label": [[0.25, 0.75], [1.0, 0.0]]}
    sampler = LengthGroupedBatchSampler(Dataset.from_dict(columns), batch_size=1, drop_last=False)
    assert sampler.lengths == [2, 3]
