"""What was measured before and after something was done to a model, as Markdown for its card."""

from __future__ import annotations

import math

from st_plugins.core.model_card import table
from st_plugins.evaluation.comparison import Comparison
from st_plugins.evaluation.pages.tables import interval_text
from st_plugins.evaluation.result import Difference, Score, SuiteResult
from st_plugins.report.table import percent


def before_after(before: SuiteResult, after: SuiteResult, comparison: Comparison, what: str) -> str:
    """Return the scores with intervals and the floor, and the verdict in words; ``what`` was done in between."""
    names = [(task.name, task.title) for task in before.tasks] + [("avg", "average")]
    rows: list[list[str]] = [["Spearman × 100", *(title for _, title in names)]]
    for label, result in (("before", before), ("after", after)):
        scores = [*(task.spearman["all"] for task in result.tasks), result.average["spearman_all"]]
        rows.append([label, *map(_score, scores)])
    differences = [*(comparison.tasks[name] for name, _ in names[:-1]), comparison.average]
    rows.append(["after - before", *map(_difference, differences)])
    if after.floor is not None:
        rows.append(["floor: random token vectors", *(_score(after.floor.raw[name]) for name, _ in names)])
        label = f"floor, whitened on {after.floor.whitened_on}"
        rows.append([label, *(_score(after.floor.whitened[name]) for name, _ in names)])
    if len(names) == 2:  # one task: its average says nothing new
        rows = [row[:-1] for row in rows]
    verdict = {
        "better": f"{what} helped on these pairs.",
        "worse": f"**{what} hurt on these pairs**: the original model is the better one here.",
        "not separable": f"On these pairs {what[0].lower()}{what[1:]} made no difference that can be told apart.",
        "undefined": f"Whether {what[0].lower()}{what[1:]} helped could not be measured: a correlation on these pairs "
        "is undefined.",
    }[comparison.average.verdict]
    confidence = round(100 * before.settings["confidence"])
    return f'{table(rows)}\n\nConvention "all"; {confidence} % bootstrap intervals over pairs. {verdict}'


def _score(score: Score) -> str:
    return percent(score.value) + _interval(score)


def _difference(difference: Difference) -> str:
    if math.isnan(difference.value):
        return difference.verdict
    return f"{percent(difference.value, sign=True)}{_interval(difference)}, {difference.verdict}"


def _interval(score: Score | Difference) -> str:
    if math.isnan(score.value) or math.isnan(score.low):
        return ""
    return f" {interval_text(score.low, score.high)}"
