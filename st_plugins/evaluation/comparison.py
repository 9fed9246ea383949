"""Compare two evaluations honestly: paired bootstrap on the same pairs and the same resamples."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from st_plugins.evaluation.measuring.record import check_alike
from st_plugins.evaluation.result import Difference, SuiteResult, TaskResult
from st_plugins.evaluation.statistics import bootstrap, difference, holm, resample_counts, spearman

# What says where a result was computed, which changes no score.
_MACHINE = ("machine", "torch_threads")


@dataclass
class Comparison:
    """What :func:`compare` found; every difference is first minus second, in Spearman ("all").

    Args:
        first: Name of the first model.
        second: Name of the second model.
        tasks: Per task name, p-values corrected over the tasks (Holm).
        average: Difference of the averages.
        scores: Per task name and ``"avg"``: the two scores.
        fit_distances: Per model that holds a whitening: how far its fit texts lie from the evaluated texts.
        notes: What the reader should know, one sentence each.

    Example:
        >>> from st_plugins.miniature import untrained_encoder
        >>> from st_plugins.evaluation import STSSuiteEvaluator
        >>> evaluator = STSSuiteEvaluator.from_pairs(["a dog", "a cat", "a man"], ["dogs", "a boat", "men"], [4, 1, 3])
        >>> result = evaluator.evaluate(untrained_encoder())
        >>> compare(result, result).average.value
        0.0
    """

    first: str
    second: str
    tasks: dict[str, Difference]
    average: Difference
    scores: dict[str, tuple[float, float]]
    fit_distances: dict[str, dict[str, float]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def to_json(self) -> str:
        """Return the comparison as JSON text; undefined numbers become ``null``."""

        def plain(value: Any) -> Any:
            if isinstance(value, dict):
                return {key: plain(item) for key, item in value.items()}
            if isinstance(value, tuple | list):
                return [plain(item) for item in value]
            return None if isinstance(value, float) and not np.isfinite(value) else value

        return json.dumps(plain(asdict(self)), indent=1, sort_keys=True) + "\n"


def compare(
    first: SuiteResult,
    second: SuiteResult,
    *,
    confidence: float = 0.95,
    bootstrap_samples: int = 1000,
    seed: int = 0,
) -> Comparison:
    """Compare two results by paired bootstrap.

    Both models are scored on the same resamples of the same pairs, so what they have in common (hard pairs, noisy gold
    scores) cancels, and differences far smaller than either interval can be told apart. The p-values of the tasks are
    corrected for their number by Holm's rule.

    Args:
        first: One result, with similarities kept.
        second: The other result, of the same tasks and pairs.
        confidence: Coverage of the intervals; ``1 - confidence`` is the level of the test.
        bootstrap_samples: Number of resamples.
        seed: Seed of the resamples.

    Returns:
        Differences (first minus second) with interval, p-value and *better*, *worse*, *not separable*, or *undefined*
        where a correlation does not exist; undefined tasks do not count as tests, and make the average undefined.

    Raises:
        ValueError: The results have different tasks or pairs, were stored without similarities, or were measured
            differently: with another length, similarity, prompt, routes, truncation or target whitening that is not
            the model's own, or one model with two of them.

    Example:
        >>> from st_plugins.miniature import untrained_encoder
        >>> from st_plugins.evaluation import STSSuiteEvaluator
        >>> evaluator = STSSuiteEvaluator.from_pairs(["a dog", "a cat", "a man"], ["dogs", "a boat", "men"], [4, 1, 3])
        >>> result = evaluator.evaluate(untrained_encoder())
        >>> compare(result, result).average.verdict
        'not separable'
    """
    if not 0 < confidence < 1:
        raise ValueError(f"confidence={confidence} must lie between 0 and 1, for example 0.95")
    if bootstrap_samples < 1:
        raise ValueError(f"bootstrap_samples={bootstrap_samples} must be at least 1")
    names = [task.name for task in first.tasks]
    if names != [task.name for task in second.tasks]:
        raise ValueError(f"the results have different tasks: {names} and {[task.name for task in second.tasks]}")
    notes = _measured_alike(first, second)
    # On the same resamples what both have in common (hard pairs, noisy gold scores) cancels.
    values, samples = {}, {}
    for task, other in zip(first.tasks, second.tasks, strict=True):
        gold, systems = _paired(task, other)
        values[task.name] = np.array([spearman(gold, system) for system in systems])
        counts = resample_counts(len(gold), bootstrap_samples, task.name, seed)
        samples[task.name] = bootstrap(gold, systems, counts)[0]
    raw = {
        name: difference(float(value[0] - value[1]), samples[name][0] - samples[name][1], confidence)
        for name, value in values.items()
    }
    # An undefined task makes the average undefined: it would be another average without it.
    mean = np.mean(list(values.values()), axis=0)
    mean_samples = np.mean(list(samples.values()), axis=0)
    scores = {name: (float(value[0]), float(value[1])) for name, value in values.items()}
    return Comparison(
        first=str(first.model["name"]),
        second=str(second.model["name"]),
        tasks=holm(raw, confidence),
        average=difference(float(mean[0] - mean[1]), mean_samples[0] - mean_samples[1], confidence),
        scores=scores | {"avg": (float(mean[0]), float(mean[1]))},
        fit_distances=_fit_distances(first) | _fit_distances(second),
        notes=notes + _undefined_resamples(values, samples),
    )


def _paired(first: TaskResult, second: TaskResult) -> tuple[np.ndarray, np.ndarray]:
    if first.checksum != second.checksum:
        raise ValueError(
            f"task {first.name!r}: the two results were made on different pairs ({first.source}: {first.pairs} pairs, "
            f"{second.source}: {second.pairs} pairs); evaluate both models on the same data"
        )
    if first.gold is None or first.similarities is None or second.similarities is None:
        raise ValueError(
            f"task {first.name!r}: a result was stored without similarities; evaluate with keep_similarities=True"
        )
    return np.array(first.gold), np.array([first.similarities, second.similarities])


def _measured_alike(first: SuiteResult, second: SuiteResult) -> list[str]:
    """Refuse what was measured differently; say what else differs."""
    names = str(first.model["name"]), str(second.model["name"])
    for name, result in zip(names, (first, second), strict=True):
        if "measured" not in result.settings:
            raise ValueError(
                f"the result of {name!r} does not say how it was measured (length, similarity, prompts); evaluate it "
                "again"
            )
    same = first.model.get("weights") is not None and first.model.get("weights") == second.model.get("weights")
    notes = check_alike(first.settings["measured"], second.settings["measured"], names, same)
    versions = sorted(
        key for key in first.versions if key not in _MACHINE and first.versions[key] != second.versions.get(key)
    )
    if versions:
        told = ", ".join(f"{key} {first.versions[key]} and {second.versions.get(key, 'none')}" for key in versions)
        notes.append(f"the two were measured with different versions: {told}")
    return notes


def _undefined_resamples(values: dict[str, np.ndarray], samples: dict[str, np.ndarray]) -> list[str]:
    """Say of how many resamples an interval is, where not of all."""
    notes = []
    for name, value in values.items():
        missing = int(np.isnan(samples[name]).any(axis=0).sum())
        if missing and np.isfinite(value).all():
            notes.append(
                f"{name}: in {missing:,} of {samples[name].shape[1]:,} resamples a correlation is undefined; the "
                "interval is that of the others"
            )
    return notes


def _fit_distances(result: SuiteResult) -> dict[str, dict[str, float]]:
    found = {key: value for key, value in result.geometry.items() if key.startswith("fit_")}
    return {str(result.model["name"]): found} if found else {}
