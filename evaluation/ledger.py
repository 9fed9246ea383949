"""The table and the pictures of a training study, made from its JSON results.

Run it after ``evaluation/run.py``, or at any time in between::

    python -m evaluation.ledger evaluation/recipes/consert/consert-mini-bert-en.toml
"""

from __future__ import annotations

import io
import json
import statistics
from pathlib import Path
from typing import Annotated, Any

import matplotlib.pyplot as plt
import numpy as np
import typer

from evaluation.recipe import Run, Study, read_study
from evaluation.run import RULES, SHARPNESS_TEXTS, result_file
from st_plugins.core.writing.atomic import write_text

__all__ = ["main"]


def load_results(study: Study, folder: Path) -> dict[str, list[dict[str, Any]]]:
    """Read what has been measured.

    Args:
        study: The study.
        folder: Results of the recipe.

    Returns:
        One list of results (a seed each) for each run that has any.
    """
    found: dict[str, list[dict[str, Any]]] = {}
    for run in study.runs:
        for seed in run.seeds or study.seeds:
            path = result_file(folder, run.name, seed)
            if path.is_file():
                found.setdefault(run.name, []).append(json.loads(path.read_text(encoding="utf-8")))
    return found


def chosen(result: dict[str, Any], rule: str, form: str, split: str) -> dict[str, Any] | None:
    """Return the scores at the checkpoint that a rule chose.

    Args:
        result: One seed of a run.
        rule: Key of ``RULES``.
        form: ``"plain"``, or a key of `AFTER`.
        split: ``"dev"`` or ``"test"``.

    Returns:
        The scores, or None where they were not measured.
    """
    step = result["chosen"].get(rule, 0)
    scores: dict[str, Any] | None = result["steps"].get(str(step), {}).get(split, {}).get(form)
    return scores


def scored_split(results: dict[str, list[dict[str, Any]]]) -> str:
    """Return what the study's tables show: the test sets, or dev where nothing was scored on them (a search).

    Args:
        results: Results by run.

    Returns:
        ``"test"`` or ``"dev"``.
    """
    tested = any(chosen(result, "dev", "plain", "test") for seeds in results.values() for result in seeds)
    return "test" if tested else "dev"


def spread(values: list[float], sign: bool = False) -> str:
    """Return mean and standard deviation times 100; one value alone without the latter.

    Args:
        values: Scores.
        sign: Whether to print a plus sign.

    Returns:
        ``"63.45 ± 0.12"``.

    Example:
        >>> spread([0.63, 0.65]), spread([0.5])
        ('64.00 ± 1.41', '50.00')
    """
    mean = f"{100 * statistics.mean(values):{'+' if sign else ''}.2f}"
    return f"{mean} ± {100 * statistics.stdev(values):.2f}" if len(values) > 1 else mean


def main_table(study: Study, results: dict[str, list[dict[str, Any]]]) -> list[str]:
    """Return the main table: every run, plain and with what was fitted to it, beside the paper's own number.

    Args:
        study: The study.
        results: Results by run.

    Returns:
        Markdown lines.
    """
    split = scored_split(results)
    scores = chosen(next(iter(results.values()))[0], "dev", "plain", split)
    titles = [task.upper() for task in scores["tasks"]] if scores else []
    lines = [
        "| run | data | seeds | dev | " + " | ".join(titles) + " | Avg. | 95 % interval (seed 0) | above the floor | "
        "above the whitened floor | the paper |",
        "| --- | --- | ---: | ---: |" + " ---: |" * (len(titles) + 1) + " --- | --- | --- | --- |",
    ]
    for name, seeds in results.items():
        run = study.find(name)
        for form in ("plain", *run.after):
            tests = [found for result in seeds if (found := chosen(result, "dev", form, split))]
            devs = [found["average"][0] for result in seeds if (found := chosen(result, "dev", form, "dev"))]
            if not tests:
                continue
            cells = [row_name(name, form), run.data or "-", str(len(tests))]
            cells.append(spread(devs))
            cells += [spread([found["tasks"][task] for found in tests]).split(" ")[0] for task in tests[0]["tasks"]]
            cells.append(f"**{spread([found['average'][0] for found in tests])}**")
            cells.append("[{:.1f}, {:.1f}]".format(*(100 * bound for bound in tests[0]["average"][1:])))
            cells += [_above([found[key] for found in tests]) for key in ("above_raw", "above_whitened")]
            cells.append(_paper(run) if form == "plain" else "")
            lines.append("| " + " | ".join(cells) + " |")
    floor = scores["floor"] if scores else [float("nan")] * 2
    lines.append("")
    lines.append(f"The floor of {study.model}: {100 * floor[0]:.2f} raw, {100 * floor[1]:.2f} whitened on the corpus.")
    return lines


def row_name(run: str, form: str) -> str:
    """Name a run with what was fitted to it afterwards.

    Args:
        run: Its name.
        form: ``"plain"``, or a key of `AFTER`.

    Returns:
        The name.

    Example:
        >>> row_name("raw", "plain"), row_name("raw", "whitened to 128"), row_name("raw", "flow")
        ('raw', 'raw + whitening to 128', 'raw + flow')
    """
    return run if form == "plain" else f"{run} + {form.replace('whitened', 'whitening')}"


def _above(differences: list[dict[str, Any]]) -> str:
    verdicts = sorted({difference["verdict"] for difference in differences})
    return f"{spread([difference['value'] for difference in differences], sign=True)} {' / '.join(verdicts)}"


def _paper(run: Run) -> str:
    return f"{run.paper['value']} with {run.paper['encoder']}" if run.paper else ""


def sharpness_lines(results: dict[str, list[dict[str, Any]]]) -> list[str]:
    """Return how sharp the span weights of the trained models are.

    Args:
        results: Results by run.

    Returns:
        Markdown lines; none if no model pools spans.
    """
    known = {name: [r["sharpness"] for r in seeds if "sharpness" in r] for name, seeds in results.items()}
    rows = [f"| {name} | {statistics.mean(values):.3f} | {len(values)} |" for name, values in known.items() if values]
    text = f"Mean Σα² over {SHARPNESS_TEXTS} corpus texts: 1 for a single span, nearly 0 for even weights."
    head = ["## Sharpness of the span weights", "", text, "", "| run | Σα² | seeds |", "| --- | ---: | ---: |"]
    return [*head, *rows, ""] if rows else []


def rules_table(study: Study, results: dict[str, list[dict[str, Any]]]) -> list[str]:
    """Return what each way to choose a checkpoint costs in the runs that use no labels, against the labelled choice.

    Args:
        study: The study.
        results: Results by run.

    Returns:
        Markdown lines.
    """
    lines = [
        "| run | " + " | ".join(RULES) + " |",
        "| --- |" + " ---: |" * len(RULES),
    ]
    split = scored_split(results)
    gaps: dict[str, list[float]] = {rule: [] for rule in RULES}
    for name, seeds in results.items():
        if study.uses_labels(study.find(name)):
            continue
        trained = [result for result in seeds if result["log"] and chosen(result, "dev", "plain", split)]
        if not trained:
            continue
        cells = []
        for rule in RULES:
            values = [found["average"][0] for result in trained if (found := chosen(result, rule, "plain", split))]
            best = [found["average"][0] for result in trained if (found := chosen(result, "dev", "plain", split))]
            gaps[rule] += [value - reference for value, reference in zip(values, best, strict=True)]
            cells.append(spread(values))
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    if any(gaps.values()):
        mean = [f"{100 * statistics.mean(gap):+.2f}" for gap in gaps.values()]
        lines.append("| *mean difference to the labelled choice* | " + " | ".join(mean) + " |")
    return lines


def grid_picture(study: Study, results: dict[str, list[dict[str, Any]]]) -> str | None:
    """Draw the pairs of views as a heat map of the dev scores.

    Args:
        study: The study.
        results: Results by run; those named ``"A x B"`` are the grid.

    Returns:
        SVG, or None if there is no grid.
    """
    pairs = {name.removeprefix("views: "): found for name, found in results.items() if name.startswith("views: ")}
    if not pairs:
        return None
    labels = list(dict.fromkeys(side for name in pairs for side in name.split(" x ")))
    values = np.full((len(labels), len(labels)), np.nan)
    for name, seeds in pairs.items():
        row, column = (labels.index(side) for side in name.split(" x "))
        best = [max(numbers["dev"] for numbers in result["log"]) for result in seeds]
        values[row, column] = values[column, row] = 100 * statistics.mean(best)
    figure, axes = plt.subplots(figsize=(6.4, 5.2), layout="constrained")
    image = axes.imshow(values, cmap="viridis")
    axes.set_xticks(range(len(labels)), labels, rotation=30, ha="right")
    axes.set_yticks(range(len(labels)), labels)
    middle = np.nanmean([np.nanmin(values), np.nanmax(values)])
    for row, column in zip(*np.nonzero(~np.isnan(values)), strict=True):
        value = values[row, column]
        axes.text(column, row, f"{value:.1f}", ha="center", va="center", color="white" if value < middle else "black")
    figure.colorbar(image, label=f"Spearman x 100 on {study.dev_task} dev")
    axes.set_title("ConSERT, two views (order does not matter)")
    text = io.StringIO()
    # No date and fixed ids: the same results give the same file.
    with plt.rc_context({"svg.hashsalt": study.title}):
        figure.savefig(text, format="svg", metadata={"Date": None})
    plt.close(figure)
    return text.getvalue()


def main(
    recipe: Annotated[Path, typer.Argument(help="The recipe that evaluation/run.py was given.")],
    results: Annotated[Path, typer.Option(help="Folder of the results.")] = Path("evaluation/results"),
) -> None:
    """Write RESULTS/<recipe>/table.md and, where pairs of views were compared, views.svg."""
    study = read_study(recipe)
    folder = results / recipe.stem
    found = load_results(study, folder)
    if not found:
        raise typer.BadParameter(f"{folder} holds no result of {recipe.name}; run evaluation/run.py first")
    first = next(iter(found.values()))[0]
    lines = [f"# {study.title}", "", *_introduction(study), "", *main_table(study, found), ""]
    lines += ["## Choosing a checkpoint", "", _RULES_TEXT, "", *rules_table(study, found), ""]
    lines += sharpness_lines(found)
    picture = grid_picture(study, found)
    if picture is not None:
        write_text(folder / "views.svg", picture)
        lines += ["## Pairs of views", "", "![Spearman of each pair of views](views.svg)", ""]
    versions = ", ".join(f"{key} {value}" for key, value in first["versions"].items())
    lines += [study.notes, "", f"Trained on: {first['device']}. {versions}.", ""]
    write_text(folder / "table.md", "\n".join(lines))
    typer.echo(f"wrote {folder / 'table.md'}")


_RULES_TEXT = (
    "Average of the scored tasks at the checkpoint that each rule chooses, plain model. 'dev' uses labelled pairs, "
    "'last' nothing, the others a number that needs no labels: the largest effective rank, the smallest uniformity, "
    "the smallest sum of alignment and uniformity, the smallest contrastive loss on held-out texts."
)


def _introduction(study: Study) -> list[str]:
    return [
        "Spearman x 100, convention 'all', mean and standard deviation over seeds; the checkpoint of each run is "
        f"chosen on {study.dev_task} dev. 'Above the floor' is the paired difference of the averages to a bag of "
        "random token vectors with the same tokenizer and dimension, raw, and whitened on the same corpus sample. The "
        "paper's numbers belong to another, much larger encoder; they stand in their own column and compare with "
        "nothing here."
    ]


if __name__ == "__main__":
    typer.run(main)
