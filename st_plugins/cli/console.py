"""Results as terminal tables (rich)."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from st_plugins.evaluation.comparison import Comparison
from st_plugins.evaluation.reading import TIES_MATTER, highest_in_words
from st_plugins.evaluation.result import Difference, Score, SuiteResult
from st_plugins.evaluation.tables import GEOMETRY_MEANINGS, number, percent, tables
from st_plugins.evaluation.tables import Table as ReportTable
from st_plugins.report.terminal import foreign, shown

__all__ = [
    "comparison_table",
    "geometry_table",
    "pipelines_table",
    "print_before_after",
    "print_result",
    "print_warnings",
    "score_table",
    "verdict",
]

_WHITENING_ADVICE = (
    "keep the original model, or whiten on other texts. Models already trained with cosine on this kind of text "
    "usually lose"
)


def _interval(low: float, high: float, sign: str = "") -> str:
    if math.isnan(low) or math.isnan(high):
        return ""
    return f"[{percent(low, 1, bool(sign))}, {percent(high, 1, bool(sign))}]"


def _score(score: Score) -> Text:
    if math.isnan(score.value):
        return Text("undefined")
    interval = "" if math.isnan(score.low) else f"\n{_interval(score.low, score.high)}"
    return Text.assemble(f"{100 * score.value:.2f}", (interval, "dim"))


def _difference(difference: Difference) -> Text:
    if math.isnan(difference.value):
        return Text("undefined")
    color = {"better": "green", "worse": "red"}.get(difference.verdict, "yellow")
    return Text(f"{percent(difference.value, sign=True)}\n{difference.verdict}", color)


def score_table(result: SuiteResult) -> Table:
    """Return the main table of one evaluation: the model, the floor, and how far above it the model stands.

    Args:
        result: The evaluation.

    Returns:
        Spearman x 100, convention "all", with intervals.
    """
    confidence = round(100 * result.settings["confidence"])
    similarity = result.settings.get("similarity", "cosine")
    title = f"{result.model['name']}: Spearman x 100 by {similarity}, convention 'all', {confidence} % intervals"
    table = Table(title=foreign(title), show_lines=True)
    table.add_column("row")
    for task in result.tasks:
        table.add_column(foreign(task.title), justify="right")
    table.add_column("Avg.", justify="right", style="bold")
    names = [task.name for task in result.tasks]
    scores = [*(task.spearman["all"] for task in result.tasks), result.average["spearman_all"]]
    table.add_row("model", *map(_score, scores))
    if result.floor is not None:
        floor = result.floor
        keys = [*names, "avg"]
        by = "" if result.settings.get("similarity", "cosine") == "cosine" else ", by cosine"
        table.add_row(f"floor: random token vectors{by}", *(_score(floor.raw[key]) for key in keys))
        table.add_row(
            foreign(f"floor, whitened on {floor.whitened_on}{by}"), *(_score(floor.whitened[key]) for key in keys)
        )
        table.add_row("above the floor by", *(_difference(floor.above_raw[key]) for key in keys))
        table.add_row("above the whitened floor by", *(_difference(floor.above_whitened[key]) for key in keys))
    return table


def pipelines_table(title: str, results: Mapping[str, SuiteResult]) -> Table:
    """Return several pipelines on the same tasks, one a row, with the floor of each dimension below.

    Args:
        title: Heading.
        results: Evaluations by name of the pipeline.

    Returns:
        Spearman x 100, convention "all", with intervals.
    """
    table = Table(title=foreign(title), show_lines=True)
    table.add_column("pipeline")
    table.add_column("dim", justify="right")
    first = next(iter(results.values()))
    for task in first.tasks:
        table.add_column(foreign(task.title), justify="right")
    table.add_column("Avg.", justify="right", style="bold")
    keys = [*(task.name for task in first.tasks), "avg"]
    if first.floor is not None:
        table.add_column("above the floor", justify="right")
        table.add_column("above the whitened floor", justify="right")
    for name, result in results.items():
        scores = [*(task.spearman["all"] for task in result.tasks), result.average["spearman_all"]]
        floor = result.floor
        above = (
            [] if floor is None else [_difference(floor.above_raw["avg"]), _difference(floor.above_whitened["avg"])]
        )
        table.add_row(foreign(name), str(result.model["dimension"]), *map(_score, scores), *above)
    if first.floor is not None:
        floor = first.floor
        table.add_row("floor: random token vectors", str(floor.dimension), *(_score(floor.raw[key]) for key in keys))
        table.add_row(
            foreign(f"floor, whitened on {floor.whitened_on}"),
            str(floor.dimension),
            *(_score(floor.whitened[key]) for key in keys),
        )
    return table


def comparison_table(comparison: Comparison, titles: Mapping[str, str]) -> Table:
    """Return a comparison, one task a row, as one reads it: what B has more than A.

    Args:
        comparison: What ``compare`` found; A is its first model, B its second.
        titles: Printed name of each task.

    Returns:
        Both scores, the difference (second minus first) with interval, p-value and who is better.
    """
    named = f"A = {shown(comparison.first)}\nB = {shown(comparison.second)}"
    table = Table(title=Text(f"{named}\nSpearman x 100, convention 'all'"))
    for column in ("task", "A", "B", "B - A", "interval of B - A", "p", "verdict"):
        table.add_column(column, justify="left" if column in ("task", "verdict") else "right")
    rows: Sequence[tuple[str, Difference]] = [*comparison.tasks.items(), ("avg", comparison.average)]
    for name, difference in rows:
        first, second = comparison.scores[name]
        table.add_row(
            foreign(titles.get(name, "Avg." if name == "avg" else name)),
            percent(first),
            percent(second),
            percent(-difference.value, sign=True),
            _interval(-difference.high, -difference.low, "+"),
            "" if math.isnan(difference.p_value) else f"{difference.p_value:.3f}",
            {"better": "A is better", "worse": "B is better"}.get(difference.verdict, difference.verdict),
        )
    return table


def verdict(comparison: Comparison) -> Text:
    """Say in one sentence which of two models is better, and by how much.

    Args:
        comparison: What ``compare`` found; A is its first model, B its second.

    Returns:
        The sentence, with a positive number for who is better.
    """
    found = comparison.average
    points = f"{100 * abs(found.value):.2f}"
    if found.verdict == "better":
        return foreign(f"{comparison.first} (A) is better by {points} {_interval(found.low, found.high)}", "green")
    if found.verdict == "worse":
        return foreign(f"{comparison.second} (B) is better by {points} {_interval(-found.high, -found.low)}", "green")
    if math.isnan(found.value):
        return Text("which of A and B is better could not be measured: a correlation is undefined", "yellow")
    between = f"B - A is {percent(-found.value, sign=True)} {_interval(-found.high, -found.low, '+')}"
    return Text(f"A and B are {found.verdict} on these pairs: {between}", "yellow")


def geometry_table(title: str, numbers: Mapping[str, Any]) -> Table:
    """Return the geometry numbers with their meaning.

    Args:
        title: Heading.
        numbers: What ``st_plugins.geometry.describe`` returned.

    Returns:
        One number a row; the spectrum is left to the files.
    """
    table = Table(title=foreign(title))
    table.add_column("number")
    table.add_column("value", justify="right")
    table.add_column("meaning")
    for name, value in numbers.items():
        if isinstance(value, int | float):
            table.add_row(foreign(name.replace("_", " ")), number(value), GEOMETRY_MEANINGS.get(name, ""))
    return table


def print_result(console: Console, result: SuiteResult) -> None:
    """Print one evaluation: scores beside the floor, geometry, warnings.

    Args:
        console: Where to.
        result: The evaluation.
    """
    console.print(score_table(result))
    binary = next((table for table in tables(result) if table.title == "Two gold values"), None)
    if binary is not None:
        console.print(plain_table(binary))
    if any(task.highest < TIES_MATTER for task in result.tasks):
        console.print(foreign(highest_in_words(result)), soft_wrap=True)
    if result.geometry:
        console.print(geometry_table("Geometry of the embeddings", result.geometry))
    print_warnings(console, result.warnings)


def plain_table(table: ReportTable) -> Table:
    """Return a table of the report for the terminal.

    Args:
        table: The table.

    Returns:
        The same with its note below.
    """
    shown_table = Table(title=foreign(table.title), caption=table.note, show_lines=True)
    for index, column in enumerate(table.columns):
        shown_table.add_column(foreign(column), justify="right" if index else "left")
    for row in table.rows:
        shown_table.add_row(*(foreign(cell if isinstance(cell, str) else " ".join(cell)) for cell in row))
    return shown_table


def print_warnings(console: Console, warnings: Iterable[str]) -> None:
    """Print warnings, each once.

    Args:
        console: Where to.
        warnings: The sentences.
    """
    for warning in dict.fromkeys(warnings):
        console.print(Text.assemble(("warning:", "yellow"), " ", shown(warning)), soft_wrap=True)


def print_before_after(
    console: Console,
    before: SuiteResult,
    after: SuiteResult,
    comparison: Comparison,
    *,
    method: str = "whitening",
    advice: str = _WHITENING_ADVICE,
) -> None:
    """Print what a method did to a model on held-out pairs, in numbers and in words.

    Args:
        console: Where to.
        before: Evaluation of the model as it was.
        after: Evaluation of the model that the method made of it.
        comparison: ``compare(after, before)``.
        method: What was done, a noun.
        advice: What to do when it hurt.
    """
    results = {"before": before, f"after {method}": after}
    console.print(pipelines_table("Held-out pairs: Spearman x 100, convention 'all'", results))
    console.print(comparison_table(_turned(comparison), {task.name: task.title for task in before.tasks}))
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
