"""The example of learned attention: what it counts, against counts by hand."""

from __future__ import annotations

from importlib import import_module

import numpy as np
import pytest
import torch
from sentence_transformers import CrossEncoder
from torch import nn

from st_plugins import miniature
from st_plugins.examples.pairs import entailment_pairs
from st_plugins.losses import map_agreement

example = import_module("st_plugins.examples.03_virt")


def test_half_of_the_pairs_follow_and_none_occurs_twice() -> None:
    pairs = entailment_pairs(200)
    assert len({pair[:2] for pair in pairs}) == len(pairs) > 20
    assert [label for _, _, label in pairs] == [1, 0] * (len(pairs) // 2)
    labels = {(first, second): label for first, second, label in miniature.nli_pairs(200)}
    for first, second, follows in pairs:
        assert follows == (labels[first, second] == "entailment")
        assert max(len(first.split()), len(second.split())) <= 9


@pytest.mark.parametrize("seed", range(5))
def test_the_threshold_is_the_best_there_is(seed: int) -> None:
    rng = np.random.default_rng(seed)
    scores, follows = rng.integers(0, 5, 12) / 4, rng.integers(0, 2, 12)
    pairs = [("", "", int(label)) for label in follows]

    def right(threshold: float) -> int:
        return sum(int(score > threshold) == label for score, label in zip(scores, follows, strict=True))

    found = example.threshold(scores, pairs)
    assert right(found) == max(right(edge) for edge in [-1, *scores])


def test_counts_are_those_of_the_three_models(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(miniature, "pretrained_encoder", lambda seed: miniature.untrained_encoder(32, seed=seed))
    trained: list[nn.Module] = []
    real = example.train
    monkeypatch.setattr(example, "train", lambda model, *a, **k: trained.append(model) or real(model, *a, **k))
    started: list[nn.Module] = []
    build = example.cross_encoder
    monkeypatch.setattr(example, "cross_encoder", lambda model: started.append(model) or build(model))
    found = example.run(teacher_steps=3, steps=2, weight=5.0, drawn=300, choosing=10, judged=20)
    siamese, teacher, virt = trained
    assert isinstance(teacher, CrossEncoder) and not any(model.training for model in trained)
    types = teacher.preprocess([("a cat slept", "a dog ate")])["token_type_ids"][0].tolist()
    assert types == [0] * 5 + [1] * 4
    assert started == [siamese]
    pairs = entailment_pairs(300)[:30]
    dev, test = pairs[:10], pairs[10:]
    assert found.pairs == len(test) == 20
    shares, hits = [], []
    for model in (teacher, siamese, virt):
        scores = []
        for first, second, _ in pairs:
            if model is teacher:
                scores.append(float(teacher.predict((first, second), show_progress_bar=False)))
            else:
                u, v = model.encode([first, second], show_progress_bar=False)
                scores.append(float(u @ v / np.linalg.norm(u) / np.linalg.norm(v)))
        threshold = example.threshold(np.array(scores[:10]), dev)
        hits.append([int(score > threshold + 1e-9) == pair[2] for score, pair in zip(scores[10:], test, strict=True)])
        shares.append(sum(hits[-1]) / 20)
    assert [found.cross_encoder, found.siamese, found.virt] == pytest.approx(shares)
    assert found.gain.value == pytest.approx(shares[2] - shares[1])
    for model, overlap in ((siamese, found.siamese_overlap), (virt, found.virt_overlap)):
        layers = map_agreement(model, teacher, [pair[:2] for pair in dev])
        assert overlap == pytest.approx(sum(layer.overlap for layer in layers) / len(layers))
    weights = [next(model.parameters()) for model in (siamese, virt)]
    assert not torch.equal(*weights)
    assert f"{found.virt:.1%}" in found.summary() and found.gain.verdict in found.summary()


@pytest.mark.slow
def test_the_bi_encoder_learns_the_attention() -> None:
    """The example itself, with the encoder it uses: its claim, and that it is the same every time."""
    torch.manual_seed(1)  # of no influence
    found = example.run()
    assert found.virt_overlap > found.siamese_overlap + 0.05
    assert min(found.cross_encoder, found.siamese, found.virt) > 0.6
