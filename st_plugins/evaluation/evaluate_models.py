"""Many models on the same tasks: one after another, or each as a task of a Ray cluster."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from st_plugins.evaluation.measuring.parallel import outcomes, runner_of
from st_plugins.evaluation.measuring.task_evaluator import TaskEvaluator
from st_plugins.evaluation.result import SuiteResult
from st_plugins.evaluation.suite import STSSuiteEvaluator
from st_plugins.evaluation.task_result import TasksResult
from st_plugins.io import load_sentence_transformer
from st_plugins.scale.engines import Engine

logger = logging.getLogger(__name__)

Evaluators = STSSuiteEvaluator | Sequence[TaskEvaluator]


@dataclass(frozen=True)
class EvaluatedModels:
    """What many models reached, and which of them could not be evaluated.

    Args:
        results: The result of each model by its name, in the order in which they were given.
        missing: Why there is none, of the models that failed.

    Example:
        >>> EvaluatedModels(missing={"a-model": "no such model"}).results
        {}
    """

    results: dict[str, SuiteResult | TasksResult] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)


def evaluate_models(
    models: Sequence[str | Path],
    evaluators: STSSuiteEvaluator | TaskEvaluator | Sequence[TaskEvaluator],
    *,
    engine: str | Engine = "local",
    on_error: str = "stop",
    device: str | None = None,
) -> EvaluatedModels:
    """Evaluate many models on the same tasks, at the same time where a Ray cluster has room for it.

    Each model is loaded where it is evaluated, by its path or name, and only one at a time in a process. Results are
    those of ``evaluator.evaluate(model, name)``, to be compared and written as these. Under Ray a model takes a GPU
    where the cluster has some, and ``Ray(cpus=...)`` cores otherwise.

    Args:
        models: Folders, which all machines see, or names on the hub.
        evaluators: An evaluator of STS, or one or several of other tasks.
        engine: ``"local"``, one model after another, ``"ray"``, or a `Ray` of st_plugins.scale.
        on_error: What a model does that cannot be evaluated: ``"stop"``, or ``"skip"``, which leaves it out with a
            warning and goes on.
        device: ``"cpu"``, ``"cuda"``, ...; None is the best there is where a model is loaded.

    Returns:
        The results, and why those are missing that are.

    Raises:
        ValueError: There is no model, one is given twice, or an evaluator is of the wrong kind.
        RuntimeError: A model cannot be evaluated and ``on_error`` is ``"stop"``; the cause is what was raised.

    Example:
        >>> import tempfile
        >>> from st_plugins.miniature import untrained_encoder
        >>> evaluator = STSSuiteEvaluator.from_pairs(["a dog", "a cat", "a man"], ["dogs", "a boat", "men"], [4, 1, 3])
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     names = [f"{folder}/{width}" for width in (16, 32)]
        ...     for width, name in zip((16, 32), names):
        ...         untrained_encoder(width).save(name)
        ...     found = evaluate_models(names, evaluator)
        >>> [result.model["dimension"] for result in found.results.values()]
        [16, 32]
    """
    names = [str(model) for model in ([models] if isinstance(models, str | Path) else models)]
    if not names:
        raise ValueError("models is empty; give at least one")
    if twice := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"models has {twice[0]!r} twice; give each once")
    if on_error not in ("stop", "skip"):
        raise ValueError(f"on_error={on_error!r} must be 'stop' or 'skip'")
    found: dict[str, SuiteResult | TasksResult] = {}
    missing: dict[str, str] = {}
    shared = (_several(evaluators), device)
    for number, outcome in outcomes(_evaluate, shared, names, runner_of(engine), gpu=True):
        name = names[number]
        if not isinstance(outcome, Exception):
            found[name] = outcome
            continue
        said = f"{type(outcome).__name__}: {outcome}"
        if on_error == "stop":
            raise RuntimeError(f"model {name!r} cannot be evaluated: {said}") from outcome
        logger.warning("%s is left out: %s", name, said)
        missing[name] = said
    return EvaluatedModels(
        {name: found[name] for name in names if name in found},
        {name: missing[name] for name in names if name in missing},
    )


def _several(evaluators: STSSuiteEvaluator | TaskEvaluator | Sequence[TaskEvaluator]) -> Evaluators:
    if isinstance(evaluators, STSSuiteEvaluator):
        return evaluators
    several = [evaluators] if isinstance(evaluators, TaskEvaluator) else list(evaluators)
    if not several:
        raise ValueError("evaluators is empty; give at least one")
    if wrong := [one for one in several if not isinstance(one, TaskEvaluator)]:
        raise TypeError(
            f"evaluators has a {type(wrong[0]).__name__}; give one STSSuiteEvaluator, or evaluators of other tasks"
        )
    return several


def _evaluate(shared: tuple[Evaluators, str | None], name: str) -> SuiteResult | TasksResult:
    evaluators, device = shared
    model = load_sentence_transformer(name, device)
    if isinstance(evaluators, STSSuiteEvaluator):
        return evaluators.evaluate(model, name)
    return TasksResult.joined([one.evaluate(model, name) for one in evaluators])
