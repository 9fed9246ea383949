"""Write an evaluation to disk: ``result.json``, ``result.csv``, ``result.md`` and ``report.html``."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

from st_plugins.atomic import write_text
from st_plugins.evaluators.html_report import html
from st_plugins.evaluators.result import Difference, Score, SuiteResult
from st_plugins.evaluators.tables import Cell, Table, header, how_to_read, summary, tables

__all__ = ["csv_text", "markdown", "write_reports"]

_METRICS = [f"{metric}_{kind}" for metric in ("spearman", "pearson") for kind in ("all", "mean", "wmean")]
_COLUMNS = ["model", "system", "task", "subset", "pairs"]
_COLUMNS += [f"{metric}{end}" for metric in _METRICS for end in ("", "_low", "_high")]
_COLUMNS += ["p_value", "verdict"]


def write_reports(result: SuiteResult, folder: str | Path, *, overwrite: bool = True) -> list[Path]:
    """Write the four report files.

    Every text is made before the first is written, and each file appears whole or not at all.

    Args:
        result: The evaluation.
        folder: Where to write; created when it is missing.
        overwrite: Whether files of an earlier report may be replaced.

    Returns:
        The paths of the files.

    Raises:
        FileExistsError: There is an earlier report and ``overwrite`` is false.
        OSError: The folder cannot be written to.
    """
    folder = Path(folder)
    texts = {
        "result.json": result.to_json(),
        "result.csv": csv_text(result),
        "result.md": markdown(result),
        "report.html": html(result),
    }
    earlier = [name for name in texts if (folder / name).exists()]
    if earlier and not overwrite:
        raise FileExistsError(f"report folder {str(folder)!r} already holds {earlier[0]}; choose another one")
    try:
        for name, text in texts.items():
            write_text(folder / name, text)
    except OSError as error:
        reason = error.strerror or str(error)
        raise OSError(
            f"cannot write the report to folder {str(folder)!r} ({reason}); choose a folder that can be written to"
        ) from error
    return [folder / name for name in texts]


def markdown(result: SuiteResult) -> str:
    """Return the report as Markdown. It holds no date: the same result gives the same text.

    Args:
        result: The evaluation.

    Returns:
        The text.
    """
    lines = header(result)
    parts = [f"# STS evaluation: {_escaped(lines['Model'])}"]
    if result.settings.get("banner"):
        parts.append(f"> **{_escaped(str(result.settings['banner']))}**")
    parts.append(_escaped(summary(result)))
    parts.append("\n".join(f"- {name}: {_escaped(line)}" for name, line in lines.items()))
    parts += [_markdown_table(table) for table in tables(result)]
    if result.warnings:
        parts.append("## Warnings\n\n" + "\n".join(f"- {_escaped(warning)}" for warning in result.warnings))
    parts.append("## How to read this\n\n" + "\n\n".join(_escaped(text) for text in how_to_read(result)))
    return "\n\n".join(parts) + "\n"


def csv_text(result: SuiteResult) -> str:
    """Return every score at full precision, in [-1, 1], as a CSV table.

    The column ``system`` holds ``model``, ``floor raw``, ``floor whitened``, ``above floor raw`` or ``above floor
    whitened``. A row with a ``subset`` is one sub-dataset, its correlation stands under ``all``; the task ``avg`` is
    the average. An empty field does not apply, ``nan`` is an undefined number.

    Args:
        result: The evaluation.

    Returns:
        The text.
    """
    rows: list[dict[str, Any]] = []
    for task in result.tasks:
        for name, subset in sorted(task.subsets.items()):
            row = {"system": "model", "task": task.name, "subset": name, "pairs": int(subset["pairs"])}
            row |= {"spearman_all": float(subset["spearman"]), "pearson_all": float(subset["pearson"])}
            rows.append(row)
        row = {"system": "model", "task": task.name, "pairs": task.pairs}
        for metric in _METRICS:
            kind = metric.split("_")[1]
            row |= _fields(metric, (task.spearman if metric.startswith("spearman") else task.pearson)[kind])
        rows.append(row)
    row = {"system": "model", "task": "avg", "pairs": sum(task.pairs for task in result.tasks)}
    for metric in _METRICS:
        row |= _fields(metric, result.average[metric])
    rows.append(row)
    if result.floor is not None:
        floor = result.floor
        for system, scores in (("floor raw", floor.raw), ("floor whitened", floor.whitened)):
            for name, score in sorted(scores.items()):
                rows.append({"system": system, "task": name} | _fields("spearman_all", score))
        for system, above in (("above floor raw", floor.above_raw), ("above floor whitened", floor.above_whitened)):
            for name, difference in sorted(above.items()):
                row = {"system": system, "task": name} | _fields("spearman_all", difference)
                rows.append(row | {"p_value": difference.p_value, "verdict": difference.verdict})
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, _COLUMNS, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows({"model": result.model.get("name", "")} | row for row in rows)
    return buffer.getvalue()


def _fields(metric: str, score: Score | Difference) -> dict[str, Any]:
    return {metric: score.value, f"{metric}_low": score.low, f"{metric}_high": score.high}


def _markdown_table(table: Table) -> str:
    def line(cells: list[Cell]) -> str:
        texts = [cell if isinstance(cell, str) else " ".join(cell) for cell in cells]
        return "| " + " | ".join(_escaped(text) for text in texts) + " |"

    note = f"{_escaped(table.note)}\n\n" if table.note else ""
    rows = [line([*table.columns]), "| " + " | ".join("---" for _ in table.columns) + " |", *map(line, table.rows)]
    return f"## {_escaped(table.title)}\n\n{note}" + "\n".join(rows)


def _escaped(text: str) -> str:
    """Return text that Markdown shows as it is: no HTML, no emphasis, no link, no broken table row."""
    text = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;")
    for mark in "\\`*|":
        text = text.replace(mark, "\\" + mark)
    return text.replace("](", "]\\(")
