"""What an evaluation of other tasks than STS found: retrieval, pair classification, classification, clustering."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from st_plugins.evaluation.result import Score, SuiteResult, nan_for_null, read_as, read_json, scores_of, without_nan

SCHEMA_VERSION = 1


@dataclass
class MeasuredTask:
    """Scores of one task, and what each query, pair or text adds to them.

    Args:
        kind: ``"retrieval"``, ``"pair classification"``, ``"classification"`` or ``"clustering"``.
        name: Key part (``banking77``).
        title: Name as printed.
        main: Name of the main metric among ``scores``: ``"ndcg_at_10"``, ``"average_precision"``, ``"accuracy"`` or
            ``"v_measure"``.
        scores: Every metric by name, with its bootstrap interval over the units.
        units: Number of units N.
        unit: What a unit is: ``"queries"``, ``"pairs"`` or ``"texts"``.
        per_unit: Columns of N numbers from which the scores are computed again on any resample of the units. Each
            metric of single queries or texts by its name; ``"positive"`` and ``"similarity"`` of pairs; the class
            ``"label"`` and the clusters ``"clustering_1"``, ... of texts.
        settings: How the task was scored: similarity, number of experiments, ... Two results with other settings are
            not compared.
        checksum: SHA-256 of the data.
        source: Where the data came from.
        details: What else was found: thresholds, the value of every experiment.
        warnings: What the reader or the scorer wants the user to know.
        measured: How the texts became vectors, for each setting what was used and what is the model's own; empty for
            scores of vectors of nobody knows which model.

    Example:
        >>> import numpy as np
        >>> from st_plugins.data import RetrievalData
        >>> from st_plugins.evaluation import score_retrieval
        >>> data = RetrievalData("pets", {"d1": "a dog", "d2": "a cat"}, {"q1": "dogs"}, {"q1": {"d1": 1}})
        >>> task = score_retrieval(np.float32([[1, 0]]), np.float32([[1, 0], [0, 1]]), data)
        >>> task.main, task.score.value, task.units, task.unit
        ('ndcg_at_10', 1.0, 1, 'queries')
    """

    kind: str
    name: str
    title: str
    main: str
    scores: dict[str, Score]
    units: int
    unit: str
    per_unit: dict[str, list[float]]
    settings: dict[str, Any]
    checksum: str
    source: str
    details: dict[str, Any] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    measured: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def score(self) -> Score:
        """The main metric."""
        return self.scores[self.main]


@dataclass
class TasksResult:
    """Everything that was found about one model on tasks other than STS.

    Args:
        model: Name or path, modules, pooling, dimension, dtype, max_seq_length, ... as plain JSON values.
        settings: confidence, bootstrap_samples, seed, batch_size.
        tasks: One entry a task.
        versions: Library versions and the machine.
        warnings: Sentences for the report.
        schema_version: Version of this layout.

    Example:
        >>> from st_plugins.data import RetrievalData
        >>> from st_plugins.evaluation import RetrievalEvaluator
        >>> from st_plugins.miniature import untrained_encoder
        >>> data = RetrievalData("pets", {"d1": "a dog", "d2": "a cat"}, {"q1": "a dog"}, {"q1": {"d1": 1}})
        >>> result = RetrievalEvaluator(data).evaluate(untrained_encoder())
        >>> TasksResult.from_json(result.to_json()).tasks[0].score.value
        1.0
    """

    model: dict[str, Any]
    settings: dict[str, Any]
    tasks: list[MeasuredTask]
    versions: dict[str, str]
    warnings: list[str] = field(default_factory=list)
    schema_version: int = SCHEMA_VERSION

    def to_json(self) -> str:
        """Return the result as JSON text; undefined numbers become ``null``, infinite ones ``"inf"``."""
        return json.dumps(without_nan(asdict(self)), indent=1, sort_keys=True, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> TasksResult:
        """Rebuild a result from :meth:`to_json`.

        Args:
            text: The content of a ``result.json``.

        Returns:
            The result, equal to the one that was written.

        Raises:
            ValueError: The text is not JSON, a result of the STS suite, or of a newer layout of this package.
        """
        raw = read_json(text, SCHEMA_VERSION)
        if "average" in raw:
            raise ValueError("a result of the STS suite; read it with SuiteResult, or read_result")
        tasks = []
        for task in raw["tasks"]:
            task["scores"] = scores_of(task["scores"])
            # Only numbers get NaN for null: elsewhere null means None.
            task["per_unit"] = {
                name: [math.nan if value is None else value for value in column]
                for name, column in task["per_unit"].items()
            }
            task["details"] = nan_for_null(task["details"])
            tasks.append(MeasuredTask(**task))
        return cls(**{**raw, "tasks": tasks})

    @classmethod
    def read(cls, path: str | Path) -> TasksResult:
        """Read a ``result.json``, or the one inside a result folder.

        Args:
            path: The file or its folder.

        Returns:
            The stored result.

        Raises:
            FileNotFoundError: There is no such file.
            ValueError: The file is not such a result of this package.
        """
        return read_as(cls.from_json, path)

    @classmethod
    def joined(cls, results: Sequence[TasksResult]) -> TasksResult:
        """Put results of one model on several tasks into one.

        Args:
            results: At least one result.

        Returns:
            The model and settings of the first one, with the tasks of all.

        Raises:
            ValueError: There is no result, they are of different models or settings, or two tasks have one name.
        """
        if not results:
            raise ValueError("results is empty; give at least one")
        first = results[0]
        for other in results[1:]:
            for what, one, two in (("models", first.model, other.model), ("settings", first.settings, other.settings)):
                if one != two:
                    told = [f"{one.get(key)!r} and {two.get(key)!r}" for key in one if one.get(key) != two.get(key)]
                    raise ValueError(f"the results are of different {what}: {told[0]:.120}; evaluate them alike")
        tasks = [task for result in results for task in result.tasks]
        names = [task.name for task in tasks]
        if twice := [name for name in names if names.count(name) > 1]:
            raise ValueError(f"two tasks have the name {twice[0]!r}; rename one (name=)")
        warnings = [warning for result in results for warning in result.warnings]
        return cls(first.model, first.settings, tasks, first.versions, list(dict.fromkeys(warnings)))


def read_result(path: str | Path) -> SuiteResult | TasksResult:
    """Read a ``result.json`` of either kind, or the one inside a result folder.

    Args:
        path: The file or its folder.

    Returns:
        The stored result: of the STS suite, or of other tasks.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is not a result of this package.

    Example:
        >>> import tempfile
        >>> from st_plugins.evaluation import STSSuiteEvaluator
        >>> from st_plugins.miniature import untrained_encoder
        >>> evaluator = STSSuiteEvaluator.from_pairs(["a dog", "a cat", "a man"], ["dogs", "a boat", "men"], [4, 1, 3])
        >>> result = evaluator.evaluate(untrained_encoder())
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = Path(folder, "result.json").write_text(result.to_json())
        ...     read_result(folder) == result
        True
    """

    def either(text: str) -> SuiteResult | TasksResult:
        suite = "average" in read_json(text, SCHEMA_VERSION)
        return SuiteResult.from_json(text) if suite else TasksResult.from_json(text)

    return read_as(either, path)
