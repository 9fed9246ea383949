"""The paragraphs of a report that explain its numbers."""

from __future__ import annotations

import math
from typing import Any

from st_plugins.evaluation.result import SuiteResult
from st_plugins.evaluation.tables import module_name, number, percent

__all__ = ["TIES_MATTER", "highest_in_words", "how_to_read"]

TIES_MATTER = 0.995  # half a point; the ties of the graded tasks cost less


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
    modules = [module for module in result.model.get("modules") or [] if module_name(module) == "Whitening"]
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
