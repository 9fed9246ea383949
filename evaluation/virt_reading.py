"""Teaching a small encoder to read two texts at once, before it becomes a cross-encoder.

A masked language model that has seen single sentences does not look from one text to the other, and a cross-encoder
made of it can take longer to learn that than small budgets allow. So it first recovers masked words of one text with
the help of another that says the same (``evaluation/virt_masking.py``), and then learns to tell such pairs from pairs
put together at random. ``evaluation/virt.py`` does it by itself; before it is started twice with ``--shard``, run it
once::

    python -m evaluation.virt_reading RECIPE --models MODELS --data DATA --cache CACHE
"""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from sentence_transformers import CrossEncoder
from sentence_transformers.cross_encoder.losses import BinaryCrossEntropyLoss
from transformers import AutoTokenizer

from evaluation.pair_tasks import Examples
from evaluation.pair_training import predict, train
from evaluation.virt_masking import train_masked
from evaluation.virt_recipe import Reading, Study, read_study
from st_plugins.core.reading.tables import read_table
from st_plugins.core.writing.atomic import atomic_folder

__all__ = ["alike", "main", "mixed", "reader"]

logger = logging.getLogger(__name__)

_HELD_BACK = 500  # pairs, to see how well it went


def alike(reading: Reading, data: Path) -> list[tuple[str, str]]:
    """Return the pairs that say the same.

    Args:
        reading: Where they are, and what marks them.
        data: Folder of the data.

    Returns:
        The pairs, as often as the files have them.

    Raises:
        ValueError: A file has no such pair.
    """
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
    """Draw pairs, each once as it is and once with a second text like the others' in length; half of all are swapped.

    Args:
        pairs: Pairs that say the same.
        count: How many are wanted; they are drawn again and again until it is reached.
        seed: Of the draws.

    Returns:
        The pairs, with 1 for those that say the same and 0 for the others.
    """
    generator = np.random.default_rng(seed)
    found = Examples()
    while len(found) < count:
        order = generator.permutation(len(pairs))[: -(-(count - len(found)) // 2)]
        rows = sorted(order.tolist(), key=lambda row: len(pairs[row][1]))
        others = rows[1:] + rows[:1]
        for row, other in zip(rows, others, strict=True):
            first = pairs[row][0]
            for text, gold in ((pairs[row][1], 1), (pairs[other][1], 0)):
                both = (first, text) if generator.random() < 0.5 else (text, first)
                found.first.append(both[0])
                found.second.append(both[1])
                found.gold.append(gold)
    return found.take(range(count))


def reader(study: Study, models: Path, data: Path, cache: Path, device: str | None = None, dry_steps: int = 0) -> Path:
    """Return the folder of the encoder that everything starts from, trained if the cache does not have it.

    Args:
        study: The study.
        models: Folder of the models.
        data: Folder of the data.
        cache: Folder of trained encoders.
        device: Where to compute.
        dry_steps: Train for so many steps; 0 for the real thing.

    Returns:
        The folder.
    """
    reading = study.reading
    if reading is None:
        return models / study.model
    steps, masked_steps = dry_steps or reading.steps, dry_steps or reading.masked_steps
    pairs = alike(reading, data)

    def cached(name: str, **settings: Any) -> Path:
        text = json.dumps({**asdict(reading), **settings}, sort_keys=True)
        return cache / f"{study.model}-{name}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"

    masked = cached("masked", steps=0, masked_steps=masked_steps, learning_rate=0)
    if not masked.is_dir():
        model = train_masked(models / study.model, pairs, reading, masked_steps, device)
        _save(model, AutoTokenizer.from_pretrained(str(models / study.model), local_files_only=True), masked)
    folder = cached("reader", steps=steps, masked_steps=masked_steps)
    if not folder.is_dir():
        _train_matching(masked, pairs, reading, steps, device, folder)
    return folder


def _train_matching(
    source: Path, pairs: list[tuple[str, str]], reading: Reading, steps: int, device: str | None, folder: Path
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
    loss = BinaryCrossEntropyLoss(model)
    train(model, loss, seen, seen.gold, steps, reading.batch_size, reading.learning_rate, seed=0)
    right = (predict(model, held_back) > 0.5) == np.array(held_back.gold)
    logger.warning(
        "The reader tells %.1f %% of %d new pairs, half of which say the same", 100 * right.mean(), len(right)
    )
    _save(model.transformers_model, model.tokenizer, folder)


def _save(model: Any, tokenizer: Any, folder: Path) -> None:
    with atomic_folder(folder, overwrite=True) as unfinished:
        model.save_pretrained(unfinished)
        tokenizer.save_pretrained(unfinished)


def main(
    recipe: Annotated[Path, typer.Argument(help="A TOML file of evaluation/recipes/virt/ with a [reading] section.")],
    models: Annotated[Path, typer.Option(envvar="ST_PLUGINS_MODELS", help="Folder of the models.")],
    data: Annotated[Path, typer.Option(envvar="ST_PLUGINS_DATA", help="Folder of the data.")],
    cache: Annotated[Path, typer.Option(help="Folder for what is trained, outside the repository.")],
    device: Annotated[str | None, typer.Option(help="cpu, cuda, ...")] = None,
) -> None:
    """Train the encoder of RECIPE to read two texts at once, if CACHE does not have it."""
    study = read_study(recipe)
    if study.reading is None:
        raise typer.BadParameter(f"{recipe} has no [reading] section")
    typer.echo(f"in {reader(study, models, data, cache, device)}")


if __name__ == "__main__":
    typer.run(main)
