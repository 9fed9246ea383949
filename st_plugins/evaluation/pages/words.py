"""The words of a report: what was found, how it was measured, and how its numbers are to be read."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from st_plugins.evaluation.measuring.record import setting_in_words
from st_plugins.evaluation.pages.tables import score_cell, value_text, words
from st_plugins.evaluation.result import Score, SuiteResult
from st_plugins.evaluation.task_result import TasksResult
from st_plugins.report.table import number, percent

TIES_MATTER = 0.995  # half a point; the ties of the graded tasks cost less


def summary(result: SuiteResult) -> str:
    """Say in one or two sentences what was found."""
    score = result.average["spearman_all"]
    tasks = "1 task" if len(result.tasks) == 1 else f"{len(result.tasks)} tasks"
    text = f'Average over {tasks}: {score_cell(score)} (Spearman × 100, convention "all").'
    if result.floor is None:
        return text
    above = result.floor.above_whitened["avg"]
    if math.isnan(above.value):
        return f"{text} Its distance from the whitened floor is undefined."
    side, distance = "above", Score(above.value, above.low, above.high)
    if above.value < 0:
        side, distance = "below", Score(-above.value, -above.high, -above.low)
    return f"{text} That is {score_cell(distance)} {side} the whitened floor: {above.verdict}."


def header(result: SuiteResult | TasksResult) -> dict[str, str]:
    """Return what was evaluated and with what, one short line each."""
    model = result.model
    measured = result.settings.get("measured") or {}
    if isinstance(result, TasksResult):  # each task has its own
        measured = _joined([task.measured for task in result.tasks])
    lines = {"Model": str(model.get("name", "unnamed"))}
    parts = [_module_name(module) for module in model.get("modules") or []]
    if model.get("pooling") is not None:
        parts.append(f"pooling {value_text(model['pooling'])}")
    if model.get("dimension") is not None:
        parts.append(f"{model['dimension']} dimensions")
    if model.get("dtype"):
        parts.append(str(model["dtype"]))
    if model.get("max_seq_length") is not None:
        parts.append(f"at most {model['max_seq_length']} tokens")
    if parts:
        lines["Modules"] = ", ".join(parts)
    similarity = result.settings.get("similarity") or measured.get("similarity", {}).get("used")
    if similarity:
        lines["Similarity"] = str(similarity)
    lines |= _measured(measured)
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
        f"{words(name)} {setting_in_words(value['used'])} (own: {setting_in_words(value['own'])})"
        for name, value in sorted(settings.items())
        if value["used"] != value["own"]
    ]
    if changed:
        lines["Not the model's own"] = ", ".join(changed)
    return lines


def _joined(tasks: Sequence[Mapping[str, Mapping[str, Any]]]) -> dict[str, dict[str, Any]]:
    """Put together how the tasks of one model were measured: prompts and routes differ from task to task."""
    found: dict[str, dict[str, Any]] = {}
    for name, value in (item for task in tasks for item in task.items()):
        kept = found.setdefault(name, dict(value))
        for key in value:
            kept[key] = kept[key] | value[key] if isinstance(value[key], Mapping) else value[key]
    return found


def how_to_read(result: SuiteResult) -> list[str]:
    """Return the paragraphs that explain the numbers."""
    settings = result.settings
    text = [
        f"A score is 100 times the correlation between the gold scores of a task and the model's "
        f"{settings.get('similarity', 'cosine')} similarities. {highest_in_words(result)}",
        'The conventions are never mixed in one row. "all" (one correlation over the whole task) is what SBERT, '
        'SimCSE and ConSERT publish, "wmean" what BERT-flow and BERT-whitening publish. They differ by up to 20 '
        "points on the same embeddings, so a published number must be compared with the row of its own convention.",
        "The floor is a bag of random token vectors made with the model's own tokenizer and dimension: nothing in it "
        "is learned, so it shows what word overlap alone scores. A model that is not better than the whitened floor "
        "has not shown on these tasks that it knows anything about meaning.",
    ]
    if settings.get("bootstrap_samples"):
        confidence = float(settings.get("confidence", 0.95))
        text.append(
            f"Square brackets hold {100 * confidence:g} % bootstrap intervals over {settings['bootstrap_samples']:,} "
            'resamples of the pairs. "better" and "worse" come from paired resamples (for single tasks corrected for '
            'their number); "not separable" means that the pairs do not suffice to tell the two apart.'
        )
    text.append(_fitted_on(result))
    text.append(
        '"undefined" stands where a correlation does not exist, for example because all gold scores are equal. It is '
        "not zero, and an average over it is undefined too."
    )
    return text


def highest_in_words(result: SuiteResult) -> str:
    """Say what a perfect ranking scores: 100, or less where gold scores are tied."""
    if all(math.isnan(task.highest) for task in result.tasks):
        return "All gold scores of a task are equal, so that there is no ranking to find."
    capped = [task for task in result.tasks if task.highest < TIES_MATTER]
    if not capped:
        return "100 is a perfect ranking, 0 is none."
    told = ", ".join(f"{percent(task.highest)} for {task.title}" for task in capped)
    return (
        "0 is no ranking. Tied gold scores keep a perfect ranking of untied similarities below 100: the highest "
        f"Spearman possible is {told}."
    )


def _fitted_on(result: SuiteResult) -> str:
    """Say what was fitted on which texts, above all on those of the test."""
    text = "No method may see the gold scores."
    if result.floor is not None:
        text += f" The floor was whitened on {result.floor.whitened_on}."
        if "evaluated" in result.floor.whitened_on:
            text += " Those are the test texts (without their gold scores), which is the floor's best case."
    modules = [module for module in result.model.get("modules") or [] if _module_name(module) == "Whitening"]
    if not modules:
        return f"{text} The model holds no whitening."
    sources = [name for module in modules for name in _sources(module)]
    text += (
        f" The model holds a whitening fitted on {', '.join(sources)}." if sources else " The model holds a whitening."
    )
    if "fit_kl_divergence" in result.geometry:
        text += (
            " How far its fit texts lie from the evaluated ones is in the geometry table: distances of zero mean that "
            'it was fitted on the test texts themselves, the published "target" setting, which cannot be compared '
            "with one fitted on other texts."
        )
    return text


def _sources(module: dict[str, Any]) -> list[str]:
    """Return what a whitening says it was fitted on: a mapping from source to number of texts, or names."""
    sources = module.get("sources") or (module.get("config") or {}).get("sources") or []
    if isinstance(sources, dict):
        return [f"{name} ({number(rows)} texts)" for name, rows in sorted(sources.items())]
    return [str(source) for source in ([sources] if isinstance(sources, str) else sources)]


def _module_name(module: dict[str, Any]) -> str:
    """Return the class of a module without its package."""
    return str(module.get("type", "module")).rsplit(".", 1)[-1]
