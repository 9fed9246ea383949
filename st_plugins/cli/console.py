"""What several commands print: an evaluation, a comparison, what a method did to a model, and warnings."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable

from rich.console import Console
from rich.text import Text

from st_plugins.evaluation.comparison import Comparison
from st_plugins.evaluation.pages.tables import (
    binary_table,
    comparison_table,
    geometry_table,
    interval_text,
    pipelines_table,
    score_table,
)
from st_plugins.evaluation.pages.task_pages import terminal_table, thresholds_in_words
from st_plugins.evaluation.pages.words import TIES_MATTER, highest_in_words
from st_plugins.evaluation.result import Difference, SuiteResult
from st_plugins.evaluation.task_result import TasksResult
from st_plugins.report.table import percent
from st_plugins.report.terminal import foreign, shown

_WHITENING_ADVICE = (
    "keep the original model, or whiten on other texts. Models already trained with cosine on this kind of text "
    "usually lose"
)


def print_result(console: Console, result: SuiteResult | TasksResult) -> None:
    """Print one evaluation: scores, of STS beside the floor and with the geometry, and warnings."""
    if isinstance(result, TasksResult):
        console.print(terminal_table(result).to_terminal())
        for text in thresholds_in_words(result):
            console.print(foreign(text), soft_wrap=True)
        print_warnings(console, result.warnings)
        return
    console.print(score_table(result).to_terminal())
    binary = binary_table(result)
    if binary.rows:
        console.print(binary.to_terminal())
    if any(task.highest < TIES_MATTER for task in result.tasks):
        console.print(foreign(highest_in_words(result)), soft_wrap=True)
    if result.geometry:
        console.print(geometry_table("Geometry of the embeddings", result.geometry).to_terminal())
    print_warnings(console, result.warnings)


def print_warnings(console: Console, warnings: Iterable[str]) -> None:
    """Print warnings, each once."""
    for warning in dict.fromkeys(warnings):
        console.print(Text.assemble(("warning:", "yellow"), " ", shown(warning)), soft_wrap=True)


def verdict(comparison: Comparison) -> Text:
    """Say in one sentence which of two models, A the first and B the second, is better, and by how much."""
    found = comparison.average
    points = f"{100 * abs(found.value):.2f}"  # positive for who is better
    if found.verdict == "better":
        return foreign(f"{comparison.first} (A) is better by {points} {interval_text(found.low, found.high)}", "green")
    # Of B - A: the ends of the interval change signs and places.
    turned = -found.high, -found.low
    if found.verdict == "worse":
        return foreign(f"{comparison.second} (B) is better by {points} {interval_text(*turned)}", "green")
    if math.isnan(found.value):
        return Text("which of A and B is better could not be measured: a correlation is undefined", "yellow")
    between = f"B - A is {percent(-found.value, sign=True)} {interval_text(*turned, sign=True)}"
    return Text(f"A and B are {found.verdict} on these pairs: {between}", "yellow")


def print_before_after(
    console: Console,
    before: SuiteResult,
    after: SuiteResult,
    comparison: Comparison,
    *,
    method: str = "whitening",
    advice: str = _WHITENING_ADVICE,
) -> None:
    """Print what a method did to a model on held-out pairs; the comparison is that of ``after`` with ``before``."""
    # The comparison says what the method adds; the table is read from left to right, A before and B after.
    results = {"before": before, f"after {method}": after}
    console.print(pipelines_table("Held-out pairs: Spearman x 100, convention 'all'", results).to_terminal())
    titles = {task.name: task.title for task in before.tasks}
    console.print(comparison_table(_turned(comparison), titles).to_terminal())
    words = {
        "better": (f"{method} helps on these pairs", "green"),
        "worse": (f"{method} HURTS on these pairs: {advice}", "red"),
        "not separable": (f"on these pairs {method} makes no difference that can be told apart", "yellow"),
        "undefined": (f"whether {method} helps could not be measured: a correlation is undefined", "yellow"),
    }
    console.print(Text(*words[comparison.average.verdict]))
    print_warnings(console, [*before.warnings, *after.warnings, *comparison.notes])


def _turned(comparison: Comparison) -> Comparison:
    """Return the comparison of the second with the first."""

    def turned(one: Difference) -> Difference:
        said = {"better": "worse", "worse": "better"}.get(one.verdict, one.verdict)
        return dataclasses.replace(one, value=-one.value, low=-one.high, high=-one.low, verdict=said)

    return dataclasses.replace(
        comparison,
        first=comparison.second,
        second=comparison.first,
        tasks={name: turned(one) for name, one in comparison.tasks.items()},
        average=turned(comparison.average),
        scores={name: (second, first) for name, (first, second) in comparison.scores.items()},
    )
