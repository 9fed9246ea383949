"""One text: weights, saliency, and characters that can be found again."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling, StaticEmbedding, Transformer
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from st_plugins.explain import Explanation, explain_text
from st_plugins.explain.inner.reading import read
from st_plugins.methods.self_explaining.span_pooling import SpanPooling

Make = Callable[..., SentenceTransformer]
TEXT = "  The naïve man's café — 東京 is  fun 😀!\n"


@pytest.fixture
def span_model(make_model: Make) -> SentenceTransformer:
    torch.manual_seed(1)
    pooling = SpanPooling(16)
    with torch.no_grad():
        for parameter in pooling.parameters():
            parameter.copy_(torch.randn_like(parameter))
    return SentenceTransformer(modules=[make_model("bert")[0], pooling], device="cpu").eval()


def _byte_level() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=300, initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    tokenizer.train_from_iterator(["the man is in the park"], trainer)
    return tokenizer


def _metaspace() -> Tokenizer:
    tokenizer = Tokenizer(models.Unigram([("<unk>", 0.0), ("▁", -2.0), ("▁The", -1.0), ("man", -1.5)], unk_id=0))
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    return tokenizer


def _model(tokenizer: Tokenizer, folder: Path) -> SentenceTransformer:
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", model_max_length=64)
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    BertModel(BertConfig(vocab_size=len(fast), **shape)).save_pretrained(folder)
    fast.save_pretrained(folder)
    return SentenceTransformer(modules=[Transformer(str(folder)), Pooling(16)], device="cpu")


@pytest.mark.parametrize("kind", ["wordpiece", "byte-level", "metaspace", "static"])
@pytest.mark.parametrize("prompt", ["", "query: "])
def test_offsets_find_the_characters(make_model: Make, tmp_path: Path, kind: str, prompt: str) -> None:
    model = {
        "wordpiece": lambda: make_model("bert"),
        "byte-level": lambda: _model(_byte_level(), tmp_path),
        "metaspace": lambda: _model(_metaspace(), tmp_path),
        "static": lambda: SentenceTransformer(
            modules=[StaticEmbedding(make_model("bert").tokenizer, embedding_dim=4)], device="cpu"
        ),
    }[kind]()
    reading = read(model, TEXT, prompt)
    located = [token for token in reading.tokens if token.kind == "text"]
    words = [token for token in located if token.text.strip() and not token.text.startswith("▁")]
    assert words[0].start == TEXT.index("The") and words[-1].end == TEXT.index("!") + 1
    covered = set()
    for token in located:
        assert token.text in (TEXT[token.start : token.end], token.piece)
        covered.update(range(token.start, token.end))
    assert all(position in covered for position, letter in enumerate(TEXT) if not letter.isspace())
    explanation = explain_text(model, TEXT, 100, prompt=prompt)
    for span in explanation.spans:
        if span.kind == "text":
            assert span.text in (TEXT[span.start : span.end], reading.tokens[span.first].piece)
    assert any(token.kind == "prompt" for token in reading.tokens) == bool(prompt)


def test_spans_of_several_tokens_are_the_text_between(span_model: SentenceTransformer) -> None:
    text = "The  man is\nplaying guitar"
    explanation = explain_text(span_model, text, 1000)
    assert len(explanation.spans) == 15
    assert {span.text for span in explanation.spans} >= {"The  man", "man is\nplaying", text}
    for span in explanation.spans:
        assert text[span.start : span.end] == span.text


def test_saliency_spreads_the_weights_of_all_spans(span_model: SentenceTransformer) -> None:
    every = explain_text(span_model, "a big dog is sleeping", 1000)
    expected = np.zeros(len(every.side.tokens))
    for span in every.spans:
        for position in range(span.first, span.last + 1):
            expected[position] += span.weight / (span.last - span.first + 1)
    few = explain_text(span_model, "a big dog is sleeping", 3)
    for explanation in (every, few):
        assert explanation.saliency == pytest.approx(expected, abs=1e-6)
        assert explanation.saliency.sum() == pytest.approx(1.0, abs=1e-9)
        assert explanation.sharpness == pytest.approx(sum(span.weight**2 for span in every.spans), abs=1e-6)
    weights = [span.weight for span in every.spans]
    assert weights == sorted(weights, reverse=True) and sum(weights) == pytest.approx(1.0, abs=1e-5)
    assert few.spans == every.spans[:3] and few.side.total == 15
    assert expected[0] == expected[-1] == 0  # special tokens


@pytest.mark.parametrize("mode", ["mean", "weightedmean", "mean_sqrt_len_tokens"])
def test_weights_of_mean_poolings(make_model: Make, mode: str) -> None:
    explanation = explain_text(make_model("bert", pooling_mode=mode), "a big dog", 10)
    raw = [1.0] * 5 if mode != "weightedmean" else [1.0, 2.0, 3.0, 4.0, 5.0]
    assert explanation.saliency == pytest.approx(np.array(raw) / sum(raw), abs=1e-6)
    scale = 5**0.5 if mode == "mean_sqrt_len_tokens" else sum(raw)
    assert sorted(span.weight for span in explanation.spans) == pytest.approx([r / scale for r in raw], abs=1e-6)
    assert "pools by a mean" in explanation.to_html()


def test_json_round_trip(span_model: SentenceTransformer) -> None:
    explanation = explain_text(span_model, "a big dog <b>", 4, faithfulness=True)
    text = explanation.to_json()
    again = Explanation.from_json(text)
    assert again.to_json() == text and again.spans == explanation.spans
    assert again.to_html() == explanation.to_html()


def test_the_command_starts_without_the_package() -> None:
    heavy = "('torch', 'numpy', 'st_plugins.explain')"
    code = f"import sys, st_plugins.cli.explain; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_one_token(span_model: SentenceTransformer, make_model: Make) -> None:
    explanation = explain_text(span_model, "dog")
    assert [(span.text, span.weight) for span in explanation.spans] == [("dog", pytest.approx(1.0))]
    assert explanation.sharpness == pytest.approx(1.0)
    assert len(explain_text(make_model("bert"), "dog").spans) == 3


@pytest.mark.parametrize("text", ["", "   \n", "\u200b\u200b", "\x00"])
def test_a_text_of_nothing_is_refused(span_model: SentenceTransformer, make_model: Make, text: str) -> None:
    for model in (span_model, make_model("bert")):
        with pytest.raises(ValueError, match=r"is empty, there is nothing|no tokens but special ones"):
            explain_text(model, text)


def test_a_pooling_without_tokens_is_refused(make_model: Make) -> None:
    model = make_model("bert")
    model[1].include_prompt = False
    model.max_seq_length = 5
    with pytest.raises(ValueError, match=r"no tokens but special ones|only the prompt is left"):
        explain_text(model, "dog", prompt="a man is in a park ")


def test_a_text_that_is_cut_off_says_so(span_model: SentenceTransformer) -> None:
    text = "the dog is sleeping " * 40
    explanation = explain_text(span_model, text)
    read_to = max(token.end for token in explanation.side.tokens if token.end is not None)
    assert explanation.side.unread == len(text[read_to:].strip()) > 0
    assert f"cut off the last {explanation.side.unread:,} characters" in explanation.to_html()
    assert explain_text(span_model, "the dog").side.unread == 0
    assert explain_text(span_model, "the dog \u200b\u200b").side.unread == 0  # characters that no tokenizer keeps
    span_model.max_seq_length = 4  # exactly as long as the text
    assert explain_text(span_model, "the dog").side.unread == 0


def test_special_words_in_the_text_are_shown(make_model: Make) -> None:
    explanation = explain_text(make_model("bert"), "a [SEP] dog", 10)
    assert "[SEP]" in {span.text for span in explanation.spans if span.start == 2}


@pytest.mark.parametrize("top", [0, -1, 1.0, True])
def test_top_k_is_a_number_of_spans(make_model: Make, top: object) -> None:
    with pytest.raises(ValueError, match="top_k must be a whole number of at least 1"):
        explain_text(make_model("bert"), "a dog", top)


def test_models_that_do_not_read_plain_text(make_model: Make) -> None:
    class Other(Transformer):
        def preprocess(self, *args: object, **options: object) -> dict[str, object]:
            return {**super().preprocess(*args, **options), "modality": "message"}

    model = make_model("bert")
    model[0].__class__ = Other
    with pytest.raises(ValueError, match="'message' input"):
        explain_text(model, "a dog")
    with pytest.raises(ValueError, match="starts with a Pooling"):
        explain_text(SentenceTransformer(modules=[Pooling(16)], device="cpu"), "a dog")


@pytest.mark.parametrize("prompt", ["", "is: "])
def test_a_pair_read_as_one(span_model: SentenceTransformer, prompt: str) -> None:
    first, second = "A dog is here.", "  The man's café 😀"
    reading = read(span_model, (first, second), prompt)
    assert first in reading.text and reading.text.endswith(second)
    words = [token for token in reading.tokens if token.kind == "text"]
    assert all(reading.text[token.start : token.end] == token.text for token in words if token.piece != "[UNK]")
    place = reading.text.index("man")
    assert [token.start for token in words if token.text == "man"] == [place]
    pair = span_model.preprocess([(first, second)], prompt=prompt)
    assert reading.features["input_ids"].tolist() == pair["input_ids"].tolist()

    found = explain_text(span_model, (first, second), 1000, prompt=prompt)
    assert found.saliency.sum() == pytest.approx(1.0)
    separator = [token.kind for token in reading.tokens].index("special", 1)
    sides = [(span.first < separator, span.last < separator) for span in found.spans]
    assert set(sides) == {(True, True), (False, False)}  # spans in both texts, and none across
    assert "café" in found.to_html() and "‖" in found.to_html()
    assert Explanation.from_json(found.to_json()).text == reading.text


def test_a_cut_pair_says_what_was_cut_from_both(span_model: SentenceTransformer) -> None:
    span_model.max_seq_length = 7  # [CLS] a dog [SEP] a man [SEP]
    reading = read(span_model, ("a dog is", "a man was there"))
    words = [token.text for token in reading.tokens if token.kind == "text"]
    assert reading.unread == len("adogisamanwasthere") - sum(map(len, words)) + len("was there") - len("wasthere")


def test_impossible_pairs(make_model: Make, tmp_path: Path) -> None:
    model = make_model("bert")
    for pair in (("a dog", " "), ("", "a dog")):
        with pytest.raises(ValueError, match="is empty, there is nothing to explain"):
            read(model, pair)
    for wrong in (("a",), ("a", "b", "c"), ("a", 1)):
        with pytest.raises(TypeError, match="text must be a string, or two strings"):
            read(model, wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="no special token between"):
        read(_model(_byte_level(), tmp_path), ("a dog", "a man"))
    static = SentenceTransformer(modules=[StaticEmbedding(_byte_level(), embedding_dim=4)], device="cpu")
    with pytest.raises(ValueError, match="StaticEmbedding cannot read two texts"):
        read(static, ("a dog", "a man"))
