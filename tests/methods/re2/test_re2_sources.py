"""Where RE2's token vectors come from: files of word vectors, static models, learned subwords, transformers."""

from __future__ import annotations

import gzip
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import StaticEmbedding
from tokenizers import Tokenizer, models, pre_tokenizers

from st_plugins.matching import LearnedEmbedding, TransformerTokens, WordVectors
from st_plugins.methods.re2.config import RE2Schedule
from st_plugins.methods.re2.vectors import read_vectors

VECTORS = {"the": [1.0, 2.0], "dog": [3.0, 4.0], "n't": [5.0, 6.0], "runs": [-1.0, 0.5], "3.5": [7.0, 7.0]}


def write(folder: Path, text: str, name: str = "vectors.txt") -> Path:
    path = folder / name
    path.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
    return path


def glove(vectors: dict[str, list[float]] = VECTORS) -> str:
    return "".join(f"{word} {' '.join(map(str, values))}\n" for word, values in vectors.items())


@pytest.mark.parametrize("header", ["", f"{len(VECTORS)} 2\n"], ids=["glove", "word2vec"])
@pytest.mark.parametrize("name", ["vectors.txt", "vectors.txt.gz"])
def test_both_formats_are_read_plain_and_compressed(tmp_path: Path, header: str, name: str) -> None:
    words, found = read_vectors(write(tmp_path, header + glove(), name))
    assert words == list(VECTORS)
    assert found.dtype == np.float32 and found.tolist() == list(VECTORS.values())
    words, found = read_vectors(tmp_path / name, {"dog", "3.5", "unicorn"})
    assert words == ["dog", "3.5"] and found.tolist() == [[3.0, 4.0], [7.0, 7.0]]


def test_only_wanted_rows_are_kept_and_parsed(tmp_path: Path) -> None:
    path = write(tmp_path, "dog 1 2\nbroken x y\ncat 3 4\n")
    assert read_vectors(path, {"cat"})[1].tolist() == [[3.0, 4.0]]


def test_words_may_contain_spaces_and_strange_line_ends(tmp_path: Path) -> None:
    path = write(tmp_path, "dog 1 2\r\n. . . 3 4\r\nat name@domain.com 5 6\nli\x85ne\u2028 7 8\n\n")
    assert read_vectors(path)[0] == ["dog", ". . .", "at name@domain.com", "li\x85ne\u2028"]


def test_the_lower_case_form_wins_then_the_first(tmp_path: Path) -> None:
    path = write(tmp_path, "Dog 1 1\nCAT 2 2\ndog 3 3\nCat 4 4\nDOG 5 5\ndog 6 6\n")
    words, found = read_vectors(path, None, str.lower)
    assert dict(zip(words, found.tolist(), strict=True)) == {"dog": [3.0, 3.0], "cat": [2.0, 2.0]}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"vectors.txt is empty"),
        ("\n", r"vectors.txt is empty"),
        ("dog 1 2\ncat 3\n", r"vectors.txt, line 2: expected a word and 2 numbers, got 'cat 3'"),
        ("dog 1 2\ncat 3 4 5\n", r"vectors.txt, line 2: expected 2 numbers, as line 1 says, got more: 'cat 3 4 5'"),
        ("dog 1 2\ncat 3 four\n", r"vectors.txt, line 2: .*'four'; expected numbers after the word"),
        ("dog 1 2\ncat 3 nan\n", r"vectors.txt, line 2: the vector holds NaN or infinity"),
        ("dog 1 2\ncat 3 1e99\n", r"vectors.txt, line 2: the vector holds NaN or infinity"),
        ("just a text\nof two lines\n", r"vectors.txt, line 1: could not convert.*'a'"),
        ("word\n", r"vectors.txt, line 1: expected a word and 1 numbers, got 'word'"),
        ("2 3\ndog 1 2\ncat 1 2\n", r"vectors.txt, line 2: expected a word and 3 numbers, got 'dog 1 2'"),
        ("2 2\ndog 1 2 3\ncat 1 2\n", r"vectors.txt, line 2: expected 2 numbers, as line 1 says, got more"),
        ("3 2\ndog 1 2\ncat 1 2\n", r"vectors.txt, line 3: the first line promises 3 words, but there are 2"),
    ],
)
def test_malformed_files_are_refused_by_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_vectors(write(tmp_path, text))


def test_missing_and_damaged_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"there is no vector file '.*nowhere.txt'"):
        WordVectors.from_file(tmp_path / "nowhere.txt")
    with pytest.raises(FileNotFoundError, match="there is no vector file"):
        read_vectors(tmp_path)
    whole = gzip.compress(glove().encode())
    (tmp_path / "cut.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"cut.gz is damaged"):
        read_vectors(tmp_path / "cut.gz")


def test_texts_are_split_as_the_paper_says(tmp_path: Path) -> None:
    source = WordVectors.from_file(write(tmp_path, glove()))
    text = "The DOG didn’t run 3.5 miles, e-mail U.S.A. 你好!"
    expected = ["The", "DOG", "did", "n’t", "run", "3.5", "miles", "e-mail", "U.S.A.", "你", "好"]
    assert source.pieces(text) == expected
    vectors, mask = source(source.tokenize([text]))
    known = {0: "the", 1: "dog", 3: "n't", 5: "3.5"}
    assert mask.all() and mask.shape == (1, 11)
    assert vectors[0].tolist() == [VECTORS[known[place]] if place in known else [0.0, 0.0] for place in range(11)]
    with_marks = WordVectors.from_file(tmp_path / "vectors.txt", lowercase=False, keep_punctuation=True)
    assert with_marks.pieces("The dog!?") == ["The", "dog", "!", "?"]
    assert not with_marks(with_marks.tokenize(["The"]))[0].any()  # the file has "the" only


def test_rows_are_those_of_the_texts_words(tmp_path: Path) -> None:
    texts = ["The dog runs.", "the dog", "A unicorn"]
    source = WordVectors.from_file(write(tmp_path, glove()), texts)
    assert source.embedding.weight.tolist() == [[0.0, 0.0], VECTORS["the"], VECTORS["dog"], VECTORS["runs"]]
    assert source.coverage == pytest.approx(5 / 7)
    assert source.embedding_dimension == 2
    often = WordVectors.from_file(tmp_path / "vectors.txt", texts, minimum_frequency=2)
    assert often.embedding.weight.tolist() == [[0.0, 0.0], VECTORS["the"], VECTORS["dog"]]
    with pytest.raises(ValueError, match="minimum_frequency must be at least 1, got 0"):
        WordVectors.from_file(tmp_path / "vectors.txt", texts, minimum_frequency=0)


def test_low_coverage_is_a_warning_with_the_figure(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write(tmp_path, glove())
    with caplog.at_level(logging.WARNING):
        WordVectors.from_file(path, ["the dog and a cat"])  # 2 of 5
    assert "Only 40.0 % of the tokens in texts have a vector in" in caplog.text
    caplog.clear()
    WordVectors.from_file(path, ["the dog and a"])
    assert not caplog.text
    with pytest.raises(ValueError, match="has a vector for none of the 2 words of texts"):
        WordVectors.from_file(path, ["guten Tag"])


def test_unknown_words_and_padding_are_zero_and_stay_zero(tmp_path: Path) -> None:
    source = WordVectors.from_file(write(tmp_path, glove({**VECTORS, "[UNK]": [9.0, 9.0]})), trainable=True)
    vectors, mask = source(source.tokenize(["dog", "the unicorn runs"]))
    assert mask.tolist() == [[True, False, False], [True, True, True]]
    assert not vectors[0, 1:].any() and not vectors[1, 1].any()
    vectors.sum().backward()
    gradient = source.embedding.weight.grad
    assert gradient is not None and not gradient[0].any() and gradient.any()


def test_word_vectors_are_frozen_by_default(tmp_path: Path) -> None:
    source = WordVectors.from_file(write(tmp_path, glove()))
    layer = torch.nn.Linear(2, 1)
    layer(source(source.tokenize(["the dog"]))[0]).sum().backward()
    assert source.embedding.weight.grad is None and not any(p.requires_grad for p in source.parameters())


def test_texts_are_cut_and_may_be_empty(tmp_path: Path) -> None:
    source = WordVectors.from_file(write(tmp_path, glove()))
    features = source.tokenize(["the dog runs", "", "!"], max_seq_length=2)
    assert features["input_ids"].shape == (3, 2) and features["attention_mask"].tolist() == [[1, 1], [0, 0], [0, 0]]
    vectors, mask = source(source.tokenize(["", " "]))
    assert vectors.shape == (2, 1, 2) and not mask.any()
    assert source.tokenize([])["input_ids"].shape == (0, 1)


def static_model(weights: torch.Tensor) -> SentenceTransformer:
    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0, "dog": 1, "runs": 2}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return SentenceTransformer(modules=[StaticEmbedding(tokenizer, embedding_weights=weights)], device="cpu")


def test_a_static_model_gives_its_vectors(caplog: pytest.LogCaptureFixture) -> None:
    weights = torch.tensor([[0.0, 0.0], [1.0, 2.0], [3.0, 4.0]])
    model = static_model(weights)
    for given in (model, model[0]):
        source = WordVectors.from_static(given, ["dog runs here", "dog"])
        vectors, mask = source(source.tokenize(["dog runs now", "runs"]))
        assert vectors[0].tolist() == [[1.0, 2.0], [3.0, 4.0], [0.0, 0.0]] and mask[1].tolist() == [True, False, False]
        assert source.coverage == 0.75 and not caplog.text
    # The mean over tokens is the sentence embedding of the host.
    torch.testing.assert_close(vectors[0].mean(dim=0), model.encode("dog runs now", convert_to_tensor=True).cpu())
    source.embedding.weight.data.zero_()
    assert model[0].embedding.weight[1].tolist() == [1.0, 2.0]  # copied


@pytest.mark.parametrize("dimensions", [3, None])
def test_word_embeddings_of_an_encoder_are_whitened_by_the_tokens_of_the_texts(
    model: SentenceTransformer, dimensions: int | None
) -> None:
    texts = ["the dog eats the apple", "a cat", "the house", "nobody sleeps here", "two cats eat"]
    before = model[0].model.get_input_embeddings().weight.detach().clone()
    source = WordVectors.from_encoder(model, texts, dimensions)
    # The oracle: every token of every text is a row, and the directions are those of a singular value decomposition.
    rows = np.concatenate([before[model.tokenizer(text, add_special_tokens=False)["input_ids"]] for text in texts])
    centered = rows.astype(np.float64) - rows.astype(np.float64).mean(axis=0)
    left, values, _ = np.linalg.svd(centered, full_matrices=False)
    kept = dimensions or int((values > 1e-4 * values[0]).sum())
    expected = left[:, :kept] * np.sqrt(len(rows))
    vectors, mask = source(source.tokenize(texts))
    found = vectors[mask].double().numpy()
    assert found.shape == expected.shape
    signs = np.sign((found * expected).sum(axis=0))
    assert found * signs == pytest.approx(expected, abs=1e-3)
    assert torch.equal(before, model[0].model.get_input_embeddings().weight) and not source.trainable


def test_an_encoder_whose_words_cannot_be_whitened_is_refused(model: SentenceTransformer) -> None:
    with pytest.raises(ValueError, match=r"differ in 1 directions, fewer than dimensions=64; give 1 at most"):
        WordVectors.from_encoder(model, ["the dog"])
    for texts in ([], ["the"]):
        with pytest.raises(ValueError, match=r"fewer than two different tokens"):
            WordVectors.from_encoder(model, texts, None)
    for dimensions in (0, 8.0, True, "8"):
        with pytest.raises(
            ValueError, match=rf"dimensions={dimensions!r} must be a whole number of at least 1, or None"
        ):
            WordVectors.from_encoder(model, ["the dog"], dimensions)
    for texts, got in (("the dog", "one string"), (None, "NoneType"), (7, "int")):
        with pytest.raises(TypeError, match=rf"texts must be a list of strings, got {got}"):
            WordVectors.from_encoder(model, texts)
    with pytest.raises(TypeError, match=r"must start with a Transformer .*got StaticEmbedding; use from_static"):
        WordVectors.from_encoder(static_model(torch.rand(3, 2)), ["dog"])


def test_unfit_models_and_weights_are_refused(model: SentenceTransformer) -> None:
    with pytest.raises(TypeError, match=r"model must be a StaticEmbedding.*got Transformer; use TransformerTokens"):
        WordVectors.from_static(model)
    with pytest.raises(ValueError, match=r"weights hold NaN or infinity, first in row 1 \(token 'dog'\)"):
        WordVectors.from_static(static_model(torch.tensor([[0.0], [float("nan")], [1.0]])))
    tokenizer = static_model(torch.zeros(3, 2))[0].tokenizer
    with pytest.raises(ValueError, match=r"weights must have shape \(3, 4\).*got \(2, 4\)"):
        WordVectors(tokenizer, torch.zeros(2, 4), trainable=False)
    with pytest.raises(ValueError, match=r"must have a tokenizer of transformers.*use WordVectors.from_static"):
        TransformerTokens(static_model(torch.zeros(3, 2)))
    with pytest.raises(ValueError, match="embedding_dimension must be at least 1, got 0"):
        LearnedEmbedding.from_tokenizer(tokenizer, 0)
    with pytest.raises(ValueError, match="texts has no words to learn subwords from"):
        LearnedEmbedding.from_texts(["", " "], 4)


def test_learned_subwords_take_new_words_apart(sentences: list[str]) -> None:
    source = LearnedEmbedding.from_texts(sentences, embedding_dimension=5, vocabulary_size=600)
    features = source.tokenize(["The man is playing", "nam"])
    assert features["attention_mask"].sum(dim=1).tolist() == [4, 4] and source.embedding_dimension == 5
    # No sentence has a word that starts so: the mark of the start and the letters, or the bytes, stay apart.
    assert source.tokenizer.encode("nam 你").tokens == ["Ġ", "n", "a", "m", "Ġ", "ä", "½", "ł"]
    assert source.pieces("The man") == ["The", "man"] and source.pieces("你") == ["你"] * 4
    vectors, mask = source(features)
    assert not vectors[~mask].any()
    vectors.sum().backward()
    assert source.embedding.weight.grad is not None and source.coverage is None
    again = LearnedEmbedding.from_texts(sentences, embedding_dimension=5, vocabulary_size=600)
    assert again.tokenizer.get_vocab() == source.tokenizer.get_vocab()
    assert source.embedding.weight[1:].detach().std() == pytest.approx(1, abs=0.15)


def test_subwords_of_a_given_tokenizer(model: SentenceTransformer) -> None:
    source = LearnedEmbedding.from_tokenizer(model.tokenizer, 4, trainable=False)
    assert source.pieces("a dog playing") == ["a", "dog", "playing"] and source.padding_id == 0
    assert len(source.embedding.weight) == len(model.tokenizer) and not source.embedding.weight.requires_grad
    model.tokenizer(["a dog"], padding="max_length", max_length=9)
    assert source.tokenize(["a"])["input_ids"].shape == (1, 1)


def test_transformer_tokens_are_those_of_the_model(model: SentenceTransformer) -> None:
    source = TransformerTokens(model).train()
    texts = ["a dog is playing", "the unicorn", ""]
    vectors, mask = source(source.tokenize(texts))
    assert source.embedding_dimension == 16 and not vectors.requires_grad and not source.encoder.training
    expected = model.encode(texts, output_value="token_embeddings", convert_to_tensor=True)
    for row, tokens in enumerate(expected):
        torch.testing.assert_close(vectors[row][mask[row]], tokens[1:-1].cpu(), rtol=1e-5, atol=1e-6)
    assert mask.sum(dim=1).tolist() == [4, 2, 0]
    assert source.pieces("the unicorn") == ["the", "[UNK]"]
    assert source.tokenize(texts, max_seq_length=2)["input_ids"].shape == (3, 4)
    assert source.tokenize(["a " * 90])["input_ids"].shape == (1, 32)  # what the model reads


def test_a_trained_transformer_gets_gradients(make_model: Callable[..., SentenceTransformer]) -> None:
    source = TransformerTokens(make_model("roberta").train(), trainable=True)
    assert source.encoder.training
    source(source.tokenize(["a dog"]))[0].sum().backward()
    assert any(parameter.grad is not None for parameter in source.parameters())
    frozen = TransformerTokens(make_model("bert"))
    assert not any(parameter.requires_grad for parameter in frozen.parameters())


def sources(folder: Path, model: SentenceTransformer) -> list[Any]:
    return [
        WordVectors.from_file(write(folder, glove()), ["the dog runs"], trainable=True),
        WordVectors.from_static(static_model(torch.rand(3, 2))),
        LearnedEmbedding.from_texts(["the dog runs"], 4, vocabulary_size=40),
        TransformerTokens(model),
    ]


def test_sources_survive_saving_bit_for_bit(tmp_path: Path, model: SentenceTransformer) -> None:
    for number, source in enumerate(sources(tmp_path, model)):
        folder = tmp_path / str(number)
        folder.mkdir()
        source.save(folder)
        again = type(source).load(folder)
        texts = ["the dog runs", "the unicorn"]
        for found, expected in zip(again(again.tokenize(texts)), source(source.tokenize(texts)), strict=True):
            assert torch.equal(found, expected)
        for name in ("embedding_dimension", "coverage", "trainable"):
            assert getattr(again, name) == getattr(source, name)
        assert again.pieces(texts[0]) == source.pieces(texts[0])
        assert {parameter.requires_grad for parameter in again.parameters()} == {source.trainable}


def test_damaged_folders_are_named(tmp_path: Path) -> None:
    source = WordVectors.from_file(write(tmp_path, glove()))

    def saved(name: str) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        source.save(folder)
        return folder

    with pytest.raises(
        FileNotFoundError, match=r"nowhere has no source.json; give a folder that WordVectors.save wrote"
    ):
        WordVectors.load(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"source.json is of a 'WordVectors', not of a LearnedEmbedding"):
        LearnedEmbedding.load(saved("other"))
    folder = saved("weights")
    (folder / "model.safetensors").write_bytes(b"nonsense")
    with pytest.raises(ValueError, match=r"model.safetensors is damaged"):
        WordVectors.load(folder)
    folder = saved("tokenizer")
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match=r"tokenizer.json is damaged"):
        WordVectors.load(folder)
    folder = saved("shape")
    save_file({"weights": torch.zeros(6, 9)}, folder / "model.safetensors")
    with pytest.raises(ValueError, match=r"vectors of shape \(6, 9\), but .*source.json says embedding_dimension 2"):
        WordVectors.load(folder)
    folder = saved("rows")
    save_file({"weights": torch.zeros(2, 2)}, folder / "model.safetensors")
    with pytest.raises(ValueError, match=r"weights must have shape \(6, 2\)"):
        WordVectors.load(folder)
    folder = saved("missing")
    (folder / "tokenizer.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"has no tokenizer.json"):
        WordVectors.load(folder)
    record = json.loads((tmp_path / "rows" / "source.json").read_text())
    assert record["type"] == "WordVectors" and record["library"].startswith("st-plugins ")


def test_what_is_said_of_the_authors_vocabulary_is_true() -> None:
    # Their src/utils/vocab.py keeps a word that has a vector, or occurs min_df = 5 times in all splits.
    said = " ".join(f"{WordVectors.__doc__} {WordVectors.from_file.__doc__}".split())
    assert "authors use" not in said and "The authors' code keeps every word that has a vector" in said
    assert "How often a word without a published vector must occur" in " ".join(str(RE2Schedule.__doc__).split())
