"""The tables and the picture of the training study."""

from __future__ import annotations

from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
import numpy as np

from evaluation.engine.study import Record
from evaluation.engine.tables import bounds, head, heat_map, line, mean, paper, section, spread, svg
from evaluation.studies.contrastive.training import RULES

if TYPE_CHECKING:
    from evaluation.studies.contrastive.study import Study


Found = dict[str, list[Record]]
"""Records by row, a seed each."""

SHARPNESS_TEXTS = 200
INTRODUCTION = (
    "Spearman x 100, convention 'all', mean and standard deviation over seeds; the checkpoint of each run is "
    "chosen on {dev} dev. 'Above the floor' is the paired difference of the averages to a bag of "
    "random token vectors with the same tokenizer and dimension, raw, and whitened on the same corpus sample. The "
    "paper's numbers belong to another, much larger encoder; they stand in their own column and compare with "
    "nothing here."
)
CHOOSING = (
    "Average of the scored tasks at the checkpoint that each rule chooses, plain model. 'dev' uses labelled pairs, "
    "'last' nothing, the others a number that needs no labels: the largest effective rank, the smallest uniformity, "
    "the smallest sum of alignment and uniformity, the smallest contrastive loss on held-out texts."
)


def chosen(result: Record, rule: str, form: str, split: str) -> Record | None:
    """Return the scores of a form (``"plain"`` or a key of AFTER) at a rule's checkpoint; None if not measured."""
    step = result["chosen"].get(rule, 0)
    scores: Record | None = result["steps"].get(str(step), {}).get(split, {}).get(form)
    return scores


def _scored_split(results: Found) -> str:
    """Return what the tables show: the test sets, or dev where nothing was scored on them (a search)."""
    tested = any(chosen(result, "dev", "plain", "test") for seeds in results.values() for result in seeds)
    return "test" if tested else "dev"


def main_table(study: Study, results: Found) -> list[str]:
    """Return every row, plain and with what was fitted to it, beside the paper's own number."""
    split = _scored_split(results)
    scores = chosen(next(iter(results.values()))[0], "dev", "plain", split)
    titles = [f">{task.upper()}" for task in scores["tasks"]] if scores else []
    last = ">Avg. | 95 % interval (seed 0) | above the floor | above the whitened floor | the paper"
    lines = head("run | data | >seeds | >dev", *titles, last)
    for name, seeds in results.items():
        row = study.find(name)
        for form in ("plain", *row.after):
            tests = [found for result in seeds if (found := chosen(result, "dev", form, split))]
            devs = [found["average"][0] for result in seeds if (found := chosen(result, "dev", form, "dev"))]
            if not tests:
                continue
            cells = [row_name(name, form), row.data or "-", str(len(tests)), spread(devs)]
            cells += [f"{100 * mean(found['tasks'][task] for found in tests):.2f}" for task in tests[0]["tasks"]]
            cells += [f"**{spread([found['average'][0] for found in tests])}**", bounds(*tests[0]["average"][1:])]
            cells += [above(tests, key) for key in ("above_raw", "above_whitened")]
            lines.append(line([*cells, paper(row.paper) if form == "plain" else ""]))
    floor = scores["floor"] if scores else [float("nan")] * 2
    lines.append("")
    lines.append(f"The floor of {study.model}: {100 * floor[0]:.2f} raw, {100 * floor[1]:.2f} whitened on the corpus.")
    return lines


def row_name(row: str, form: str) -> str:
    """Name a row with what was fitted to it afterwards."""
    return row if form == "plain" else f"{row} + {form.replace('whitened', 'whitening')}"


def above(seeds: list[Record], floor: str) -> str:
    """Return how far all seeds are above a floor, with their verdicts."""
    verdicts = sorted({found[floor]["verdict"] for found in seeds})
    return f"{spread([found[floor]['value'] for found in seeds], sign=True)} {' / '.join(verdicts)}"


def sharpness_table(results: Found) -> list[str]:
    """Return how sharp the span weights of the trained models are; nothing if none pools spans."""
    known = {name: [found["sharpness"] for found in seeds if "sharpness" in found] for name, seeds in results.items()}
    rows = [line([name, f"{mean(values):.3f}", str(len(values))]) for name, values in known.items() if values]
    text = f"Mean Σα² over {SHARPNESS_TEXTS} corpus texts: 1 for a single span, nearly 0 for even weights."
    return section("Sharpness of the span weights", text, [*head("run | >Σα² | >seeds"), *rows]) if rows else []


def rules_table(study: Study, results: Found) -> list[str]:
    """Return what each way to choose a checkpoint costs in rows without labels, against the labelled choice."""
    lines = head("run", *(f">{rule}" for rule in RULES))
    split = _scored_split(results)
    gaps: dict[str, list[float]] = {rule: [] for rule in RULES}
    for name, seeds in results.items():
        if study.uses_labels(study.find(name)):
            continue
        trained = [result for result in seeds if result["log"] and chosen(result, "dev", "plain", split)]
        if not trained:
            continue
        values = {
            rule: [found["average"][0] for result in trained if (found := chosen(result, rule, "plain", split))]
            for rule in RULES
        }
        for rule in RULES:
            gaps[rule] += [value - best for value, best in zip(values[rule], values["dev"], strict=True)]
        lines.append(line([name, *map(spread, values.values())]))
    if any(gaps.values()):
        differences = [f"{100 * mean(gap):+.2f}" for gap in gaps.values()]
        lines.append(line(["*mean difference to the labelled choice*", *differences]))
    return lines


def views_picture(study: Study, results: Found) -> str:
    """Draw the rows named ``"views: A x B"`` as a heat map of the dev scores; nothing if there is none."""
    pairs = {name.removeprefix("views: "): found for name, found in results.items() if name.startswith("views: ")}
    if not pairs:
        return ""
    labels = list(dict.fromkeys(side for name in pairs for side in name.split(" x ")))
    values = np.full((len(labels), len(labels)), np.nan)
    for name, seeds in pairs.items():
        row, column = (labels.index(side) for side in name.split(" x "))
        # Short runs, scored on dev only: the best checkpoint stands for the pair of views.
        best = [max(numbers["dev"] for numbers in result["log"]) for result in seeds]
        values[row, column] = values[column, row] = 100 * mean(best)
    figure, axes = plt.subplots(figsize=(6.4, 5.2), layout="constrained")
    image = heat_map(axes, values, float(np.nanmean([np.nanmin(values), np.nanmax(values)])))
    axes.set_xticks(range(len(labels)), labels, rotation=30, ha="right")
    axes.set_yticks(range(len(labels)), labels)
    figure.colorbar(image, label=f"Spearman x 100 on {study.dev_task} dev")
    axes.set_title("ConSERT, two views (order does not matter)")
    return svg(figure, study.title)
