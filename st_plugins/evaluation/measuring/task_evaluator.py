"""What the evaluators of single tasks have in common: each distinct text encoded once, and what is recorded of it."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer

from st_plugins.core.files import library_versions
from st_plugins.core.host import check_encoder, check_length
from st_plugins.evaluation.measuring.encoding import distinct, encode_ways
from st_plugins.evaluation.measuring.floor import token_ids
from st_plugins.evaluation.measuring.record import describe_model, measured
from st_plugins.evaluation.measuring.sentence_evaluator import SentenceEvaluator
from st_plugins.evaluation.measuring.ways import Way, own_ways, ways_of
from st_plugins.evaluation.task_result import MeasuredTask, TasksResult

Vectors = NDArray[np.float32]

_MANY = 100_000  # texts whose tokens are not kept, only for their order in length and for texts that look alike


class TaskEvaluator(SentenceEvaluator):
    """Measure a model on one task."""

    # Names of the two columns, by which queries and documents are known.
    columns: tuple[str, str] = ("text", "text")
    _main: str  # name of the main metric

    def __init__(
        self,
        task: str,
        texts: Sequence[Sequence[str]],
        *,
        name: str,
        **settings: Any,
    ) -> None:
        super().__init__(name=name or task, **settings)
        self.task = task
        self.texts, self._rows = distinct(texts)
        self.last_result: TasksResult | None = None
        self.primary_metric = self._key(self._main, self.similarity or "cosine")

    @property
    def _sampling(self) -> dict[str, Any]:
        return {key: getattr(self, key) for key in ("confidence", "bootstrap_samples", "seed")}

    @abstractmethod
    def _score(self, vectors: list[Vectors], similarity: str) -> MeasuredTask:
        """Score the vectors of each list of texts."""

    def _key(self, metric: str, similarity: str) -> str:
        """Return the host's name of a metric."""
        return f"{similarity}_{metric}"

    def __call__(  # type: ignore[override]  # as in the host, a sentence evaluator takes a SentenceTransformer
        self, model: SentenceTransformer, output_path: str | None = None, epoch: int = -1, steps: int = -1
    ) -> dict[str, float]:
        """Evaluate during or after training, and return the metrics under the host's names.

        Args:
            model: The model.
            output_path: Folder to append ``NAME_results.csv`` to, as the host's evaluators do.
            epoch: Current epoch, -1 for a test run.
            steps: Current step, -1 for the end of an epoch.

        Returns:
            The metrics. The full result is kept in ``last_result``.
        """
        found = self.evaluate(model).tasks[0]
        similarity = self._similarity_of(model)
        metrics = {self._key(name, similarity): score.value for name, score in found.scores.items()}
        self.primary_metric = self._key(self._main, similarity)
        return self._told(model, metrics, output_path, f"{self.name}_results.csv", epoch, steps)

    def evaluate(
        self, model: SentenceTransformer, model_name: str | None = None, *, own: Mapping[str, Any] | None = None
    ) -> TasksResult:
        """Evaluate and return everything that was found.

        Args:
            model: The model.
            model_name: Name or path to show in the report.
            own: Settings of the model before you changed them, to be recorded beside those that were used:
                ``max_seq_length``, ``truncate_dim``, ``dtype``.

        Returns:
            The result; ``st_plugins.evaluation.write_reports`` puts it on disk.

        Raises:
            ValueError: The model gave a NaN or infinite embedding, has no such route or prompt, or its
                ``max_seq_length`` is more than its encoder can read.
        """
        check_encoder(model)
        check_length(model)
        similarity = self._similarity_of(model)
        *ways, warning = ways_of(model, self.task, self.columns, self.routes, self.prompt, self.prompt_name)
        self._check(model, ways)
        tokens = self._tokens(model)
        lengths = [len(text) for text in (self.texts if tokens is None else tokens)]
        show = len(self.texts) > 2000 if self.show_progress_bar is None else self.show_progress_bar
        wanted = list(zip(ways, self._rows, strict=False))  # texts that are no pairs have one side
        encoded = encode_ways(model, self.texts, wanted, lengths, tokens, self.batch_size, show)
        task = self._score([encoded.embeddings[encoded.place[way][rows]] for way, rows in wanted], similarity)
        sides = (ways[0], ways[-1])
        task.measured = measured(
            model,
            own or {},
            similarity,
            None,
            {self.task: sides},
            {self.task: own_ways(model, self.columns, sides)},
        )
        task.warnings += [warning] if warning else []
        self.last_result = TasksResult(
            model=describe_model(model, model_name),
            settings=self._sampling | {"batch_size": self.batch_size},
            tasks=[task],
            versions=library_versions(),
            warnings=list(task.warnings),
        )
        return self.last_result

    def _check(self, model: SentenceTransformer, ways: Sequence[Way]) -> None:
        """Refuse a model, or a way to encode, that the task cannot be measured with; here none."""

    def _tokens(self, model: SentenceTransformer) -> list[list[int]] | None:
        if len(self.texts) > _MANY:
            return None
        try:
            return token_ids(model, self.texts)
        except TypeError:
            return None

    def get_config_dict(self) -> dict[str, Any]:
        """Return the settings that the host writes into the model card.

        Returns:
            Plain values by name.
        """
        return {"task": self.task, **self._settings()}
