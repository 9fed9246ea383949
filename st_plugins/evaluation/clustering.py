"""Clustering: how well the clusters that k-means finds among texts are their classes."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from sklearn.cluster import MiniBatchKMeans
from sklearn.exceptions import ConvergenceWarning

from st_plugins.data.labeled_texts import LabeledTexts
from st_plugins.evaluation.measuring.sentence_evaluator import check_sampling
from st_plugins.evaluation.measuring.task_evaluator import TaskEvaluator, Vectors
from st_plugins.evaluation.measuring.units import (
    CLUSTERING,
    LABEL,
    LEADERBOARD_SEED,
    check_vectors,
    measured_task,
    v_measures,
)
from st_plugins.evaluation.task_result import MeasuredTask

_BATCH = 500


def score_clustering(
    vectors: NDArray[np.floating],
    data: LabeledTexts,
    *,
    experiments: int = 10,
    confidence: float = 0.95,
    bootstrap_samples: int = 1000,
    seed: int = 0,
) -> MeasuredTask:
    """Score vectors of texts with classes by k-means with as many clusters as there are classes.

    As the public leaderboard (MTEB) does it, by scikit-learn's ``MiniBatchKMeans`` (batches of 500); the first
    clustering, of seed 42, is the leaderboard's. One clustering depends on its seed, so there are several, and
    ``v_measure``, the main metric, is their mean. Intervals are over the texts, with the clusterings held fixed.

    Args:
        vectors: One row a text, shape (N, d).
        data: The texts.
        experiments: Number of clusterings.
        confidence: Coverage of the interval.
        bootstrap_samples: Number of resamples of the texts; 0 switches the interval off.
        seed: Seed of the resamples.

    Returns:
        The score, with each clustering's own in ``details``.

    Raises:
        ValueError: The vectors have another shape or hold NaN, or a number is out of its range.

    Example:
        >>> data = LabeledTexts("pets", ["a dog", "dogs", "a cat", "cats"], ["dog", "dog", "cat", "cat"])
        >>> score_clustering(np.float32([[1, 0], [1, 0.1], [0, 1], [0.1, 1]]), data).score.value
        1.0
    """
    check_sampling(confidence, bootstrap_samples, seed)
    if experiments < 1:
        raise ValueError(f"experiments={experiments} must be at least 1")
    found = check_vectors(vectors, len(data), "vectors", "texts")
    names, labels = np.unique(data.labels, return_inverse=True)
    columns = {}
    said = []
    for number in range(experiments):
        means = MiniBatchKMeans(len(names), batch_size=_BATCH, n_init="auto", random_state=LEADERBOARD_SEED + number)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # said below, once
            columns[f"{CLUSTERING}{number + 1}"] = means.fit(found).labels_.astype(np.intp)
    fewest = min(len(np.unique(column)) for column in columns.values())
    if fewest < len(names):
        said.append(f"{data.name}: k-means found {fewest} clusters only, for {len(names)} classes")
    whole = np.ones((1, len(data)), dtype=np.uint8)
    return measured_task(
        "clustering",
        data,
        "v_measure",
        "texts",
        {LABEL: labels, **columns},
        settings={"experiments": experiments},
        bootstrap_samples=bootstrap_samples,
        confidence=confidence,
        seed=seed,
        details={
            "classes": len(names),
            "v_measure_of_each": v_measures(labels, list(columns.values()), whole)[:, 0].tolist(),
        },
        warnings=said,
    )


class ClusteringEvaluator(TaskEvaluator):
    """Score a model by how well k-means on its embeddings finds the classes of texts.

    The metric is that of :func:`score_clustering`: ``NAME_v_measure``.

    Args:
        texts: Texts with their classes.
        batch_size: Texts per batch.
        confidence: Coverage of the interval.
        bootstrap_samples: Number of resamples of the texts; 0 switches the interval off.
        seed: Seed of the resamples; the clusterings are always the same.
        name: Prefix of the metric key; the name of the texts by default.
        experiments: Number of clusterings.
        prompt: Prompt of all texts; None takes the model's own.
        prompt_name: Its name among the model's prompts.
        routes: The model's route for the texts; None is its default one.
        show_progress_bar: Whether to show the progress bar; default: when there are more than 2,000 texts.

    Raises:
        ValueError: A number is out of its range.

    Example:
        >>> from st_plugins.miniature import untrained_encoder
        >>> data = LabeledTexts("pets", ["a dog", "a dog", "a cat", "a cat"], ["dog", "dog", "cat", "cat"])
        >>> ClusteringEvaluator(data)(untrained_encoder())["pets_v_measure"]
        1.0
    """

    _main = "v_measure"

    def __init__(
        self,
        texts: LabeledTexts,
        batch_size: int = 32,
        confidence: float = 0.95,
        bootstrap_samples: int = 1000,
        seed: int = 0,
        name: str = "",
        *,
        experiments: int = 10,
        prompt: str | None = None,
        prompt_name: str | None = None,
        routes: str | Sequence[str] | None = None,
        show_progress_bar: bool | None = None,
    ) -> None:
        if experiments < 1:
            raise ValueError(f"experiments={experiments} must be at least 1")
        self.data = texts
        self.experiments = experiments
        super().__init__(
            texts.name,
            [texts.texts],
            batch_size=batch_size,
            similarity=None,
            confidence=confidence,
            bootstrap_samples=bootstrap_samples,
            seed=seed,
            name=name,
            prompt=prompt,
            prompt_name=prompt_name,
            routes=routes,
            show_progress_bar=show_progress_bar,
        )

    def _key(self, metric: str, similarity: str) -> str:
        return metric

    def _score(self, vectors: list[Vectors], similarity: str) -> MeasuredTask:
        return score_clustering(vectors[0], self.data, experiments=self.experiments, **self._sampling)
