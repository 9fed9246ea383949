"""The tables of evaluations and comparisons, for the terminal and the files.

Mappings are walked in sorted order, so that a result read back from JSON gives the same report.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from st_plugins.evaluation.comparison import Comparison
from st_plugins.evaluation.result import Difference, FloorResult, Score, SuiteResult
from st_plugins.evaluation.task_result import TasksResult
from st_plugins.report.table import UNDEFINED, Cell, Table, number, percent
from st_plugins.report.terminal import shown

Rows = list[list[str | Cell]]

# The metrics of the tasks that are not STS, as they are printed.
METRICS = {
    "ndcg_at_10": "nDCG@10",
    "recall_at_10": "recall@10",
    "recall_at_100": "recall@100",
    "mrr_at_10": "MRR@10",
    "map_at_100": "MAP@100",
    "average_precision": "average precision",
    "auc": "AUC",
    "f1": "F1",
    "v_measure": "V-measure",
}

_BINARY_NOTE = (
    "AUC is the chance that a positive pair is more similar than a negative one (by chance 50). Average precision is "
    "by chance the share of positives. Spearman cannot reach 100 here: a perfect ranking scores the highest possible."
)

_CONVENTIONS = {
    "all": "one correlation over the concatenated sub-datasets",
    "mean": "plain mean over the sub-datasets",
    "wmean": "mean over the sub-datasets, weighted by size",
}

_GEOMETRY = {
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


def interval_text(low: float, high: float, sign: bool = False) -> str:
    """Return ``[52.1, 54.3]``; nothing where there is no interval."""
    return "" if math.isnan(low) or math.isnan(high) else f"[{percent(low, 1, sign)}, {percent(high, 1, sign)}]"


def score_cell(score: Score) -> Cell:
    """Return a score and its interval, ``53.20 [52.1, 54.3]``."""
    return Cell(percent(score.value), "" if math.isnan(score.value) else interval_text(score.low, score.high))


def _difference_cell(found: Difference) -> Cell:
    if math.isnan(found.value):
        return Cell(UNDEFINED)
    return Cell(percent(found.value, sign=True), interval_text(found.low, found.high), found.verdict)


def tables(result: SuiteResult) -> list[Table]:
    """Return all tables of a report, in order; without those for which there is nothing to show."""
    found = [
        _scores(result),
        binary_table(result),
        _conventions(result, "spearman"),
        _conventions(result, "pearson"),
        _subsets(result),
        _geometry(result),
        _provenance(result),
        facts_table(result),
    ]
    return [table for table in found if table.rows]


def _task_columns(result: SuiteResult, first: str) -> list[str]:
    return [first, *(task.title for task in result.tasks), "Avg."]


def _model_cells(result: SuiteResult) -> list[Cell]:
    return [*(score_cell(task.spearman["all"]) for task in result.tasks), score_cell(result.average["spearman_all"])]


def _floor_cells(floor: FloorResult, result: SuiteResult) -> list[list[Cell]]:
    keys = [*(task.name for task in result.tasks), "avg"]
    return [[score_cell(scores[key]) for key in keys] for scores in (floor.raw, floor.whitened)]


def _scores(result: SuiteResult) -> Table:
    """Return the main table: the model, the floor, and how far above it the model stands."""
    rows: Rows = [[str(result.model.get("name", "model")), *_model_cells(result)]]
    floor = result.floor
    note = 'Spearman × 100, convention "all".'
    if floor is None:
        note += " The floor was not scored, so nothing here shows what word overlap alone would reach."
    else:
        keys = [*(task.name for task in result.tasks), "avg"]
        raw, whitened = _floor_cells(floor, result)
        rows += [["floor, raw", *raw], ["floor, whitened", *whitened]]
        rows.append(["above the raw floor", *(_difference_cell(floor.above_raw[key]) for key in keys)])
        rows.append(["above the whitened floor", *(_difference_cell(floor.above_whitened[key]) for key in keys)])
        note += (
            f" Floor: bag of random token vectors with the model's tokenizer, {floor.dimension} dimensions, whitened "
            f"on {floor.whitened_on}, scored by cosine."
        )
    return Table("Scores and the floor", _task_columns(result, "System"), rows, note, strong="Avg.")


def score_table(result: SuiteResult) -> Table:
    """Return the main table as the terminal shows it: what the note says elsewhere stands in title and rows."""
    similarity = result.settings.get("similarity", "cosine")
    # The floor is scored by cosine, whatever the model is scored by.
    labels = ["model"]
    if result.floor is not None:
        by = "" if similarity == "cosine" else ", by cosine"
        labels += [f"floor: random token vectors{by}", f"floor, whitened on {result.floor.whitened_on}{by}"]
        labels += ["above the floor by", "above the whitened floor by"]
    table = _scores(result)
    confidence = round(100 * result.settings["confidence"])
    told = f"Spearman x 100 by {similarity}, convention 'all', {confidence} % intervals"
    return replace(
        table,
        title=f"{shown(result.model['name'])}: {told}",
        columns=_task_columns(result, "row"),
        rows=[[label, *row[1:]] for label, row in zip(labels, table.rows, strict=True)],
        note="",
    )


def pipelines_table(title: str, results: Mapping[str, SuiteResult]) -> Table:
    """Return several pipelines on the same tasks, one a row, with the floor of the first one's dimension below."""
    first = next(iter(results.values()))
    floor = first.floor
    columns = ["pipeline", "dim", *_task_columns(first, "")[1:]]
    rows: Rows = []
    for name, result in results.items():
        above = () if result.floor is None else (result.floor.above_raw, result.floor.above_whitened)
        cells = [*_model_cells(result), *(_difference_cell(one["avg"]) for one in above)]
        rows.append([name, str(result.model["dimension"]), *cells])
    if floor is not None:
        columns += ["above the floor", "above the whitened floor"]
        labels = ("floor: random token vectors", f"floor, whitened on {floor.whitened_on}")
        for label, cells in zip(labels, _floor_cells(floor, first), strict=True):
            rows.append([label, str(floor.dimension), *cells, "", ""])
    return Table(shown(title), columns, rows, strong="Avg.")


def comparison_table(comparison: Comparison, titles: Mapping[str, str]) -> Table:
    """Return a comparison, one task a row, as one reads it: what B, the second, has more than A, the first."""
    rows: Rows = []
    for name, found in [*comparison.tasks.items(), ("avg", comparison.average)]:
        first, second = comparison.scores[name]
        rows.append(
            [
                titles.get(name, "Avg." if name == "avg" else name)
                + (f" ({METRICS.get(metric, metric)})" if (metric := comparison.metrics.get(name)) else ""),
                percent(first),
                percent(second),
                percent(-found.value, sign=True),
                interval_text(-found.high, -found.low, sign=True),
                "" if math.isnan(found.p_value) else f"{found.p_value:.3f}",
                {"better": "A is better", "worse": "B is better"}.get(found.verdict, found.verdict),
            ]
        )
    measured = ", ".join(dict.fromkeys(METRICS.get(metric, metric) for metric in comparison.metrics.values()))
    measured = f"{measured} x 100" if measured else "Spearman x 100, convention 'all'"
    title = f"A = {shown(comparison.first)}\nB = {shown(comparison.second)}\n{measured}"
    return Table(title, ["task", "A", "B", "B - A", "interval of B - A", "p", "verdict"], rows, words=["verdict"])


def binary_table(result: SuiteResult) -> Table:
    """Return what is measured beside the correlations where the gold scores have two values."""
    rows: Rows = []
    for task in result.tasks:
        found = task.binary
        if found is not None:
            share = f"{found.positives:,} ({percent(found.positives / task.pairs, 1)} %)"
            scores = (score_cell(found.auc), score_cell(found.average_precision))
            rows.append([task.title, share, *scores, percent(task.spearman["all"].value), percent(task.highest)])
    columns = ["Task", "Positives", "AUC × 100", "Average precision × 100", "Spearman × 100", "Highest possible"]
    return Table("Two gold values", columns, rows, _BINARY_NOTE, wide=True)


def _conventions(result: SuiteResult, metric: str) -> Table:
    rows: Rows = []
    for kind, said in _CONVENTIONS.items():
        scores = [*(getattr(task, metric)[kind] for task in result.tasks), result.average[f"{metric}_{kind}"]]
        rows.append([Cell(kind, f"({said})"), *map(score_cell, scores)])
    title = f"{metric.capitalize()} under the three conventions"
    return Table(title, _task_columns(result, "Convention"), rows, f"{metric.capitalize()} × 100.")


def _subsets(result: SuiteResult) -> Table:
    rows: Rows = [
        [
            task.title,
            name,
            f"{int(found['pairs']):,}",
            *(percent(float(found[key])) for key in ("spearman", "pearson")),
        ]
        for task in result.tasks
        for name, found in sorted(task.subsets.items())
    ]
    columns = ["Task", "Sub-dataset", "Pairs", "Spearman × 100", "Pearson × 100"]
    return Table("Sub-datasets", columns, rows, folded=True)


def geometry_table(title: str, numbers: Mapping[str, Any]) -> Table:
    """Return the geometry as the terminal shows it: the spectrum is left to the files."""
    rows: Rows = [
        [words(name), number(value), _GEOMETRY.get(name, "")]
        for name, value in numbers.items()
        if isinstance(value, int | float)
    ]
    return Table(shown(title), ["number", "value", "meaning"], rows, words=["meaning"])


def _geometry(result: SuiteResult) -> Table:
    # In the order of the explanations; what has none comes last.
    known = [key for key in _GEOMETRY if key in result.geometry]
    others = sorted(key for key in result.geometry if key not in _GEOMETRY)
    rows: Rows = [[words(key), number(result.geometry[key]), _GEOMETRY.get(key, "")] for key in known + others]
    note = "How the embeddings of the evaluated sentences lie in space."
    return Table("Geometry", ["Measure", "Value", "What it says"], rows, note)


def _provenance(result: SuiteResult) -> Table:
    rows: Rows = [[task.title, f"{task.pairs:,}", task.source or "not stated", task.checksum] for task in result.tasks]
    return Table("Provenance", ["Task", "Pairs", "Source", "SHA-256 of the pairs"], rows, folded=True)


def facts_table(result: SuiteResult | TasksResult) -> Table:
    """Return what is known of the model and of the settings."""
    rows: Rows = []
    for key, value in sorted(result.model.items()):
        if key == "modules":
            for index, module in enumerate(value or []):
                rows.append(
                    [f"module {index}", value_text(module.get("type", "")), value_text(module.get("config", {}))]
                )
        else:
            rows.append([words(key), value_text(value), ""])
    rows += [[words(key), value_text(value), ""] for key, value in sorted(result.settings.items()) if key != "banner"]
    return Table("Model and settings", ["What", "Value", "Configuration"], rows, folded=True)


def value_text(value: Any) -> str:
    """Return a plain value as text."""
    if value is None:
        return "none"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, sort_keys=True, default=str)


def words(key: str) -> str:
    """Return a key as words."""
    return key.replace("_", " ")
