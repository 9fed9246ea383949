"""The RE2 study: what a small matcher makes of real pairs, beside a Siamese encoder, cross-encoders and the paper.

A recipe (TOML) names tasks and rows: RE2 on word vectors, on learned subwords or on an encoder's tokens, a Siamese
encoder of the same word vectors, and ablations::

    python -m evaluation.re2 evaluation/recipes/re2/re2.toml --models MODELS --data DATA
    python -m evaluation.re2_ledger evaluation/recipes/re2/re2.toml

The first writes one JSON a task, row and seed, the second the tables made from them. What is there already is kept;
``--shard 0/2`` takes half of the tasks and seeds. Every training ends early by the dev set, whose best epoch is
scored; the reported sets choose nothing.
"""

from __future__ import annotations

import json
import logging
import time
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer

from evaluation.pair_results import pending
from evaluation.pair_scores import ranking_score, score
from evaluation.pair_tasks import Examples, read_examples, training_and_dev
from evaluation.pair_training import Answer
from evaluation.re2_recipe import Row, Study, read_study
from evaluation.re2_training import Trained, train_matcher, train_siamese
from st_plugins.core.files import library_versions
from st_plugins.core.writing.atomic import write_text

__all__ = ["Setting", "main"]

_DRY_PAIRS = 64


class Setting:
    """A task and a seed: its pairs, and what the rows make of them.

    Args:
        study: The study.
        name: Name of the task.
        seed: Seed of weights, order and dropout.
        models: Folder of the models.
        data: Folder of the data.
        device: Where to compute; None for the best there is.
        dry_run: Whether to train one epoch of few pairs, and to score few.
    """

    def __init__(
        self,
        study: Study,
        name: str,
        seed: int,
        models: Path,
        data: Path,
        device: str | None = None,
        dry_run: bool = False,
    ) -> None:
        self.study, self.name, self.task, self.seed = study, name, study.tasks[name], seed
        self.models, self.data, self.device, self.dry_run = models, data, device, dry_run

    @cached_property
    def _pairs(self) -> tuple[Examples, Examples]:
        largest = max(
            self.study.schedule_of(row, self.name).batch_size
            for row in self.study.rows
            if self.name in (row.tasks or self.study.tasks)
        )
        limit = 0 if self.task.ranked else self.study.eval_limit  # a ranking needs all pairs of a text
        return training_and_dev(self.task, self.data, largest, limit)

    @cached_property
    def training(self) -> Examples:
        """The training pairs."""
        whole = self._pairs[0]
        return whole.take(range(min(len(whole), 2 * _DRY_PAIRS))) if self.dry_run else whole

    @cached_property
    def dev(self) -> Examples:
        """The dev pairs."""
        return self._cut(self._pairs[1])

    @cached_property
    def tests(self) -> dict[str, Examples]:
        """The reported sets."""
        return {name: self._cut(read_examples(self.task, [file], self.data)) for name, file in self.task.tests.items()}

    def _cut(self, examples: Examples) -> Examples:
        few = self.dry_run and not self.task.ranked
        return examples.take(range(min(len(examples), _DRY_PAIRS))) if few else examples

    def measure(self, row: Row, dev_only: bool = False) -> dict[str, Any]:
        """Train and score a row.

        Args:
            row: The row.
            dev_only: Whether to leave the reported sets alone, as a search for settings must.

        Returns:
            What is written to disk.
        """
        # On a CPU the time of the processor, which does not count what else runs beside.
        on_gpu = torch.cuda.is_available() and self.device in (None, "cuda")
        clock = time.perf_counter if on_gpu else time.process_time
        begin = clock()
        trained = self._train(row)
        seconds = clock() - begin
        schedule = self.study.schedule_of(row, self.name)
        found: dict[str, Any] = {
            "task": self.name,
            "row": asdict(row),
            "seed": self.seed,
            "schedule": schedule.to_dict(),
            "pairs": len(self.training),
            "steps": trained.steps,
            "step": trained.step,
            "seconds_training": seconds,
            "parameters": trained.parameters,
        }
        if row.kind == "re2":
            found["config"] = self.study.config_of(row, self.name).to_dict()
        if trained.coverage is not None:
            found["coverage"] = trained.coverage
        found["dev"] = self._score("dev", self.dev, trained.answer)
        del found["dev"]["resamples"]
        if not (dev_only or row.ablation):
            found["tests"] = {name: self._score(name, pairs, trained.answer) for name, pairs in self.tests.items()}
        found["device"] = torch.cuda.get_device_name() if on_gpu else "CPU"
        return {**found, "versions": library_versions()}

    def _train(self, row: Row) -> Trained:
        schedule = self.study.schedule_of(row, self.name)
        if self.dry_run:
            schedule = replace(schedule, epochs=1, batch_size=min(schedule.batch_size, _DRY_PAIRS))
        given = (self.training, self.dev, self.models, self.study.patience, self.seed, self.device)
        if row.kind == "siamese":
            return train_siamese(row, self.task, schedule, *given)
        return train_matcher(row, self.task, self.study.config_of(row, self.name), schedule, *given)

    def _score(self, name: str, examples: Examples, answer: Answer) -> dict[str, Any]:
        found, gold = answer(examples), np.array(examples.gold)
        if self.task.ranked:
            return ranking_score(name, examples.first, gold, found)
        positive = self.task.classes.index(self.task.positive) if self.task.positive else None
        return score(name, gold, found.argmax(axis=1).astype(np.float64), positive)


def main(
    recipe: Annotated[Path, typer.Argument(help="A TOML file of evaluation/recipes/re2/.")],
    models: Annotated[Path, typer.Option(envvar="ST_PLUGINS_MODELS", help="Folder of the models.")],
    data: Annotated[Path, typer.Option(envvar="ST_PLUGINS_DATA", help="Folder of the data.")],
    output: Annotated[Path, typer.Option(help="Folder for the results.")] = Path("evaluation/results"),
    only: Annotated[str, typer.Option(help="Train only what has this in its file name: qqp-, seed0, words.")] = "",
    shard: Annotated[str, typer.Option(help="i/n: every n-th task and seed, from the i-th, counted from 0.")] = "0/1",
    dev_only: Annotated[bool, typer.Option("--dev-only", help="Do not look at the reported sets.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="One epoch of few pairs, one seed: does it work?")
    ] = False,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, ...")] = None,
) -> None:
    """Train and score every row of RECIPE; write OUTPUT/<recipe>/<task>-<row>-seed<n>.json."""
    logging.getLogger("sentence_transformers").setLevel(logging.WARNING)
    study = read_study(recipe)
    for task, seed, rows in pending(study, output / recipe.stem, only, shard, dry_run):
        setting = Setting(study, task, seed, models, data, device, dry_run)
        for row, path in rows:
            begin = time.perf_counter()
            found = {**setting.measure(row, dev_only), "seconds": time.perf_counter() - begin}
            write_text(path, json.dumps(found, indent=1) + "\n")
            typer.echo(f"{path.name}: {found['seconds']:.0f} s, dev {found['dev']['value'][0]:.4f}")


if __name__ == "__main__":
    typer.run(main)
