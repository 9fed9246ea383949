"""Views on every architecture: what is augmented, what is shuffled, and that the host has not changed its inside."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from conftest import ENCODERS
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import BoW, Pooling, Transformer
from torch import Tensor, nn
from transformers import AutoTokenizer, LongformerConfig, LongformerModel

from st_plugins.augment import (
    FeatureCutoff,
    NoAugmentation,
    TokenCutoff,
    TokenShuffle,
    augmented,
    shuffle_kind,
    supported_models,
)
from st_plugins.methods.contrastive.encoders import encoder_parts
from st_plugins.methods.contrastive.functional import shuffle_permutation

Factory = Callable[..., SentenceTransformer]
TEXTS = [
    "the man is playing guitar in the park .",
    "a dog",
    "two small cats are sleeping on the street with three dogs",
]
BY_POSITION_IDS = [kind for kind in ENCODERS if supported_models()[kind] == "position_ids"]
BY_EMBEDDINGS = [kind for kind in ENCODERS if supported_models()[kind] == "embeddings"]
NO_DROPOUT = ("albert", "modernbert", "llama")  # by default
PROJECTED = ("albert", "electra")  # their token embeddings are narrower than their hidden states


def without_dropout(model: SentenceTransformer) -> SentenceTransformer:
    """Return the model in training mode, with no randomness of its own."""
    model.train()
    for module in model.modules():
        for name in ("p", "dropout", "attention_dropout", "dropout_prob", "activation_dropout"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)
    return model


def tokenize(model: SentenceTransformer, side: str = "right", texts: list[str] = TEXTS) -> dict[str, Any]:
    model.tokenizer.padding_side = side
    return model.preprocess(texts)


def embed(model: SentenceTransformer, features: dict[str, Any]) -> Tensor:
    embeddings: Tensor = model(dict(features))["sentence_embedding"]
    return embeddings


def first_position(model: SentenceTransformer) -> int:
    encoder: Any = model[0].model  # type: ignore[union-attr]
    starts_after_padding = encoder.config.model_type in ("roberta", "xlm-roberta")
    return int(encoder.config.pad_token_id) + 1 if starts_after_padding else _nystrom_offset(encoder)


def _nystrom_offset(encoder: Any) -> int:
    return 2 if encoder.config.model_type == "nystromformer" else 0


def test_every_supported_encoder_is_tested() -> None:
    assert set(supported_models()) == set(ENCODERS)


@pytest.mark.parametrize("kind", ENCODERS)
def test_shuffle_kind_is_the_documented_one(make_model: Factory, kind: str) -> None:
    model = make_model(kind)
    assert model[0].model.config.model_type == kind  # type: ignore[union-attr]
    assert shuffle_kind(model) == supported_models()[kind]


@pytest.mark.parametrize("kind", ENCODERS)
def test_clean_view_is_the_plain_forward_bit_for_bit(make_model: Factory, kind: str) -> None:
    model = make_model(kind).train()
    features = tokenize(model)
    torch.manual_seed(1)
    plain = embed(model, features)
    torch.manual_seed(1)
    with augmented(model, [NoAugmentation()]):
        view = embed(model, features)
    assert torch.equal(plain, view)
    if kind not in NO_DROPOUT:  # so it was the seed that made them equal
        assert not torch.equal(plain, embed(model, features))


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("kind", ENCODERS)
def test_two_clean_views_are_two_plain_forwards(make_model: Factory, kind: str, side: str) -> None:
    model = without_dropout(make_model(kind))
    features = tokenize(model, side)
    with augmented(model, [NoAugmentation(), (NoAugmentation(), NoAugmentation())]):
        views = embed(model, features)
    torch.testing.assert_close(views, embed(model, features).repeat(2, 1))


@pytest.mark.parametrize("kind", ENCODERS)
def test_token_embeddings_are_what_the_encoder_reads(make_model: Factory, kind: str) -> None:
    model = without_dropout(make_model(kind))
    encoder: Any = model[0].model  # type: ignore[union-attr]
    encoder.config.output_hidden_states = True
    features = tokenize(model)
    with augmented(model, [NoAugmentation()]) as clean:
        output = model(features)
    if kind not in PROJECTED:
        assert torch.equal(clean.token_embeddings[0], output["all_layer_embeddings"][0])
    # Nothing of the words gets around them: without them, all texts of one length are the same.
    texts = ["the man is sleeping .", "a red ball and bread"]
    features = tokenize(model, texts=texts)
    with augmented(model, [NoAugmentation()]) as clean:
        a, b = embed(model, features)
    assert not torch.allclose(a, b)
    with augmented(model, [NoAugmentation()], [-clean.token_embeddings[0]]):
        a, b = embed(model, features)
    torch.testing.assert_close(a, b)


@pytest.mark.parametrize("kind", ENCODERS)
def test_cutoffs_reach_the_encoder_and_gradients_the_words(make_model: Factory, kind: str) -> None:
    model = without_dropout(make_model(kind))
    features = tokenize(model)
    with augmented(model, [NoAugmentation(), FeatureCutoff(0.5), TokenCutoff(0.4)]) as views:
        clean, fewer_features, fewer_tokens = embed(model, features).chunk(3)
    width = views.token_embeddings[0].shape[2]
    clean_tokens, feature_view, token_view = views.token_embeddings[0].chunk(3)
    assert ((feature_view == 0).all(dim=1).sum(dim=1) == width // 2).all()
    real = features["attention_mask"].bool()
    changed = (token_view != clean_tokens).any(dim=2)
    assert changed.sum(dim=1).tolist() == [int(n * 0.4) for n in real.sum(dim=1).tolist()]
    assert not changed[~real].any()
    words: Any = encoder_parts(model).embedding
    table = next(module for module in words.modules() if isinstance(module, nn.Embedding)) if kind != "gpt2" else None
    weight = (table if table is not None else model[0].model.wte).weight  # type: ignore[union-attr]
    for view in (clean, fewer_features, fewer_tokens):
        (gradient,) = torch.autograd.grad(view.square().sum(), weight, retain_graph=True)
        assert gradient.isfinite().all() and gradient.abs().sum() > 0
        assert not torch.allclose(view, clean) or view is clean


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("kind", BY_POSITION_IDS)
def test_shuffled_position_ids_against_given_ones(make_model: Factory, kind: str, side: str) -> None:
    model = without_dropout(make_model(kind))
    features = tokenize(model, side)
    torch.manual_seed(3)
    with augmented(model, [TokenShuffle()]):
        shuffled = embed(model, features)
    torch.manual_seed(3)
    permutation = shuffle_permutation(features["attention_mask"]).tolist()
    rows = []
    for sentence, mask in enumerate(features["attention_mask"].tolist()):
        start, counted = first_position(model), 0
        own = []
        for place, real in enumerate(mask):
            if kind in ("roberta", "xlm-roberta"):  # they count real tokens, pads get the padding index
                own.append(start + counted if real else start - 1)
                counted += real
            else:
                own.append(start + place)
        rows.append([own[place] for place in permutation[sentence]])
        assert sorted(rows[-1]) == sorted(own)
        if kind in ("roberta", "xlm-roberta"):
            given = [position for position, real in zip(rows[-1], mask, strict=True) if real]
            assert sorted(given) == list(range(start, start + sum(mask)))
    with_ids = embed(model, {**features, "position_ids": torch.tensor(rows)})
    torch.testing.assert_close(shuffled, with_ids)
    assert not torch.allclose(shuffled, embed(model, features))


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("pooling_mode", ["mean", "cls"])
@pytest.mark.parametrize("kind", [*BY_EMBEDDINGS, "bert"])
def test_shuffled_embeddings_against_texts_in_that_order(
    make_model: Factory, kind: str, pooling_mode: str, side: str
) -> None:
    model = without_dropout(make_model(kind, pooling_mode))
    encoder: Any = model[0].model  # type: ignore[union-attr]
    features = tokenize(model, side)
    for name, parameter in model.named_parameters():  # fresh ones are too small to see an order
        if "rel_embeddings" in name or "relative_attention_bias" in name:
            nn.init.normal_(parameter)
    kept = {key: value.clone() for key, value in features.items() if isinstance(value, Tensor)}
    torch.manual_seed(3)
    with augmented(model, [TokenShuffle("embeddings")]):
        output = model(features)
    torch.manual_seed(3)
    permutation = shuffle_permutation(features["attention_mask"]).tolist()
    for sentence, order in enumerate(permutation):
        ids, mask = features["input_ids"][sentence].tolist(), features["attention_mask"][sentence].tolist()
        read = torch.tensor([[ids[place] for place in order]])
        hidden = encoder(input_ids=read, attention_mask=torch.tensor([mask])).last_hidden_state[0]
        by_place = {place: hidden[slot] for slot, place in enumerate(order) if mask[slot]}
        expected = by_place[mask.index(1)] if pooling_mode == "cls" else sum(by_place.values()) / sum(mask)
        assert all(mask[place] for place in by_place)
        torch.testing.assert_close(output["sentence_embedding"][sentence], expected, atol=2e-5, rtol=1e-4)
    assert all(torch.equal(output[key], value) for key, value in kept.items())
    assert not torch.allclose(output["sentence_embedding"], embed(model, features))


@pytest.mark.parametrize("pooling_mode", ["mean", "cls"])
@pytest.mark.parametrize("kind", ["bert", "roberta", "distilbert", "albert", "electra"])
def test_both_kinds_agree_where_attention_is_full(make_model: Factory, kind: str, pooling_mode: str) -> None:
    model = without_dropout(make_model(kind, pooling_mode))
    features = tokenize(model)
    torch.manual_seed(3)
    permutation = shuffle_permutation(features["attention_mask"])
    torch.manual_seed(3)
    with augmented(model, [TokenShuffle("embeddings")]):
        by_embeddings = embed(model, features)
    # Reading token π(i) in slot i gives it position i: the position ids of the inverse permutation.
    ids = torch.arange(permutation.shape[1]).expand_as(permutation)
    ids = ids.gather(1, permutation.argsort(dim=1)) + first_position(model)
    torch.testing.assert_close(by_embeddings, embed(model, {**features, "position_ids": ids}))


@pytest.mark.parametrize("kind", ["bert", "roberta", "gpt2"])
def test_without_a_position_table_shuffling_changes_nothing(make_model: Factory, kind: str) -> None:
    model = without_dropout(make_model(kind))
    features = tokenize(model)
    plain = embed(model, features)
    table: Any = encoder_parts(model).positions
    nn.init.zeros_(table.weight)
    zeroed = embed(model, features)
    with augmented(model, [TokenShuffle()]):
        assert torch.equal(embed(model, features), zeroed)
    assert not torch.allclose(plain, zeroed)


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("kind", ["bert", "roberta", "distilbert", "gpt2", "nystromformer", "modernbert", "llama"])
def test_ids_looked_up_keep_pads_and_special_tokens(make_model: Factory, kind: str, side: str) -> None:
    model = make_model(kind).train()
    features = tokenize(model, side, [*TEXTS, "an unknown word is a word"])
    seen: list[Tensor] = []

    def look(module: nn.Module, args: Any, kwargs: Any) -> None:
        seen.append(kwargs["position_ids"] if "position_ids" in kwargs else args[-1 if len(args) < 3 else 1])

    views = [NoAugmentation(), TokenShuffle(), TokenShuffle(include_special_tokens=False)]
    with augmented(model, views):
        positions: Any = encoder_parts(model).positions
        handle = positions.register_forward_pre_hook(look, with_kwargs=True)
        model(features)
        handle.remove()
    clean, shuffled, kept = seen[0].chunk(3)
    assert all(torch.equal(ids, seen[0]) for ids in seen)  # ModernBERT asks once for each kind of layer
    real = features["attention_mask"].bool()
    special = torch.isin(
        features["input_ids"], torch.tensor(model.tokenizer.convert_tokens_to_ids(["[CLS]", "[SEP]"]))
    )
    unknown = features["input_ids"] == model.tokenizer.unk_token_id
    for view in (shuffled, kept):
        assert torch.equal(view[~real], clean[~real])
        assert (view != clean).any()
        for row, own, mask in zip(view, clean, real, strict=True):
            assert sorted(row[mask].tolist()) == sorted(own[mask].tolist())
    assert torch.equal(kept[special], clean[special])
    assert unknown.sum() > 1 and not torch.equal(kept[unknown], clean[unknown])


@pytest.mark.parametrize("kind", ["bert", "modernbert", "llama", "gpt2", "t5"])
@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_replays_the_views(make_model: Factory, kind: str, reentrant: bool) -> None:
    gradients = []
    for checkpointing in (False, True):
        model = make_model(kind).train()
        encoder: Any = model[0].model  # type: ignore[union-attr]
        if checkpointing:
            enable = getattr(encoder, "activation_checkpointing_enable", None) or encoder.gradient_checkpointing_enable
            enable({"use_reentrant": reentrant})
        torch.manual_seed(5)
        with augmented(model, [(TokenShuffle(), FeatureCutoff(0.3)), TokenCutoff(0.3)]):
            embeddings = embed(model, tokenize(model))
        embeddings.square().sum().backward()
        gradients.append([parameter.grad for parameter in model.parameters() if parameter.grad is not None])
    assert len(gradients[0]) == len(gradients[1]) > 10
    for plain, replayed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, replayed)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", ["bert", "modernbert", "xlnet", "deberta-v2"])
def test_half_precision(make_model: Factory, kind: str, dtype: torch.dtype) -> None:
    model = make_model(kind).train().to(dtype)
    with augmented(model, [(TokenShuffle(), FeatureCutoff(0.3)), TokenCutoff(0.3)]) as views:
        embeddings = embed(model, tokenize(model))
    assert views.token_embeddings[0].dtype == embeddings.dtype == dtype
    assert embeddings.isfinite().all()


def test_an_encoder_that_pads_further(make_model: Factory, tmp_path: Any) -> None:
    shape = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    tokenizer = AutoTokenizer.from_pretrained(make_model("bert").tokenizer.name_or_path)
    config = LongformerConfig(
        **shape, vocab_size=len(tokenizer), attention_window=8, pad_token_id=0, max_position_embeddings=40
    )
    LongformerModel(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    transformer = Transformer(str(tmp_path))
    model = SentenceTransformer(modules=[transformer, Pooling(16, "mean")], device="cpu").train()
    features = tokenize(model)
    with augmented(model, [TokenShuffle(), TokenCutoff(0.4)]) as views:
        embeddings = embed(model, features)
    length = features["input_ids"].shape[1]
    assert length % 8 and views.token_embeddings[0].shape[1] == (length + 7) // 8 * 8
    cut = (views.token_embeddings[0].chunk(2)[1] == 0).all(dim=2)
    assert cut.sum(dim=1).tolist() == [int(n * 0.4) for n in features["attention_mask"].sum(dim=1).tolist()]
    assert embeddings.shape == (2 * len(TEXTS), 16)


def test_models_without_token_embeddings_are_refused(make_model: Factory) -> None:
    words = SentenceTransformer(modules=[BoW(["the", "dog"])], device="cpu")
    with pytest.raises(ValueError, match=r"starts with a BoW, but views need a StaticEmbedding, or .* bert"):
        shuffle_kind(words)
    model = make_model()
    encoder: Any = model[0].model  # type: ignore[union-attr]
    del encoder.embeddings
    with pytest.raises(
        ValueError, match=r"no embedding layer was found in the encoder BertModel \(model_type 'bert'\)"
    ):
        shuffle_kind(model)


def test_the_general_rule_finds_what_unknown_encoders_have(make_model: Factory) -> None:
    model = make_model("roberta")
    encoder: Any = model[0].model  # type: ignore[union-attr]
    encoder.config.model_type = "something-new"
    parts = encoder_parts(model)
    assert parts.embedding is encoder.embeddings and parts.positions is encoder.embeddings.position_embeddings
    assert shuffle_kind(model) == "position_ids"
    encoder.embeddings.position_embeddings = nn.Identity()
    assert shuffle_kind(model) == "embeddings"
    with pytest.raises(ValueError, match=r"TokenShuffle\(kind='position_ids'\) needs an encoder that looks up"):
        with augmented(model, [TokenShuffle("position_ids")]):
            pass


def test_a_changed_host_fails_loudly(make_model: Factory, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model("t5").train()
    encoder: Any = model[0].model  # type: ignore[union-attr]
    assert encoder.get_input_embeddings() is not encoder.encoder.embed_tokens  # why the table has a path for T5
    monkeypatch.setattr("st_plugins.methods.contrastive.encoders._EMBEDDING_PATHS", {})
    with pytest.raises(ValueError, match="the model did not call its embedding layer Embedding"):
        with augmented(model, [FeatureCutoff()]):
            model(tokenize(model))
    model = make_model("bert").train()
    embeddings: Any = model[0].model.embeddings  # type: ignore[union-attr]
    table = embeddings.position_embeddings
    monkeypatch.setattr(table.__class__, "__call__", lambda self, ids: self.forward(ids))  # past the hooks
    with pytest.raises(ValueError, match="did not read its position ids through Embedding"):
        with augmented(model, [TokenShuffle()]):
            model(tokenize(model))
