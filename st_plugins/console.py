"""Results as terminal tables (rich)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from st_plugins.evaluators.comparison import Comparison
from st_plugins.evaluators.result import Difference, Score, SuiteResult
from st_plugins.evaluators.tables import GEOMETRY_MEANINGS, number

__all__ = [
    "comparison_table",
    "geometry_table",
    "pipelines_table",
    "print_before_after",
    "print_result",
    "score_table",
]

_WHITENING_ADVICE = (
    "keep the original model, or whiten on other texts. Models already trained with cosine on this kind of text "
    "usually lose"
)


def _score(score: Score) -> str:
    if math.isnan(score.value):
        return "undefined"
    interval = "" if math.isnan(score.low) else f"\n[dim]{100 * score.low:.1f} - {100 * score.high:.1f}[/dim]"
    return f"{100 * score.value:.2f}{interval}"


def _difference(difference: Difference) -> str:
    if math.isnan(difference.value):
        return "undefined"
    colour = {"better": "green", "worse": "red"}.get(difference.verdict, "yellow")
    return f"[{colour}]{100 * difference.value:+.2f}\n{difference.verdict}[/{colour}]"


def score_table(result: SuiteResult) -> Table:
    """Return the main table of one evaluation: the model, the floor, and how far above it the model stands.

    Args:
        result: The evaluation.

    Returns:
        Spearman x 100, convention "all", with intervals.
    """
    confidence = round(100 * result.settings["confidence"])
    table = Table(
        title=f"{result.model['name']}: Spearman x 100, convention 'all', {confidence} % intervals", show_lines=True
    )
    table.add_column("row")
    for task in result.tasks:
        table.add_column(task.title, justify="right")
    table.add_column("Avg.", justify="right", style="bold")
    names = [task.name for task in result.tasks]
    scores = [*(task.spearman["all"] for task in result.tasks), result.average["spearman_all"]]
    table.add_row("model", *map(_score, scores))
    if result.floor is not None:
        floor = result.floor
        keys = [*names, "avg"]
        table.add_row("floor: random token vectors", *(_score(floor.raw[key]) for key in keys))
        table.add_row(f"floor, whitened on {floor.whitened_on}", *(_score(floor.whitened[key]) for key in keys))
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
    table = Table(title=title, show_lines=True)
    table.add_column("pipeline")
    table.add_column("dim", justify="right")
    first = next(iter(results.values()))
    for task in first.tasks:
        table.add_column(task.title, justify="right")
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
        table.add_row(name, str(result.model["dimension"]), *map(_score, scores), *above)
    if first.floor is not None:
        floor = first.floor
        table.add_row("floor: random token vectors", str(floor.dimension), *(_score(floor.raw[key]) for key in keys))
        table.add_row(
            f"floor, whitened on {floor.whitened_on}",
            str(floor.dimension),
            *(_score(floor.whitened[key]) for key in keys),
        )
    return table


def comparison_table(comparison: Comparison, titles: Mapping[str, str]) -> Table:
    """Return a comparison, one task a row.

    Args:
        comparison: What ``compare`` found.
        titles: Printed name of each task.

    Returns:
        Both scores, the difference with interval, p-value and verdict.
    """
    table = Table(title=f"A = {comparison.first}\nB = {comparison.second}\nSpearman x 100, convention 'all'")
    for column in ("task", "A", "B", "A - B", "interval", "p", "A is"):
        table.add_column(column, justify="left" if column in ("task", "A is") else "right")
    rows: Sequence[tuple[str, Difference]] = [*comparison.tasks.items(), ("avg", comparison.average)]
    for name, difference in rows:
        first, second = comparison.scores[name]
        table.add_row(
            titles.get(name, "Avg." if name == "avg" else name),
            f"{100 * first:.2f}",
            f"{100 * second:.2f}",
            f"{100 * difference.value:+.2f}",
            f"{100 * difference.low:+.2f} - {100 * difference.high:+.2f}",
            f"{difference.p_value:.3f}",
            difference.verdict,
        )
    return table


def geometry_table(title: str, numbers: Mapping[str, Any]) -> Table:
    """Return the geometry numbers with their meaning.

    Args:
        title: Heading.
        numbers: What ``st_plugins.geometry.geometry`` returned.

    Returns:
        One number a row; the spectrum is left to the files.
    """
    table = Table(title=title)
    table.add_column("number")
    table.add_column("value", justify="right")
    table.add_column("meaning")
    for name, value in numbers.items():
        if isinstance(value, int | float):
            table.add_row(name.replace("_", " "), number(value), GEOMETRY_MEANINGS.get(name, ""))
    return table


def print_result(console: Console, result: SuiteResult) -> None:
    """Print one evaluation: scores beside the floor, geometry, warnings.

    Args:
        console: Where to.
        result: The evaluation.
    """
    console.print(score_table(result))
    if result.geometry:
        console.print(geometry_table("Geometry of the embeddings", result.geometry))
    for warning in result.warnings:
        console.print(f"[yellow]warning:[/yellow] {escape(warning)}", soft_wrap=True, highlight=False)


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
    results = {f"after {method}": after, "before": before}
    console.print(pipelines_table("Held-out pairs: Spearman x 100, convention 'all'", results))
    console.print(comparison_table(comparison, {task.name: task.title for task in before.tasks}))
    words = {
        "better": f"[green]{method} helps on these pairs[/green]",
        "worse": f"[red]{method} HURTS on these pairs: {advice}[/red]",
        "not separable": f"[yellow]on these pairs {method} makes no difference that can be told apart[/yellow]",
    }
    verdict = comparison.average.verdict
    console.print(words.get(verdict, f"whether {method} helps on these pairs is {verdict}"))
