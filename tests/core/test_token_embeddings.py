"""Models without a Transformer: token vectors from texts, from static embeddings and from the host's word vectors."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from sentence_transformers import (
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
)
from sentence_transformers.sentence_transformer.losses import CoSENTLoss
from sentence_transformers.sentence_transformer.modules import Pooling, StaticEmbedding, WordEmbeddings
from sentence_transformers.sentence_transformer.modules.tokenizer import WhitespaceTokenizer
from tokenizers import Tokenizer
from torch import nn

import st_plugins
from st_plugins.losses import ConSERTLoss, SimCSELoss
from st_plugins.miniature import corpus, sts_pairs
from st_plugins.modules import SpanPooling, TextCNNPooling, TextRCNNPooling, TextRNNPooling, TokenEmbeddings

TEXTS = ["a big dog is playing guitar in the park .", "The cat", "déjà vu", ""]
POOLINGS: dict[str, Callable[[], nn.Module]] = {
    "cnn": lambda: TextCNNPooling(16, 5),
    "rnn": lambda: TextRNNPooling(16, 6),
    "rcnn": lambda: TextRCNNPooling(16, 10, 4),
}


@pytest.fixture(scope="module")
def texts() -> list[str]:
    return corpus(300)


@pytest.fixture
def tokens(texts: list[str]) -> TokenEmbeddings:
    return TokenEmbeddings.from_texts(texts, 16)


def build(*modules: nn.Module) -> SentenceTransformer:
    return SentenceTransformer(modules=list(modules), device="cpu").eval()


def test_tokens_are_learned_from_texts(tokens: TokenEmbeddings, texts: list[str]) -> None:
    again = TokenEmbeddings.from_texts(texts, 16)
    assert again.tokenizer.get_vocab() == tokens.tokenizer.get_vocab()
    batch = tokens.preprocess(TEXTS)
    assert batch["input_ids"].shape == batch["attention_mask"].shape
    assert batch["attention_mask"].sum(dim=1).tolist() == [len(tokens.tokenizer.encode(text)) for text in TEXTS]
    for text, row, mask in zip(TEXTS, batch["input_ids"], batch["attention_mask"].bool(), strict=True):
        assert tokens.tokenizer.decode(row[mask]).strip() == text.lower()
        assert (row[~mask] == tokens.tokenizer.pad_token_id).all()
    found = tokens(dict(batch))["token_embeddings"]
    assert torch.equal(found[0, 0], tokens.embedding.weight[batch["input_ids"][0, 0]]) and found.shape[2] == 16
    assert tokens.preprocess([""])["input_ids"].shape == (1, 1)
    upper, lower = TokenEmbeddings.from_texts(["A Dog"], 2, lowercase=False).preprocess(["A", "a"])["input_ids"]
    assert not torch.equal(upper, lower)


def test_texts_are_cut_where_asked(tokens: TokenEmbeddings) -> None:
    whole = tokens.preprocess(TEXTS)
    model = build(tokens, TextCNNPooling(16, 5))
    assert model.max_seq_length is None
    model.max_seq_length = 3
    cut = model.preprocess(TEXTS)
    assert torch.equal(cut["input_ids"], whole["input_ids"][:, :3]) and model.max_seq_length == 3


@pytest.mark.parametrize("kind", POOLINGS)
def test_saved_models_give_the_same_bits(tokens: TokenEmbeddings, kind: str, tmp_path: Path) -> None:
    model = build(tokens, POOLINGS[kind]())
    model.max_seq_length = 5
    model.save(str(tmp_path), create_model_card=False)
    config = json.loads((tmp_path / "0_TokenEmbeddings" / "config.json").read_text())
    assert config == {"embedding_dimension": 16, "special_tokens": {"pad_token": "[PAD]"}, "max_seq_length": 5}
    again = st_plugins.load(tmp_path)
    assert np.array_equal(again.encode(TEXTS), model.encode(TEXTS)) and again.max_seq_length == 5
    assert again.get_embedding_dimension() == model.get_embedding_dimension() == model.encode(TEXTS).shape[1]


def test_saved_models_give_the_same_bits_in_another_process(tokens: TokenEmbeddings, tmp_path: Path) -> None:
    folders = []
    for kind, pooling in POOLINGS.items():
        build(tokens, pooling()).save(str(tmp_path / kind), create_model_card=False)
        folders.append(str(tmp_path / kind))
    code = (
        "import sys, torch, st_plugins; from sentence_transformers import SentenceTransformer\n"
        "torch.set_num_threads(1)\n"
        "texts, result, *folders = sys.argv[1:]\n"
        "models = [model for folder in folders for model in (st_plugins.load(folder, device='cpu'),\n"
        "    SentenceTransformer(folder, device='cpu', trust_remote_code=True))]\n"
        "torch.save([m.encode(texts.split('|'), convert_to_tensor=True) for m in models], result)"
    )
    subprocess.run([sys.executable, "-c", code, "|".join(TEXTS), str(tmp_path / "result.pt"), *folders], check=True)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    expected = [st_plugins.load(folder).encode(TEXTS, convert_to_tensor=True) for folder in folders for _ in range(2)]
    torch.set_num_threads(threads)
    assert all(map(torch.equal, torch.load(tmp_path / "result.pt"), expected))


def test_static_embeddings_give_their_vectors(model: SentenceTransformer, sentences: list[str]) -> None:
    static = StaticEmbedding(model.tokenizer, embedding_dim=16)
    expected = build(static).encode(sentences)
    for source in (static, build(static)):
        mean = build(TokenEmbeddings.from_static(source), Pooling(16, "mean"))
        np.testing.assert_allclose(mean.encode(sentences), expected, atol=1e-6)
    frozen = TokenEmbeddings.from_static(static, trainable=False)
    assert not frozen.embedding.weight.requires_grad and "trainable" in frozen.get_config_dict()
    frozen.embedding.weight.zero_()
    assert static.embedding.weight.any()  # copied
    with pytest.raises(TypeError, match=r"must be a StaticEmbedding, or .* begins with one, got Transformer"):
        TokenEmbeddings.from_static(model)
    with pytest.raises(ValueError, match=r"TextCNNPooling needs token_embeddings.*TokenEmbeddings\.from_static"):
        build(static, TextCNNPooling(16, 5)).encode("a dog")


@pytest.mark.parametrize("kind", POOLINGS)
def test_poolings_after_word_vectors_of_the_host(kind: str, tmp_path: Path) -> None:
    """The canary: WordEmbeddings still writes token_embeddings and a mask, also for a text without known words."""
    words = WhitespaceTokenizer(["PADDING_TOKEN", "dog", "cat", "runs"], stop_words=[], do_lower_case=True)
    model = build(WordEmbeddings(words, torch.randn(4, 16), update_embeddings=True), POOLINGS[kind]())
    found = model.encode(["dog runs", "cat", "unheard of"])
    np.testing.assert_allclose(found[1], model.encode("cat"), atol=1e-6)
    assert found[:2].any(axis=1).all() and not found[2].any()
    model.save(str(tmp_path), create_model_card=False)
    assert np.array_equal(st_plugins.load(tmp_path).encode(["dog runs"]), model.encode(["dog runs"]))


@pytest.mark.parametrize("kind", POOLINGS)
def test_poolings_after_a_transformer(
    make_model: Callable[..., SentenceTransformer], kind: str, sentences: list[str], tmp_path: Path
) -> None:
    for encoder, side in (("bert", "right"), ("t5", "left")):
        transformer: Any = make_model(encoder)[0]
        model = build(transformer, POOLINGS[kind]())
        alone = np.stack([model.encode(text) for text in ["a dog", *sentences[:3]]])
        model.tokenizer.padding_side = side
        np.testing.assert_allclose(model.encode(["a dog", *sentences[:3]]), alone, atol=1e-5)
        assert model.get_embedding_dimension() == alone.shape[1]
    model.save(str(tmp_path), create_model_card=False)
    with pytest.raises(ValueError, match="trust_remote_code"):
        SentenceTransformer(str(tmp_path), device="cpu")
    np.testing.assert_allclose(st_plugins.load(tmp_path).encode(sentences[:3]), alone[1:], atol=1e-5)


def test_prompts(tokens: TokenEmbeddings) -> None:
    batch = tokens.preprocess(["a dog", ""], prompt="find me: ")
    plain = tokens.preprocess(["find me: a dog", "find me:"])
    assert torch.equal(batch["input_ids"][0], plain["input_ids"][0])
    assert batch["prompt_length"][0] == len(tokens.tokenizer.encode("find me:"))
    assert batch["prompt_length"][1] == batch["attention_mask"][1].sum()  # its last space with it
    model = build(tokens, TextRNNPooling(16, 6, include_prompt=False))
    texts = ["a dog", "the cat", ""]
    np.testing.assert_allclose(model.encode(texts, prompt="find me: "), model.encode(texts), atol=1e-6)


def test_span_pooling_reads_the_tokens_too(tokens: TokenEmbeddings) -> None:
    model = build(tokens, SpanPooling(16))
    with SpanPooling.of(model).returning_spans():
        weights = model(model.preprocess(["the cat"]))["span_weights"]
    count = len(tokens.tokenizer.encode("the cat"))
    assert int((weights > 0).sum()) == count * (count + 1) // 2


def test_views_and_dropout_of_a_contrastive_loss(tokens: TokenEmbeddings, texts: list[str]) -> None:
    model = build(tokens, TextRNNPooling(16, 6, dropout=0.2)).train()
    loss = SimCSELoss(model)
    value = loss([model.preprocess(texts[:6])])
    value.backward()
    assert value.isfinite() and model[0].embedding.weight.grad.any()  # type: ignore[union-attr]
    cut = ConSERTLoss(model, ("token-cutoff:0.5", "feature-cutoff:0.2"))([model.preprocess(texts[:6])])
    assert cut.isfinite() and cut != value
    with pytest.raises(ValueError, match=r"does nothing to .* TokenEmbeddings, which have no encoder to shuffle for"):
        ConSERTLoss(model, ("none", "token-shuffle"))


@pytest.mark.parametrize("kind", POOLINGS)
def test_a_model_without_a_transformer_learns_in_seconds(texts: list[str], kind: str) -> None:
    torch.manual_seed(0)
    model = build(TokenEmbeddings.from_texts(texts, 16), POOLINGS[kind]())
    pairs = sts_pairs(128)
    loss = CoSENTLoss(model.train())
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    values = []
    for _ in range(15):
        batch = [model.preprocess(pairs.first), model.preprocess(pairs.second)]
        value = loss(batch, torch.tensor(pairs.scores) / 5)
        value.backward()
        optimizer.step()
        optimizer.zero_grad()
        values.append(value.item())
    assert values[-1] < values[0] - 0.5


def test_the_trainer_brings_the_best_checkpoint_back(
    tokens: TokenEmbeddings, texts: list[str], tmp_path: Path
) -> None:
    model = build(tokens, TextRCNNPooling(16, 10, 4))
    data = Dataset.from_dict({"a": texts[:24], "b": texts[24:48], "score": [index % 3 / 2 for index in range(24)]})
    arguments = SentenceTransformerTrainingArguments(
        str(tmp_path),
        max_steps=4,
        per_device_train_batch_size=8,
        learning_rate=0.05,
        eval_strategy="steps",
        eval_steps=2,
        save_steps=2,
        load_best_model_at_end=True,
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
    )
    run = SentenceTransformerTrainer(model, arguments, data, data, CoSENTLoss(model))
    run.train()
    best = run.state.best_model_checkpoint
    assert best is not None
    assert np.array_equal(st_plugins.load(best).encode(TEXTS), model.encode(TEXTS))
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == ["checkpoint-2", "checkpoint-4"]


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda t: TokenEmbeddings(t.tokenizer, 0), ValueError, "embedding_dimension must be at least 1, got 0"),
        (
            lambda t: TokenEmbeddings(t.tokenizer, 4, max_seq_length=0),
            ValueError,
            r"max_seq_length must be at least 1.*got 0",
        ),
        (lambda t: TokenEmbeddings("bert", 4), TypeError, "tokenizers library, or a fast one .*, got str"),
        (
            lambda t: TokenEmbeddings(t.tokenizer, 4, weights=torch.zeros(3, 4)),
            ValueError,
            r"weights must have shape \(\d+, 4\).*got \(3, 4\)",
        ),
        (
            lambda t: TokenEmbeddings(t.tokenizer, 16, weights=t.embedding.weight.detach().log()),
            ValueError,
            r"weights hold NaN or infinity, first in row 0 \(token '\[PAD\]'\)",
        ),
        (lambda t: TokenEmbeddings.from_texts("a dog", 4), TypeError, "texts must be a list of strings"),
        (lambda t: TokenEmbeddings.from_texts([" ", ""], 4), ValueError, "texts has no words"),
        (lambda t: t.preprocess(["a", ("b", "c")]), TypeError, "input 1 is a tuple; give the texts of a pair in two"),
    ],
)
def test_bad_input(tokens: TokenEmbeddings, make: Callable[[Any], Any], error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        make(tokens)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "tokenizer.json").write_text("{"), r"tokenizer\.json is damaged"),
        (lambda folder: (folder / "tokenizer.json").unlink(), r"tokenizer\.json is missing"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"short"), r"model\.safetensors is damaged"),
        (
            lambda folder: (folder / "config.json").write_text('{"embedding_dimension": 9, "special_tokens": {}}'),
            r"config\.json does not describe a TokenEmbeddings: embedding_dimension is 9, but",
        ),
    ],
)
def test_a_damaged_folder_is_named(
    tokens: TokenEmbeddings, tmp_path: Path, damage: Callable[[Path], Any], message: str
) -> None:
    tokens.save(str(tmp_path))
    damage(tmp_path)
    with pytest.raises(ValueError, match=message):
        TokenEmbeddings.load(str(tmp_path))


def test_the_given_tokenizer_is_left_alone(model: SentenceTransformer) -> None:
    given: Any = model.tokenizer
    raw: Tokenizer = Tokenizer.from_str(given.backend_tokenizer.to_str())
    raw.enable_truncation(2)
    tokens = TokenEmbeddings(raw, 4)
    assert tokens.special_tokens == {"pad_token": "[PAD]", "unk_token": "[UNK]"}
    assert tokens.preprocess(["the big dog"])["input_ids"].shape == (1, 3) and raw.truncation["max_length"] == 2
    assert TokenEmbeddings(given, 4).special_tokens.items() >= {"sep_token": "[SEP]", "mask_token": "[MASK]"}.items()
    assert TokenEmbeddings(given, 4).preprocess(["the zebra"])["input_ids"].tolist() == [
        given.convert_tokens_to_ids(["the", "[UNK]"])
    ]
