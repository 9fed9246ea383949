"""Explanations by word, by token and by sentence: the same sum, in larger pieces."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer

from st_plugins.explain import Explanation, PairExplanation, explain_pair, explain_text
from st_plugins.explain.inner.units import gather, unit_numbers
from st_plugins.explain.spans import Side, Token
from st_plugins.modules import SpanPooling

Make = Callable[..., SentenceTransformer]
A, B = "the man's playing. two dogs eating bread !", "a boy plays guitar"


def _parts(text: str, by: str) -> list[str]:
    numbers = unit_numbers(text, by)  # type: ignore[arg-type]
    assert len(numbers) == len(text)
    return ["".join(c for c, n in zip(text, numbers, strict=True) if n == k) for k in range(max(numbers) + 1)]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("don't stop, 3.5 or 1,000!", ["don't", "stop", ",", "3.5", "or", "1,000", "!"]),
        ("a well-known 'name'", ["a", "well", "-", "known", "'", "name", "'"]),
        ("狗在跑 ok", ["狗", "在", "跑", "ok"]),
        ("हिन्दी नमस्ते", ["हिन्दी", "नमस्ते"]),
        ("👩\u200d👧 x", ["👩\u200d", "👧", "x"]),
    ],
)
def test_words(text: str, words: list[str]) -> None:
    assert _parts(text, "word") == words


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ('"Hi." He left. 3.5 is a number', ['"Hi."', "He left.", "3.5 is a number"]),
        ("e.g. this\nand that", ["e.g. this", "and that"]),
        ("你好。世界！", ["你好。", "世界！"]),
        ("one ‖ two", ["one ‖", "two"]),
    ],
)
def test_sentences(text: str, sentences: list[str]) -> None:
    assert [part.strip() for part in _parts(text, "sentence")] == sentences


@pytest.mark.parametrize("kind", ["bert", "roberta", "t5", "gpt2", "xlnet"])
@pytest.mark.parametrize("by", ["word", "token", "sentence"])
def test_units_add_up(make_model: Make, kind: str, by: str) -> None:
    model = make_model(kind)
    for prompt in (None, "two boats "):
        found = explain_pair(model, A, B, prompt=prompt, by=by)  # type: ignore[arg-type]
        shown = found.gathered()
        assert found.by == by and shown.contributions.sum() == pytest.approx(found.similarity, abs=1e-5)
        for units, row in ((shown.first, shown.contributions.sum(1)), (shown.second, shown.contributions.sum(0))):
            tokens = found.first_saliency if units is shown.first else found.second_saliency
            for unit, value in zip(units, row, strict=True):
                assert value == pytest.approx(tokens[unit.first : unit.last + 1].sum(), abs=1e-9)
        if by != "token":
            kinds = [unit.kind for unit in shown.first]
            assert kinds.count("prompt") == (prompt is not None)
        for text in (found.to_html(), PairExplanation.from_json(found.to_json()).to_html()):
            assert f"Interaction, {by} by {by}" in text and f"Contribution, {by} by {by}" in text


def test_words_of_wordpieces(make_model: Make) -> None:
    found = explain_pair(make_model("bert"), A, B)
    assert found.by == "word" and found.unit == "token"
    words = [unit.text for unit in found.gathered().first]
    assert words == ["[CLS]", *("the man's playing . two dogs eating bread !".split()), "[SEP]"]
    sentences = [unit.text for unit in found.gathered("sentence").first]
    assert sentences == ["[CLS]", "the man's playing. two dogs eating bread !", "[SEP]"]  # no capital letter follows


def test_special_tokens_are_not_listed_but_counted(make_model: Make) -> None:
    found = explain_pair(make_model("bert"), A, B, top_k=500)
    kinds = {span.kind for pair in found.top_pairs for span in pair[:2]}
    assert kinds == {"text"} and "Pairs with special tokens are" in found.to_html()
    units = found.gathered()
    listed = sum(pair.contribution for pair in found.top_pairs)
    ordinary = units.contributions[1:-1, 1:-1].sum()
    assert listed == pytest.approx(ordinary) and units.contributions.sum() == pytest.approx(found.similarity, abs=1e-6)
    single = explain_text(make_model("bert"), A)
    assert {span.kind for span in single.top} == {"text"}
    assert sum(span.weight for span in single.gathered()) == pytest.approx(1.0)
    assert Explanation.from_json(single.to_json()).to_html() == single.to_html()


def test_spans_are_shown_as_spans_unless_asked_otherwise(make_model: Make) -> None:
    torch.manual_seed(0)
    model = SentenceTransformer(modules=[make_model("bert")[0], SpanPooling(16)], device="cpu")
    assert explain_pair(model, "a dog", "a cat").by == "span" and explain_text(model, "a dog").by == "span"
    found = explain_pair(model, A, B, by="word", max_spans=20)  # with a rest
    shown = found.gathered()
    assert shown.contributions.sum() == pytest.approx(found.similarity, abs=1e-5)
    assert shown.first[-1].kind == "rest" and "one rest" in found.to_html()
    for wrong in ("letter", "span"):
        with pytest.raises(ValueError, match=f"by='{wrong}'"):
            explain_pair(make_model("bert"), "a dog", "a cat", by=wrong)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match=f"by='{wrong}'"):
            explain_text(make_model("bert"), "a dog", by=wrong)  # type: ignore[arg-type]


def test_a_token_over_two_words_joins_them() -> None:
    tokens = (Token("a b", "a b", 0, 3, "text"), Token("c", "c", 3, 4, "text"), Token("d", "d", 5, 6, "text"))
    side = Side("a bc d", tokens, (), None, 3, 0)
    from st_plugins.explain.spans import Span

    spans = tuple(Span(t.text, t.start, t.end, k, k, 1 / 3, "text") for k, t in enumerate(tokens))
    units, table = gather(Side(side.text, tokens, spans, None, 3, 0), "word")
    assert [unit.text for unit in units] == ["a bc", "d"]
    np.testing.assert_array_equal(table, [[1, 1, 0], [0, 0, 1]])
