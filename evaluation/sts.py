"""The STS study: recipe in, results out.

A recipe (TOML) names models, pipelines and the texts to whiten on. This script evaluates every pipeline with
``STSSuiteEvaluator`` and writes one JSON per pipeline and one table for all of them::

    python -m evaluation.sts evaluation/recipes/mini-bert-en.toml --models MODELS --data DATA

``--models`` and ``--data`` are folders; the environment variables ST_PLUGINS_MODELS and ST_PLUGINS_DATA serve as well.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from rich.console import Console

from evaluation.pipelines import Pipeline, build_model
from evaluation.toml_file import recipe_tables
from st_plugins import whiten
from st_plugins.cli.console import pipelines_table
from st_plugins.core.writing.atomic import write_text
from st_plugins.data import load_task, read_texts
from st_plugins.data.tasks import TASKS, resolve_tasks
from st_plugins.evaluation import Difference, FloorResult, Score, STSSuiteEvaluator, SuiteResult

KINDS = ("none", "corpus", "target", "pooled")


@dataclass(frozen=True)
class Recipe:
    """What one run does.

    Args:
        title: Heading of the table.
        tasks: As for ``STSSuiteEvaluator``.
        corpus: Files or folders below ``--data`` with unlabelled texts; ``file.tsv#column`` for a table's column.
        corpus_size: Number of texts drawn from them with ``seed``; 0 for all.
        seed: Seed of the draw, the resamples, the floor and random weights.
        batch_size: Sentences per batch.
        pipelines: The rows.
        notes: Text below the table.
    """

    title: str
    tasks: str
    corpus: list[str]
    corpus_size: int
    seed: int
    batch_size: int
    pipelines: list[Pipeline]
    notes: str = ""


def read_recipe(path: Path) -> Recipe:
    """Read and check a recipe.

    Args:
        path: The TOML file.

    Returns:
        The recipe.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is not TOML, a key is missing or unknown, or a value is not allowed.
    """
    with recipe_tables(path) as raw:
        rows = [Pipeline(**row) for row in raw.pop("pipeline")]
        recipe = Recipe(pipelines=rows, **raw)
    for row in rows:
        if row.whitening not in KINDS:
            raise ValueError(f"{path}: pipeline {row.name!r}: whitening={row.whitening!r} must be one of {KINDS}")
    return recipe


def read_corpus(recipe: Recipe, data: Path) -> list[str]:
    """Draw the unlabelled texts.

    Args:
        recipe: The recipe.
        data: Folder of the data.

    Returns:
        ``corpus_size`` texts, the same for the same seed.
    """
    texts = []
    for name in recipe.corpus:
        file, _, column = name.partition("#")
        texts += read_texts(data / file, column or None)
    if 0 < recipe.corpus_size < len(texts):
        drawn = np.random.default_rng(recipe.seed).choice(len(texts), recipe.corpus_size, replace=False)
        texts = [texts[index] for index in np.sort(drawn)]
    return texts


def target_texts(tasks: str, data: Path) -> dict[str, list[str]]:
    """Return the train and dev texts that the published target setting adds for STS-B and SICK-R.

    Args:
        tasks: As for ``STSSuiteEvaluator``.
        data: Folder of the data.

    Returns:
        Texts by task name.
    """
    more = {}
    for task in resolve_tasks(tasks):
        if task.name in ("stsb", "sickr"):
            splits = [load_task(task, data, split) for split in TASKS[task.name].splits if split != "test"]
            more[task.name] = [text for pairs in splits for text in (*pairs.sentences1, *pairs.sentences2)]
    return more


def evaluate(row: Pipeline, recipe: Recipe, models: Path, data: Path, corpus: list[str]) -> SuiteResult:
    """Evaluate one pipeline.

    Args:
        row: The pipeline.
        recipe: The recipe.
        models: Folder of the models.
        data: Folder of the data.
        corpus: Unlabelled texts.

    Returns:
        The result, without per-pair similarities.
    """
    model = build_model(row, models, recipe.seed)
    target = row.whitening == "target"
    evaluator = STSSuiteEvaluator(
        recipe.tasks,
        data,
        recipe.batch_size,
        seed=recipe.seed,
        floor_texts=corpus if corpus and row.whitening != "pooled" else None,
        target_whitening=row.dimension if target else None,
        target_texts=target_texts(recipe.tasks, data) if target else None,
        keep_similarities=False,
    )
    texts = {"corpus": corpus, "pooled": evaluator.sentences}.get(row.whitening)
    if texts is not None:
        source = ", ".join(recipe.corpus) if row.whitening == "corpus" else "the evaluated sentences"
        model = whiten(model, texts, row.dimension or None, batch_size=recipe.batch_size, source=source)
    result = evaluator.evaluate(model, model_name=row.name)
    for task in result.tasks:
        # A result is published; the path of the data on this machine is nobody's business.
        task.source = Path(task.source).name
    return result


def table(recipe: Recipe, results: dict[str, SuiteResult]) -> str:
    """Return the Markdown table of all pipelines with their distance to the floor.

    Args:
        recipe: The recipe.
        results: Results by pipeline name.

    Returns:
        Markdown.
    """
    first = next(iter(results.values()))
    titles = [task.title for task in first.tasks]
    lines = [
        f"# {recipe.title}",
        "",
        "Spearman x 100, convention 'all' (one correlation over each task's concatenated pairs), with 95 % bootstrap "
        "intervals of the average. 'Above the floor' is the paired difference of the averages to a bag of random "
        "token vectors with the same tokenizer and dimension: raw, and whitened on the same texts (on each task's own "
        "texts for the target rows).",
        "",
        "| pipeline | dim | " + " | ".join(titles) + " | Avg. | above the floor | above the whitened floor |",
        "| --- | ---: |" + " ---: |" * (len(titles) + 1) + " --- | --- |",
    ]
    floors: dict[tuple[int, str], FloorResult] = {}
    for name, result in results.items():
        cells = [f"{100 * task.spearman['all'].value:.2f}" for task in result.tasks]
        cells.append(_interval(result.average["spearman_all"]))
        if result.floor is None:
            cells += ["no floor", "no floor"]
        else:
            cells += [_above(result.floor.above_raw["avg"]), _above(result.floor.above_whitened["avg"])]
            vocabulary = result.model["modules"][0]["type"] + str(result.model["parameters"])
            floors.setdefault((result.floor.dimension, result.floor.whitened_on + "@" + vocabulary), result.floor)
        lines.append(f"| {name} | {_dimension(result)} | " + " | ".join(cells) + " |")
    seen = set()
    for (dimension, _), floor in floors.items():
        for label, scores in (("raw", floor.raw), (f"whitened on {floor.whitened_on}", floor.whitened)):
            cells = [f"{100 * scores[task.name].value:.2f}" for task in first.tasks] + [_interval(scores["avg"])]
            row = f"| *floor, {label}* | {dimension} | " + " | ".join(cells) + " | | |"
            if row not in seen:
                seen.add(row)
                lines.append(row)
    versions = ", ".join(f"{key} {value}" for key, value in first.versions.items())
    lines += ["", f"Made with `python -m evaluation.sts` and seed {recipe.seed}. {versions}.", "", recipe.notes, ""]
    return "\n".join(lines)


def _dimension(result: SuiteResult) -> str:
    if result.settings["target_whitening"] == 0:
        return f"≤ {result.model['dimension']}"  # each task keeps as many as its texts have
    return str(result.settings["target_whitening"] or result.model["dimension"])


def _interval(score: Score) -> str:
    return f"**{100 * score.value:.2f}** [{100 * score.low:.1f}, {100 * score.high:.1f}]"


def _above(difference: Difference) -> str:
    return f"{100 * difference.value:+.2f} {difference.verdict}"


def main(
    recipe: Annotated[Path, typer.Argument(help="A TOML file of evaluation/recipes/.")],
    models: Annotated[Path, typer.Option(envvar="ST_PLUGINS_MODELS", help="Folder of the models.")],
    data: Annotated[Path, typer.Option(envvar="ST_PLUGINS_DATA", help="Folder of the data.")],
    output: Annotated[Path, typer.Option(help="Folder for the results.")] = Path("evaluation/results"),
    only: Annotated[str, typer.Option(help="Evaluate only pipelines whose name contains this.")] = "",
    reuse: Annotated[bool, typer.Option("--reuse", help="Keep the JSON results that are already there.")] = False,
) -> None:
    """Evaluate every pipeline of RECIPE; write OUTPUT/<recipe>/<pipeline>.json and OUTPUT/<recipe>/table.md."""
    plan = read_recipe(recipe)
    corpus = read_corpus(plan, data)
    folder = output / recipe.stem
    console = Console(width=180)
    results = {}
    for row in plan.pipelines:
        if only not in row.name:
            continue
        console.print(f"{row.name} ...")
        file = folder / (re.sub(r"[^a-z0-9]+", "-", row.name.lower()).strip("-") + ".json")
        if reuse and file.is_file():
            results[row.name] = SuiteResult.read(file)
        else:
            results[row.name] = evaluate(row, plan, models, data, corpus)
            write_text(file, results[row.name].to_json())
    if not results:
        raise typer.BadParameter(f"no pipeline's name contains {only!r}")
    console.print(pipelines_table(plan.title, results))
    if not only:
        write_text(folder / "table.md", table(plan, results))
        console.print(f"wrote {folder}")


if __name__ == "__main__":
    typer.run(main)
