"""A search is ranked as the model ranks, and its explanation says of each text what explain_pair says."""

from __future__ import annotations

import copy
import io
import json
import math
import pickle
from collections.abc import Callable

import numpy as np
import pytest
import torch
from rich.console import Console
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Dense, Normalize, Router
from sentence_transformers.sentence_transformer.modules import Pooling, StaticEmbedding
from torch import nn

from st_plugins.explain import QueryExplanation, align, explain_pair, explain_query
from st_plugins.methods.self_explaining.span_pooling import SpanPooling
from st_plugins.modules import TokenEmbeddings

Make = Callable[..., SentenceTransformer]
QUERY = "a big dog is sleeping ."
TEXTS = [
    "the sad dog was sleeping , not running",
    "a man is playing guitar",
    "the big dog",
    "two small cats are eating bread in the park .",
    "a woman is reading a book at the house",
]


def _spans(bert: SentenceTransformer) -> SentenceTransformer:
    torch.manual_seed(0)
    return SentenceTransformer(modules=[bert[0], SpanPooling(16), Normalize()], device="cpu")


def _dense(bert: SentenceTransformer) -> SentenceTransformer:
    torch.manual_seed(0)
    affine = Dense(16, 8, activation_function=nn.Identity())
    return SentenceTransformer(modules=[bert[0], bert[1], affine, Normalize()], device="cpu")


def _static(_: SentenceTransformer) -> SentenceTransformer:
    tokens = TokenEmbeddings.from_texts([QUERY, *TEXTS], 8, minimum_frequency=1)
    return SentenceTransformer(modules=[StaticEmbedding(tokens.tokenizer, embedding_dim=8)], device="cpu")


KINDS: dict[str, Callable[[SentenceTransformer], SentenceTransformer]] = {
    "mean": lambda bert: bert,
    "spans": _spans,
    "dense": _dense,
    "static": _static,
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("by", ["word", "token", "sentence"])
@pytest.mark.parametrize("function", ["cosine", "dot"])
def test_each_text_is_explained_as_a_pair(make_model: Make, kind: str, by: str, function: str) -> None:
    model = KINDS[kind](make_model("bert"))
    model.similarity_fn_name = function
    found = explain_query(model, QUERY, TEXTS, len(TEXTS), by=by)
    for hit in found.hits:
        pair = explain_pair(model, QUERY, hit.text, by=by)
        table = pair.gathered(by)
        assert [word.text for word in found.words] == [word.text for word in table.first]
        assert hit.contributions == pytest.approx(table.contributions.sum(1), abs=1e-5)
        assert [word.text for word in hit.words] == [word.text for word in table.second]
        assert hit.word_contributions == pytest.approx(table.contributions.sum(0), abs=1e-5)
        assert hit.score == pytest.approx(pair.similarity, abs=1e-5)
        expected = align(model, QUERY, hit.text, by=by)
        assert hit.alignment.places == expected.places
        assert hit.alignment.similarities == pytest.approx(expected.similarities, abs=1e-5)


@pytest.mark.parametrize("top_k", [2, 5, 9])
@pytest.mark.parametrize("function", ["cosine", "dot", "euclidean", "manhattan"])
def test_the_order_is_that_of_the_models_similarity(make_model: Make, top_k: int, function: str) -> None:
    model = make_model("bert")
    model.similarity_fn_name = function
    found = explain_query(model, QUERY, iter(TEXTS), top_k, batch_size=2)
    scores = model.similarity(model.encode([QUERY]), model.encode(TEXTS))[0].tolist()
    order = sorted(range(len(TEXTS)), key=lambda row: -scores[row])[:top_k]
    assert [(hit.rank, hit.row) for hit in found.hits] == list(enumerate(order, 1))
    assert [hit.score for hit in found.hits] == pytest.approx([scores[row] for row in order], abs=1e-5)
    assert found.mean_score == pytest.approx(np.mean(scores), abs=1e-5) and found.count == len(TEXTS)
    assert bool(found.reason) == (function in ("euclidean", "manhattan")) == (found.average is None)


@pytest.mark.parametrize("kind", KINDS)
def test_everything_sums_to_scores(make_model: Make, kind: str) -> None:
    model = KINDS[kind](make_model("bert"))
    found = explain_query(model, QUERY, TEXTS, 3)
    for hit in found.hits:
        assert hit.contributions.sum() == pytest.approx(hit.score, abs=1e-5)
        assert hit.word_contributions.sum() == pytest.approx(hit.score, abs=1e-5)
        above = sum(word.difference for word in found.difference(hit.rank, None))
        assert above == pytest.approx(hit.score - found.mean_score, abs=1e-5)
    assert found.average.sum() == pytest.approx(found.mean_score, abs=1e-5)
    # Of all texts, also of those that are not shown:
    everything = explain_query(model, QUERY, TEXTS, 5)
    assert found.average == pytest.approx(np.mean([hit.contributions for hit in everything.hits], 0), abs=1e-5)
    one, other = found.hits[0], found.hits[2]
    words = found.difference(1, 3)
    assert sum(word.difference for word in words) == pytest.approx(one.score - other.score, abs=1e-5)
    assert [word.contribution for word in words] == one.contributions.tolist()
    assert [word.other for word in words] == other.contributions.tolist()
    assert [word.other_counterparts for word in words] == [other.counterparts(word) for word in found.words]


def test_the_words_that_decided_give_more_than_on_average(make_model: Make) -> None:
    found = explain_query(make_model("bert"), QUERY, TEXTS)
    for hit in found.hits:
        expected = sorted(
            (
                (average - own, word.text)
                for word, own, average in zip(found.words, hit.contributions, found.average, strict=True)
                if own > average and word.kind == "text"
            ),
        )
        assert [word.word.text for word in found.decided(hit.rank)] == [text for _, text in expected]
    assert "no word of the query, all give it less" in found.to_html() if not found.decided(5) else True
    alone = explain_query(make_model("bert"), QUERY, TEXTS[:1]).decided()  # against nothing
    assert alone and all(word.other == 0 for word in alone)
    dog = next(word for word in found.words if word.text == "dog")
    hit = next(hit for hit in found.hits if hit.row == 0)
    assert [word.text for word in hit.counterparts(dog)] == ["dog"]


def test_equal_texts_have_equal_scores_and_their_own_order(make_model: Make) -> None:
    texts = ["a cat", TEXTS[0], "a cat", TEXTS[1], TEXTS[0]]
    for top_k in (3, 9):
        found = explain_query(make_model("bert"), QUERY, texts, top_k, batch_size=1)
        rows = [hit.row for hit in found.hits]
        assert rows.index(1) + 1 == rows.index(4) and len(rows) == min(top_k, 5)
        assert all(hit.contributions.sum() == pytest.approx(hit.score, abs=1e-5) for hit in found.hits)
        same = {hit.row: hit.score for hit in found.hits}
        assert same[1] == same[4]
        assert found.average.sum() == pytest.approx(found.mean_score, abs=1e-5)  # each counts as often as it is there
    html = found.to_html()
    assert "from rank 3" in html or "from rank 2" in html
    same = explain_query(make_model("bert"), QUERY, ["a cat", "a cat"])
    assert "What separates" not in same.to_html() and same.decided() == ()
    assert all(word.difference == 0 for word in same.difference())


def test_prompts_are_those_of_encode_query_and_encode_document(make_model: Make) -> None:
    model = make_model("bert")
    model.prompts = {"query": "the man ", "passage": "a red book "}
    scores = model.similarity(model.encode_query([QUERY]), model.encode_document(TEXTS))[0].tolist()
    for given in (None, (None, None), ("the man ", None), ("the man ", "a red book ")):
        for top_k in (2, 9):
            found = explain_query(model, QUERY, TEXTS, top_k, prompt=given)
            assert [hit.score for hit in found.hits] == pytest.approx(sorted(scores, reverse=True)[:top_k], abs=1e-5)
            assert found.mean_score == pytest.approx(np.mean(scores), abs=1e-5)
    assert [word.kind for word in found.words].count("prompt") == 1
    for top_k in (2, 9):
        plain = explain_query(model, QUERY, TEXTS, top_k, prompt="")
        scores = model.similarity(model.encode([QUERY]), model.encode(TEXTS))[0].tolist()
        assert [hit.score for hit in plain.hits] == pytest.approx(sorted(scores, reverse=True)[:top_k], abs=1e-5)
    model.prompts, model.default_prompt_name = {"usual": "a sad cat "}, "usual"
    for top_k in (2, 9):
        usual = explain_query(model, QUERY, TEXTS, top_k)
        scores = model.similarity(model.encode([QUERY]), model.encode(TEXTS))[0].tolist()
        assert [hit.score for hit in usual.hits] == pytest.approx(sorted(scores, reverse=True)[:top_k], abs=1e-5)


def test_a_model_that_is_no_sum_has_scores_and_counterparts(make_model: Make) -> None:
    found = explain_query(make_model("bert", pooling_mode="cls"), QUERY, TEXTS, 2)
    assert "pools with 'cls'" in found.reason and found.average is None and not found.exact
    assert all(hit.contributions is None and hit.word_contributions is None for hit in found.hits)
    assert found.decided() == () and all(math.isnan(word.difference) for word in found.difference())
    html = found.to_html()
    assert "no contributions" in html and "What separates rank 1 from rank 2" in html and "nan" not in html.lower()
    assert ("dog → dog" in html or "sleeping → sleeping" in html) and "ecided" not in html
    assert "NaN" not in found.to_json_lines() + found.to_json()


def test_an_activation_is_said_to_be_a_choice(make_model: Make) -> None:
    bert = make_model("bert")
    model = SentenceTransformer(modules=[bert[0], bert[1], Dense(16, 8)], device="cpu")
    found = explain_query(model, QUERY, TEXTS)
    assert not found.exact and not found.reason and "Not exact" in found.to_html()
    assert found.hits[0].contributions.sum() == pytest.approx(found.hits[0].score, abs=1e-5)


@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_the_model_is_left_as_it_was(make_model: Make, kind: str) -> None:
    model = make_model(kind).train()
    if kind == "llama":
        model.tokenizer.padding_side = "left"
    found = explain_query(model, QUERY, TEXTS, 3, batch_size=2)
    assert model.training and torch.is_grad_enabled()
    pickle.dumps(model)
    copy.deepcopy(model)
    model.eval()
    scores = model.similarity(model.encode([QUERY]), model.encode(TEXTS))[0].tolist()
    assert [hit.score for hit in found.hits] == pytest.approx(sorted(scores, reverse=True)[:3], abs=1e-5)
    assert [hit.contributions.sum() for hit in found.hits] == pytest.approx(
        [hit.score for hit in found.hits], abs=1e-5
    )


def test_the_query_is_encoded_once_and_texts_once_or_as_they_are_shown(make_model: Make) -> None:
    model, seen = make_model("bert"), []
    handle = model[0].register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0]["input_ids"])))
    explain_query(model, QUERY, TEXTS, 5)
    assert seen == [1, 5]
    seen.clear()
    explain_query(model, QUERY, TEXTS, 2, batch_size=4)
    assert seen == [1, 4, 1, 2]
    handle.remove()


def test_half_precision(make_model: Make) -> None:
    full = explain_query(make_model("bert"), QUERY, TEXTS)
    half = explain_query(make_model("bert").bfloat16(), QUERY, TEXTS)
    scores = {hit.row: hit.score for hit in full.hits}
    for hit in half.hits:
        assert hit.score == pytest.approx(scores[hit.row], abs=0.02)
        assert hit.contributions.sum() == pytest.approx(hit.score, abs=0.02)


def test_what_was_cut_is_said(make_model: Make) -> None:
    model = make_model("bert")
    model.max_seq_length = 6
    found = explain_query(model, QUERY, TEXTS)
    cut = {hit.row: hit.unread for hit in found.hits}
    assert cut[2] == 0 and cut[0] == len("sleeping,notrunning") + 3 and found.unread > 0
    html = found.to_html()
    assert f"cut off the last {cut[0]} characters of the text of rank" in html and "of the query" in html


@pytest.mark.parametrize(
    ("query", "texts", "options", "error"),
    [
        (" ", TEXTS, {}, "query ' ' is empty"),
        ("\u200b", TEXTS, {}, "query .* has no tokens"),
        (QUERY, [*TEXTS[:3], " "], {}, r"texts\[3\] ' ' is empty"),
        (QUERY, [*TEXTS[:3], "\u200b", "\u200b"], {}, r"texts\[3\] .* has no tokens"),
        (QUERY, [*TEXTS[:3], 3], {}, r"texts\[3\] is a int"),
        (QUERY, [*TEXTS[:3], "\ud83d"], {}, r"texts\[3\] holds half"),
        (QUERY, "a dog", {}, "put it into a list"),
        (QUERY, [], {}, "texts is empty"),
        (("a", "b"), TEXTS, {}, "query must be a string, got tuple"),
        (QUERY, TEXTS, {"top_k": 0}, "top_k must be"),
        (QUERY, TEXTS, {"batch_size": 0}, "batch_size must be"),
        (QUERY, TEXTS, {"by": "span"}, "by='span' must be"),
        (QUERY, TEXTS, {"prompt": ("a",)}, "must be one prompt, or two"),
        (QUERY, TEXTS, {"prompt": (1, 2)}, "prompt must be a string"),
    ],
)
def test_bad_input_is_named(make_model: Make, query: str, texts: list[str], options: dict, error: str) -> None:
    with pytest.raises((ValueError, TypeError), match=error):
        explain_query(make_model("bert"), query, texts, **options)


@pytest.mark.parametrize("top_k", [1, 9])
def test_nan_names_the_text_and_routers_are_refused(make_model: Make, top_k: int) -> None:
    model = make_model("bert")
    with torch.no_grad():
        model[0].auto_model.embeddings.word_embeddings.weight[model.tokenizer.vocab["guitar"]] = math.nan
    with pytest.raises(ValueError, match=r"NaN or infinity for (tokens of the )?texts\[1\]"):
        explain_query(model, QUERY, TEXTS, top_k)
    with pytest.raises(ValueError, match=r"NaN or infinity for (tokens of )?the query"):
        explain_query(model, "a guitar", TEXTS, top_k)
    tail = _dense(make_model("bert"))
    with torch.no_grad():
        tail[2].linear.bias.fill_(math.nan)
    with pytest.raises(ValueError, match="NaN or infinity for the query 'a big dog"):
        explain_query(tail, QUERY, TEXTS, top_k)
    routed = SentenceTransformer(modules=[Router.for_query_document([model[0]], [model[0]]), model[1]], device="cpu")
    with pytest.raises(ValueError, match=r"starts with a Router.*sub_modules\['query'\]"):
        explain_query(routed, QUERY, TEXTS, top_k)
    headless = SentenceTransformer(modules=[TokenEmbeddings.from_texts(TEXTS, 8), Pooling(8, "max")], device="cpu")
    assert explain_query(headless, QUERY, TEXTS, top_k).reason


def test_ranks_that_are_not_there(make_model: Make) -> None:
    found = explain_query(make_model("bert"), QUERY, TEXTS[:1])
    for rank in (0, 2, 1.0, True):
        with pytest.raises(ValueError, match=r"rank .* from 1 to 1"):
            found.decided(rank)
    assert "What separates" not in found.to_html()


def test_json_and_json_lines(make_model: Make) -> None:
    found = explain_query(make_model("bert"), QUERY, [*TEXTS, "<b> & dog"], 3)
    again = QueryExplanation.from_json(found.to_json())
    assert again.to_json() == found.to_json() and again.to_html() == found.to_html()
    assert again.hits[0].alignment.links == found.hits[0].alignment.links
    assert [word.word for word in again.decided()] == [word.word for word in found.decided()]
    lines = [json.loads(line) for line in found.to_json_lines().splitlines()]
    assert [line["row"] for line in lines] == [hit.row for hit in found.hits]
    for line, hit in zip(lines, found.hits, strict=True):
        assert sum(word["contribution"] for word in line["words"]) == pytest.approx(line["score"], abs=1e-5)
        assert sum(word["contribution"] for word in line["text_words"]) == pytest.approx(line["score"], abs=1e-5)
        assert [len(word["counterparts"]) for word in line["words"]] == [len(hit.counterparts(w)) for w in found.words]
        assert (line["query"], line["text"]) == (QUERY, hit.text)


def test_pages_escape_and_terminals_are_not_steered(make_model: Make) -> None:
    texts = ["a <script> dog & cat \x1b[31m", "<b>a big dog</b>", *TEXTS]
    found = explain_query(make_model("bert"), "a <i>dog \x1b", texts, 7)
    html = found.to_html()
    for raw in ("<script>", "<b>", "<i>dog", "\x1b"):
        assert raw not in html
    assert "&lt;script&gt;" in html and "&lt;i&gt;" in html and "<dt>Model</dt>" in html and "How to read this" in html
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(found.to_terminal())
    said = console.export_text()
    assert "What separates rank 1 from rank 2" in said and r"\x1b" in said and "\x1b" not in said


def test_long_lists_are_folded(make_model: Make) -> None:
    texts = [f"a {'big ' * k}dog" for k in range(45)]
    found = explain_query(make_model("bert"), "the dog " * 9, texts, 45)
    html = found.to_html()
    assert html.count("<details>") == 35 and "5 more stand below" in html and "more</th>" in html
