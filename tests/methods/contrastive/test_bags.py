"""Views of static embeddings, whose tokens exist inside an embedding bag only, against plain loops."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense, StaticEmbedding

from st_plugins.augment import EmbeddingDropout, FeatureCutoff, NoAugmentation, TokenCutoff, augmented, shuffle_kind
from st_plugins.losses import ConSERTLoss, NonFiniteLossError
from st_plugins.methods.contrastive.consert import nt_xent

TEXTS = ["the big dog is running", "a cat", "", "the man is reading a book in the park"]


@pytest.fixture
def static(make_model: Callable[..., SentenceTransformer]) -> SentenceTransformer:
    torch.manual_seed(0)
    bag = StaticEmbedding(make_model().tokenizer, embedding_dim=8)
    return SentenceTransformer(modules=[bag], device="cpu").train()


def rows(model: SentenceTransformer, features: dict[str, Any]) -> list[torch.Tensor]:
    """Token vectors of each text, cut out by hand."""
    offsets = [*features["offsets"].tolist(), len(features["input_ids"])]
    table = model[0].embedding.weight
    return [table[features["input_ids"][a:b]] for a, b in itertools.pairwise(offsets)]


def test_without_augmentation_it_is_the_bag(static: SentenceTransformer) -> None:
    features = static.preprocess(TEXTS)
    plain = static(dict(features))["sentence_embedding"]
    with augmented(static, [NoAugmentation(), NoAugmentation()]) as pass_:
        views = static(dict(features))["sentence_embedding"]
    assert torch.allclose(views, plain.repeat(2, 1), atol=1e-7)
    assert pass_.token_embeddings[0].shape == (8, 9, 8)
    assert not views[2].any()  # the empty text
    assert torch.equal(static(dict(features))["sentence_embedding"], plain)  # and no hook is left


def test_cut_tokens_are_missing_from_the_sum(static: SentenceTransformer) -> None:
    features = static.preprocess(TEXTS)
    with augmented(static, [TokenCutoff(0.5), FeatureCutoff(0.25)]) as pass_:
        tokens_cut, features_cut = static(dict(features))["sentence_embedding"].chunk(2)
    for text, (own, view) in enumerate(zip(rows(static, features), tokens_cut, strict=True)):
        kept = pass_.token_embeddings[0][text][: len(own)]
        gone = [index for index in range(len(own)) if not kept[index].any()]
        assert len(gone) == len(own) // 2
        expected = sum((own[i] for i in range(len(own)) if i not in gone), torch.zeros(8)) / max(1, len(own))
        assert torch.allclose(view, expected, atol=1e-6)
    for own, view in zip(rows(static, features), features_cut, strict=True):
        if len(own):
            zero = view == 0
            assert int(zero.sum()) == 2
            assert torch.allclose(view[~zero], own.mean(0)[~zero], atol=1e-6)


def test_dropout_acts_on_entries_and_gradients_reach_the_used_rows_only(static: SentenceTransformer) -> None:
    features = static.preprocess(TEXTS)
    with augmented(static, [EmbeddingDropout(0.5)]) as pass_:
        output = static(dict(features))["sentence_embedding"]
    own = rows(static, features)[0]
    ratio = (pass_.token_embeddings[0][0][: len(own)] / own).detach()
    assert set(ratio.unique().round(decimals=4).tolist()) == {0.0, 1.0}
    output.sum().backward()
    used = set(features["input_ids"].tolist())
    touched = static[0].embedding.weight.grad.abs().sum(1).nonzero().flatten().tolist()
    assert touched and set(touched) <= used


def test_the_loss_is_that_of_the_views(static: SentenceTransformer) -> None:
    static.append(Dense(8, 4))
    features = static.preprocess(TEXTS[:2])
    loss = ConSERTLoss(static, ("token-cutoff:0.5", "feature-cutoff:0.2"))
    torch.manual_seed(3)
    value = loss([dict(features)])
    torch.manual_seed(3)
    with augmented(static, [TokenCutoff(0.5), FeatureCutoff(0.2)]):
        a, b = static(dict(features))["sentence_embedding"].chunk(2)
    assert a.shape == (2, 4)
    assert value.item() == pytest.approx(nt_xent(a, b, 0.1).item(), abs=1e-6)


def test_adversarial_views_increase_the_loss(static: SentenceTransformer) -> None:
    features = static.preprocess([TEXTS[0], TEXTS[1], TEXTS[3]])
    clean = ConSERTLoss(static, ("none", "none"))([dict(features)]).item()
    assert ConSERTLoss(static, ("none", "adversarial:0.1"))([dict(features)]).item() > clean


def test_evaluation_mode_warns(static: SentenceTransformer, caplog: pytest.LogCaptureFixture) -> None:
    static.eval()
    features = static.preprocess(TEXTS)
    with caplog.at_level(logging.WARNING), augmented(static, [TokenCutoff(0.5)]):
        output = static(dict(features))["sentence_embedding"]
    assert "evaluation mode" in caplog.text
    assert torch.allclose(output, static(dict(features))["sentence_embedding"], atol=1e-7)


def test_what_static_embeddings_cannot_do(static: SentenceTransformer) -> None:
    assert shuffle_kind(static) == "none"
    features = static.preprocess(TEXTS)
    # The default views shuffle; that is refused when the loss is built, not in the middle of a training.
    with pytest.raises(ValueError, match="know no order"):
        ConSERTLoss(static)
    with pytest.raises(ValueError, match="mini_batch_size=None"):
        ConSERTLoss(static, ("token-cutoff:0.5",) * 2, mini_batch_size=2)([features])


def test_a_nan_names_its_text(static: SentenceTransformer) -> None:
    features = static.preprocess([TEXTS[0], TEXTS[1]])
    with torch.no_grad():
        static[0].embedding.weight[features["input_ids"][-1]] = float("nan")  # "cat"
    with pytest.raises(NonFiniteLossError) as caught:
        ConSERTLoss(static, ("none", "feature-cutoff:0.2"))([features])
    assert caught.value.texts == ["a cat"]
