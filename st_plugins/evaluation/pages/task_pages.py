"""The tables and words of reports on retrieval, pair classification, classification and clustering."""

from __future__ import annotations

import math

from st_plugins.evaluation.pages.tables import METRICS, Rows, facts_table, score_cell, words
from st_plugins.evaluation.task_result import MeasuredTask, TasksResult
from st_plugins.report.table import UNDEFINED, Table, number
from st_plugins.report.terminal import shown

_COLUMNS = ["model", "system", "task", "kind", "units", "unit", "metric", "value", "low", "high"]

_EXPLAINED = {
    "retrieval": "nDCG@10 rewards documents among the first ten the more, the more relevant they are and the earlier "
    "they come; 100 is the best order there is. Recall@k is the share of a query's relevant documents among the first "
    "k, MRR@10 the mean of 1 / rank of the first relevant one, MAP@100 the mean precision at the ranks of all.",
    "pair classification": "Average precision is the area under the precision-recall curve, by chance the share of "
    "positives; AUC the chance that a positive pair is more similar than a negative one, by chance 50. F1 is the "
    "highest that any threshold reaches. The thresholds were chosen on these pairs: on others they do a little worse.",
    "classification": "Accuracy and F1 (mean over the classes) are those of a logistic regression on a few training "
    "texts of each class, mean over several draws of them, as the public leaderboard (MTEB) measures it.",
    "clustering": "V-measure says how far the clusters of k-means and the classes of the texts determine each other: "
    "100 is one and the same, 0 has nothing in common. It is the mean over several clusterings.",
}


def summary(result: TasksResult) -> str:
    """Say in one sentence what was found."""
    found = [f"{task.title}: {METRICS.get(task.main, task.main)} {score_cell(task.score)}" for task in result.tasks]
    return ". ".join([f"{'; '.join(found)} (× 100)", *thresholds_in_words(result)]) + "."


def tables(result: TasksResult) -> list[Table]:
    """Return all tables of a report, in order; without those for which there is nothing to show."""
    details: Rows = [
        [task.title, words(name), number(value)]
        for task in result.tasks
        for name, value in sorted((task.settings | task.details).items())
        if not name.endswith(("checksum", "source"))
    ]
    sources: Rows = [[task.title, f"{task.units:,} {task.unit}", task.source, task.checksum] for task in result.tasks]
    found = [
        scores_table(result),
        Table("Details", ["Task", "What", "Value"], details),
        Table("Provenance", ["Task", "Size", "Source", "SHA-256 of the data"], sources, folded=True),
        facts_table(result),
    ]
    return [table for table in found if table.rows]


def scores_table(result: TasksResult, title: str = "Scores") -> Table:
    """Return every metric of every task, the main one of each first."""
    rows: Rows = []
    for task in result.tasks:
        for name in _main_first(task):
            main = name == task.main
            rows.append(
                [
                    task.title if main else "",
                    task.kind if main else "",
                    f"{task.units:,} {task.unit}" if main else "",
                    METRICS.get(name, name),
                    score_cell(task.scores[name]),
                ]
            )
    columns = ["Task", "Kind", "Size", "Metric", "Score × 100"]
    note = "The first metric of a task is the main one. Metrics without an interval were not resampled."
    return Table(title, columns, rows, note, words=["Kind", "Size", "Metric"], wide=True)


def terminal_table(result: TasksResult) -> Table:
    """Return the scores as the terminal shows them."""
    confidence = round(100 * result.settings["confidence"])
    return scores_table(result, f"{shown(result.model['name'])}: scores x 100, {confidence} % intervals")


def thresholds_in_words(result: TasksResult) -> list[str]:
    """Say for each task of pair classification from which similarity on pairs may be taken for positive."""
    said = []
    for task in result.tasks:
        found = task.details
        if task.kind == "pair classification" and not math.isnan(found["precision_threshold"]):
            wanted, recall = f"{100 * found['wanted_precision']:g} %", f"{100 * found['recall']:.1f} %"
            said.append(
                f"{task.title}: from a {task.settings['similarity']} similarity of {found['precision_threshold']:.4f} "
                f"on at least {wanted} of the pairs are positive, which finds {recall} of the positive ones; F1 is "
                f"best from {found['f1_threshold']:.4f} on"
            )
    return said


def how_to_read(result: TasksResult) -> list[str]:
    """Return the paragraphs that explain the numbers."""
    text = [_EXPLAINED[kind] for kind in dict.fromkeys(task.kind for task in result.tasks)]
    samples = result.settings.get("bootstrap_samples")
    if samples:
        units = ", ".join(dict.fromkeys(task.unit for task in result.tasks))
        confidence = 100 * float(result.settings["confidence"])
        text.append(
            f"Square brackets hold {confidence:g} % bootstrap intervals over {samples:,} resamples of the {units}. "
            "Classifiers and clusterings are held fixed. Two models are told apart by 'st-plugins compare', on the "
            "same resamples: that their intervals overlap does not mean that they are equal."
        )
    text.append(f'"{UNDEFINED}" stands where a score does not exist. It is not zero.')
    return text


def csv_table(result: TasksResult) -> Table:
    """Return every score at full precision, one a row."""
    name = str(result.model.get("name", ""))
    rows = [
        [name, "model", task.name, task.kind, str(task.units), task.unit, metric, *_numbers(task, metric)]
        for task in result.tasks
        for metric in _main_first(task)
    ]
    return Table("", _COLUMNS, rows)


def _numbers(task: MeasuredTask, metric: str) -> list[str]:
    score = task.scores[metric]
    return [str(value) for value in (score.value, score.low, score.high)]


def _main_first(task: MeasuredTask) -> list[str]:
    # Sorted, so that a result read back from JSON gives the same report.
    return sorted(task.scores, key=lambda name: (name != task.main, name))
