"""Compare two evaluations honestly: paired bootstrap on the same pairs and the same resamples."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from st_plugins.evaluation.measuring.record import check_alike
from st_plugins.evaluation.measuring.units import resampled
from st_plugins.evaluation.result import Difference, SuiteResult, TaskResult
from st_plugins.evaluation.statistics import bootstrap, difference, holm, resample_counts, spearman
from st_plugins.evaluation.task_result import MeasuredTask, TasksResult

# What says where a result was computed, which changes no score.
_MACHINE = ("machine", "torch_threads")


@dataclass
class Comparison:
    """What :func:`compare` found; every difference is first minus second.

    STS is compared in Spearman ("all"), every other task in its main metric.

    Args:
        first: Name of the first model.
        second: Name of the second model.
        tasks: Per task name, p-values corrected over the tasks (Holm).
        average: Difference of the averages over the tasks.
        scores: Per task name and ``"avg"``: the two scores.
        fit_distances: Per model that holds a whitening: how far its fit texts lie from the evaluated texts.
        notes: What the reader should know, one sentence each.
        metrics: The metric of each task that is not STS.

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
    metrics: dict[str, str] = field(default_factory=dict)

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
    first: SuiteResult | TasksResult,
    second: SuiteResult | TasksResult,
    *,
    confidence: float = 0.95,
    bootstrap_samples: int = 1000,
    seed: int = 0,
) -> Comparison:
    """Compare two results by paired bootstrap.

    Both models are scored on the same resamples of the same pairs, so what they have in common (hard pairs, noisy gold
    scores) cancels, and differences far smaller than either interval can be told apart. The p-values of the tasks are
    corrected for their number by Holm's rule. Of a retrieval task the queries are resampled, of classification and
    clustering the texts; the average over tasks of several kinds is one over their main metrics.

    Args:
        first: One result, with similarities kept.
        second: The other result, of the same tasks and data.
        confidence: Coverage of the intervals; ``1 - confidence`` is the level of the test.
        bootstrap_samples: Number of resamples.
        seed: Seed of the resamples.

    Returns:
        Differences (first minus second) with interval, p-value and *better*, *worse*, *not separable*, or *undefined*
        where a correlation does not exist; undefined tasks do not count as tests, and make the average undefined.

    Raises:
        ValueError: The results have different tasks or data, were stored without similarities, or were measured
            differently: with another length, similarity, prompt, routes, truncation or target whitening that is not
            the model's own, one model with two of them, or tasks with other settings.

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
    if isinstance(first, SuiteResult) != isinstance(second, SuiteResult):
        raise ValueError("one result is of STS, the other of other tasks; compare two of one kind")
    names = [task.name for task in first.tasks]
    if names != [task.name for task in second.tasks]:
        raise ValueError(
            f"the results have different tasks: {names} and {[task.name for task in second.tasks]}; measure both on "
            "the same ones"
        )
    notes = _measured_alike(first, second)
    # On the same resamples what both have in common (hard pairs, noisy gold scores) cancels.
    values, samples, metrics = {}, {}, {}
    tasks: tuple[Sequence[TaskResult | MeasuredTask], ...] = (first.tasks, second.tasks)
    for task, other in zip(*tasks, strict=True):
        if isinstance(task, MeasuredTask) and isinstance(other, MeasuredTask):
            values[task.name], samples[task.name] = _scored_both(task, other, bootstrap_samples, seed)
            metrics[task.name] = task.main
        elif isinstance(task, TaskResult) and isinstance(other, TaskResult):
            gold, systems = _paired(task, other)
            values[task.name] = np.array([spearman(gold, system) for system in systems])
            counts = resample_counts(len(gold), bootstrap_samples, task.name, seed)
            samples[task.name] = bootstrap(gold, systems, counts)[0]
    raw = _differences(values, samples, confidence)
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
        metrics=metrics,
    )


def compare_tasks(
    first: Sequence[MeasuredTask],
    second: Sequence[MeasuredTask],
    *,
    confidence: float = 0.95,
    bootstrap_samples: int = 1000,
    seed: int = 0,
) -> dict[str, Difference]:
    """Compare scores of the same tasks by paired bootstrap, whatever the vectors were made by.

    This is :func:`compare` for vectors that somebody has scored (``score_retrieval`` and the like): how texts became
    vectors is not known here, and not checked.

    Args:
        first: Scores of one set of vectors.
        second: Scores of another one on the same tasks, in the same order.
        confidence: Coverage of the intervals; ``1 - confidence`` is the level of the test.
        bootstrap_samples: Number of resamples.
        seed: Seed of the resamples.

    Returns:
        By task name the difference (first minus second) in its main metric; p-values corrected by Holm's rule.

    Raises:
        ValueError: The tasks, their data or their settings differ.

    Example:
        >>> from st_plugins.data import LabeledTexts
        >>> from st_plugins.evaluation import score_clustering
        >>> data = LabeledTexts("pets", ["a dog", "dogs", "a cat", "cats"], ["dog", "dog", "cat", "cat"])
        >>> good, bad = np.float32([[1, 0], [1, 0.1], [0, 1], [0.1, 1]]), np.float32([[1, 0], [0, 1], [1, 0], [0, 1]])
        >>> scores = [[score_clustering(vectors, data)] for vectors in (good, bad)]
        >>> found = compare_tasks(*scores)["pets"]
        >>> round(found.value, 6), found.verdict
        (1.0, 'better')
    """
    values, samples = {}, {}
    for task, other in zip(first, second, strict=True):
        values[task.name], samples[task.name] = _scored_both(task, other, bootstrap_samples, seed)
    return holm(_differences(values, samples, confidence), confidence)


def _differences(
    values: dict[str, np.ndarray], samples: dict[str, np.ndarray], confidence: float
) -> dict[str, Difference]:
    return {
        name: difference(float(value[0] - value[1]), samples[name][0] - samples[name][1], confidence)
        for name, value in values.items()
    }


def _scored_both(
    first: MeasuredTask, second: MeasuredTask, bootstrap_samples: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return the main metric of both, ``(2,)``, and on the same resamples of the units, ``(2, B)``."""
    for what in ("name", "kind", "settings"):
        one, two = getattr(first, what), getattr(second, what)
        if one != two:
            raise ValueError(
                f"task {first.name!r}: {what} is {one!r} and {two!r}; evaluate both on the same tasks in the same way"
            )
    if first.checksum != second.checksum:
        raise ValueError(_other_data(first, first.units, second, second.units, first.unit))
    counts = resample_counts(first.units, bootstrap_samples, first.name, seed)
    found = [resampled(task.kind, task.per_unit, counts)[task.main] for task in (first, second)]
    return np.array([value for value, _ in found]), np.stack([drawn for _, drawn in found])


def _paired(first: TaskResult, second: TaskResult) -> tuple[np.ndarray, np.ndarray]:
    if first.checksum != second.checksum:
        raise ValueError(_other_data(first, first.pairs, second, second.pairs, "pairs"))
    if first.gold is None or first.similarities is None or second.similarities is None:
        raise ValueError(
            f"task {first.name!r}: a result was stored without similarities; evaluate with keep_similarities=True"
        )
    return np.array(first.gold), np.array([first.similarities, second.similarities])


def _other_data(
    first: TaskResult | MeasuredTask, count: int, second: TaskResult | MeasuredTask, other: int, unit: str
) -> str:
    return (
        f"task {first.name!r}: the two results were made on different {unit} ({first.source}: {count} {unit}, "
        f"{second.source}: {other} {unit}); evaluate both models on the same data"
    )


def _measured_alike(first: SuiteResult | TasksResult, second: SuiteResult | TasksResult) -> list[str]:
    """Refuse what was measured differently; say what else differs."""
    names = str(first.model["name"]), str(second.model["name"])
    for name, result in zip(names, (first, second), strict=True):
        if not all(_measured(result)):
            raise ValueError(
                f"the result of {name!r} does not say how it was measured (length, similarity, prompts); evaluate it "
                "again"
            )
    same = first.model.get("weights") is not None and first.model.get("weights") == second.model.get("weights")
    notes = []
    for one, two in zip(_measured(first), _measured(second), strict=False):
        notes += [note for note in check_alike(one, two, names, same) if note not in notes]
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


def _measured(result: SuiteResult | TasksResult) -> list[dict[str, Any]]:
    """Return how a result was measured: once for the STS tasks, for each task otherwise."""
    if isinstance(result, SuiteResult):
        return [result.settings.get("measured", {})]
    return [task.measured for task in result.tasks]


def _fit_distances(result: SuiteResult | TasksResult) -> dict[str, dict[str, float]]:
    if isinstance(result, TasksResult):
        return {}
    found = {key: value for key, value in result.geometry.items() if key.startswith("fit_")}
    return {str(result.model["name"]): found} if found else {}
