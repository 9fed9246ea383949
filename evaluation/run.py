"""The training study: recipe in, trained and measured models out.

A recipe (TOML) names an encoder, data, and runs. Each run is trained once a seed, watched on a development set and by
its geometry, and evaluated on the STS tasks at the checkpoints that different rules choose::

    python -m evaluation.run evaluation/recipes/consert/consert-mini-bert-en.toml --models MODELS --data DATA
    python -m evaluation.ledger evaluation/recipes/consert/consert-mini-bert-en.toml

The first writes one JSON a run and seed, the second the table and the picture made from them. What is there already is
kept; ``--shard 0/4`` trains a quarter of the runs, so that four processes can share the work.
"""

from __future__ import annotations

import json
import logging
import re
import statistics
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from datasets import Dataset
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.sentence_transformer.losses import CoSENTLoss, SoftmaxLoss
from transformers import TrainerCallback

from evaluation.after import AFTER, RANDOM
from evaluation.batching import LengthGroupedBatchSampler
from evaluation.pipelines import Pipeline, build_model
from evaluation.recipe import Run, Study, draw_texts, read_study, training_columns
from st_plugins.core.files import library_versions
from st_plugins.core.writing.atomic import write_text
from st_plugins.evaluation import STSSuiteEvaluator, SuiteResult
from st_plugins.explain import explain
from st_plugins.geometry import GeometryCallback
from st_plugins.losses import (
    ConSERTJointLoss,
    ConSERTLoss,
    LayerMixRegularizer,
    RDropLoss,
    SimCSELoss,
    SpanSharpnessRegularizer,
)
from st_plugins.modules import LayerMix, SpanPooling

__all__ = ["RULES", "SHARPNESS_TEXTS", "main", "pipeline_of", "result_file", "train"]

RULES = {
    "dev": ("dev", max),
    "last": ("step", max),
    "effective rank": ("effective_rank", max),
    "uniformity": ("uniformity", min),
    "alignment + uniformity": ("alignment_uniformity", min),
    "held-out loss": ("loss", min),
}
"""How a checkpoint is chosen: on labelled dev pairs, not at all, or by a number that needs no labels."""

HELD_OUT = 512
SHARPNESS_TEXTS = 200
_AFTER_ENCODER = r"(^|\.)model\.[1-9]\."  # names of weights in a loss's model: model.0 is the encoder
_NUMBERS = {
    "eval_loss": "loss",
    "eval_dev_avg_spearman_cosine": "dev",
    "geometry_alignment": "alignment",
    "geometry_uniformity": "uniformity",
    "geometry_mean_random_cosine": "mean_random_cosine",
    "geometry_effective_rank": "effective_rank",
    "geometry_isoscore": "isoscore",
}
State = dict[str, torch.Tensor]


class Snapshots(TrainerCallback):
    """Keep the weights of every evaluated step, on the CPU."""

    def __init__(self) -> None:
        self.states: dict[int, State] = {}

    def on_evaluate(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Copy the weights.

        Args:
            args: The trainer's arguments.
            state: The trainer's state.
            control: The trainer's control.
            model: The model.
            **kwargs: Ignored.
        """
        self.states[state.global_step] = {key: value.cpu().clone() for key, value in model.state_dict().items()}


def build_loss(run: Run, model: SentenceTransformer) -> torch.nn.Module:
    """Return the loss of a run's method.

    Args:
        run: The run.
        model: The model to train.

    Returns:
        The loss.
    """
    loss: torch.nn.Module
    if run.method == "simcse":
        loss = SimCSELoss(model, run.temperature)
    elif run.method == "supervised":
        loss = SoftmaxLoss(model, model.get_embedding_dimension() or 0, num_labels=3)
    elif run.method == "cosent":
        loss = CoSENTLoss(model)
    elif run.method == "joint":
        loss = ConSERTJointLoss(model, 3, run.views, run.weight, run.temperature, encoder_dropout=run.encoder_dropout)
    else:
        loss = ConSERTLoss(model, run.views, run.temperature, encoder_dropout=run.encoder_dropout)
    if run.r_drop:
        loss = RDropLoss(loss, run.r_drop)
    if run.mix_penalty:
        loss = LayerMixRegularizer(loss, run.mix_penalty)
    return SpanSharpnessRegularizer(loss, run.sharpness) if run.sharpness else loss


def train(
    study: Study, run: Run, seed: int, model: SentenceTransformer, data: Path
) -> tuple[list[dict[str, float]], dict[int, State]]:
    """Train a model in place.

    Args:
        study: The study.
        run: The run.
        seed: Seed of the data order, the views and the dropout.
        model: Where to start from.
        data: Folder of the data.

    Returns:
        The numbers of each evaluated step, and the weights of these steps.
    """
    torch.manual_seed(seed)
    rows = Dataset.from_dict(training_columns(study, run, data)).shuffle(seed=seed)
    aside = min(HELD_OUT, len(rows) // 5)
    held_out, rows = rows.select(range(aside)), rows.select(range(aside, len(rows)))
    if len(rows) < run.batch_size:
        raise ValueError(f"run {run.name!r}: {len(rows)} texts are fewer than one batch, batch_size={run.batch_size}")
    steps = run.max_steps or max(1, int(run.epochs * (len(rows) // run.batch_size)))
    dev = STSSuiteEvaluator(
        study.dev_task, data, 128, split="dev", name="dev", bootstrap_samples=0, floor=False, geometry=False
    )
    snapshots = Snapshots()
    geometry = GeometryCallback(draw_texts(study.corpus, data, 500), batch_size=128, on_collapse="ignore")
    with tempfile.TemporaryDirectory() as folder:
        trainer = SentenceTransformerTrainer(
            model=model,
            args=SentenceTransformerTrainingArguments(
                output_dir=folder,
                max_steps=steps,
                per_device_train_batch_size=run.batch_size,
                per_device_eval_batch_size=min(128, aside),  # a smaller rest would be dropped
                learning_rate=run.learning_rate,
                learning_rate_mapping={_AFTER_ENCODER: run.pooling_learning_rate} if run.pooling_learning_rate else {},
                warmup_steps=0.1,  # a share of the steps
                weight_decay=0.01,
                seed=seed,
                eval_strategy="steps",
                eval_steps=max(1, steps // study.evaluations),
                save_strategy="no",
                logging_strategy="no",
                dataloader_drop_last=True,
                batch_sampler=LengthGroupedBatchSampler if run.grouped else "batch_sampler",
                report_to=[],
                disable_tqdm=True,
            ),
            train_dataset=rows,
            eval_dataset=held_out,
            loss=build_loss(run, model),
            evaluator=dev,
            callbacks=[geometry, snapshots],
        )
        trainer.train()
    log: dict[int, dict[str, float]] = {}
    for entry in trainer.state.log_history:
        found = {short: float(entry[key]) for key, short in _NUMBERS.items() if key in entry}
        if found and entry["step"] in snapshots.states:
            log.setdefault(int(entry["step"]), {"step": int(entry["step"])}).update(found)
    for numbers in log.values():
        numbers["alignment_uniformity"] = numbers["alignment"] + numbers["uniformity"]
    return list(log.values()), snapshots.states


def summary(result: SuiteResult) -> dict[str, Any]:
    """Shorten a result to what the table needs.

    Args:
        result: The evaluation.

    Returns:
        Scores by task, the average with its interval, and its distance to the floor, raw and whitened.
    """
    average = result.average["spearman_all"]
    short: dict[str, Any] = {
        "tasks": {task.name: task.spearman["all"].value for task in result.tasks},
        "average": [average.value, average.low, average.high],
    }
    if result.floor is not None:
        for key, found in (("above_raw", result.floor.above_raw), ("above_whitened", result.floor.above_whitened)):
            above = found["avg"]
            short[key] = {"value": above.value, "low": above.low, "high": above.high, "verdict": above.verdict}
        short["floor"] = [result.floor.raw["avg"].value, result.floor.whitened["avg"].value]
    return short


def measure(
    study: Study,
    run: Run,
    models: Path,
    data: Path,
    seed: int,
    dev_only: bool,
    device: str | None,
    starts: dict[tuple[str, int], State],
) -> dict[str, Any]:
    """Train one run with one seed and evaluate the checkpoints that the rules choose.

    Rules that need no labels are for runs that use none; with labels, only the checkpoint chosen on dev is evaluated.

    Args:
        study: The study.
        run: The run.
        models: Folder of the models.
        data: Folder of the data.
        seed: Seed.
        dev_only: Whether to leave the test sets alone, as a search for settings must.
        device: Where to compute.
        starts: Weights that other runs start from, by name and seed; added to.

    Returns:
        What is written to disk.
    """
    start = time.perf_counter()
    model = build_model(pipeline_of(study, run), models, seed).to(device)
    # On a CPU the time of the processor, which does not count what else runs beside.
    clock = time.perf_counter if model.device.type == "cuda" else time.process_time
    begin = clock()
    log: list[dict[str, float]] = []
    states: dict[int, State] = {}
    for step in study.chain(run):
        if step.method == "none":
            continue
        key = (step.name, seed)
        if step is run or key not in starts:
            log, states = train(study, step, seed, model, data)
            if any(other.start == step.name for other in study.runs):
                starts[key] = states[_choose(log, "dev")]
        if step is not run:
            model.load_state_dict(starts[key])
    found: dict[str, Any] = {
        "run": asdict(run),
        "seed": seed,
        "log": log,
        "chosen": {rule: _choose(log, rule) for rule in RULES} if log else {},
        "steps": {},
        "seconds_training": clock() - begin if log else 0.0,
        "seconds_after": {},
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
    }
    corpus = draw_texts(study.corpus, data, study.corpus_size)
    shared: dict[str, Any] = {"floor_texts": corpus, "geometry": False, "keep_similarities": False}
    suites = {"dev": STSSuiteEvaluator(study.dev_task, data, 128, split="dev", show_progress_bar=False, **shared)}
    if not (dev_only or run.dev_only):
        suites["test"] = STSSuiteEvaluator(study.tasks, data, 128, show_progress_bar=False, **shared)
    wanted = [found["chosen"]["dev"]] if study.uses_labels(run) and log else found["chosen"].values()
    for step in sorted(set(wanted)) or [0]:
        if states:
            model.load_state_dict(states[step])
        # What nothing random made is evaluated with the first seed only.
        again = not log and seed != (run.seeds or study.seeds)[0]
        forms = {} if again else {"plain": model}
        for form in run.after if not log or step == found["chosen"]["dev"] else ():
            if again and form not in RANDOM:
                continue
            begin = clock()
            forms[form] = AFTER[form](model, corpus, seed)
            found["seconds_after"][form] = clock() - begin
        found["steps"][str(step)] = {
            split: {form: summary(suite.evaluate(variant, run.name)) for form, variant in forms.items()}
            for split, suite in suites.items()
        }
    if states:
        model.load_state_dict(states[found["chosen"]["dev"]])
    for module in model:
        if isinstance(module, LayerMix):
            found["layers"] = module.report()
        if isinstance(module, SpanPooling):
            looked_at = draw_texts(study.corpus, data, SHARPNESS_TEXTS)
            found["sharpness"] = statistics.mean(explain(model, text, 1).sharpness for text in looked_at)
    device_name = torch.cuda.get_device_name() if model.device.type == "cuda" else "CPU"
    return {**found, "seconds": time.perf_counter() - start, "device": device_name, "versions": library_versions()}


def pipeline_of(study: Study, run: Run) -> Pipeline:
    """Return what a run begins with.

    Args:
        study: The study.
        run: The run.

    Returns:
        The pipeline.
    """
    pooling = run.pooling or study.pooling
    return Pipeline(run.name, study.model, pooling, max_length=study.max_length, layers=run.layers, tokens=run.tokens)


def _choose(log: list[dict[str, float]], rule: str) -> int:
    key, best = RULES[rule]
    return int(best(log, key=lambda numbers: numbers[key])["step"])


def result_file(folder: Path, run: str, seed: int) -> Path:
    """Return the file of one run and seed.

    Args:
        folder: Results of the recipe.
        run: Its name.
        seed: Seed.

    Returns:
        The path.
    """
    return folder / f"{re.sub(r'[^a-z0-9]+', '-', run.lower()).strip('-')}-seed{seed}.json"


def main(
    recipe: Annotated[Path, typer.Argument(help="A TOML file of evaluation/recipes/consert/.")],
    models: Annotated[Path, typer.Option(envvar="ST_PLUGINS_MODELS", help="Folder of the models.")],
    data: Annotated[Path, typer.Option(envvar="ST_PLUGINS_DATA", help="Folder of the data.")],
    output: Annotated[Path, typer.Option(help="Folder for the results.")] = Path("evaluation/results"),
    only: Annotated[str, typer.Option(help="Train only what has this in its file name: seed0, simcse.")] = "",
    shard: Annotated[str, typer.Option(help="i/n: train every n-th run, from the i-th, counted from 0.")] = "0/1",
    dev_only: Annotated[bool, typer.Option("--dev-only", help="Do not look at the test sets.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Two steps a run, one seed: does it work?")] = False,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, ...")] = None,
) -> None:
    """Train and evaluate every run of RECIPE; write OUTPUT/<recipe>/<run>-seed<n>.json."""
    logging.getLogger("sentence_transformers").setLevel(logging.WARNING)
    study = read_study(recipe)
    folder = output / recipe.stem
    index, count = map(int, shard.split("/"))
    jobs = [(run, seed) for run in study.runs for seed in run.seeds or study.seeds]
    if dry_run:
        runs = [Run(**{**asdict(run), "max_steps": 2}) for run in study.runs]
        study = Study(**{**vars(study), "runs": runs})
        jobs = [(run, 0) for run in runs]
    jobs = [(run, seed) for run, seed in jobs if only in result_file(folder, run.name, seed).stem]
    starts: dict[tuple[str, int], State] = {}
    for run, seed in jobs[index::count]:
        path = result_file(folder, run.name, seed)
        if path.is_file():
            continue
        found = measure(study, run, models, data, seed, dev_only, device, starts)
        write_text(path, json.dumps(found, indent=1) + "\n")
        typer.echo(f"{path.name}: {found['seconds']:.0f} s, dev {[round(e['dev'], 4) for e in found['log']]}")


if __name__ == "__main__":
    typer.run(main)
