"""Results of studies of pair tasks: one JSON file a task, row and seed; what is there already is kept."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

from evaluation.pair_tasks import Task

__all__ = ["PairRow", "PairStudy", "Results", "load_results", "load_seeds", "pending", "result_file"]

Results = dict[tuple[str, str], list[dict[str, Any]]]
"""Results of all seeds by task and row."""


class PairRow(Protocol):
    """What this file has to know of a row."""

    @property
    def name(self) -> str:
        """Its name."""

    @property
    def tasks(self) -> Sequence[str]:
        """Tasks it is run on; empty for all."""

    @property
    def seeds(self) -> Sequence[int]:
        """Its seeds; empty for the study's."""


AnyRow = TypeVar("AnyRow", bound=PairRow)
Row_co = TypeVar("Row_co", bound=PairRow, covariant=True)


class PairStudy(Protocol[Row_co]):
    """What this file has to know of a study."""

    @property
    def tasks(self) -> Mapping[str, Task]:
        """Its tasks by name."""

    @property
    def rows(self) -> Sequence[Row_co]:
        """Its rows."""

    @property
    def seeds(self) -> Sequence[int]:
        """Seeds of the rows that have none of their own."""


def result_file(folder: Path, task: str, row: str, seed: int) -> Path:
    """Return the file of one task, row and seed.

    Args:
        folder: Results of the recipe.
        task: Name of the task.
        row: Name of the row.
        seed: Seed.

    Returns:
        The path.

    Example:
        >>> result_file(Path("results"), "qqp", "RE2, word vectors", 0).name
        'qqp-re2-word-vectors-seed0.json'
    """
    return folder / f"{task}-{re.sub(r'[^a-z0-9.]+', '-', row.lower()).strip('-')}-seed{seed}.json"


def pending(
    study: PairStudy[AnyRow], folder: Path, only: str = "", shard: str = "0/1", dry_run: bool = False
) -> Iterator[tuple[str, int, list[tuple[AnyRow, Path]]]]:
    """Yield what is still to be measured, seed by seed, so that a whole table with one seed is there first.

    Args:
        study: The study.
        folder: Results of the recipe.
        only: Only what has this in its file name.
        shard: ``"i/n"``: every n-th task and seed, from the i-th, counted from 0.
        dry_run: Whether every row has seed 0 and no other.

    Yields:
        A task, a seed, and the rows with the files that are missing; only where any is.
    """
    index, count = map(int, shard.split("/"))
    seeds = dict.fromkeys([*study.seeds, *(seed for row in study.rows for seed in row.seeds)])
    settings = [(task, seed) for seed in ([0] if dry_run else seeds) for task in study.tasks]
    for task, seed in settings[index::count]:
        wanted = [
            (row, result_file(folder, task, row.name, seed))
            for row in study.rows
            if task in (row.tasks or study.tasks) and (dry_run or seed in (row.seeds or study.seeds))
        ]
        missing = [(row, path) for row, path in wanted if only in path.stem and not path.is_file()]
        if missing:
            yield task, seed, missing


def load_results(study: PairStudy[PairRow], folder: Path) -> Results:
    """Read what has been measured.

    Args:
        study: The study.
        folder: Results of the recipe.

    Returns:
        One list of results (a seed each) for each task and row that has any.
    """
    found: Results = {}
    for task in study.tasks:
        for row in study.rows:
            for seed in row.seeds or study.seeds:
                path = result_file(folder, task, row.name, seed)
                if path.is_file():
                    found.setdefault((task, row.name), []).append(json.loads(path.read_text(encoding="utf-8")))
    return found


def load_seeds(folder: Path, task: str, row: str) -> list[dict[str, Any]]:
    """Read what another study has measured, whatever its seeds.

    Args:
        folder: Results of its recipe.
        task: Name of the task there.
        row: Name of the row there.

    Returns:
        One result a seed; none if it has not been run.
    """
    pattern = result_file(folder, task, row, 0).name.replace("-seed0.", "-seed[0-9]*.")
    return [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob(pattern))]
