"""Counterparts are what the formula says, symmetric, and may be none; for every kind of encoder with token vectors."""

from __future__ import annotations

import copy
import dataclasses
import math
import pickle
from collections.abc import Callable

import numpy as np
import pytest
import rich.console
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Normalize, Router
from sentence_transformers.sentence_transformer.modules import Pooling, StaticEmbedding

from st_plugins.explain import Alignment, align, explain_pair
from st_plugins.explain.align import linked
from st_plugins.explain.inner.linking import NULL, SUPPORT, counterparts, evidence, inside_phrases, similarities
from st_plugins.explain.inner.seen import look, see
from st_plugins.explain.spans import Span
from st_plugins.methods.self_explaining.span_pooling import SpanPooling
from st_plugins.modules import LayerMix, TextRNNPooling, TokenEmbeddings
from tests.conftest import ENCODERS

Make = Callable[..., SentenceTransformer]
ONE, OTHER = "a big dog is sleeping in the park .", "the sad dog was sleeping , not running"


def _slow_similarity(first: list[list[list[float]]], second: list[list[list[float]]]) -> list[list[float]]:
    """The formula in loops: layers, words, dimensions."""
    table = [[0.0] * len(second[0]) for _ in first[0]]
    for one, other in zip(first, second, strict=True):
        words = [*one, *other]
        common = [sum(word[k] for word in words) / (len(words) + 4) for k in range(len(words[0]))]
        for i, x in enumerate(one):
            for j, y in enumerate(other):
                a = [p - q for p, q in zip(x, common, strict=True)]
                b = [p - q for p, q in zip(y, common, strict=True)]
                product = sum(p * q for p, q in zip(a, b, strict=True))
                table[i][j] += product / math.hypot(*a) / math.hypot(*b) / len(first)
    return table


def _slow_evidence(table: list[list[float]]) -> list[list[float]]:
    n, m = len(table), len(table[0])
    found = table
    for _ in range(3):

        def chosen(i: int, j: int, scores: list[list[float]] = found) -> float:
            if not (0 <= i < n and 0 <= j < m):
                return 0.0
            weight = math.exp((scores[i][j] - 0.2) / 0.1)
            row = weight / (1 + sum(math.exp((scores[i][k] - 0.2) / 0.1) for k in range(m)))
            column = weight / (1 + sum(math.exp((scores[k][j] - 0.2) / 0.1) for k in range(n)))
            return math.sqrt(row * column)

        found = [
            [table[i][j] + 0.15 * (chosen(i - 1, j - 1) + chosen(i + 1, j + 1)) for j in range(m)] for i in range(n)
        ]
    return found


def test_similarities_and_evidence_are_the_formulas() -> None:
    rng = np.random.default_rng(0)
    first, second = rng.normal(0.5, 1, size=(3, 5, 4)), rng.normal(0.5, 1, size=(3, 7, 4))
    table = similarities(first, second)
    assert table == pytest.approx(np.array(_slow_similarity(first.tolist(), second.tolist())), abs=1e-12)
    assert evidence(table) == pytest.approx(np.array(_slow_evidence(table.tolist())), abs=1e-12)
    assert (NULL, SUPPORT) == (0.2, 0.15)  # of which the slow ones know


def test_counterparts_are_each_others_best_or_none() -> None:
    scores = np.array([[0.9, 0.1, 0.2], [0.8, 0.15, 0.1], [0.0, 0.1, 0.25]])
    # The second word's best has a better one; 0.15 is the best of the second column, and not enough.
    assert counterparts(scores) == {(0, 0), (2, 2)}


def test_a_word_between_neighbors_belongs_to_their_phrase() -> None:
    similarity = np.full((3, 2), 0.1)
    similarity[1, 1] = 0.3
    links = {(0, 0), (2, 1)}
    assert inside_phrases(links, similarity) == {(1, 1)}
    assert inside_phrases({(j, i) for i, j in links}, similarity.T) == {(1, 1)}
    assert inside_phrases(links, -similarity) == set()  # nothing in common
    assert inside_phrases({(0, 1), (2, 0)}, similarity) == set()  # crossed
    assert inside_phrases({(0, 0), (2, 2)}, np.full((3, 3), 0.1)) == set()  # something stands between


@pytest.mark.parametrize("kind", ENCODERS)
def test_every_encoder_is_aligned_and_left_as_it_was(make_model: Make, kind: str) -> None:
    model = make_model(kind)
    switch, before = model[0].auto_model.config.output_hidden_states, model.encode(ONE)
    found = align(model, ONE, OTHER)
    assert found.layers == (1,) and found.similarities.shape == (9, 8)
    assert ("sleeping", "sleeping") in {(link.first.text, link.second.text) for link in found.links}
    assert model[0].auto_model.config.output_hidden_states == switch
    assert np.array_equal(model.encode(ONE), before) and "all_layer_embeddings" not in model[0](
        model.preprocess([ONE])
    )
    pickle.dumps(model)  # as a process pool does
    copy.deepcopy(model)


@pytest.mark.parametrize("kind", ["bert", "mpnet", "gpt2"])
def test_vectors_are_means_over_tokens_of_the_middle_layers(make_model: Make, kind: str) -> None:
    model = make_model(kind)
    texts = ["two dogs are running", "a dogs ."]
    vectors = []
    for text in texts:
        features = model.preprocess([text])
        states = model[0].auto_model(
            **{k: features[k] for k in ("input_ids", "attention_mask")}, output_hidden_states=True
        )
        state = states.hidden_states[1][0].detach().double().numpy()
        pieces = model.tokenizer.convert_ids_to_tokens(features["input_ids"][0])
        words: list[list[np.ndarray]] = []
        for piece, vector in zip(pieces, state, strict=True):
            if piece not in ("[CLS]", "[SEP]"):
                if piece.startswith("##"):
                    words[-1].append(vector)
                else:
                    words.append([vector])
        assert any(len(word) > 1 for word in words)
        vectors.append([[np.mean(word, 0).tolist() for word in words]])
    expected = np.array(_slow_similarity(*vectors))
    assert align(model, *texts).similarities == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("by", ["word", "token", "sentence"])
def test_swapping_the_texts_swaps_the_links(make_model: Make, by: str) -> None:
    model = make_model("bert")
    one, other = "A dog is running. The cat sleeping?", "Two dogs are running fast! A cat."
    there, back = align(model, one, other, by=by), align(model, other, one, by=by)
    assert there.similarities == pytest.approx(back.similarities.T, abs=1e-9)
    assert sorted(there.places) == sorted((i, j) for j, i in back.places)
    assert len(there.first) == {"word": 9, "token": 9, "sentence": 2}[by]


def test_identical_texts_are_linked_word_by_word(make_model: Make) -> None:
    found = align(make_model("bert"), ONE, ONE)
    assert list(found.places) == [(k, k) for k in range(len(found.first))]
    assert all(link.strength == pytest.approx(1, abs=1e-5) and link.kind == "counterpart" for link in found.links)
    assert found.without_counterpart == ((), ())


def test_one_word_against_one_word(make_model: Make) -> None:
    model = make_model("bert")
    assert align(model, "dog", "dog").places == ((0, 0),)
    assert align(model, "dog", "dog").similarities == pytest.approx(1)
    assert align(model, "dog", "guitar").similarities.shape == (1, 1)


def test_a_mark_corresponds_to_marks_only() -> None:
    word, mark = (Span(text, 0, 1, 0, 0, 1.0, "text") for text in ("on", "."))
    one, other = np.array([[[1.0, 0.0]]]), np.array([[[1.0, 0.1]]])
    found = linked(("on", "."), ([word], one, (0,)), ([mark], other, (0,)), "word")
    assert found.similarities[0, 0] > 0.9 and found.links == ()
    assert linked((".", "."), ([mark], one, (0,)), ([mark], other, (0,)), "word").places == ((0, 0),)
    assert linked(("on", "on"), ([word], one, (0,)), ([word], other, (0,)), "word").places == ((0, 0),)


def test_phrases_hang_together_and_words_alone_are_told(make_model: Make) -> None:
    found = align(make_model("bert"), ONE, OTHER)
    linked = [word for phrase in found.phrases for word in phrase.first]
    assert len(linked) == len(set(linked)) == len({link.first for link in found.links})
    assert {*linked, *found.without_counterpart[0]} == set(found.first)
    assert {*(w for p in found.phrases for w in p.second), *found.without_counterpart[1]} == set(found.second)


def test_other_poolings_and_static_models(make_model: Make) -> None:
    bert = make_model("bert")
    torch.manual_seed(0)
    tokens = TokenEmbeddings.from_texts([ONE, OTHER], 8, minimum_frequency=1)
    models = {
        "cls": SentenceTransformer(modules=[bert[0], Pooling(16, "cls")], device="cpu"),
        "spans": SentenceTransformer(modules=[bert[0], SpanPooling(16), Normalize()], device="cpu"),
        "mixed": SentenceTransformer(modules=[bert[0], LayerMix.after(bert[0]), Pooling(16)], device="cpu"),
        "static": SentenceTransformer(modules=[StaticEmbedding(tokens.tokenizer, embedding_dim=8)], device="cpu"),
        "tokens": SentenceTransformer(modules=[tokens, TextRNNPooling(8, 4)], device="cpu"),
    }
    for name, model in models.items():
        found = align(model, ONE, OTHER)
        assert [w.text for w in found.first] == ONE.split(), name
        assert ("sleeping", "sleeping") in {(link.first.text, link.second.text) for link in found.links}, name
        assert found.layers == ((0,) if name in ("static", "tokens") else (1,))


def test_layers_prompts_and_the_end_of_a_long_text(make_model: Make) -> None:
    model = make_model("bert")
    assert align(model, ONE, OTHER, layers=[2, 0]).layers == (0, 2)
    assert [w.text for w in align(model, ONE, OTHER, prompt="the cat ").first] == ONE.split()
    assert "cut off" not in align(model, ONE, OTHER).to_html()
    model.max_seq_length = 6
    found = align(model, ONE, OTHER)
    assert len(found.first) == 4 and ONE[-found.unread[0] :] == "sleeping in the park ."
    assert "cut off the last 22 characters of the first text" in Alignment.from_json(found.to_json()).to_html()


def test_a_batch_sees_what_each_text_shows_by_itself(make_model: Make) -> None:
    for kind in ("bert", "llama"):
        model = make_model(kind)
        if kind == "llama":  # BERT would count its positions from the padding
            model.tokenizer.padding_side = "left"
        together, alone = (
            see(model, [ONE, "dog", OTHER], layers=True),
            [see(model, [t], layers=True)[0] for t in (ONE, "dog", OTHER)],
        )
        for one, other in zip(together, alone, strict=True):
            assert one.reading.tokens == other.reading.tokens
            assert torch.allclose(one.layers, other.layers, atol=1e-5)
            assert one.features["token_embeddings"].shape == other.features["token_embeddings"].shape
            assert torch.allclose(one.features["token_embeddings"], other.features["token_embeddings"], atol=1e-5)
            assert torch.allclose(one.embedding, other.embedding, atol=1e-5)
            assert one.embedding.numpy() == pytest.approx(model.encode(one.reading.text), abs=1e-5)


def test_looking_at_texts_leaves_model_and_gradients_alone_between_batches(make_model: Make) -> None:
    model = make_model("bert").train()
    model.truncate_dim = 5
    rows = []
    for row, seen in look(model, ["dog", ONE, OTHER], batch_size=1):
        assert model.training and torch.is_grad_enabled() and len(seen.embedding) == 5
        rows.append(row)
    assert rows == [1, 2, 0]  # longest first
    with pytest.raises(ValueError, match=r"texts\[1\] ' ' is empty"):
        next(look(model, ["dog", " "], names=["texts[0]", "texts[1]"]))


def test_half_precision_and_nan(make_model: Make) -> None:
    model = make_model("bert")
    full = align(model, ONE, OTHER)
    half = align(model.bfloat16(), ONE, OTHER)
    assert half.similarities == pytest.approx(full.similarities, abs=0.05)
    broken = make_model("bert")
    with torch.no_grad():
        broken[0].auto_model.embeddings.word_embeddings.weight.fill_(math.nan)
    with pytest.raises(ValueError, match=r"NaN or infinity .* float32"):
        align(broken, ONE, OTHER)


def test_what_cannot_be_aligned_says_why(make_model: Make) -> None:
    model = make_model("bert")
    with pytest.raises(ValueError, match="by='chunk' must be"):
        align(model, ONE, OTHER, by="chunk")
    for layers in ([], [3], [-1], ["a"], 1, "a", [True], [1, "a"]):
        with pytest.raises(ValueError, match=r"layers=.* must be a list of .* from 0, the embedding layer, to 2"):
            align(model, ONE, OTHER, layers=layers)
    with pytest.raises(ValueError, match=r"first text ' ' is empty.* at least one word"):
        align(model, " ", OTHER)
    with pytest.raises(ValueError, match=r"second text '' is empty.* at least one word"):
        align(model, ONE, "")
    for explain in (align, explain_pair):
        with pytest.raises(TypeError, match="second must be a string, got a NoneType"):
            explain(model, ONE, None)
        with pytest.raises(TypeError, match="first must be a string, got a list"):
            explain(model, [ONE, OTHER], OTHER)
    routed = SentenceTransformer(modules=[Router.for_query_document([model[0]], [model[0]]), model[1]], device="cpu")
    with pytest.raises(ValueError, match=r"starts with a Router.*sub_modules\['query'\]"):
        align(routed, ONE, OTHER)


def test_texts_with_nothing_in_common_are_shown_too(make_model: Make) -> None:
    found = dataclasses.replace(align(make_model("bert"), "dog", "guitar"), links=())
    assert found.phrases == () and found.without_counterpart == (found.first, found.second)
    page, console = found.to_html(), rich.console.Console(record=True, width=80)
    console.print(found.to_terminal())
    assert "Without one in the first: dog." in page and "Without one in the first: dog." in console.export_text()


def test_json_and_pictures(make_model: Make) -> None:
    found = align(make_model("bert"), ONE, "dog <b> sleeping")
    again = Alignment.from_json(found.to_json())
    assert again.links == found.links and np.array_equal(again.similarities, found.similarities)
    assert again.phrases == found.phrases and again.layers == found.layers
    html = found.to_html()
    assert "&lt;" in html and "<b>" not in html and "no part of the sum" in html


def test_a_pair_explanation_brings_its_alignment(make_model: Make) -> None:
    model = make_model("bert")
    found = explain_pair(model, ONE, OTHER).alignment
    assert found.links == align(model, ONE, OTHER).links


def test_a_sentence_is_cut_out_of_an_alignment(make_model: Make) -> None:
    model = make_model("bert")
    one, other = "A dog runs. Two cats are sleeping.", "Two dogs. The cat is sleeping in the park."
    found, whole = align(model, one, other), align(model, one, other, by="sentence")
    part = found.within(whole.first[1], whole.second[1])
    assert part.texts == ("Two cats are sleeping.", "The cat is sleeping in the park.")
    assert [part.texts[0][w.start : w.end] for w in part.first] == ["Two", "cats", "are", "sleeping", "."]
    assert part.similarities.shape == (5, 8)
    inside = [link for link in found.links if link.first.start >= 12 and link.second.start >= 10]
    assert [(a.text, b.text) for a, b, *_ in part.links] == [(a.text, b.text) for a, b, *_ in inside] and part.links
    assert "Two" in part.strips() and "dog" not in part.strips()


def test_long_texts_are_shown_by_sentence_first(make_model: Make) -> None:
    model = make_model("bert")
    model.max_seq_length = 40  # as many as there are positions
    text = " ".join("The dog is <i>running</i>." for _ in range(20))
    short = explain_pair(model, "a dog", text).to_html()
    assert "Sentence by sentence" not in short
    static = SentenceTransformer(
        modules=[
            StaticEmbedding(TokenEmbeddings.from_texts([text], 8, minimum_frequency=1).tokenizer, embedding_dim=8)
        ],
        device="cpu",
    )
    page = explain_pair(static, "a dog runs.", text).to_html()
    assert page.index("Sentence by sentence") < page.index("Which words correspond")
    assert page.count("<details><summary>+") == 5 and "<i>" not in page and "20. The dog" in page
