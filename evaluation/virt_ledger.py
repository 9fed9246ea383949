"""The tables and the picture of the VIRT study, made from its JSON results.

Run it after ``evaluation/virt.py``, or at any time in between::

    python -m evaluation.virt_ledger evaluation/recipes/virt/virt-mini-bert-en.toml
"""

from __future__ import annotations

import io
import statistics
from pathlib import Path
from typing import Annotated, Any

import matplotlib.pyplot as plt
import numpy as np
import typer

from evaluation.ledger import spread
from evaluation.pair_ledger import difference_table, main_table, sets
from evaluation.pair_results import Results, load_results
from evaluation.virt_recipe import Row, Study, layer_name, read_study
from st_plugins.core.writing.atomic import write_text

__all__ = ["main"]


def dev_table(study: Study, results: Results) -> list[str]:
    """Return the scores on the dev sets, and what a training step takes.

    Args:
        study: The study.
        results: The results.

    Returns:
        Markdown lines.
    """
    lines = ["| row | " + " | ".join(f"{task} dev | steps | s / step" for task in study.tasks) + " |"]
    lines.append("| --- |" + " ---: | ---: | ---: |" * len(study.tasks))
    for row in _rows(study):
        cells = []
        for task in study.tasks:
            seeds = results.get((task, row.name), [])
            times = [found["seconds_step"] for found in seeds if "seconds_step" in found]
            cells += [
                spread([found["dev"]["value"][0] for found in seeds]) if seeds else "",
                str(seeds[0]["steps"]) if seeds else "",
                f"{statistics.median(times):.2f}" if times else "",
            ]
        if any(cells):
            lines.append(f"| {row.name} | " + " | ".join(cells) + " |")
    return lines


def agreement_table(study: Study, results: Results) -> list[str]:
    """Return how well student's and teacher's maps overlap, layer by layer, before and after training.

    Args:
        study: The study.
        results: The results.

    Returns:
        Markdown lines.
    """
    lines = ["| task | row | overlap, layer by layer | same top token |", "| --- | --- | --- | --- |"]
    for task in study.tasks:
        before_shown = False
        for row in _rows(study):
            seeds = [found for found in results.get((task, row.name), []) if "agreement" in found]
            if not seeds:
                continue
            if not before_shown:
                lines.append(f"| {task} | *before training* | {_layers(seeds, 'before')} |")
                before_shown = True
            lines.append(f"| {task} | {row.name} | {_layers(seeds, 'after')} |")
        if before_shown:
            chance = [layer["chance"] for found in seeds_of(results, task) for layer in found["agreement"]["before"]]
            lines.append(f"| {task} | *chance* | | {100 * statistics.mean(chance):.1f} |")
    return lines


def seeds_of(results: Results, task: str) -> list[dict[str, Any]]:
    """Return all results of a task that compare maps.

    Args:
        results: The results.
        task: The task.

    Returns:
        The results.
    """
    return [found for (name, _), seeds in results.items() if name == task for found in seeds if "agreement" in found]


def _layers(seeds: list[dict[str, Any]], when: str) -> str:
    cells = []
    for key in ("overlap", "top_token"):
        layers = zip(*(found["agreement"][when] for found in seeds), strict=True)
        cells.append(" / ".join(f"{100 * statistics.mean(layer[key] for layer in same):.1f}" for same in layers))
    return " | ".join(cells)


def _rows(study: Study) -> list[Row]:
    return [row for row in study.rows if not row.grid]


def grid_picture(study: Study, results: Results) -> str | None:
    """Draw target × layers × weight as heat maps of the dev scores, one panel a target.

    Args:
        study: The study.
        results: The results.

    Returns:
        SVG, or None if there is no grid or no result of it.
    """
    grid = study.grid
    if grid is None or not any(name.startswith("grid: ") for _, name in results):
        return None
    values = np.full((len(grid.targets), len(grid.layers), len(grid.weights)), np.nan)
    names = [layer_name(layers) for layers in grid.layers]
    for row in study.rows:
        seeds = results.get((grid.task, row.name), [])
        if row.grid and row.weight and seeds:
            place = (grid.targets.index(row.target), names.index(layer_name(row.layers)))
            values[(*place, grid.weights.index(row.weight))] = _dev(seeds)
    without = results.get((grid.task, "grid: without"), [])
    middle = np.nanmean([np.nanmin(values), np.nanmax(values)]) if np.isfinite(values).any() else 0.0
    size = (2.6 * len(grid.targets) + 1.4, 0.7 * len(grid.layers) + 2.0)
    figure, panels = plt.subplots(1, len(grid.targets), figsize=size, layout="constrained", squeeze=False, sharey=True)
    limits = {"vmin": np.nanmin(values), "vmax": np.nanmax(values)} if np.isfinite(values).any() else {}
    for axes, target, panel in zip(panels[0], grid.targets, values, strict=True):
        image = axes.imshow(panel, cmap="viridis", aspect="auto", **limits)
        axes.set_title(target.replace("_", " "))
        axes.set_xticks(range(len(grid.weights)), [f"{weight:g}" for weight in grid.weights])
        axes.set_yticks(range(len(names)), names)
        axes.set_xlabel("weight")
        for line, column in zip(*np.nonzero(~np.isnan(panel)), strict=True):
            colour = "white" if panel[line, column] < middle else "black"
            axes.text(column, line, f"{panel[line, column]:.1f}", ha="center", va="center", color=colour)
    classes = study.tasks[grid.task].classes
    figure.colorbar(image, ax=list(panels[0]), label=f"{'accuracy' if classes else 'Spearman'} x 100, {grid.task} dev")
    plain = f", without VIRT {_dev(without):.1f}" if without else ""
    figure.suptitle(f"VIRT after {grid.steps} steps{plain}")
    text = io.StringIO()
    # No date and fixed ids: the same results give the same file.
    with plt.rc_context({"svg.hashsalt": study.title}):
        figure.savefig(text, format="svg", metadata={"Date": None})
    plt.close(figure)
    return text.getvalue()


def _dev(seeds: list[dict[str, Any]]) -> float:
    return 100 * float(statistics.mean(found["dev"]["value"][0] for found in seeds))


def main(
    recipe: Annotated[Path, typer.Argument(help="The recipe that evaluation/virt.py was given.")],
    results: Annotated[Path, typer.Option(help="Folder of the results.")] = Path("evaluation/results"),
) -> None:
    """Write RESULTS/<recipe>/table.md and, where settings were compared, ablation.svg."""
    study = read_study(recipe)
    folder = results / recipe.stem
    found = load_results(study, folder)
    if not found:
        raise typer.BadParameter(f"{folder} holds no result of {recipe.name}; run evaluation/virt.py first")
    rows, columns = [row.name for row in _rows(study)], sets(study.tasks)
    lines = [f"# {study.title}", "", _INTRODUCTION, "", *main_table(rows, columns, found), ""]
    for base in _rows(study):
        if base.kind == "siamese" and not base.weight:
            lines += [*difference_table(rows, base.name, columns, found), ""]
    lines += ["## Dev sets", "", _DEV, "", *dev_table(study, found), ""]
    lines += ["## Attention maps", "", _AGREEMENT, "", *agreement_table(study, found), ""]
    picture = grid_picture(study, found)
    if picture is not None:
        write_text(folder / "ablation.svg", picture)
        lines += ["## Target, layers and weight", "", "![Dev score of each setting](ablation.svg)", ""]
    first = next(iter(found.values()))[0]
    versions = ", ".join(f"{key} {value}" for key, value in first["versions"].items())
    lines += [study.notes.strip(), "", f"Trained on: {first['device']}. {versions}.", ""]
    write_text(folder / "table.md", "\n".join(lines))
    typer.echo(f"wrote {folder / 'table.md'}")


_INTRODUCTION = (
    "Accuracy x 100 for classes, Spearman x 100 for sts-b and sick-r: mean and standard deviation over seeds, in "
    "brackets the 95 % bootstrap interval of the mean over the pairs of the set. The last checkpoint is scored. The "
    "cross-encoder reads both texts at once and is the teacher of the other rows; they encode each text by itself. "
    "Differences are paired, and corrected for the number of sets (Holm); they tell what the seeds shown tell, not "
    "what other seeds would."
)
_DEV = (
    "Settings were chosen on these. Seconds a step are of the processor, on a CPU, and of the clock on a GPU, the "
    "teacher's pass among them where there is one."
)
_AGREEMENT = (
    "How well the student's maps between the two texts overlap with the teacher's on dev pairs, times 100 (1 minus "
    "the total variation of the rows; 100 for equal maps), from the lowest layer to the highest, and how often both "
    "attend most to the same token: averages over heads, rows, both directions, pairs and seeds."
)


if __name__ == "__main__":
    typer.run(main)
