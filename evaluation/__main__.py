"""The studies: recipe in, records and tables out.

A recipe (TOML) names a study, data, and rows. Each row is measured once a seed, and a task where there are tasks::

    python -m evaluation run evaluation/studies/sts/recipes/mini-bert-en.toml --models MODELS --data DATA
    python -m evaluation table evaluation/studies/sts/recipes/mini-bert-en.toml

``--models`` and ``--data`` are folders; the environment variables ST_PLUGINS_MODELS and ST_PLUGINS_DATA serve as well.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated

import typer

from evaluation.engine import runner
from evaluation.engine.study import Place

app = typer.Typer(no_args_is_help=True, add_completion=False, help="Run a study, or make its table.")
Recipe = Annotated[Path, typer.Argument(help="A TOML file of evaluation/studies/<study>/recipes/, or one like them.")]
Folder = Annotated[Path | None, typer.Option(help="Folder of the study's results, if not its own.")]


@app.command()
def run(
    recipe: Recipe,
    models: Annotated[Path, typer.Option(envvar="ST_PLUGINS_MODELS", help="Folder of the models.")],
    data: Annotated[Path, typer.Option(envvar="ST_PLUGINS_DATA", help="Folder of the data.")],
    cache: Annotated[Path | None, typer.Option(help="Folder for what rows share, outside the repository.")] = None,
    results: Folder = None,
    only: Annotated[str, typer.Option(help="Measure only what has this in its file name: nli-, seed0, simcse.")] = "",
    shard: Annotated[
        str, typer.Option(help="i/n: every n-th part of the work, from the i-th, counted from 0.")
    ] = "0/1",
    again: Annotated[bool, typer.Option("--again", help="Measure anew what is there already.")] = False,
    dev_only: Annotated[bool, typer.Option("--dev-only", help="Do not look at the reported sets.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="A few steps a row, one seed: does it work?")] = False,
    prepare: Annotated[bool, typer.Option("--prepare", help="Only make what all shards of the work share.")] = False,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, ...")] = None,
) -> None:
    """Measure every row of RECIPE that has no record yet; write RESULTS/<recipe>/[<task>-]<row>-seed<n>.json."""
    logging.getLogger("sentence_transformers").setLevel(logging.WARNING)
    place = Place(models, data, cache, device, dev_only, dry_run)
    if prepare:
        runner.prepare(recipe, place)
    else:
        runner.run(recipe, place, results, only, shard, again)


@app.command()
def table(recipe: Recipe, results: Folder = None) -> None:
    """Write RESULTS/<recipe>/table.md, and the pictures beside it, from the records that are there."""
    runner.write_page(recipe, results)


if __name__ == "__main__":
    app()
