"""Classification: how well a logistic regression on few vectors of each class tells the classes of other texts."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score

from st_plugins.data.labeled_texts import LabeledTexts
from st_plugins.evaluation.measuring.sentence_evaluator import check_sampling
from st_plugins.evaluation.measuring.task_evaluator import TaskEvaluator, Vectors
from st_plugins.evaluation.measuring.units import LEADERBOARD_SEED, check_vectors, check_widths, measured_task
from st_plugins.evaluation.task_result import MeasuredTask

_STEPS = 100


def score_classification(
    train_vectors: NDArray[np.floating],
    test_vectors: NDArray[np.floating],
    train: LabeledTexts,
    test: LabeledTexts,
    *,
    samples_per_label: int = 8,
    experiments: int = 10,
    confidence: float = 0.95,
    bootstrap_samples: int = 1000,
    seed: int = 0,
) -> MeasuredTask:
    """Score vectors of texts with classes by the protocol of the public leaderboard (MTEB).

    In each experiment a few training texts of each class are drawn and scikit-learn's logistic regression (100 steps)
    is fitted to their vectors; the scores are means over the experiments. The draws are the leaderboard's (seed 42),
    so that the same vectors in the same order give its figures. The main metric is ``accuracy``; ``f1`` is the mean of
    the classes' F1. Intervals are over the test texts, with the classifiers held fixed.

    Args:
        train_vectors: One row a training text, shape (N, d); only those of :func:`training_rows` are used.
        test_vectors: One row a test text, shape (M, d).
        train: The training texts.
        test: The test texts.
        samples_per_label: Training texts drawn of each class; all of a class that has fewer.
        experiments: Number of draws.
        confidence: Coverage of the intervals.
        bootstrap_samples: Number of resamples of the test texts; 0 switches the intervals off.
        seed: Seed of the resamples.

    Returns:
        The scores; per text the share of experiments that were right on it.

    Raises:
        ValueError: The vectors have another shape or hold NaN, or a number is out of its range.

    Example:
        >>> train, test = (LabeledTexts("pets", ["a dog", "a cat"], ["dog", "cat"]) for _ in range(2))
        >>> vectors = np.float32([[1, 0], [0, 1]])
        >>> score_classification(vectors, vectors, train, test).score.value
        1.0
    """
    check_sampling(confidence, bootstrap_samples, seed)
    draws = training_rows(train.labels, samples_per_label, experiments)
    known = check_vectors(train_vectors, len(train), "train_vectors", "training texts")
    tested = check_vectors(test_vectors, len(test), "test_vectors", "test texts")
    check_widths(train_vectors=known, test_vectors=tested)
    labels, gold = np.array(train.labels), np.array(test.labels)
    right, f1, unfinished = np.zeros(len(test)), [], 0
    for rows in draws:
        classifier = LogisticRegression(max_iter=_STEPS, random_state=LEADERBOARD_SEED)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # said below, once
            classifier.fit(known[rows], labels[rows])
        unfinished += int(np.max(classifier.n_iter_) >= _STEPS)
        predicted = classifier.predict(tested)
        right += predicted == gold
        f1.append(float(f1_score(gold, predicted, average="macro", zero_division=0.0)))
    said = list(train.warnings)
    if strange := Counter(label for label in test.labels if label not in set(train.labels)):
        said.append(
            f"{test.name}: {strange.total():,} test texts have a class that no training text has, the first "
            f"{next(iter(strange))!r}; no classifier can be right on them"
        )
    if unfinished:
        said.append(f"{test.name}: {unfinished} of {experiments} logistic regressions stopped after {_STEPS} steps")
    return measured_task(
        "classification",
        test,
        "accuracy",
        "texts",
        {"accuracy": right / experiments},
        settings={
            "samples_per_label": samples_per_label,
            "experiments": experiments,
            "train_checksum": train.checksum,
        },
        bootstrap_samples=bootstrap_samples,
        confidence=confidence,
        seed=seed,
        values={"f1": float(np.mean(f1))},
        details={"classes": len(set(test.labels)), "train_source": train.source},
        warnings=said,
    )


def training_rows(labels: Sequence[str], samples_per_label: int = 8, experiments: int = 10) -> list[NDArray[np.intp]]:
    """Return which training texts each experiment of the leaderboard's protocol draws.

    Args:
        labels: The class of each training text.
        samples_per_label: Texts drawn of each class; all of a class that has fewer.
        experiments: Number of draws.

    Returns:
        The rows of each draw, in the order in which they were drawn.

    Raises:
        ValueError: A number is below 1.

    Example:
        >>> [rows.tolist() for rows in training_rows(["a", "b", "a", "b"], samples_per_label=1, experiments=2)]
        [[1, 0], [3, 2]]
    """
    if samples_per_label < 1 or experiments < 1:
        raise ValueError(f"samples_per_label={samples_per_label} and experiments={experiments} must be at least 1")
    draws = []
    rows = list(range(len(labels)))
    for _ in range(experiments):
        # As the leaderboard does it: the same seed each time, on rows that the time before has left shuffled.
        np.random.RandomState(LEADERBOARD_SEED).shuffle(rows)
        taken: Counter[str] = Counter()
        drawn = []
        for row in rows:
            if taken[labels[row]] < samples_per_label:
                taken[labels[row]] += 1
                drawn.append(row)
        draws.append(np.array(drawn, dtype=np.intp))
    return draws


class ClassificationEvaluator(TaskEvaluator):
    """Score a model by how well a logistic regression on its embeddings tells the classes of texts.

    Training texts that no experiment draws are not encoded. The metrics are those of :func:`score_classification`:
    ``NAME_accuracy``, the primary metric, and ``NAME_f1``.

    Args:
        train: Texts to draw the training texts from.
        test: Texts to test on.
        batch_size: Texts per batch.
        confidence: Coverage of the intervals.
        bootstrap_samples: Number of resamples of the test texts; 0 switches the intervals off.
        seed: Seed of the resamples; the draws are always the leaderboard's.
        name: Prefix of the metric keys; the name of the test texts by default.
        samples_per_label: Training texts drawn of each class; all of a class that has fewer.
        experiments: Number of draws.
        prompt: Prompt of all texts; None takes the model's own.
        prompt_name: Its name among the model's prompts.
        routes: The model's route for the texts; None is its default one.
        show_progress_bar: Whether to show the progress bar; default: when there are more than 2,000 texts.

    Raises:
        ValueError: A number is out of its range.

    Example:
        >>> from st_plugins.miniature import untrained_encoder
        >>> train = LabeledTexts("pets", ["a dog", "a cat"], ["dog", "cat"])
        >>> ClassificationEvaluator(train, train)(untrained_encoder())["pets_accuracy"]
        1.0
    """

    _main = "accuracy"

    def __init__(
        self,
        train: LabeledTexts,
        test: LabeledTexts,
        batch_size: int = 32,
        confidence: float = 0.95,
        bootstrap_samples: int = 1000,
        seed: int = 0,
        name: str = "",
        *,
        samples_per_label: int = 8,
        experiments: int = 10,
        prompt: str | None = None,
        prompt_name: str | None = None,
        routes: str | Sequence[str] | None = None,
        show_progress_bar: bool | None = None,
    ) -> None:
        self.train = train
        self.test = test
        self.protocol = {"samples_per_label": samples_per_label, "experiments": experiments}
        self._used = np.unique(np.concatenate(training_rows(train.labels, **self.protocol)))
        super().__init__(
            test.name,
            [[train.texts[row] for row in self._used], test.texts],
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
        train = np.zeros((len(self.train), vectors[0].shape[1]), dtype=np.float32)
        train[self._used] = vectors[0]
        return score_classification(train, vectors[1], self.train, self.test, **self.protocol, **self._sampling)
