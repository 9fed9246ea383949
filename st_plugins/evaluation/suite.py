"""The STS suite: every distinct sentence encoded once, every score with its interval, the floor beside them."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from sentence_transformers import SentenceTransformer
from typing_extensions import Self

from st_plugins.core.files import library_versions
from st_plugins.core.host import check_encoder, check_length
from st_plugins.core.texts import check_texts
from st_plugins.data.pairs import Pairs
from st_plugins.data.readers import pairs_of
from st_plugins.evaluation.measuring.encoding import Encoded, distinct, encode_ways, watch_input
from st_plugins.evaluation.measuring.floor import floor_embeddings, floor_result, token_ids
from st_plugins.evaluation.measuring.record import describe_model, measured
from st_plugins.evaluation.measuring.scoring import (
    CONVENTIONS,
    average,
    reversed_scale,
    score_task,
    system_similarities,
    task_result,
)
from st_plugins.evaluation.measuring.sentence_evaluator import SentenceEvaluator
from st_plugins.evaluation.measuring.space import fit_distance, is_collapsed, space_of_pairs
from st_plugins.evaluation.measuring.ways import Way, own_ways, ways_of
from st_plugins.evaluation.result import SuiteResult
from st_plugins.methods.whitening.whitening import Whitening

_RECORDED = ("confidence", "bootstrap_samples", "seed", "batch_size", "split", "target_whitening")


class STSSuiteEvaluator(SentenceEvaluator):
    """Score a model on several STS tasks in one pass, with confidence intervals and a floor.

    Every distinct sentence of all tasks is encoded once, longest first; all scores come from that matrix. Metrics are
    floats in [-1, 1] under the host's key style: ``sts12_spearman_cosine`` is one Spearman correlation over the
    concatenated year (the "all" convention of SBERT, SimCSE and ConSERT), ``sts12_spearman_cosine_mean`` and
    ``sts12_spearman_cosine_wmean`` are the mean over its sub-datasets, plain and weighted by size (BERT-flow,
    BERT-whitening), ``pearson`` likewise; ``avg_spearman_cosine``, the mean over the tasks, is the primary metric.
    Where gold has two values there are ``atec_auc_cosine`` and ``atec_ap_cosine`` (average precision) too. The last
    part is the similarity that was used; before the first call ``primary_metric`` takes cosine for granted.

    What is measured is what the user runs: the model's own length, prompts, routes and similarity, unless an argument
    says otherwise; all of it is recorded, so that :func:`~st_plugins.evaluation.compare` can refuse unlike results.

    The three conventions differ by up to 20 points and never belong in one table.

    Intervals are percentile bootstrap intervals over pairs; the average resamples within each task. The floor is
    explained in :mod:`st_plugins.evaluation.measuring.floor`.

    Args:
        tasks: ``"en"`` (the seven English tasks), ``"zh"`` (the Chinese ones), names such as ``"sts12,stsb"``, a list
            of names, or of :class:`~st_plugins.data.pairs.Pairs`.
        data: Folder with the data; default is the environment variable ``ST_PLUGINS_DATA``, else the hub.
        batch_size: Sentences per batch.
        similarity: ``"cosine"``, ``"dot"``, ``"euclidean"`` or ``"manhattan"`` (distances are negated). None takes the
            model's own (``similarity_fn_name``); the floor is always scored by cosine.
        confidence: Coverage of the intervals.
        bootstrap_samples: Number of resamples; 0 switches the intervals off.
        seed: Seed of the resamples and of the floor's random vectors.
        name: Prefix of the metric keys.
        split: Which split of the tasks to read.
        floor: Whether to score the floor too.
        floor_texts: Unlabelled texts on which the floor is whitened: give those the model was whitened or adapted on.
            Default: the evaluated texts themselves, the floor's best case.
        target_whitening: Whiten each task's embeddings (and its floor) to this many dimensions, 0 for all, on that
            task's own texts, both sides, duplicates kept: the transductive "target" setting of BERT-whitening. None
            leaves the embeddings as they are.
        target_texts: More texts to fit the target whitening on, by task name (published: train and dev of STS-B and
            SICK-R).
        geometry: Whether to describe the geometry of the embeddings.
        keep_similarities: Whether the result keeps gold score and similarity of each pair
            (:func:`~st_plugins.evaluation.compare` needs them).
        show_progress_bar: Whether to show the progress bar; default: when there are more than 2,000 sentences.
        prompt: Prompt of all texts; None takes the model's own.
        prompt_name: Its name among the model's prompts.
        routes: How the two sides are encoded: ``"query,document"`` by ``encode_query`` and ``encode_document``,
            ``"default"`` by plain ``encode``. None goes by the names of the columns of own pairs: ``question`` and
            ``answer``, ``query`` and ``passage`` are such, others are not.

    Raises:
        ValueError: An unknown task, similarity, split, or a number out of its range.

    Example:
        >>> from st_plugins.miniature import untrained_encoder
        >>> evaluator = STSSuiteEvaluator.from_pairs(
        ...     ["a dog sleeps", "a man eats", "the girl runs"],
        ...     ["a dog is sleeping", "a man eats bread", "a boat is red"],
        ...     [4.8, 3.9, 0.1],
        ...     bootstrap_samples=100,
        ... )
        >>> metrics = evaluator(untrained_encoder())
        >>> evaluator.primary_metric, -1 <= metrics["avg_spearman_cosine"] <= 1
        ('avg_spearman_cosine', True)
    """

    def __init__(
        self,
        tasks: str | Sequence[str | Pairs] = "en",
        data: str | Path | None = None,
        batch_size: int = 32,
        similarity: str | None = None,
        confidence: float = 0.95,
        bootstrap_samples: int = 1000,
        seed: int = 0,
        name: str = "",
        *,
        split: str = "test",
        floor: bool = True,
        floor_texts: Sequence[str] | None = None,
        target_whitening: int | None = None,
        target_texts: Mapping[str, Sequence[str]] | None = None,
        geometry: bool = True,
        keep_similarities: bool = True,
        show_progress_bar: bool | None = None,
        prompt: str | None = None,
        prompt_name: str | None = None,
        routes: str | Sequence[str] | None = None,
    ) -> None:
        super().__init__(
            batch_size=batch_size,
            similarity=similarity,
            confidence=confidence,
            bootstrap_samples=bootstrap_samples,
            seed=seed,
            name=name,
            prompt=prompt,
            prompt_name=prompt_name,
            routes=routes,
            show_progress_bar=show_progress_bar,
        )
        single = isinstance(floor_texts, str)  # a sequence of texts too, of one letter each
        several = None if floor_texts is None or single else check_texts(floor_texts, "floor_texts")
        if floor_texts is not None and len(several or ()) < 2:
            raise ValueError("floor_texts must be a list of at least two texts, or None for the evaluated texts")
        self.pairs = pairs_of(tasks, data, split)
        self.split = split
        self.floor = floor
        self.floor_texts = several
        self.target_whitening = target_whitening
        self.geometry = geometry
        self.keep_similarities = keep_similarities
        self.primary_metric = f"avg_spearman_{similarity or 'cosine'}"
        more = target_texts or {}
        unknown = sorted(set(more) - {pairs.name for pairs in self.pairs})
        if unknown:
            raise ValueError(f"target_texts names the task {unknown[0]!r}, which is not evaluated")
        columns = [c for pairs in self.pairs for c in (pairs.first, pairs.second, more.get(pairs.name, []))]
        self.sentences, indices = distinct(columns)
        self._rows = list(zip(indices[::3], indices[1::3], indices[2::3], strict=True))
        self.last_result: SuiteResult | None = None

    @classmethod
    def from_pairs(
        cls,
        first: Sequence[str],
        second: Sequence[str],
        scores: Sequence[float],
        *,
        task_name: str = "pairs",
        **kwargs: Any,
    ) -> Self:
        """Build an evaluator for your own scored pairs.

        Args:
            first: First texts.
            second: Second texts.
            scores: Gold scores, on any scale.
            task_name: Name used in the metric keys.
            **kwargs: Anything the constructor takes, except ``tasks`` and ``data``.

        Returns:
            The evaluator.
        """
        pairs = Pairs(task_name, list(first), list(second), np.asarray(scores, dtype=np.float64))
        return cls(tasks=[pairs], **kwargs)

    def __call__(  # type: ignore[override]  # as in the host, a sentence evaluator takes a SentenceTransformer
        self, model: SentenceTransformer, output_path: str | None = None, epoch: int = -1, steps: int = -1
    ) -> dict[str, float]:
        """Evaluate during or after training.

        Args:
            model: The model.
            output_path: Folder to append ``sts_suite[_name]_results.csv`` to, as the host's evaluators do.
            epoch: Current epoch, -1 for a test run.
            steps: Current step, -1 for the end of an epoch.

        Returns:
            The metrics. The full result is kept in ``last_result``.
        """
        result = self.evaluate(model)
        metrics = self.metrics(result)
        self.primary_metric = f"avg_spearman_{result.settings['similarity']}"
        file = f"sts_suite{'_' + self.name if self.name else ''}_results.csv"
        return self._told(model, metrics, output_path, file, epoch, steps)

    def evaluate(
        self, model: SentenceTransformer, model_name: str | None = None, *, own: Mapping[str, Any] | None = None
    ) -> SuiteResult:
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
        warnings: list[str] = []
        ways = self._ways(model, warnings)
        tokens = self._tokens(model, warnings)
        encoded, fit_distances = self._encode(model, ways, tokens)
        embeddings = encoded.embeddings
        zero = int(np.all(embeddings == 0, axis=1).sum())
        if zero:
            warnings.append(f"{zero} sentences have a zero embedding (their cosine with anything counts as 0)")
        if is_collapsed(embeddings):
            embeddings[:] = embeddings[0]  # rounding would be ranked
            warnings.append("all sentences have the same embedding, but for rounding: the model has collapsed")

        # The floor is scored beside the model, on the same resamples, so that the differences are paired.
        systems, dimension, whitened_on = [embeddings], embeddings.shape[1], ""
        if self.floor and tokens is not None:
            each = self.target_whitening is not None
            floors = floor_embeddings(model, tokens, dimension, self.seed, self.floor_texts, each_task=each)
            systems, whitened_on = [embeddings, *floors[:2]], floors[2]
        scores, results = [], []
        rows_of_model = [encoded.rows(sides, rows) for sides, rows in zip(ways.values(), self._rows, strict=True)]
        for pairs, rows, own_rows in zip(self.pairs, self._rows, rows_of_model, strict=True):
            similarities = system_similarities(systems, [own_rows, rows, rows], similarity, self.target_whitening)
            task = score_task(pairs, similarities, bootstrap_samples=self.bootstrap_samples, seed=self.seed)
            scores.append(task)
            results.append(task_result(pairs, task, similarities[0], self.confidence, self.keep_similarities))
        floor = None
        if len(systems) > 1:
            names = [pairs.name for pairs in self.pairs]
            floor = floor_result(names, scores, dimension, whitened_on, self.confidence)
        for found in results:
            found.warnings += reversed_scale(found, floor)
        geometry = {}
        if self.geometry:
            geometry = space_of_pairs(embeddings, self.pairs, rows_of_model, self.seed) | fit_distances
        theirs = {pairs.name: own_ways(model, pairs.columns, ways[pairs.name]) for pairs in self.pairs}
        self.last_result = SuiteResult(
            model=describe_model(model, model_name),
            settings={
                "similarity": similarity,
                "measured": measured(model, own or {}, similarity, self.target_whitening, ways, theirs),
                "sentences": len(self.sentences),
                **{name: getattr(self, name) for name in _RECORDED},
            },
            tasks=results,
            average=average(scores, self.confidence),
            floor=floor,
            geometry=geometry,
            versions=library_versions(),
            warnings=warnings + [warning for found in results for warning in found.warnings],
        )
        return self.last_result

    def metrics(self, result: SuiteResult) -> dict[str, float]:
        """Return a result's scores under the host's key style, without the name prefix.

        Args:
            result: What :meth:`evaluate` returned.

        Returns:
            Floats in [-1, 1]; NaN where a correlation is undefined.
        """
        metrics: dict[str, float] = {}
        similarity = result.settings["similarity"]
        for task in result.tasks:
            if task.binary is not None:
                metrics[f"{task.name}_auc_{similarity}"] = task.binary.auc.value
                metrics[f"{task.name}_ap_{similarity}"] = task.binary.average_precision.value
        for metric in ("spearman", "pearson"):
            for kind in CONVENTIONS:
                suffix = f"{metric}_{similarity}" + ("" if kind == "all" else f"_{kind}")
                for task in result.tasks:
                    metrics[f"{task.name}_{suffix}"] = getattr(task, metric)[kind].value
                metrics[f"avg_{suffix}"] = result.average[f"{metric}_{kind}"].value
        return metrics

    def get_config_dict(self) -> dict[str, Any]:
        """Return the settings that the host writes into the model card.

        Returns:
            Plain values by name.
        """
        return {"tasks": [pairs.name for pairs in self.pairs], **self._settings()}

    @property
    def description(self) -> str:
        """Heading under which the host's model card shows the metrics."""
        return "STS Suite"

    def _tokens(self, model: SentenceTransformer, warnings: list[str]) -> list[list[int]] | None:
        try:
            return token_ids(model, self.sentences)
        except TypeError as error:
            if self.floor:
                warnings.append(f"no floor: {error}")
            return None

    def _ways(self, model: SentenceTransformer, warnings: list[str]) -> dict[str, tuple[Way, Way]]:
        """Return how the sides of each task are encoded; say where that may not be how the model is used."""
        ways, asked = {}, (self.routes, self.prompt, self.prompt_name)
        for pairs in self.pairs:
            first, second, warning = ways_of(model, pairs.title, pairs.columns, *asked)
            ways[pairs.name] = (first, second)
            warnings += [warning] if warning else []
        return ways

    def _encode(
        self, model: SentenceTransformer, ways: Mapping[str, tuple[Way, Way]], tokens: list[list[int]] | None
    ) -> tuple[Encoded, dict[str, Any]]:
        """Encode; when the model holds a Whitening, measure how far its fit texts lie from these."""
        lengths = [len(row) for row in tokens] if tokens is not None else [len(text) for text in self.sentences]
        show = len(self.sentences) > 2000 if self.show_progress_bar is None else self.show_progress_bar
        wanted = [
            (way, rows)
            for sides, found in zip(ways.values(), self._rows, strict=True)
            for way, rows in zip((*sides, sides[0]), found, strict=True)
        ]
        whitening = next((module for module in model if isinstance(module, Whitening)), None)
        watched: contextlib.AbstractContextManager[None] = contextlib.nullcontext()
        seen = None
        if whitening is not None and self.geometry:
            seen = Whitening(whitening.embedding_dimension)
            watched = watch_input(whitening, seen.partial_fit)
        with watched:
            encoded = encode_ways(model, self.sentences, wanted, lengths, tokens, self.batch_size, show)
        return encoded, {} if seen is None or whitening is None else fit_distance(whitening, seen)
