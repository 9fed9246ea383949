"""The words and numbers of a report, before they become Markdown or HTML.

Mappings are walked in sorted order, so that a result read back from JSON gives the same report.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Any

from st_plugins.evaluation.measuring import setting_in_words
from st_plugins.evaluation.result import Difference, Score, SuiteResult

__all__ = [
    "GEOMETRY_MEANINGS",
    "Cell",
    "Table",
    "header",
    "module_name",
    "number",
    "percent",
    "score_cell",
    "summary",
    "tables",
]

Cell = str | tuple[str, ...]
"""The text of a table cell; of a tuple, the first part is the main text and the others are small print."""

UNDEFINED = "undefined"
_BINARY_NOTE = (
    "AUC is the chance that a positive pair is more similar than a negative one (by chance 50). Average precision is "
    "by chance the share of positives. Spearman cannot reach 100 here: a perfect ranking scores the highest possible."
)

_CONVENTIONS = {
    "all": "one correlation over the concatenated sub-datasets",
    "mean": "plain mean over the sub-datasets",
    "wmean": "mean over the sub-datasets, weighted by size",
}

GEOMETRY_MEANINGS = {
    "rows": "Embeddings looked at: one for each distinct evaluated sentence (zero embeddings left out).",
    "dimension": "Length of an embedding.",
    "zero_rows": "Embeddings of length zero; they have no direction.",
    "mean_norm": "Mean length of the embeddings.",
    "mean_random_cosine": "Mean cosine of two different sentences: near 0 is spread out, near 1 is a narrow cone.",
    "alignment": "Mean squared distance of pairs with gold in the top fifth, on normalised embeddings; smaller is "
    "closer (0 to 4).",
    "uniformity": "Log of the mean Gaussian potential of all pairs on the sphere; smaller is more even (-8 to 0).",
    "uniformity_rows": "Embeddings used for the uniformity.",
    "effective_rank": "exp(entropy) of the covariance eigenvalues: how many directions carry variance.",
    "participation_ratio": "(sum of eigenvalues)² / sum of their squares: directions, large ones weighing more.",
    "isoscore": "0: all variance on one line; 1: the same variance in every direction.",
    "total_variance": "Sum of the covariance eigenvalues.",
    "spectrum": "Largest eigenvalues of the covariance matrix.",
    "fit_kl_divergence": "KL divergence, in nats, of the evaluated texts' Gaussian from that of the whitening's fit "
    "texts; 0 when they are the same.",
    "fit_bhattacharyya_distance": "Bhattacharyya distance of the same two Gaussians; 0 when they are the same.",
    "fit_wasserstein_distance": "2-Wasserstein (Fréchet) distance of the same two; 0 when they are the same.",
}


@dataclass(frozen=True)
class Table:
    """One table of the report."""

    title: str
    columns: list[str]
    rows: list[list[Cell]]
    note: str = ""
    folded: bool = False


def percent(value: float, decimals: int = 2, sign: bool = False) -> str:
    """Return a score times 100; ``"undefined"`` for NaN."""
    if math.isnan(value):
        return UNDEFINED
    rounded = round(100 * value, decimals) + 0.0  # + 0.0: no "-0.00"
    return f"{rounded:{'+' if sign else ''}.{decimals}f}"


def number(value: Any) -> str:
    """Return any value of the geometry as text: four significant digits, ``"undefined"`` for NaN."""
    if isinstance(value, bool) or value is None:
        return str(value)
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return UNDEFINED if math.isnan(value) else "infinite" if math.isinf(value) else f"{value:.4g}"
    if isinstance(value, list | tuple):
        shown = ", ".join(number(item) for item in value[:5])
        return f"{shown}, ... ({len(value)} values)" if len(value) > 5 else shown
    return str(value)


def score_cell(score: Score | Difference) -> Cell:
    """Return a score and its interval, ``53.20 [52.1, 54.3]``; without the interval where there is none."""
    return (percent(score.value), *_interval(score))


def _difference_cell(difference: Difference) -> Cell:
    if math.isnan(difference.value):
        return (UNDEFINED,)
    return (percent(difference.value, sign=True), *_interval(difference), difference.verdict)


def _interval(score: Score | Difference) -> tuple[str, ...]:
    if math.isnan(score.value) or math.isnan(score.low) or math.isnan(score.high):
        return ()
    return (f"[{percent(score.low, 1)}, {percent(score.high, 1)}]",)


def summary(result: SuiteResult) -> str:
    """Say in one or two sentences what was found."""
    score = result.average["spearman_all"]
    tasks = "1 task" if len(result.tasks) == 1 else f"{len(result.tasks)} tasks"
    text = f'Average over {tasks}: {_joined(score_cell(score))} (Spearman × 100, convention "all").'
    if result.floor is None:
        return text
    above = result.floor.above_whitened["avg"]
    if math.isnan(above.value):
        return f"{text} Its distance from the whitened floor is undefined."
    if above.value < 0:
        side, above = "below", Difference(-above.value, -above.high, -above.low, above.p_value, above.verdict)
    else:
        side = "above"
    return f"{text} That is {_joined(score_cell(above))} {side} the whitened floor: {above.verdict}."


def header(result: SuiteResult) -> dict[str, str]:
    """Return what was evaluated and with what, one short line each."""
    model = result.model
    lines = {"Model": str(model.get("name", "unnamed"))}
    parts = [module_name(module) for module in model.get("modules") or []]
    if model.get("pooling") is not None:
        parts.append(f"pooling {_plain(model['pooling'])}")
    if model.get("dimension") is not None:
        parts.append(f"{model['dimension']} dimensions")
    parts += [str(model[key]) for key in ("dtype",) if model.get(key)]
    if model.get("max_seq_length") is not None:
        parts.append(f"at most {model['max_seq_length']} tokens")
    if parts:
        lines["Modules"] = ", ".join(parts)
    if result.settings.get("similarity"):
        lines["Similarity"] = str(result.settings["similarity"])
    lines |= _measured(result.settings.get("measured") or {})
    lines["Versions"] = ", ".join(f"{name} {version}" for name, version in sorted(result.versions.items()))
    return lines


def _measured(settings: dict[str, Any]) -> dict[str, str]:
    """Return a line on the prompts and routes that were used, and one on what was not the model's own."""
    lines = {}
    for name in ("prompts", "routes"):
        used = settings.get(name, {}).get("used", {})
        if any(side is not None for sides in used.values() for side in sides):
            lines[name.capitalize()] = setting_in_words(used)
    changed = [
        f"{_words(name)} {setting_in_words(value['used'])} (own: {setting_in_words(value['own'])})"
        for name, value in sorted(settings.items())
        if value["used"] != value["own"]
    ]
    if changed:
        lines["Not the model's own"] = ", ".join(changed)
    return lines


def tables(result: SuiteResult) -> list[Table]:
    """Return all tables of a report, in order."""
    found = [
        _main(result),
        _binary(result),
        _conventions(result, "spearman"),
        _conventions(result, "pearson"),
        _subsets(result),
        _geometry(result),
        _provenance(result),
        _facts(result),
    ]
    return [table for table in found if table.rows]


def _task_columns(result: SuiteResult, first: str) -> list[str]:
    return [first, *(task.title for task in result.tasks), "Avg."]


def _main(result: SuiteResult) -> Table:
    names = [task.name for task in result.tasks]
    scores = [*(task.spearman["all"] for task in result.tasks), result.average["spearman_all"]]
    rows: list[list[Cell]] = [[str(result.model.get("name", "model")), *map(score_cell, scores)]]
    floor = result.floor
    if floor is not None:
        keys = [*names, "avg"]
        rows.append(["floor, raw", *(score_cell(floor.raw[key]) for key in keys)])
        rows.append(["floor, whitened", *(score_cell(floor.whitened[key]) for key in keys)])
        rows.append(["above the raw floor", *(_difference_cell(floor.above_raw[key]) for key in keys)])
        rows.append(["above the whitened floor", *(_difference_cell(floor.above_whitened[key]) for key in keys)])
    note = 'Spearman × 100, convention "all".'
    if floor is None:
        note += " The floor was not scored, so nothing here shows what word overlap alone would reach."
    else:
        note += (
            f" Floor: bag of random token vectors with the model's tokenizer, {floor.dimension} dimensions, whitened "
            f"on {floor.whitened_on}, scored by cosine."
        )
    return Table("Scores and the floor", _task_columns(result, "System"), rows, note)


def _binary(result: SuiteResult) -> Table:
    rows: list[list[Cell]] = []
    for task in result.tasks:
        found = task.binary
        if found is not None:
            share = f"{found.positives:,} ({percent(found.positives / task.pairs, 1)} %)"
            scores = (score_cell(found.auc), score_cell(found.average_precision))
            rows.append([task.title, share, *scores, percent(task.spearman["all"].value), percent(task.highest)])
    columns = ["Task", "Positives", "AUC × 100", "Average precision × 100", "Spearman × 100", "Highest possible"]
    return Table("Two gold values", columns, rows, _BINARY_NOTE)


def _conventions(result: SuiteResult, metric: str) -> Table:
    rows: list[list[Cell]] = []
    for kind, words in _CONVENTIONS.items():
        scores = [*(getattr(task, metric)[kind] for task in result.tasks), result.average[f"{metric}_{kind}"]]
        rows.append([(kind, f"({words})"), *map(score_cell, scores)])
    title = f"{metric.capitalize()} under the three conventions"
    return Table(title, _task_columns(result, "Convention"), rows, f"{metric.capitalize()} × 100.")


def _subsets(result: SuiteResult) -> Table:
    rows: list[list[Cell]] = [
        [
            task.title,
            name,
            f"{int(subset['pairs']):,}",
            percent(float(subset["spearman"])),
            percent(float(subset["pearson"])),
        ]
        for task in result.tasks
        for name, subset in sorted(task.subsets.items())
    ]
    return Table(
        "Sub-datasets", ["Task", "Sub-dataset", "Pairs", "Spearman × 100", "Pearson × 100"], rows, folded=True
    )


def _geometry(result: SuiteResult) -> Table:
    known = [key for key in GEOMETRY_MEANINGS if key in result.geometry]
    others = sorted(key for key in result.geometry if key not in GEOMETRY_MEANINGS)
    rows: list[list[Cell]] = [
        [_words(key), number(result.geometry[key]), GEOMETRY_MEANINGS.get(key, "")] for key in known + others
    ]
    note = "How the embeddings of the evaluated sentences lie in space."
    return Table("Geometry", ["Measure", "Value", "What it says"], rows, note)


def _provenance(result: SuiteResult) -> Table:
    rows: list[list[Cell]] = [
        [task.title, f"{task.pairs:,}", task.source or "not stated", task.checksum] for task in result.tasks
    ]
    return Table("Provenance", ["Task", "Pairs", "Source", "SHA-256 of the pairs"], rows, folded=True)


def _facts(result: SuiteResult) -> Table:
    rows: list[list[Cell]] = []
    for key, value in sorted(result.model.items()):
        if key == "modules":
            for index, module in enumerate(value or []):
                rows.append([f"module {index}", _plain(module.get("type", "")), _plain(module.get("config", {}))])
        else:
            rows.append([_words(key), _plain(value), ""])
    rows += [[_words(key), _plain(value), ""] for key, value in sorted(result.settings.items()) if key != "banner"]
    return Table("Model and settings", ["What", "Value", "Configuration"], rows, folded=True)


def module_name(module: dict[str, Any]) -> str:
    """Return the class of a module without its package."""
    return str(module.get("type", "module")).rsplit(".", 1)[-1]


def _joined(cell: Cell) -> str:
    return cell if isinstance(cell, str) else " ".join(cell)


def _plain(value: Any) -> str:
    if value is None:
        return "none"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, sort_keys=True, default=str)


def _words(key: str) -> str:
    return key.replace("_", " ")
