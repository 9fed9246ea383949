"""Teaching a small encoder to read two texts at once, before it becomes a cross-encoder.

A masked language model that has seen single sentences does not look from one text to the other, and a cross-encoder
made of it can take longer to learn that than small budgets allow. So words of one text are masked, and the model
recovers them with the help of another that says the same: the translation language modelling of Lample & Conneau
(2019) within one language, with words masked in one of the two texts only. ``evaluation/virt.py`` does it by itself;
before it is started twice with ``--shard``, run it once::

    python -m evaluation.virt_reading RECIPE --models MODELS --data DATA --cache CACHE
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from datasets import Dataset
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader
from transformers import AutoModelForMaskedLM, AutoTokenizer, Trainer, TrainingArguments, set_seed

from evaluation.batching import LengthGroupedBatchSampler
from evaluation.virt_recipe import Reading, Study, read_study
from st_plugins.atomic import atomic_folder
from st_plugins.data.files import read_table

__all__ = ["Masking", "alike", "main", "reader"]

_IGNORED = -100
_KEPT = 0.1  # of what is asked for stays visible, as in BERT


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


@dataclass
class Masking:
    """Turn pairs into batches in which words of the second text are masked; which text comes second is drawn.

    Args:
        tokenizer: A fast tokenizer.
        share: Share of the second text's tokens that are asked for.
        max_length: Tokens of both texts.
        generator: Source of the draws.
    """

    tokenizer: Any
    share: float
    max_length: int
    generator: torch.Generator

    def __call__(self, rows: list[dict[str, str]]) -> dict[str, Tensor]:
        """Make a batch.

        Args:
            rows: Pairs: ``sentence1``, ``sentence2``.

        Returns:
            The features, with ``labels`` (N, n): what is asked for, and -100 elsewhere.
        """
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

    def compute_loss(self, model: nn.Module, inputs: Any, return_outputs: bool = False, **kwargs: Any) -> Any:
        labels = inputs.pop("labels")
        asked = labels != _IGNORED
        inner: Any = self.accelerator.unwrap_model(model)
        logits = inner.cls(inner.base_model(**inputs).last_hidden_state[asked])
        loss = cross_entropy(logits, labels[asked])
        return (loss, {"logits": logits}) if return_outputs else loss


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

    Raises:
        TypeError: The model has not BERT's head.
    """
    reading = study.reading
    if reading is None:
        return models / study.model
    steps = dry_steps or reading.steps
    settings = json.dumps({**asdict(reading), "steps": steps}, sort_keys=True)
    folder = cache / f"{study.model}-reader-{hashlib.sha256(settings.encode()).hexdigest()[:12]}"
    if folder.is_dir():
        return folder
    set_seed(0)
    model: Any = AutoModelForMaskedLM.from_pretrained(str(models / study.model), local_files_only=True)
    if not hasattr(model, "cls"):
        raise TypeError(f"[reading] needs a model with BERT's head, but {study.model!r} is a {type(model).__name__}")
    tokenizer = AutoTokenizer.from_pretrained(str(models / study.model), local_files_only=True)
    masking = Masking(tokenizer, reading.masked, reading.max_length, torch.Generator().manual_seed(0))
    first, second = zip(*alike(reading, data), strict=True)
    with tempfile.TemporaryDirectory() as temporary:
        _Trainer(
            model=model,
            args=TrainingArguments(
                output_dir=temporary,
                max_steps=steps,
                per_device_train_batch_size=reading.batch_size,
                learning_rate=reading.learning_rate,
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
    with atomic_folder(folder, overwrite=True) as unfinished:
        model.cpu().save_pretrained(unfinished)
        tokenizer.save_pretrained(unfinished)
    return folder


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
