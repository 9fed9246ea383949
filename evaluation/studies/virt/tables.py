"""The tables and the picture of the VIRT study."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import matplotlib.pyplot as plt
import numpy as np

from evaluation.engine.study import Record, Results
from evaluation.engine.tables import head, heat_map, line, mean, spread, svg

if TYPE_CHECKING:
    from evaluation.studies.virt.study import Study


INTRODUCTION = (
    "Accuracy x 100 for classes, Spearman x 100 for sts-b and sick-r: mean and standard deviation over seeds, in "
    "brackets the 95 % bootstrap interval of the mean over the pairs of the set. The last checkpoint is scored. The "
    "cross-encoder reads both texts at once and is the teacher of the other rows; they encode each text by itself. "
    "Differences are paired, and corrected for the number of sets (Holm); they tell what the seeds shown tell, not "
    "what other seeds would."
)
DEV = (
    "Settings were chosen on these. Seconds a step are of the processor, on a CPU, and of the clock on a GPU, the "
    "teacher's pass among them where there is one."
)
AGREEMENT = (
    "How well the student's maps between the two texts overlap with the teacher's on dev pairs, times 100 (1 minus "
    "the total variation of the rows; 100 for equal maps), from the lowest layer to the highest, and how often both "
    "attend most to the same token: averages over heads, rows, both directions, pairs and seeds."
)


def dev_table(study: Study, rows: Sequence[str], results: Results) -> list[str]:
    """Return the scores on the dev sets, and what a training step takes."""
    lines = head("row", *(f">{task} dev | >steps | >s / step" for task in study.tasks))
    for row in rows:
        cells = []
        for task in study.tasks:
            seeds = results.get((task, row), [])
            times = [found["seconds_step"] for found in seeds if "seconds_step" in found]
            cells += [
                spread([found["dev"]["value"][0] for found in seeds]) if seeds else "",
                str(seeds[0]["steps"]) if seeds else "",
                f"{statistics.median(times):.2f}" if times else "",
            ]
        if any(cells):
            lines.append(line([row, *cells]))
    return lines


def agreement_table(study: Study, rows: Sequence[str], results: Results) -> list[str]:
    """Return how well student's and teacher's maps overlap, layer by layer, before and after training."""
    lines = head("task | row | overlap, layer by layer | same top token")
    for task in study.tasks:
        by_row = {
            row: [found for found in seeds if "agreement" in found]
            for (name, row), seeds in results.items()
            if name == task
        }
        known = {row: by_row[row] for row in rows if by_row.get(row)}
        if known:
            lines.append(line([task, "*before training*", *_layers(next(iter(known.values())), "before")]))
            lines += [line([task, row, *_layers(seeds, "after")]) for row, seeds in known.items()]
            # The grid's rows were measured on the same pairs and count here, too.
            every = [found for seeds in by_row.values() for found in seeds]
            chance = mean(layer["chance"] for found in every for layer in found["agreement"]["before"])
            lines.append(f"| {task} | *chance* | | {100 * chance:.1f} |")
    return lines


def _layers(seeds: list[Record], when: str) -> list[str]:
    cells = []
    for key in ("overlap", "top_token"):
        layers = zip(*(found["agreement"][when] for found in seeds), strict=True)
        cells.append(" / ".join(f"{100 * mean(layer[key] for layer in same):.1f}" for same in layers))
    return cells


def layer_name(layers: Any) -> str:
    """Return what a choice of layers is called in names and pictures."""
    return layers if isinstance(layers, str) else "layers " + "+".join(map(str, layers))


def grid_picture(study: Study, results: Results) -> str:
    """Draw target × layers × weight as heat maps of the dev scores; nothing if there is no result of a grid."""
    grid = study.grid
    if grid is None or not any(name.startswith("grid: ") for _, name in results):
        return ""
    values = np.full((len(grid.targets), len(grid.layers), len(grid.weights)), np.nan)
    names = [layer_name(layers) for layers in grid.layers]
    for row in study.rows:
        seeds = results.get((grid.task, row.name), [])
        if row.grid and row.weight and seeds:
            place = (grid.targets.index(row.target), names.index(layer_name(row.layers)))
            values[(*place, grid.weights.index(row.weight))] = _dev(seeds)
    without = results.get((grid.task, "grid: without"), [])
    known = bool(np.isfinite(values).any())
    limits = {"vmin": np.nanmin(values), "vmax": np.nanmax(values)} if known else {}
    middle = float(np.nanmean([*limits.values()])) if known else 0.0
    size = (2.6 * len(grid.targets) + 1.4, 0.7 * len(grid.layers) + 2.0)
    figure, panels = plt.subplots(1, len(grid.targets), figsize=size, layout="constrained", squeeze=False, sharey=True)
    for axes, target, panel in zip(panels[0], grid.targets, values, strict=True):
        image = heat_map(axes, panel, middle, aspect="auto", **limits)
        axes.set_title(target.replace("_", " "))
        axes.set_xticks(range(len(grid.weights)), [f"{weight:g}" for weight in grid.weights])
        axes.set_yticks(range(len(names)), names)
        axes.set_xlabel("weight")
    classes = study.tasks[grid.task].classes
    figure.colorbar(image, ax=list(panels[0]), label=f"{'accuracy' if classes else 'Spearman'} x 100, {grid.task} dev")
    plain = f", without VIRT {_dev(without):.1f}" if without else ""
    figure.suptitle(f"VIRT after {grid.steps} steps{plain}")
    return svg(figure, study.title)


def _dev(seeds: list[Record]) -> float:
    return 100 * mean(found["dev"]["value"][0] for found in seeds)
