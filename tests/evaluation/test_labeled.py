"""Classification and clustering against scikit-learn and the leaderboard's protocol written out."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.cluster import MiniBatchKMeans
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, f1_score, v_measure_score

from st_plugins.data import LabeledTexts
from st_plugins.evaluation import (
    ClassificationEvaluator,
    ClusteringEvaluator,
    score_classification,
    score_clustering,
    training_rows,
)
from st_plugins.evaluation.measuring.units import resampled, scores_on, v_measures
from st_plugins.evaluation.statistics import resample_counts
from st_plugins.miniature import untrained_encoder


def made(texts: int, seed: int, name: str = "made", classes: int = 4) -> tuple[LabeledTexts, NDArray[np.float32]]:
    """Make texts of classes of different sizes, whose vectors overlap."""
    generator = np.random.default_rng(seed)
    labels = np.concatenate([np.arange(classes), generator.integers(classes, size=texts - classes) // 2 * 2])
    vectors = np.eye(classes, 6)[labels] + generator.normal(scale=0.6, size=(texts, 6))
    data = LabeledTexts(name, [f"text {row} of {name}" for row in range(texts)], [f"class {one}" for one in labels])
    return data, vectors.astype(np.float32)


def undersampled(labels: list[str], samples: int, experiments: int) -> list[list[int]]:
    """Draw as the leaderboard's code does, with its own words."""
    found, idxs = [], list(range(len(labels)))
    for _ in range(experiments):
        rng_state = np.random.RandomState(42)
        rng_state.shuffle(idxs)
        label_counter: dict[str, int] = defaultdict(int)
        sampled_idxs = []
        for i in idxs:
            if label_counter[labels[i]] < samples:
                sampled_idxs.append(i)
                label_counter[labels[i]] += 1
        found.append(sampled_idxs)
    return found


def test_classification_is_the_leaderboards_protocol() -> None:
    (train, known), (test, vectors) = made(90, 0, "train"), made(70, 1, "test")
    task = score_classification(known, vectors, train, test, samples_per_label=5, experiments=4)
    accuracies, f1 = [], []
    for rows in undersampled(train.labels, 5, 4):
        classifier = LogisticRegression(max_iter=100, random_state=42)
        classifier.fit(known[rows], [train.labels[row] for row in rows])
        found = classifier.predict(vectors)
        accuracies.append(accuracy_score(test.labels, found))
        f1.append(f1_score(test.labels, found, average="macro"))
    assert len(set(accuracies)) > 1
    assert task.score.value == pytest.approx(np.mean(accuracies))
    assert task.scores["f1"].value == pytest.approx(np.mean(f1))
    assert task.score.low < task.score.value < task.score.high
    assert (task.units, task.unit, task.main) == (70, "texts", "accuracy")


def test_only_drawn_training_texts_are_encoded() -> None:
    train = LabeledTexts("train", [f"{word} {row}" for row in range(40) for word in ("dog", "cat")], ["d", "c"] * 40)
    test = LabeledTexts("test", ["a dog", "a cat", "cats"], ["d", "c", "c"])
    evaluator, model = ClassificationEvaluator(train, test, samples_per_label=2, experiments=3), untrained_encoder()
    metrics = evaluator(model)
    drawn = {row for rows in training_rows(train.labels, 2, 3) for row in rows}
    assert set(evaluator.texts) == {*test.texts, *(train.texts[row] for row in drawn)}
    expected = score_classification(
        model.encode(train.texts), model.encode(test.texts), train, test, samples_per_label=2, experiments=3
    )
    assert metrics["test_accuracy"] == pytest.approx(expected.score.value)
    assert evaluator.primary_metric == "test_accuracy"


def test_classes_that_were_never_trained_are_said() -> None:
    train, test = LabeledTexts("train", ["a", "b"], ["x", "y"]), LabeledTexts("test", ["c", "d"], ["x", "z"])
    task = score_classification(np.eye(2), np.eye(2), train, test)
    assert task.score.value == 0.5
    assert "1 test texts have a class that no training text has, the first 'z'" in task.warnings[0]


def test_clustering_is_scikit_learns() -> None:
    data, vectors = made(120, 2)
    task = score_clustering(vectors, data, experiments=3)
    expected = []
    for seed in (42, 43, 44):
        found = MiniBatchKMeans(4, batch_size=500, n_init="auto", random_state=seed).fit(vectors).labels_
        expected.append(v_measure_score(data.labels, found))
    assert task.details["v_measure_of_each"] == pytest.approx(expected)
    assert task.score.value == pytest.approx(np.mean(expected))
    assert task.score.low < task.score.value < task.score.high


def test_fewer_clusters_than_classes_are_said() -> None:
    data, vectors = made(30, 3)
    task = score_clustering(np.ones_like(vectors), data)
    assert task.score.value == pytest.approx(0, abs=1e-12)
    assert "1 clusters only, for 4 classes" in task.warnings[0]
    assert ClusteringEvaluator(data, experiments=2)(untrained_encoder()).keys() == {"made_v_measure"}


def test_resamples_are_those_texts_repeated() -> None:
    data, vectors = made(60, 4)
    columns = score_clustering(vectors, data, experiments=2, bootstrap_samples=0).per_unit
    counts = resample_counts(60, 7, "made", 0)
    found = scores_on("clustering", columns, counts)["v_measure"]
    for count, value in zip(counts, found, strict=True):
        labels, *clusterings = (np.repeat(column, count) for column in columns.values())
        assert value == pytest.approx(np.mean([v_measure_score(labels, clusters) for clusters in clusterings]))
    value, moved = resampled("clustering", columns, counts)["v_measure"]
    assert found.mean() > value
    assert moved.mean() == pytest.approx(value)
    accuracy = np.arange(60) / 60
    found = scores_on("classification", {"accuracy": accuracy.tolist()}, counts)["accuracy"]
    assert found == pytest.approx([np.repeat(accuracy, count).mean() for count in counts])


def test_one_class_in_one_cluster_is_perfect() -> None:
    zeros, ones = np.zeros(3, dtype=np.intp), np.ones((1, 3), dtype=np.uint8)
    assert v_measures(zeros, [zeros], ones).tolist() == [[v_measure_score(zeros, zeros)]] == [[1.0]]


@pytest.mark.parametrize("name", ["samples_per_label", "experiments"])
def test_bad_input(name: str) -> None:
    data, vectors = made(30, 5)
    with pytest.raises(ValueError, match=f"{name}=0"):
        ClassificationEvaluator(data, data, **{name: 0})
    with pytest.raises(ValueError, match="train_vectors have 3 dimensions and test_vectors 6"):
        score_classification(vectors[:, :3], vectors, data, data)
    with pytest.raises(ValueError, match=r"vectors must have shape \(30, d\)"):
        score_clustering(vectors[:4], data)
    with pytest.raises(ValueError, match="experiments=0"):
        ClusteringEvaluator(data, experiments=0)
