"""What a training did."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from sentence_transformers import SentenceTransformer

from st_plugins.evaluation.comparison import Comparison
from st_plugins.evaluation.result import SuiteResult

__all__ = ["TrainingResult"]


@dataclass(frozen=True)
class TrainingResult:
    """What a training did.

    Args:
        model: The model as it was written, loaded again from the folder.
        steps: Optimiser steps of the whole training.
        step: The step whose weights were kept.
        selection: How that step was chosen, in words.
        texts: Distinct texts trained on.
        duplicates: Texts left out because they occurred before.
        empty: Texts left out because they were blank.
        before: Evaluation of the model as it was; None without development pairs.
        after: Evaluation of the model as it was written.
        comparison: ``compare(after, before)``.
        log: The trainer's ``log_history``: losses, geometry, development scores.

    Example:
        >>> from st_plugins.miniature import untrained_encoder
        >>> model = untrained_encoder()
        >>> TrainingResult(model, 30, 30, "the last one", 960, 3, 0, None, None, None, []).texts
        960
    """

    model: SentenceTransformer
    steps: int
    step: int
    selection: str
    texts: int
    duplicates: int
    empty: int
    before: SuiteResult | None = None
    after: SuiteResult | None = None
    comparison: Comparison | None = None
    log: list[dict[str, Any]] = field(default_factory=list)
