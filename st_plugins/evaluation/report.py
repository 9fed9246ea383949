"""Write an evaluation to disk: ``result.json``, ``result.csv``, ``result.md`` and ``report.html``."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from st_plugins.core.writing.atomic import Target, file_target
from st_plugins.evaluation.pages import task_pages
from st_plugins.evaluation.pages.figures import Picture, pictures
from st_plugins.evaluation.pages.tables import tables
from st_plugins.evaluation.pages.words import header, how_to_read, summary
from st_plugins.evaluation.result import Difference, Score, SuiteResult
from st_plugins.evaluation.task_result import TasksResult
from st_plugins.report.page import GENERATOR, escape, page, section
from st_plugins.report.table import Table, markdown_text

_METRICS = [f"{metric}_{kind}" for metric in ("spearman", "pearson") for kind in ("all", "mean", "wmean")]
_COLUMNS = ["model", "system", "task", "subset", "pairs"]
_COLUMNS += [f"{metric}{end}" for metric in _METRICS for end in ("", "_low", "_high")]
_COLUMNS += ["p_value", "verdict", "highest_spearman"]
_COLUMNS += [f"{metric}{end}" for metric in ("auc", "average_precision") for end in ("", "_low", "_high")]
_MARKS = {  # by which a file of an earlier report is known, of STS or of other tasks
    "result.json": b'"schema_version": ',
    "result.csv": b"model,system,task,",
    "result.md": b"\n## How to read this\n",
    "report.html": GENERATOR,
}


def report_targets(
    folder: str | Path, *, name: str = "folder", overwrite: bool = False, inputs: Iterable[str | Path | None] = ()
) -> list[Target]:
    """Look whether the four report files can be written, before the evaluation is computed."""
    read = list(inputs)
    return [
        file_target(Path(folder, file), name=name, overwrite=overwrite, inputs=read, mark=mark)
        for file, mark in _MARKS.items()
    ]


def write_reports(
    result: SuiteResult | TasksResult, folder: str | Path | Sequence[Target], *, overwrite: bool = False
) -> list[Path]:
    """Write the four report files.

    Every text is made before the first file appears, and each of them appears whole or not at all.

    Args:
        result: The evaluation.
        folder: Where to write, created when it is missing; or what `report_targets` said of it earlier.
        overwrite: Whether files of an earlier report may be replaced.

    Returns:
        The paths of the files.

    Raises:
        FileExistsError: There is an earlier report and ``overwrite`` is false, or a file that is none of ours.
        OSError: The folder cannot be written to.

    Example:
        >>> import tempfile
        >>> from st_plugins.miniature import untrained_encoder
        >>> from st_plugins.evaluation import STSSuiteEvaluator
        >>> evaluator = STSSuiteEvaluator.from_pairs(["a dog", "a cat", "a man"], ["dogs", "a boat", "men"], [4, 1, 3])
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     files = write_reports(evaluator.evaluate(untrained_encoder()), Path(folder, "report"))
        >>> len(files)
        4
    """
    # Every text is made before the first file is opened.
    targets = report_targets(folder, overwrite=overwrite) if isinstance(folder, str | Path) else list(folder)
    texts = [result.to_json(), csv_text(result), markdown(result), html(result)]
    with contextlib.ExitStack() as stack:
        # The last one entered appears first: of two processes that write here, only one gets past result.json.
        for target, text in reversed(list(zip(targets, texts, strict=True))):
            stack.enter_context(target.write()).write_bytes(text.encode())
    return [target.path for target in targets]


def markdown(result: SuiteResult | TasksResult) -> str:
    """Return the report as Markdown. It holds no date: the same result gives the same text."""
    # No date, no path: the same result gives the same text.
    lines = header(result)
    heading, told, shown, explained = _content(result)
    parts = [f"# {heading}: {markdown_text(lines['Model'])}"]
    if result.settings.get("banner"):
        parts.append(f"> **{markdown_text(str(result.settings['banner']))}**")
    parts.append(markdown_text(told))
    parts.append("\n".join(f"- {name}: {markdown_text(line)}" for name, line in lines.items()))
    parts += [table.to_markdown() for table in shown]
    if result.warnings:
        parts.append("## Warnings\n\n" + "\n".join(f"- {markdown_text(warning)}" for warning in result.warnings))
    parts.append("## How to read this\n\n" + "\n\n".join(markdown_text(text) for text in explained))
    return "\n\n".join(parts) + "\n"


def html(result: SuiteResult | TasksResult) -> str:
    """Return the whole page."""
    lines = header(result)
    heading, told, (main, *others), explained = _content(result)
    title = f"{heading}: {lines['Model']}"
    body = [f"<h1>{escape(title)}</h1>"]
    if result.settings.get("banner"):
        body.insert(0, f'<p class="banner" role="note">{escape(str(result.settings["banner"]))}</p>')
    body.append(f'<p class="summary">{escape(told)}</p>')
    facts = "".join(f"<dt>{escape(name)}</dt><dd>{escape(line)}</dd>" for name, line in lines.items())
    body.append(f"<dl>{facts}</dl>")
    if result.warnings:
        items = "".join(f"<li>{escape(warning)}</li>" for warning in result.warnings)
        body.append(section("Warnings", f"<ul>{items}</ul>"))
    body.append(main.to_html())
    body.append(_figures(pictures(result), isinstance(result, TasksResult)))
    body.append(section("How to read this", "".join(f"<p>{escape(text)}</p>" for text in explained)))
    body += [table.to_html() for table in others]
    return page(title, body)


def _content(result: SuiteResult | TasksResult) -> tuple[str, str, list[Table], list[str]]:
    """Return heading, summary, tables, and how to read them."""
    if isinstance(result, TasksResult):
        told = task_pages.summary(result), task_pages.tables(result), task_pages.how_to_read(result)
        return "Evaluation", *told
    return "STS evaluation", summary(result), tables(result), how_to_read(result)


def _figures(drawn: list[Picture] | None, tasks: bool) -> str:
    if drawn is None:
        return section(
            "Figures",
            '<p>matplotlib is not installed: <code>pip install "st-plugins[report]"</code> adds figures.</p>',
        )
    content = ""
    groups = [("overview", "Figures"), ("scatter", "Similarity against gold score")]
    for group, title in groups[:1] if tasks else groups:
        images = "\n".join(_figure(picture) for picture in drawn if picture.group == group)
        if images:
            content += section(title, f'<div class="{group}">\n{images}\n</div>')
        else:
            content += section(title, "<p>The result does not hold the similarities of the pairs.</p>")
    return content


def _figure(picture: Picture) -> str:
    return (
        f'<figure><img src="{picture.uri}" alt="{escape(picture.alt)}">'
        f"<figcaption>{escape(picture.caption)}</figcaption></figure>"
    )


def csv_text(result: SuiteResult | TasksResult) -> str:
    """Return every score at full precision, in [-1, 1], as a CSV table."""
    if isinstance(result, TasksResult):
        return task_pages.csv_table(result).to_csv()
    # An empty field does not apply, "nan" is an undefined number. The correlation of a sub-dataset stands under "all".
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
        row["highest_spearman"] = task.highest
        if task.binary is not None:
            row |= _fields("auc", task.binary.auc) | _fields("average_precision", task.binary.average_precision)
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
    model = {"model": result.model.get("name", "")}
    return Table("", _COLUMNS, [[str((model | row).get(column, "")) for column in _COLUMNS] for row in rows]).to_csv()


def _fields(metric: str, score: Score | Difference) -> dict[str, Any]:
    return {metric: score.value, f"{metric}_low": score.low, f"{metric}_high": score.high}
