"""Running a study: one JSON file a row, task and seed; what is there already is kept; then the page of all of them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer

from evaluation.engine.study import Place, Record, Results, Study, read_study, slug
from st_plugins.core.writing.atomic import write_text


@dataclass(frozen=True)
class Job:
    """One measurement, and where its record goes."""

    row: Any
    task: str
    seed: int
    path: Path


def run(
    recipe: Path, place: Place, results: Path | None = None, only: str = "", shard: str = "0/1", again: bool = False
) -> None:
    """Measure what is missing, and then write the page if nothing was left out."""
    study = _ready(recipe, place)
    folder = _folder(recipe, results)
    for jobs in pending(study, folder, only, shard, place.dry_run, again):
        for job in jobs:
            record = study.record(job.row, job.task, job.seed)
            # At once: a run that is stopped loses one measurement, and goes on with the next.
            write_text(job.path, json.dumps(record, indent=1, ensure_ascii=False) + "\n")
            typer.echo(f"{job.path.name}: {study.summary(record)}")
    # A part of the rows, or rows not meant to be shown, would make a page that looks whole.
    if not only and shard == "0/1" and not (place.dev_only or place.dry_run):
        write_page(recipe, results)


def prepare(recipe: Path, place: Place) -> None:
    """Make what several processes would otherwise all make."""
    made = _ready(recipe, place).prepare()
    if not made:
        raise typer.BadParameter(f"{recipe}: there is nothing to prepare")
    typer.echo(f"in {made}")


def _ready(recipe: Path, place: Place) -> Study[Any]:
    study: Study[Any] = read_study(recipe)
    for option in ("dev_only", "dry_run"):
        if getattr(place, option) and option not in study.options:
            raise typer.BadParameter(f"--{option.replace('_', '-')} has no meaning for {recipe}")
    study.place = place
    return study


def _folder(recipe: Path, results: Path | None) -> Path:
    """Return where a recipe's records are: of a committed one, in its study's ``results/``."""
    beside = recipe.parent.parent if recipe.parent.name == "recipes" else recipe.parent
    return (results or beside / "results") / recipe.stem


def pending(
    study: Study[Any], folder: Path, only: str = "", shard: str = "0/1", dry_run: bool = False, again: bool = False
) -> Iterator[list[Job]]:
    """Yield what is still to be measured, seed by seed, so that a whole table with one seed is there first.

    Jobs that have to run in one process come together; a shard, ``"i/n"``, is every n-th of these groups, from the
    i-th. A dry run has seed 0 and no other.
    """
    index, count = map(int, shard.split("/"))
    groups: dict[tuple[Any, ...], list[Job]] = {}
    for seed in [0] if dry_run else sorted({seed for row in study.rows for seed in study.seeds_of(row)}):
        for task in study.task_names:
            for row in study.rows:
                path = folder / f"{study.file_name(row.name, task, seed)}.json"
                wanted = task in study.tasks_of(row) and (dry_run or seed in study.seeds_of(row))
                if wanted and only in path.stem:
                    key = (seed, task) if study.keeps_rows_together else (seed, task, row.name)
                    groups.setdefault(key, []).append(Job(row, task, seed, path))
    if not groups:
        raise typer.BadParameter(f"no file name has {only!r} in it, of those that {study.title!r} writes")
    # Sharded before looking at what is there: processes that run side by side must not disagree.
    for group in list(groups.values())[index::count]:
        missing = [job for job in group if again or not job.path.is_file()]
        if missing:
            yield missing


def load_results(study: Study[Any], folder: Path) -> Results:
    """Read what has been measured; rows without any result are left out."""
    found: Results = {}
    for task in study.task_names:
        for row in study.rows:
            for seed in study.seeds_of(row):
                path = folder / f"{study.file_name(row.name, task, seed)}.json"
                if path.is_file():
                    found.setdefault((task, row.name), []).append(json.loads(path.read_text(encoding="utf-8")))
    return found


def load_seeds(folder: Path, task: str, row: str) -> list[Record]:
    """Read what another study has measured, whatever its seeds."""
    paths = sorted(folder.glob(f"{slug(row, task)}-seed[0-9]*.json"))
    return [json.loads(path.read_text(encoding="utf-8")) for path in paths]


def write_page(recipe: Path, results: Path | None = None) -> None:
    """Write ``table.md`` and the pictures beside it from the records that are there."""
    study: Study[Any] = read_study(recipe)
    folder = _folder(recipe, results)
    found = load_results(study, folder)
    if not found:
        raise typer.BadParameter(f"{folder} holds no result of {recipe.name}; run `python -m evaluation run` first")
    lines, files = study.page(found, folder)
    for name, text in {**files, "table.md": "\n".join(lines)}.items():
        write_text(folder / name, text)
    typer.echo(f"wrote {folder / 'table.md'}")
