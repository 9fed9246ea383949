"""The VIRT study: what a bi-encoder gains from a cross-encoder's attention, beside its scores.

A recipe (TOML) names an encoder, tasks with a budget each, and rows: the cross-encoder, a Siamese encoder, one that
learns the cross-encoder's scores, its attention, or both, and VIRT's own late interaction::

    python -m evaluation.virt evaluation/recipes/virt/virt-mini-bert-en.toml --models MODELS --data DATA --cache CACHE
    python -m evaluation.virt_ledger evaluation/recipes/virt/virt-mini-bert-en.toml

The first writes one JSON a task, row and seed, the second the tables and the picture made from them. What is there
already is kept. The cross-encoder of a task and seed is trained once and kept in CACHE; all rows of a task and seed
run in one process, and ``--shard 0/2`` takes half of the tasks and seeds. What is scored is the last checkpoint: dev
sets serve to choose settings, never a checkpoint.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from dataclasses import asdict
from functools import cached_property, partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from sentence_transformers import CrossEncoder, SentenceTransformer
from sentence_transformers.cross_encoder.losses import BinaryCrossEntropyLoss, CrossEntropyLoss

from evaluation.pair_results import pending
from evaluation.pair_scores import score
from evaluation.pair_tasks import Examples, read_examples, training_and_dev
from evaluation.pair_training import Answer, Array, predict, train
from evaluation.pipelines import Pipeline, build_model
from evaluation.virt_reading import reader
from evaluation.virt_recipe import Row, Study, read_study
from evaluation.virt_training import student, trim, with_virt
from st_plugins.core.files import library_versions
from st_plugins.core.writing.atomic import atomic_folder, write_text
from st_plugins.losses import map_agreement

__all__ = ["Setting", "main"]

_DRY_PAIRS = 48


class Setting:
    """A task and a seed: its pairs, the cross-encoder trained on them, and what the rows make of both.

    Args:
        study: The study.
        name: Name of the task.
        seed: Seed of weights, pairs, their order and dropout.
        models: Folder of the models.
        data: Folder of the data.
        cache: Folder of the cross-encoders.
        device: Where to compute.
        dry_steps: Train everything for so many steps and look at few pairs; 0 for the real thing.
    """

    def __init__(
        self,
        study: Study,
        name: str,
        seed: int,
        models: Path,
        data: Path,
        cache: Path,
        device: str | None = None,
        dry_steps: int = 0,
    ) -> None:
        self.study, self.name, self.task, self.seed = study, name, study.tasks[name], seed
        self.models, self.data, self.cache, self.device = models, data, cache, device
        self.dry_steps = dry_steps

    @cached_property
    def start(self) -> Path:
        """The folder of the encoder that the cross-encoder and the rows start from."""
        return reader(self.study, self.models, self.data, self.cache, self.device, self.dry_steps)

    def encoder(self) -> SentenceTransformer:
        """Return what every bi-encoder starts from."""
        row = Pipeline(self.name, self.start.name, self.study.pooling, max_length=self.task.max_length)
        return build_model(row, self.start.parent, self.seed).to(self.device)

    @cached_property
    def _pairs(self) -> tuple[Examples, Examples]:
        return training_and_dev(self.task, self.data, self.study.batch_size, self.study.eval_limit)

    @cached_property
    def dev(self) -> Examples:
        """The dev pairs."""
        return self._cut(self._pairs[1])

    @cached_property
    def tests(self) -> dict[str, Examples]:
        """The reported sets."""
        return {name: self._cut(read_examples(self.task, [file], self.data)) for name, file in self.task.tests.items()}

    @cached_property
    def _tokenizer(self) -> Any:
        return self.encoder().tokenizer

    def _cut(self, examples: Examples) -> Examples:
        if self.dry_steps:
            examples = examples.take(range(min(len(examples), _DRY_PAIRS)))
        return trim(examples, self._tokenizer, self.task.max_length)

    def steps(self, wanted: int = 0) -> int:
        """Return the length of a training.

        Args:
            wanted: Steps that a row or the teacher asks for; 0 for the task's budget.

        Returns:
            The number of steps.
        """
        epoch = len(self._pairs[0]) // self.study.batch_size
        return self.dry_steps or wanted or self.task.steps or max(1, round(self.task.epochs * epoch))

    def seen(self, steps: int) -> Examples:
        """Return the pairs that a training sees, in this seed's order: all, or in less than one epoch the first ones.

        Args:
            steps: Its steps.

        Returns:
            The pairs.
        """
        training = self._pairs[0]
        order = np.random.default_rng(self.seed).permutation(len(training))
        return self._cut(training.take(order[: steps * self.study.batch_size]))

    @cached_property
    def teacher(self) -> CrossEncoder:
        """The cross-encoder that the rows learn from: this seed's, or that of the study's ``teacher_seed``."""
        seed = self.study.teacher_seed
        if seed in (None, self.seed):
            return self.cross_encoder
        return self._beside(self.name, seed).cross_encoder

    @cached_property
    def cross_encoder(self) -> CrossEncoder:
        """The cross-encoder of this seed."""
        trained: CrossEncoder = self._build_cross_encoder(self._cross_encoder_folder).eval()
        return trained

    @cached_property
    def _cross_encoder_folder(self) -> Path:
        """Where this seed's cross-encoder is; it is trained if the cache does not have it."""
        classes, rate = len(self.task.classes), self.study.teacher_learning_rate
        steps, before = self.steps(self.task.teacher_steps), self.task.teacher_from
        source = self._beside(before, self.seed)._cross_encoder_folder if before else self.start
        task = {key: getattr(self.task, key) for key in ("train", "aside", "classes", "scale", "max_length")}
        settings = [task, self.study.batch_size, steps, rate, *([source.name] if before else [])]
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]
        folder = self.cache / f"{self.start.name}-{self.name}-seed{self.seed}-{digest}"
        if not folder.is_dir():
            torch.manual_seed(self.seed)
            model = self._build_cross_encoder(source)
            seen = self.seen(steps)
            loss = CrossEntropyLoss(model) if classes else BinaryCrossEntropyLoss(model)
            train(model, loss, seen, self.gold(seen), steps, self.study.batch_size, rate, self.seed)
            with atomic_folder(folder, overwrite=True) as temporary:
                model.save(str(temporary), create_model_card=False)
        return folder

    def _build_cross_encoder(self, source: Path) -> CrossEncoder:
        model: CrossEncoder = CrossEncoder(
            str(source),
            num_labels=len(self.task.classes) or 1,
            max_length=2 * self.task.max_length,
            device=self.device,
            local_files_only=True,
            model_kwargs={"ignore_mismatched_sizes": True},  # a task with other classes has a new head
        )
        return model

    def _beside(self, name: str, seed: int) -> Setting:
        """Return another task or seed of the same study."""
        return Setting(self.study, name, seed, self.models, self.data, self.cache, self.device, self.dry_steps)

    def gold(self, examples: Examples) -> list[Any]:
        """Return the labels as a loss wants them.

        Args:
            examples: The pairs.

        Returns:
            Class numbers or scores.
        """
        return [int(label) for label in examples.gold] if self.task.classes else examples.gold

    @cached_property
    def _answers(self) -> Array:
        """What the teacher says of the training pairs that the task's budget allows for."""
        seen = self.seen(max(self.steps(), *(row.steps for row in self.study.rows)))
        return predict(self.teacher, seen, apply_softmax=bool(self.task.classes))

    def targets(self, row: Row, seen: Examples) -> list[Any]:
        """Return what a row learns: the gold labels, or their mixture with the teacher's answers.

        Args:
            row: The row.
            seen: Its training pairs.

        Returns:
            Classes, class probabilities or scores.
        """
        if not row.distillation:
            return self.gold(seen)
        gold = np.array(seen.gold)
        if self.task.classes:
            gold = np.eye(len(self.task.classes))[gold.astype(int)]
        mixed: list[Any] = ((1 - row.distillation) * gold + row.distillation * self._answers[: len(seen)]).tolist()
        return mixed

    def measure(self, row: Row, dev_only: bool = False) -> dict[str, Any]:
        """Train and score a row.

        Args:
            row: The row.
            dev_only: Whether to leave the reported sets alone, as a search for settings must.

        Returns:
            What is written to disk.
        """
        steps = self.steps(row.steps)
        found: dict[str, Any] = {"task": self.name, "row": asdict(row), "seed": self.seed, "steps": steps}
        if row.kind == "cross-encoder":
            found["steps"] = self.steps(self.task.teacher_steps)
            answer: Answer = partial(predict, self.cross_encoder)
        else:
            seen, watched = self.seen(steps), self.dev.pairs[: self.study.agreement_pairs]
            model = self.encoder()
            torch.manual_seed(self.seed)
            task_loss, answer = student(row, model, len(self.task.classes))
            before = map_agreement(model, self.teacher, watched)
            loss = with_virt(row, model, self.teacher, task_loss)
            targets = self.targets(row, seen)
            # On a CPU the time of the processor, which does not count what else runs beside.
            clock = time.perf_counter if model.device.type == "cuda" else time.process_time
            begin = clock()
            train(model, loss, seen, targets, steps, self.study.batch_size, row.learning_rate, self.seed)
            found["seconds_step"] = (clock() - begin) / steps
            after = map_agreement(model, self.teacher, watched)
            found["agreement"] = {
                "before": [layer._asdict() for layer in before],
                "after": [layer._asdict() for layer in after],
            }
        found["dev"] = self._score("dev", self.dev, answer)
        del found["dev"]["resamples"]
        if not (dev_only or row.dev_only):
            found["tests"] = {name: self._score(name, examples, answer) for name, examples in self.tests.items()}
        kind = self.teacher.device.type
        found["device"] = torch.cuda.get_device_name() if kind == "cuda" else "CPU"
        return {**found, "versions": library_versions()}

    def _score(self, name: str, examples: Examples, answer: Answer) -> dict[str, Any]:
        classes, found = self.task.classes, answer(examples)
        if classes and found.ndim == 2:
            found = found.argmax(axis=1)
        positive = classes.index(self.task.positive) if self.task.positive else None
        return score(name, np.array(examples.gold), found, positive, bool(classes))


def main(
    recipe: Annotated[Path, typer.Argument(help="A TOML file of evaluation/recipes/virt/.")],
    models: Annotated[Path, typer.Option(envvar="ST_PLUGINS_MODELS", help="Folder of the models.")],
    data: Annotated[Path, typer.Option(envvar="ST_PLUGINS_DATA", help="Folder of the data.")],
    cache: Annotated[Path, typer.Option(help="Folder for the cross-encoders, outside the repository.")],
    output: Annotated[Path, typer.Option(help="Folder for the results.")] = Path("evaluation/results"),
    only: Annotated[str, typer.Option(help="Train only what has this in its file name: nli-, seed0, grid.")] = "",
    shard: Annotated[str, typer.Option(help="i/n: every n-th task and seed, from the i-th, counted from 0.")] = "0/1",
    dev_only: Annotated[bool, typer.Option("--dev-only", help="Do not look at the reported sets.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Two steps, one seed, few pairs: does it work?")] = False,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, ...")] = None,
) -> None:
    """Train and score every row of RECIPE; write OUTPUT/<recipe>/<task>-<row>-seed<n>.json."""
    logging.getLogger("sentence_transformers").setLevel(logging.WARNING)
    study = read_study(recipe)
    for task, seed, rows in pending(study, output / recipe.stem, only, shard, dry_run):
        setting = Setting(study, task, seed, models, data, cache, device, dry_steps=2 if dry_run else 0)
        for row, path in rows:
            begin = time.perf_counter()
            found = {**setting.measure(row, dev_only), "seconds": time.perf_counter() - begin}
            write_text(path, json.dumps(found, indent=1) + "\n")
            typer.echo(f"{path.name}: {found['seconds']:.0f} s, dev {found['dev']['value'][0]:.4f}")


if __name__ == "__main__":
    typer.run(main)
