"""What the tables of studies of pair tasks share: scores on the reported sets, and paired differences."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from evaluation.ledger import spread
from evaluation.pair_results import Results
from evaluation.pair_scores import CONFIDENCE, unpacked
from evaluation.pair_tasks import Task
from st_plugins.evaluation.statistics import difference, holm, interval

__all__ = ["difference_table", "main_table", "sets"]


def sets(tasks: Mapping[str, Task]) -> list[tuple[str, str]]:
    """Return the reported sets.

    Args:
        tasks: Tasks by name.

    Returns:
        Task and set.
    """
    return [(name, test) for name, task in tasks.items() for test in task.tests]


def _tests(results: Results, task: str, row: str, test: str) -> list[dict[str, Any]]:
    return [found["tests"][test] for found in results.get((task, row), []) if test in found.get("tests", {})]


def main_table(
    rows: Sequence[str], columns: Sequence[tuple[str, str]], results: Results, missing: str | None = None
) -> list[str]:
    """Return the scores on the reported sets.

    Args:
        rows: Names of the rows.
        columns: Tasks and sets.
        results: The results.
        missing: What stands where there is no result; None leaves rows without any result out.

    Returns:
        Markdown lines.
    """
    lines = ["| row | seeds | " + " | ".join(test for _, test in columns) + " |"]
    lines.append("| --- | ---: |" + " --- |" * len(columns))
    for row in rows:
        found = [_tests(results, task, row, test) for task, test in columns]
        if missing is None and not any(found):
            continue
        seeds = sorted({len(results) for results in found if results})
        cells = [row, " to ".join(map(str, seeds[:1] + seeds[1:][-1:])) or missing or ""]
        lines.append("| " + " | ".join([*cells, *(_cell(seeds) or missing or "" for seeds in found)]) + " |")
    return lines


def _cell(seeds: list[dict[str, Any]]) -> str:
    """Mean and deviation over seeds, the interval of the mean, and the second score where there is one."""
    if not seeds:
        return ""
    mean = statistics.mean(found["value"][0] for found in seeds)
    whole = interval(mean, np.mean([unpacked(found) for found in seeds], axis=0), CONFIDENCE)
    text = f"{spread([found['value'][0] for found in seeds])} [{100 * whole.low:.1f}, {100 * whole.high:.1f}]"
    for second in ("f1", "mrr"):
        if second in seeds[0]:
            text += f", {second.upper()} {spread([found[second][0] for found in seeds])}"
    return text


def difference_table(
    rows: Sequence[str], base: str, columns: Sequence[tuple[str, str]], results: Results
) -> list[str]:
    """Return how far rows are above one of them, paired on the same pairs and resamples.

    Args:
        rows: Names of the rows.
        base: Name of the row to compare with.
        columns: Tasks and sets.
        results: The results.

    Returns:
        Markdown lines.
    """
    lines = [f"| minus {base} | " + " | ".join(test for _, test in columns) + " |"]
    lines.append("| --- |" + " --- |" * len(columns))
    for row in rows:
        judged = {}
        for task, test in columns:
            sides = [_tests(results, task, name, test) for name in (row, base)]
            if row == base or not all(sides):
                continue
            value, reference = (statistics.mean(found["value"][0] for found in side) for side in sides)
            resamples, reference_resamples = (np.mean([unpacked(found) for found in side], axis=0) for side in sides)
            judged[test] = difference(value - reference, resamples - reference_resamples, CONFIDENCE)
        judged = holm(judged, CONFIDENCE)
        cells = [
            f"{100 * judged[test].value:+.2f} {judged[test].verdict}" if test in judged else "" for _, test in columns
        ]
        if judged:
            lines.append(f"| {row} | " + " | ".join(cells) + " |")
    return lines
