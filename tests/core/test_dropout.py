"""A block without dropout: bit-identical passes inside, everything as before outside, for every encoder."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from conftest import ENCODERS
from sentence_transformers import SentenceTransformer
from torch import Tensor, nn

from st_plugins.core.dropout import dropout_probabilities, without_dropout

# Where attention reads its dropout from an attribute, and the tiny model's is zero.
ATTENTION = {"modernbert": "attention_dropout", "llama": "attention_dropout"}


def with_dropout(model: SentenceTransformer, kind: str) -> SentenceTransformer:
    """Put dropout of 0.3 wherever the architecture can have any."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.3
        if hasattr(module, ATTENTION.get(kind, "\0")):
            setattr(module, ATTENTION[kind], 0.3)
    return model.train()


def twice(model: SentenceTransformer, features: dict[str, Any]) -> tuple[Tensor, Tensor]:
    with torch.no_grad():
        return model(dict(features))["sentence_embedding"], model(dict(features))["sentence_embedding"]


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("kind", ENCODERS)
def test_inside_passes_are_identical_and_outside_they_differ(
    make_model: Callable[..., SentenceTransformer], kind: str, attention: str, sentences: list[str]
) -> None:
    model = make_model(kind)
    encoder: Any = model[0].model
    try:
        encoder.set_attn_implementation(attention)
    except ValueError:  # no sdpa for this architecture: it is tested with what it has
        assert attention == "sdpa" and kind not in ("bert", "roberta", "distilbert", "modernbert", "llama")
    with_dropout(model, kind)
    features, before = model.preprocess(sentences[:4]), dropout_probabilities(model)
    assert before and not torch.equal(*twice(model, features))
    with without_dropout(model):
        assert dropout_probabilities(model) == {}
        assert torch.equal(*twice(model, features))
    assert dropout_probabilities(model) == before
    assert not torch.equal(*twice(model, features))


@pytest.mark.parametrize("kind", ["modernbert", "llama", "t5"])
def test_dropout_read_by_the_attention_function_alone(
    make_model: Callable[..., SentenceTransformer], kind: str, sentences: list[str]
) -> None:
    model = with_dropout(make_model(kind), kind)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    features = model.preprocess(sentences[:4])
    assert not torch.equal(*twice(model, features))
    with without_dropout(model):
        assert torch.equal(*twice(model, features))


def test_restored_after_an_exception_and_when_nested(model: SentenceTransformer) -> None:
    before = dropout_probabilities(model)
    with pytest.raises(KeyError), without_dropout(model), without_dropout(model):
        raise KeyError
    assert dropout_probabilities(model) == before == dict.fromkeys(before, 0.1) and len(before) == 7


def test_the_configuration_is_left_alone(model: SentenceTransformer) -> None:
    with without_dropout(model):
        assert model[0].model.config.hidden_dropout_prob == 0.1  # type: ignore[union-attr]


def test_a_model_without_dropout_is_fine() -> None:
    with without_dropout(nn.Linear(2, 2)):
        assert dropout_probabilities(nn.Linear(2, 2)) == {}
