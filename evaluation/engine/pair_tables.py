"""What the tables of pairs share: scores with what a bootstrap says of them, and paired differences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from evaluation.engine.scores import CONFIDENCE, unpacked
from evaluation.engine.study import Record, Results
from evaluation.engine.tables import bounds, head, line, mean, spread
from st_plugins.evaluation.statistics import difference, holm, interval

Scores = list[Record]
"""What was scored on one set, a seed each."""


def cell(seeds: Scores) -> str:
    """Return mean and deviation over seeds, the interval of the mean, and the second score where there is one."""
    if not seeds:
        return ""
    values = [found["value"][0] for found in seeds]
    whole = interval(mean(values), np.mean([unpacked(found) for found in seeds], axis=0), CONFIDENCE)
    text = f"{spread(values)} {bounds(whole.low, whole.high)}"
    for second in ("f1", "mrr"):
        if second in seeds[0]:
            text += f", {second.upper()} {spread([found[second][0] for found in seeds])}"
    return text


def verdicts(sides: Mapping[str, tuple[Scores, Scores]]) -> dict[str, str]:
    """Judge how far the first of two is above the second, paired, and corrected for the number of comparisons."""
    judged = {}
    for name, pair in sides.items():
        value, reference = (mean(found["value"][0] for found in side) for side in pair)
        # The mean over seeds of each resample: the interval tells of other pairs, not of other seeds.
        resamples, references = (np.mean([unpacked(found) for found in side], axis=0) for side in pair)
        judged[name] = difference(value - reference, resamples - references, CONFIDENCE)
    return {name: f"{100 * found.value:+.2f} {found.verdict}" for name, found in holm(judged, CONFIDENCE).items()}


def _tests(results: Results, task: str, row: str, test: str) -> Scores:
    return [found["tests"][test] for found in results.get((task, row), []) if test in found.get("tests", {})]


def main_table(
    rows: Sequence[str], columns: Sequence[tuple[str, str]], results: Results, missing: str | None = None
) -> list[str]:
    """Return the scores on the reported sets, each a task and a name.

    ``missing`` stands where there is no result; None leaves rows without any result out.
    """
    lines = head("row", ">seeds", *(test for _, test in columns))
    for row in rows:
        found = [_tests(results, task, row, test) for task, test in columns]
        if missing is None and not any(found):
            continue
        # Sets may have been measured with different numbers of seeds.
        seeds = sorted({len(scores) for scores in found if scores})
        cells = [row, " to ".join(map(str, seeds[:1] + seeds[1:][-1:])), *map(cell, found)]
        lines.append(line(text or missing or "" for text in cells))
    return lines


def difference_table(
    rows: Sequence[str], base: str, columns: Sequence[tuple[str, str]], results: Results
) -> list[str]:
    """Return how far rows are above one of them, on the same pairs and resamples."""
    lines = head(f"minus {base}", *(test for _, test in columns))
    for row in rows:
        sides = {test: [_tests(results, task, name, test) for name in (row, base)] for task, test in columns}
        judged = verdicts({test: (found[0], found[1]) for test, found in sides.items() if row != base and all(found)})
        if judged:
            lines.append(line([row, *(judged.get(test, "") for _, test in columns)]))
    return lines
