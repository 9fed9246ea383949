"""Frozen lower layers whose outputs are kept: the same vectors, computed once, and nothing else trained."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
from transformers import MPNetConfig, MPNetModel

from evaluation.engine.kept_layers import freeze_below


@pytest.fixture(params=["bert", "mpnet"])
def model(request: pytest.FixtureRequest, encoder_folder: Path) -> SentenceTransformer:
    transformer: Any = Transformer(str(encoder_folder))
    if request.param == "mpnet":
        torch.manual_seed(0)
        config = MPNetConfig(
            vocab_size=transformer.model.config.vocab_size,
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=32,
            pad_token_id=transformer.tokenizer.pad_token_id,
        )
        transformer.model = MPNetModel(config)
    return SentenceTransformer(modules=[transformer, Pooling(16)], device="cpu").eval()


def test_vectors_stay_what_they_were(model: SentenceTransformer, sentences: list[str]) -> None:
    before = model.encode(sentences)
    freeze_below(model, 1)
    for _ in range(2):  # computed, and kept
        assert model.encode(sentences) == pytest.approx(before, abs=2e-3)
    # In other company, with other padding.
    assert model.encode([*sentences[:3], " ".join(sentences[:4])])[:3] == pytest.approx(before[:3], abs=2e-3)


def test_each_text_is_computed_once_and_read_from_disk_by_the_next(
    model: SentenceTransformer, sentences: list[str], tmp_path: Path
) -> None:
    again = copy.deepcopy(model)
    below = freeze_below(model, 1, tmp_path / "cache")
    first = model.encode(sentences)
    below.write()
    calls = []
    for kept in (below, freeze_below(again, 1, tmp_path / "cache")):
        assert len(kept.states) == len(sentences)
        kept.encoder.register_forward_hook(lambda *_: calls.append(1))
    assert (model.encode(sentences[::-1])[::-1] == pytest.approx(first, abs=1e-6)) and not calls
    assert again.encode(sentences) == pytest.approx(first, abs=1e-6)
    assert not calls
    assert copy.deepcopy(model)[0].model.embeddings.below is below


def test_only_what_is_above_learns(model: SentenceTransformer, sentences: list[str]) -> None:
    whole = sum(weights.numel() for weights in model.parameters())
    model.train()  # before: what is kept must not have the dropout of a model in training
    below = freeze_below(model, 1)
    assert 0 < sum(weights.numel() for weights in model.parameters()) < whole
    given = {name: weights.clone() for name, weights in below.encoder.state_dict().items()}
    optimizer = torch.optim.SGD(model.parameters(), 1.0)
    model(model.preprocess(sentences[:4]))["sentence_embedding"].square().sum().backward()
    optimizer.step()
    assert not below.encoder.training
    assert all(torch.equal(given[name], weights) for name, weights in below.encoder.state_dict().items())
    assert all(weights.grad is not None for weights in model[0].model.encoder.layer.parameters())


@pytest.mark.parametrize("layers", [0, 2, 5])
def test_something_has_to_be_left(model: SentenceTransformer, layers: int) -> None:
    with pytest.raises(ValueError, match=f"layers={layers} must leave"):
        freeze_below(model, layers)


def test_text_of_unlike_lengths(model: SentenceTransformer, sentences: list[str]) -> None:
    below = freeze_below(model, 1)
    ids = model.preprocess(["a man", sentences[0]])["input_ids"]
    found = below.outputs(ids)
    assert found.shape[:2] == ids.shape
    assert np.asarray((found[ids == below.padding] == 0).all())


def test_in_bfloat16_the_vectors_are_near_and_kept_ones_can_be_written(
    model: SentenceTransformer, sentences: list[str], tmp_path: Path
) -> None:
    before = model.encode(sentences)
    below = freeze_below(model, 1, tmp_path)
    with torch.autocast("cpu", torch.bfloat16):
        for _ in range(2):
            assert model.encode(sentences) == pytest.approx(before, abs=5e-2)
        below.write()
    assert list(tmp_path.glob("*.safetensors")) and len(below.states) == len({*sentences})
