"""The pairs that two steps learn: their labels, their halves, and that no list shares a pair with another."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.losses import SoftmaxLoss
from sentence_transformers.sentence_transformer.modules import StaticEmbedding

from st_plugins import miniature
from st_plugins.cli.demo import matching, teaching
from st_plugins.cli.demo.entailment import entailment
from st_plugins.cli.demo.resampling import difference_of, mean_of, percents
from st_plugins.cli.demo.teaching import logits, teach
from st_plugins.matching import LearnedEmbedding, WordVectors


def test_half_of_the_pairs_follow_and_none_occurs_twice() -> None:
    pairs = entailment(400, dev=10, test=20)
    assert (len(pairs.dev), len(pairs.test)) == (10, 20) and len(pairs.train) > 20
    everything = [*pairs.train, *pairs.dev, *pairs.test]
    assert len({pair[:2] for pair in everything} | set(pairs.unlabeled)) == len(everything) + len(pairs.unlabeled)
    labels = {(first, second): label for first, second, label in miniature.nli_pairs(400)}
    for some in (pairs.train, pairs.dev, pairs.test):
        assert [label for _, _, label in some] == [1, 0] * (len(some) // 2)
        for first, second, follows in some:
            assert follows == (labels[first, second] == "entailment")
            assert max(len(first.split()), len(second.split())) <= 9


def test_a_mean_has_the_interval_of_its_resamples() -> None:
    hits = np.array([1.0] * 70 + [0.0] * 30)
    score = mean_of(hits, "x", 0)
    deviation = (0.7 * 0.3 / 100) ** 0.5
    assert score.value == pytest.approx(0.7) and score.high - score.low == pytest.approx(3.92 * deviation, rel=0.15)
    gained = difference_of(hits, hits[::-1], "x", 0)
    assert gained.value == 0 and gained.low < 0 < gained.high and gained.verdict == "not separable"
    assert difference_of(np.ones(100), hits, "x", 0).verdict == "better"
    assert percents(gained, sign=True).startswith("+0.0 [-")


def test_the_siamese_classifier_is_that_of_its_loss() -> None:
    model = miniature.untrained_encoder(16)
    loss = SoftmaxLoss(model, 16, num_labels=2)
    pairs = [("a dog runs", "an animal moves"), ("a cat sleeps", "a dog runs")]
    found = logits(model, loss, pairs)
    columns = [model.preprocess(list(side)) for side in zip(*pairs, strict=True)]
    with torch.no_grad():
        _, expected = loss(columns, None)
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-4, atol=1e-5)


def test_the_teacher_labels_what_has_no_labels(monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = entailment(400, dev=10, test=20)
    learned: list[list] = []

    def train(model: object, loss: object, pairs: list, *_: object) -> None:
        learned.append(list(pairs))

    class Teacher:
        def predict(self, pairs: list) -> np.ndarray:
            return np.tile([0.2, 0.8], (len(pairs), 1))

    monkeypatch.setattr(teaching, "train", train)
    found = teach(pairs, Teacher(), seed=0)  # type: ignore[arg-type]
    alone, taught = learned
    assert alone == pairs.train and taught == [*alone, *((*pair, 1) for pair in pairs.unlabeled)]
    # Both start alike, and nothing was learned here.
    assert "of 20 others" in found.sentence and found.short.endswith("accuracy +0.0 [+0.0, +0.0]")


def test_a_model_without_word_embeddings_leaves_them_to_be_learned() -> None:
    texts = miniature.corpus(200)
    model = miniature.untrained_encoder(64)
    found, kind = matching.word_vectors(model, texts)
    assert isinstance(found, WordVectors) and kind == "the model's word embeddings"
    static = SentenceTransformer(modules=[StaticEmbedding(model.tokenizer, embedding_dim=8)], device="cpu")
    found, kind = matching.word_vectors(static, texts)
    assert isinstance(found, LearnedEmbedding) and "learns" in kind
    assert matching.speed_of_cross_encoder(static, [("a", "b")]) is None
