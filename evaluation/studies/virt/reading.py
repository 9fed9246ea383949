"""Teaching a small encoder to read two texts at once, before it becomes a cross-encoder.

A masked language model that has seen single sentences does not look from one text to the other, and a cross-encoder
made of it can take longer to learn that than small budgets allow. So it first recovers masked words of one text with
the help of another that says the same (``masking.py``), and then learns to tell such pairs from pairs put together at
random. A run does it by itself; before it is started twice with ``--shard``, ``--prepare`` does it once.
"""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import typer
from sentence_transformers import CrossEncoder
from sentence_transformers.cross_encoder.losses import BinaryCrossEntropyLoss
from transformers import AutoTokenizer

from evaluation.engine.pairs import Examples
from evaluation.engine.training import predict, train
from evaluation.studies.virt.masking import train_masked
from st_plugins.core.reading.tables import read_table
from st_plugins.core.writing.atomic import atomic_folder

if TYPE_CHECKING:
    from evaluation.studies.virt.study import Study


logger = logging.getLogger(__name__)

_HELD_BACK = 500  # pairs, to see how well it went


@dataclass(frozen=True)
class Reading:
    """What teaches the encoder to read two texts at once."""

    pairs: dict[str, str | float]  # files, and what marks the pairs that say the same: a label, or a lowest score
    masked_steps: int  # on masked words of one text beside the other
    steps: int  # on telling such pairs from pairs put together at random
    batch_size: int = 64
    masked: float = 0.4  # share of the second text's tokens that are asked for
    masked_learning_rate: float = 5e-4  # peak; linear warm-up over a tenth of the steps, then linear decay
    learning_rate: float = 3e-4
    max_length: int = 80  # tokens of both texts


def cache_of(study: Study) -> Path:
    """Return the folder of what is trained once for all rows."""
    if study.place.cache is None:
        raise typer.BadParameter("the cross-encoders that all rows learn from need a folder", param_hint="--cache")
    return study.place.cache


def alike(reading: Reading, data: Path) -> list[tuple[str, str]]:
    """Return the pairs that say the same, as often as the files have them; each file must have one."""
    found: list[tuple[str, str]] = []
    for file, mark in reading.pairs.items():
        table = read_table(data / file)
        if isinstance(mark, str):
            chosen = [label == mark for label in table.texts("label")]
        else:
            chosen = [score >= mark for score in table.scores("score")]
        if not any(chosen):
            raise ValueError(f"{file}: no pair has what [reading.pairs] asks for, {mark!r}")
        both = zip(table.texts("sentence1"), table.texts("sentence2"), chosen, strict=True)
        found += [(first, second) for first, second, wanted in both if wanted]
    return found


def mixed(pairs: list[tuple[str, str]], count: int, seed: int = 0) -> Examples:
    """Draw pairs that say the same, each once as it is (1) and once with another's second text of like length (0).

    They are drawn again and again until there are ``count``; half of all are swapped.
    """
    generator = np.random.default_rng(seed)
    found = Examples()
    while len(found) < count:
        order = generator.permutation(len(pairs))[: -(-(count - len(found)) // 2)]
        # The neighbour in length takes part: otherwise length would tell wrong pairs from right ones.
        rows = sorted(order.tolist(), key=lambda row: len(pairs[row][1]))
        others = rows[1:] + rows[:1]
        for row, other in zip(rows, others, strict=True):
            first = pairs[row][0]
            for text, gold in ((pairs[row][1], 1), (pairs[other][1], 0)):
                both = (first, text) if generator.random() < 0.5 else (text, first)
                found.first.append(both[0])
                found.second.append(both[1])
                found.gold.append(gold)
    return found.first_ones(count)


def reader(study: Study) -> Path:
    """Return the folder of the encoder that everything starts from, trained if the cache does not have it."""
    reading, place = study.reading, study.place
    source = place.models / study.model
    if reading is None:
        return source
    steps, masked_steps = (2, 2) if place.dry_run else (reading.steps, reading.masked_steps)
    pairs = alike(reading, place.data)

    def cached(name: str, **settings: Any) -> Path:
        text = json.dumps({**asdict(reading), **settings}, sort_keys=True)
        return cache_of(study) / f"{study.model}-{name}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"

    # What the second part alone depends on does not make another first part.
    masked = cached("masked", steps=0, masked_steps=masked_steps, learning_rate=0)
    if not masked.is_dir():
        model = train_masked(source, pairs, reading, masked_steps, place.on)
        _save(model, AutoTokenizer.from_pretrained(str(source), local_files_only=True), masked)
    folder = cached("reader", steps=steps, masked_steps=masked_steps)
    if not folder.is_dir():
        _train_matching(masked, pairs, reading, steps, place.on, folder)
    return folder


def _train_matching(
    source: Path, pairs: list[tuple[str, str]], reading: Reading, steps: int, device: str, folder: Path
) -> None:
    """Train a cross-encoder to tell pairs that say the same from random ones, and keep it."""
    order = np.random.default_rng(0).permutation(len(pairs)).tolist()
    held_back, seen = (
        mixed([pairs[row] for row in rows], count)
        for rows, count in (
            (order[:_HELD_BACK], 2 * _HELD_BACK),
            (order[_HELD_BACK:] or order, steps * reading.batch_size),
        )
    )
    torch.manual_seed(0)
    model: CrossEncoder = CrossEncoder(
        str(source), num_labels=1, max_length=reading.max_length, device=device, local_files_only=True
    )
    options: Any = {"max_steps": steps, "learning_rate": reading.learning_rate}
    loss = BinaryCrossEntropyLoss(model)
    train(model, loss, seen.columns(seen.gold), seed=0, batch_size=reading.batch_size, **options)
    right = (predict(model, held_back) > 0.5) == np.array(held_back.gold)
    logger.warning(
        "The reader tells %.1f %% of %d new pairs, half of which say the same", 100 * right.mean(), len(right)
    )
    _save(model.transformers_model, model.tokenizer, folder)


def _save(model: Any, tokenizer: Any, folder: Path) -> None:
    with atomic_folder(folder, overwrite=True) as unfinished:
        model.save_pretrained(unfinished)
        tokenizer.save_pretrained(unfinished)
