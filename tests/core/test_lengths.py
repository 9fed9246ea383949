"""Lengths against the positions that each kind of encoder has."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import StaticEmbedding
from tokenizers import Tokenizer, models

from st_plugins.core.host import check_length, positions, set_length
from st_plugins.evaluation import STSSuiteEvaluator

Make = Callable[..., SentenceTransformer]


@pytest.mark.parametrize(
    ("kind", "there"),
    [
        ("bert", 40),
        ("distilbert", 40),
        ("albert", 40),
        ("electra", 40),
        ("deberta", 40),
        ("gpt2", 40),
        ("nystromformer", 40),  # its table has two rows more
        ("roberta", 39),  # positions begin after the padding token, which is number 0 here
        ("mpnet", 38),  # and 1 there
        ("deberta-v2", None),
        ("modernbert", None),
        ("xlnet", None),
        ("t5", None),
        ("llama", None),
    ],
)
def test_positions_are_what_the_encoder_can_read(make_model: Make, kind: str, there: int | None) -> None:
    model = make_model(kind)
    assert positions(model) == there
    features = {"input_ids": torch.full((1, there or 45), 7)}
    features["attention_mask"] = torch.ones_like(features["input_ids"])
    model(dict(features))
    if there is not None:
        longer = {name: torch.cat([value, value[:, :1]], 1) for name, value in features.items()}
        if kind not in ("nystromformer",):
            with pytest.raises((RuntimeError, IndexError)):
                model(longer)


def test_a_length_is_checked_when_it_is_set(model: SentenceTransformer) -> None:
    set_length(model, 40)
    assert model.max_seq_length == 40
    for wrong in (41, 0, -1, True, 2.5):
        with pytest.raises(ValueError, match=f"max_seq_length={wrong}"):
            set_length(model, wrong)  # type: ignore[arg-type]
    assert model.max_seq_length == 40
    static = SentenceTransformer(
        modules=[StaticEmbedding(Tokenizer(models.WordLevel({"a": 0}, "a")), embedding_dim=4)]
    )
    with pytest.raises(ValueError, match="StaticEmbedding has no length limit"):
        set_length(static, 8)
    check_length(static)


def test_a_model_that_was_set_wrongly_is_refused_before_it_encodes(model: SentenceTransformer) -> None:
    evaluator = STSSuiteEvaluator.from_pairs(["a dog", "a cat", "a man"], ["dogs", "a boat", "men"], [4, 1, 3])
    model.max_seq_length = 100
    with pytest.raises(ValueError, match=r"max_seq_length=100 is more than the encoder's 40 positions"):
        evaluator.evaluate(model)


def test_what_the_host_sets_itself_is_left_alone(make_model: Make) -> None:
    model = make_model("roberta")
    model.max_seq_length = 40  # config.max_position_embeddings, as the host would have it
    check_length(model)
    model.max_seq_length = int(1e30)  # a tokenizer without a limit
    check_length(model)
