"""The STS suite: every distinct sentence encoded once, every score with its interval, the floor beside them."""

from __future__ import annotations

import csv
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.evaluation import BaseEvaluator
from typing_extensions import Self

from st_plugins.data.pairs import Pairs
from st_plugins.data.readers import load_tasks
from st_plugins.evaluators.describe import describe_model, library_versions
from st_plugins.evaluators.encoding import distinct, encode_longest_first, watch_input
from st_plugins.evaluators.floor import bag_of_random_vectors, floor_result, token_ids, whiten_bag
from st_plugins.evaluators.result import SuiteResult
from st_plugins.evaluators.scoring import (
    CONVENTIONS,
    SIMILARITIES,
    average,
    equal_rows,
    pair_similarities,
    score_task,
    task_result,
)
from st_plugins.geometry import Gaussian, bhattacharyya_distance, geometry, kl_divergence, wasserstein_distance
from st_plugins.lengths import check_length
from st_plugins.modules.whitening import Whitening

__all__ = ["STSSuiteEvaluator"]

logger = logging.getLogger(__name__)

Array = NDArray[np.float64]


class STSSuiteEvaluator(BaseEvaluator):
    """Score a model on several STS tasks in one pass, with confidence intervals and a floor.

    Every distinct sentence of all tasks is encoded once, longest first; all scores come from that matrix. Metrics are
    floats in [-1, 1] under the host's key style: ``sts12_spearman_cosine`` is one Spearman correlation over the
    concatenated year (the "all" convention of SBERT, SimCSE and ConSERT), ``sts12_spearman_cosine_mean`` and
    ``sts12_spearman_cosine_wmean`` are the mean over its sub-datasets, plain and weighted by size (BERT-flow,
    BERT-whitening), ``pearson`` likewise; ``avg_spearman_cosine``, the mean over the tasks, is the primary metric.
    The three conventions differ by up to 20 points and never belong in one table.

    Intervals are percentile bootstrap intervals over pairs; the average resamples within each task. The floor is
    explained in :mod:`st_plugins.evaluators.floor`.

    Args:
        tasks: ``"en"`` (the seven English tasks), ``"zh"`` (the Chinese ones), names such as ``"sts12,stsb"``, a list
            of names, or of :class:`~st_plugins.data.pairs.Pairs`.
        data: Folder with the data; default is the environment variable ``ST_PLUGINS_DATA``, else the hub.
        batch_size: Sentences per batch.
        similarity: ``"cosine"``, ``"dot"``, ``"euclidean"`` or ``"manhattan"`` (distances are negated).
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
            (:func:`~st_plugins.evaluators.compare` needs them).
        show_progress_bar: Whether to show the one progress bar; default: when there are more than 2,000 sentences.

    Raises:
        ValueError: An unknown task, similarity, split, or a number out of its range.

    Example:
        >>> from st_plugins.data.miniature import untrained_encoder
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
        similarity: str = "cosine",
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
    ) -> None:
        super().__init__()
        if similarity not in SIMILARITIES:
            raise ValueError(f"similarity={similarity!r} is unknown; choose one of {', '.join(SIMILARITIES)}")
        if not 0 < confidence < 1:
            raise ValueError(f"confidence={confidence} must lie between 0 and 1, for example 0.95")
        if bootstrap_samples < 0 or batch_size < 1 or seed < 0:
            raise ValueError(
                f"bootstrap_samples={bootstrap_samples} and seed={seed} must be at least 0, batch_size={batch_size} 1"
            )
        if floor_texts is not None and (isinstance(floor_texts, str) or len(floor_texts) < 2):
            raise ValueError("floor_texts must be a list of at least two texts, or None for the evaluated texts")
        self.pairs = _read(tasks, data, split)
        self.batch_size = batch_size
        self.similarity = similarity
        self.confidence = confidence
        self.bootstrap_samples = bootstrap_samples
        self.seed = seed
        self.name = name
        self.split = split
        self.floor = floor
        self.floor_texts = floor_texts
        self.target_whitening = target_whitening
        self.geometry = geometry
        self.keep_similarities = keep_similarities
        self.show_progress_bar = show_progress_bar
        self.primary_metric = f"avg_spearman_{similarity}"
        more = target_texts or {}
        unknown = sorted(set(more) - {pairs.name for pairs in self.pairs})
        if unknown:
            raise ValueError(f"target_texts names the task {unknown[0]!r}, which is not evaluated")
        columns = [c for pairs in self.pairs for c in (pairs.sentences1, pairs.sentences2, more.get(pairs.name, []))]
        self.sentences, indices = distinct(columns)
        self._rows = list(zip(indices[::3], indices[1::3], indices[2::3], strict=True))
        self.last_result: SuiteResult | None = None

    @classmethod
    def from_pairs(
        cls,
        sentences1: Sequence[str],
        sentences2: Sequence[str],
        scores: Sequence[float],
        *,
        task_name: str = "pairs",
        **kwargs: Any,
    ) -> Self:
        """Build an evaluator for your own scored pairs.

        Args:
            sentences1: First texts.
            sentences2: Second texts.
            scores: Gold scores, on any scale.
            task_name: Name used in the metric keys.
            **kwargs: Anything the constructor takes, except ``tasks`` and ``data``.

        Returns:
            The evaluator.
        """
        pairs = Pairs(task_name, list(sentences1), list(sentences2), np.asarray(scores, dtype=np.float64))
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
        if output_path is not None:
            self._append_csv(Path(output_path), metrics, epoch, steps)
        prefixed: dict[str, float] = self.prefix_name_to_metrics(metrics, self.name)
        self.store_metrics_in_model_card_data(model, prefixed, epoch, steps)
        return prefixed

    def evaluate(self, model: SentenceTransformer, model_name: str | None = None) -> SuiteResult:
        """Evaluate and return everything that was found.

        Args:
            model: The model.
            model_name: Name or path to show in the report.

        Returns:
            The result; ``st_plugins.evaluators.write_reports`` puts it on disk.

        Raises:
            ValueError: The model gave a NaN or infinite embedding, or its ``max_seq_length`` is more than its encoder
                can read.
        """
        check_length(model)
        warnings: list[str] = []
        tokens = self._tokens(model, self.sentences, warnings)
        lengths = [len(row) for row in tokens] if tokens is not None else [len(text) for text in self.sentences]
        show = len(self.sentences) > 2000 if self.show_progress_bar is None else self.show_progress_bar
        embeddings, fit_distance = self._encode(model, lengths, show)
        zero = int(np.all(embeddings == 0, axis=1).sum())
        if zero:
            warnings.append(f"{zero} sentences have a zero embedding (their cosine with anything counts as 0)")

        systems = [embeddings]
        fitted = ""
        if self.floor and tokens is not None:
            raw, whitened, fitted = self._floor(model, tokens, embeddings.shape[1])
            systems += [raw, whitened]
        scores, results = [], []
        for pairs, rows in zip(self.pairs, self._rows, strict=True):
            similarities = self._similarities(systems, rows)
            task = score_task(pairs, similarities, bootstrap_samples=self.bootstrap_samples, seed=self.seed)
            scores.append(task)
            results.append(
                task_result(
                    pairs,
                    task,
                    similarities[0],
                    confidence=self.confidence,
                    keep_similarities=self.keep_similarities,
                )
            )
        names = [pairs.name for pairs in self.pairs]
        self.last_result = SuiteResult(
            model=describe_model(model, model_name),
            settings={
                "similarity": self.similarity,
                "confidence": self.confidence,
                "bootstrap_samples": self.bootstrap_samples,
                "seed": self.seed,
                "batch_size": self.batch_size,
                "split": self.split,
                "target_whitening": self.target_whitening,
                "sentences": len(self.sentences),
            },
            tasks=results,
            average=average(scores, self.confidence),
            floor=floor_result(names, scores, embeddings.shape[1], fitted, self.confidence)
            if len(systems) == 3
            else None,
            geometry=self._geometry(embeddings) | fit_distance if self.geometry else {},
            versions=library_versions(),
            warnings=warnings + [warning for task in results for warning in task.warnings],
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
        for metric in ("spearman", "pearson"):
            for kind in CONVENTIONS:
                suffix = f"{metric}_{self.similarity}" + ("" if kind == "all" else f"_{kind}")
                for task in result.tasks:
                    metrics[f"{task.name}_{suffix}"] = getattr(task, metric)[kind].value
                metrics[f"avg_{suffix}"] = result.average[f"{metric}_{kind}"].value
        return metrics

    def get_config_dict(self) -> dict[str, Any]:
        """Return the settings that the host writes into the model card.

        Returns:
            Plain values by name.
        """
        return {
            "tasks": [pairs.name for pairs in self.pairs],
            "similarity": self.similarity,
            "confidence": self.confidence,
            "bootstrap_samples": self.bootstrap_samples,
            "seed": self.seed,
        }

    @property
    def description(self) -> str:
        """Heading under which the host's model card shows the metrics."""
        return "STS Suite"

    def _tokens(
        self, model: SentenceTransformer, sentences: Sequence[str], warnings: list[str]
    ) -> list[list[int]] | None:
        try:
            return token_ids(model, sentences)
        except TypeError as error:
            if self.floor:
                warnings.append(f"no floor: {error}")
            return None

    def _encode(
        self, model: SentenceTransformer, lengths: list[int], show: bool
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """Encode; when the model holds a Whitening, measure how far its fit texts lie from these."""
        whitening = next((module for module in model if isinstance(module, Whitening)), None)
        if whitening is None or not self.geometry:
            return self._embeddings(model, lengths, show), {}
        seen = Whitening(whitening.embedding_dimension)
        with watch_input(whitening, seen.partial_fit):
            embeddings = self._embeddings(model, lengths, show)
        return embeddings, _fit_distance(whitening, seen)

    def _embeddings(self, model: SentenceTransformer, lengths: list[int], show: bool) -> NDArray[np.float32]:
        return encode_longest_first(model, self.sentences, lengths, batch_size=self.batch_size, show_progress_bar=show)

    def _floor(
        self, model: SentenceTransformer, tokens: list[list[int]], dimension: int
    ) -> tuple[NDArray[np.float32], NDArray[np.float32], str]:
        """Return the floor's embeddings, raw and whitened, and what the whitening was fitted on."""
        raw = bag_of_random_vectors(tokens, dimension, self.seed)
        if self.target_whitening is not None:
            return raw, raw, "each task's own texts"
        if self.floor_texts is None:
            return raw, whiten_bag(raw, raw), f"the {len(raw):,} evaluated sentences"
        fit = bag_of_random_vectors(token_ids(model, self.floor_texts), dimension, self.seed)
        return raw, whiten_bag(raw, fit), f"{len(fit):,} unlabelled texts"

    def _similarities(self, systems: list[NDArray[np.float32]], rows: tuple[NDArray[np.intp], ...]) -> Array:
        """Return the similarities (S, N) of one task under every system."""
        first, second, _ = rows
        kinds = [self.similarity, "cosine", "cosine"]
        whitened = [False, False, False]
        if self.target_whitening is not None:
            whitened = [True, False, True]
        result = np.empty((len(systems), len(first)))
        for index, system in enumerate(systems):
            vectors, a, b = system, first, second
            if whitened[index]:
                dimension = (self.target_whitening or None) if index == 0 else None
                fitted = Whitening(system.shape[1], dimension).fit(system[np.concatenate(rows)])
                texts, back = np.unique(equal_rows(system)[np.concatenate([first, second])], return_inverse=True)
                vectors = np.asarray(fitted.transform(system[texts]), dtype=np.float32)
                a, b = np.split(back, 2)
            result[index] = pair_similarities(vectors, a, b, kinds[index])
        return result

    def _geometry(self, embeddings: NDArray[np.float32]) -> dict[str, Any]:
        """Describe the space; alignment is over the pairs with gold in the top fifth of their task's range."""
        if len(embeddings) < 2:
            return {}
        sides: tuple[list[NDArray[np.intp]], list[NDArray[np.intp]]] = ([], [])
        for pairs, rows in zip(self.pairs, self._rows, strict=True):
            low, high = pairs.scores.min(), pairs.scores.max()
            positive = pairs.scores >= low + 0.8 * (high - low)
            for side, row in zip(sides, rows, strict=False):
                side.append(row[positive] if high > low else row[:0])
        first, second = (np.concatenate(side) for side in sides)
        positives = (embeddings[first], embeddings[second]) if len(first) > 1 else None
        return geometry(embeddings, positives=positives, seed=self.seed)

    def _append_csv(self, folder: Path, metrics: dict[str, float], epoch: int, steps: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"sts_suite{'_' + self.name if self.name else ''}_results.csv"
        new = not path.exists()
        with path.open("a", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            if new:
                writer.writerow(["epoch", "steps", *metrics])
            writer.writerow([epoch, steps, *metrics.values()])


def _read(tasks: str | Sequence[str | Pairs], data: str | Path | None, split: str) -> list[Pairs]:
    """Read what is named, keep what is given as pairs, and refuse two tasks of one name."""
    pairs: list[Pairs] = []
    if isinstance(tasks, str):
        pairs = load_tasks(tasks, data, split)
    else:
        for task in tasks:
            pairs += [task] if isinstance(task, Pairs) else load_tasks(task, data, split)
    if not pairs:
        raise ValueError(f"tasks={tasks!r} names no task; give 'en', 'zh', task names or Pairs")
    names = [task.name for task in pairs]
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise ValueError(f"tasks: the name {sorted(twice)[0]!r} occurs twice; every task needs its own")
    return pairs


def _fit_distance(whitening: Whitening, seen: Whitening) -> dict[str, Any]:
    """Return distances between the Gaussian a whitening was fitted on and that of the evaluated texts."""
    if whitening.count < 2 or seen.count < 2:
        return {}
    fit, here = (
        Gaussian(np.asarray(w.center, np.float64), np.asarray(w.covariance, np.float64), w.count)
        for w in (whitening, seen)
    )
    return {
        "fit_kl_divergence": kl_divergence(here, fit),
        "fit_bhattacharyya_distance": bhattacharyya_distance(here, fit),
        "fit_wasserstein_distance": wasserstein_distance(here, fit),
    }
