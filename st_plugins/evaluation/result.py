"""What an evaluation found: plain dataclasses that travel to JSON and back without loss."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

SCHEMA_VERSION = 1

Read = TypeVar("Read")

# JSON has no numbers for these.
_UNDEFINED_OR_INFINITE = {None: math.nan, "inf": math.inf, "-inf": -math.inf}


@dataclass(frozen=True)
class Score:
    """One number with its bootstrap interval; NaN where it is undefined (say, constant gold scores).

    Args:
        value: The score, in [-1, 1].
        low: Lower end of the confidence interval.
        high: Upper end of the confidence interval.

    Example:
        >>> Score(0.532, 0.521, 0.543).value
        0.532
    """

    value: float
    low: float = math.nan
    high: float = math.nan


@dataclass(frozen=True)
class Difference:
    """A paired comparison: first minus second on the same pairs and the same resamples.

    Args:
        value: The difference of the two scores.
        low: Lower end of its confidence interval.
        high: Upper end of its confidence interval.
        p_value: Two-sided bootstrap p-value, corrected when several tasks were compared (Holm).
        verdict: ``"better"``, ``"worse"``, ``"not separable"``, ``"undefined"`` where nothing could be measured, or
            ``"not tested"`` without resamples.

    Example:
        >>> Difference(0.02, 0.01, 0.03, p_value=0.004, verdict="better").value
        0.02
    """

    value: float
    low: float
    high: float
    p_value: float
    verdict: str


@dataclass(frozen=True)
class BinaryScores:
    """What is measured beside the correlations where the gold scores have two values.

    Args:
        negative: The lower gold score.
        positive: The higher one.
        positives: Number of pairs that have it.
        auc: Area under the ROC curve: the chance that a positive pair is more similar than a negative one.
        average_precision: Area under the precision-recall curve, by steps; the share of positives is chance.

    Example:
        >>> BinaryScores(0.0, 1.0, 12, auc=Score(0.8), average_precision=Score(0.7)).positives
        12
    """

    negative: float
    positive: float
    positives: int
    auc: Score
    average_precision: Score


@dataclass
class TaskResult:
    """Scores of one task.

    Args:
        name: Key part (``sts12``).
        title: Name as printed (``STS12``).
        pairs: Number of pairs.
        spearman: Three conventions: ``"all"``, ``"mean"``, ``"wmean"`` over the sub-datasets.
        pearson: The same three with Pearson's r.
        subsets: Per sub-dataset ``{"pairs": n, "spearman": float, "pearson": float}``.
        checksum: SHA-256 of the pairs.
        source: Where the pairs came from.
        warnings: What the reader or the scorer wants the user to know.
        gold: Gold scores, one a pair, or None when not kept.
        similarities: Model similarities, one a pair, or None when not kept.
        highest: Highest Spearman that similarities without ties can reach on these gold scores; 1 where no gold scores
            are tied.
        binary: AUC and average precision, where the gold scores have two values.

    Example:
        >>> from st_plugins.miniature import untrained_encoder
        >>> from st_plugins.evaluation import STSSuiteEvaluator
        >>> evaluator = STSSuiteEvaluator.from_pairs(["a dog", "a cat", "a man"], ["dogs", "a boat", "men"], [4, 1, 3])
        >>> task = evaluator.evaluate(untrained_encoder()).tasks[0]
        >>> task.pairs, task.gold
        (3, [4.0, 1.0, 3.0])
    """

    name: str
    title: str
    pairs: int
    spearman: dict[str, Score]
    pearson: dict[str, Score]
    subsets: dict[str, dict[str, float]]
    checksum: str
    source: str
    warnings: list[str] = field(default_factory=list)
    gold: list[float] | None = None
    similarities: list[float] | None = None
    highest: float = math.nan
    binary: BinaryScores | None = None


@dataclass
class FloorResult:
    """The bag of random token vectors, scored like the model (``st_plugins.evaluation.measuring.floor``).

    Args:
        raw: Spearman ("all") of the unwhitened bag per task name, and ``"avg"``.
        whitened: The same after whitening on the same unlabelled texts.
        above_raw: Model minus raw floor, per task name and ``"avg"``.
        above_whitened: Model minus whitened floor, per task name and ``"avg"``.
        dimension: Dimension of the random vectors (the model's output dimension).
        whitened_on: What the whitening was fitted on, in words.

    Example:
        >>> from st_plugins.miniature import untrained_encoder
        >>> from st_plugins.evaluation import STSSuiteEvaluator
        >>> evaluator = STSSuiteEvaluator.from_pairs(["a dog", "a cat", "a man"], ["dogs", "a boat", "men"], [4, 1, 3])
        >>> evaluator.evaluate(untrained_encoder()).floor.dimension
        64
    """

    raw: dict[str, Score]
    whitened: dict[str, Score]
    above_raw: dict[str, Difference]
    above_whitened: dict[str, Difference]
    dimension: int
    whitened_on: str


@dataclass
class SuiteResult:
    """Everything one evaluation found.

    Args:
        model: Name or path, modules, pooling, dimension, dtype, max_seq_length, ... as plain JSON values.
        settings: similarity, confidence, bootstrap_samples, seed, batch_size; ``"measured"`` holds for similarity,
            max_seq_length, prompts, routes, truncate_dim, target_whitening and dtype what was used and what is the
            model's own.
        tasks: One entry a task, in the order asked for.
        average: Mean over the tasks, keys ``"spearman_all"``, ``"spearman_mean"``, ``"spearman_wmean"`` and the
            same with ``pearson``.
        floor: The floor row, or None when switched off.
        geometry: Numbers of :mod:`st_plugins.geometry` about the evaluated sentences' embeddings; ``"spectrum"``
            holds the leading covariance eigenvalues as a list.
        versions: Library versions and the machine.
        warnings: Sentences for the report.
        schema_version: Version of this layout.

    Example:
        >>> from st_plugins.miniature import untrained_encoder
        >>> from st_plugins.evaluation import STSSuiteEvaluator
        >>> evaluator = STSSuiteEvaluator.from_pairs(["a dog", "a cat", "a man"], ["dogs", "a boat", "men"], [4, 1, 3])
        >>> result = evaluator.evaluate(untrained_encoder())
        >>> len(result.tasks), result.model["dimension"]
        (1, 64)
    """

    model: dict[str, Any]
    settings: dict[str, Any]
    tasks: list[TaskResult]
    average: dict[str, Score]
    floor: FloorResult | None
    geometry: dict[str, Any]
    versions: dict[str, str]
    warnings: list[str] = field(default_factory=list)
    schema_version: int = SCHEMA_VERSION

    def to_json(self) -> str:
        """Return the result as JSON text; undefined numbers become ``null``, infinite ones ``"inf"``."""
        return json.dumps(without_nan(asdict(self)), indent=1, sort_keys=True, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> SuiteResult:
        """Rebuild a result from :meth:`to_json`.

        Args:
            text: The content of a ``result.json``.

        Returns:
            The result, equal to the one that was written.

        Raises:
            ValueError: The text is not JSON, or was written by a newer layout of this package.
        """
        raw = read_json(text, SCHEMA_VERSION)
        if "average" not in raw:
            raise ValueError("a result of other tasks than STS; read it with TasksResult, or read_result")
        # Only floats get NaN for null: elsewhere null means None. Older results lack the last fields.
        tasks = []
        for task in raw["tasks"]:
            for key in ("spearman", "pearson"):
                task[key] = scores_of(task[key])
            task["subsets"] = {name: nan_for_null(subset) for name, subset in task["subsets"].items()}
            if task["similarities"] is not None:
                task["similarities"] = [math.nan if value is None else value for value in task["similarities"]]
            if task.get("highest", math.nan) is None:
                task["highest"] = math.nan
            if task.get("binary") is not None:
                scores = {key: Score(**nan_for_null(task["binary"][key])) for key in ("auc", "average_precision")}
                task["binary"] = BinaryScores(**{**task["binary"], **scores})
            tasks.append(TaskResult(**task))
        floor = raw["floor"]
        if floor is not None:
            for key in ("raw", "whitened"):
                floor[key] = scores_of(floor[key])
            for key in ("above_raw", "above_whitened"):
                floor[key] = {name: Difference(**nan_for_null(value)) for name, value in floor[key].items()}
            raw["floor"] = FloorResult(**floor)
        raw["tasks"] = tasks
        raw["average"] = scores_of(raw["average"])
        raw["geometry"] = nan_for_null(raw["geometry"])
        return cls(**raw)

    @classmethod
    def read(cls, path: str | Path) -> SuiteResult:
        """Read a ``result.json``, or the one inside a result folder.

        Args:
            path: The file or its folder.

        Returns:
            The stored result.

        Raises:
            FileNotFoundError: There is no such file.
            ValueError: The file is not a result of this package.
        """
        return read_as(cls.from_json, path)


def read_as(from_json: Callable[[str], Read], path: str | Path) -> Read:
    """Read a ``result.json``, or the one inside a folder; what is wrong with it is said with its path."""
    path = Path(path)
    path = path / "result.json" if path.is_dir() else path
    if not path.is_file():
        raise FileNotFoundError(f"result file {str(path)!r} does not exist; 'st-plugins evaluate' writes one")
    try:
        return from_json(path.read_text(encoding="utf-8"))
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: {error}") from None


def read_json(text: str, version: int) -> dict[str, Any]:
    """Return what a ``result.json`` of at most this layout holds."""
    try:
        raw = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"not a result.json: {error}") from None
    if not isinstance(raw, dict) or "tasks" not in raw:
        raise ValueError("not a result.json of st_plugins: there is no 'tasks' in it")
    if raw.get("schema_version", 0) > version:
        raise ValueError(
            f"result.json has schema_version {raw['schema_version']}, this release reads up to {version}; "
            "update st-plugins"
        )
    return raw


def scores_of(raw: dict[str, dict[str, float | None]]) -> dict[str, Score]:
    """Return scores as they were before they were written."""
    return {name: Score(**nan_for_null(value)) for name, value in raw.items()}


def nan_for_null(raw: dict[str, Any]) -> dict[str, Any]:
    """Return numbers as they were before they were written."""
    return {key: _UNDEFINED_OR_INFINITE.get(value, value) if _is_plain(value) else value for key, value in raw.items()}


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(value, str)


def without_nan(value: Any) -> Any:
    """Return plain values as JSON can hold them: undefined numbers as None, infinite ones as text."""
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else str(value)
    if isinstance(value, dict):
        return {key: without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(item) for item in value]
    return value
