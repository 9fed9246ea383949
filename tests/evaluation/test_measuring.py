"""What is measured is what the user runs: the model's own similarity, length, prompts and routes, all recorded."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Dense, Normalize, Router

from st_plugins.data import Pairs, read_pairs
from st_plugins.evaluation import STSSuiteEvaluator, SuiteResult, compare
from st_plugins.evaluation.measuring.scoring import pair_similarities
from st_plugins.evaluation.measuring.ways import parse_routes, way_of_texts
from st_plugins.geometry import GeometryCallback
from st_plugins.training import train_consert

QUESTIONS = ("question", "answer")
GOLD = np.arange(18.0)


@pytest.fixture
def pairs(sentences: list[str]) -> Pairs:
    shared = [len(set(a.split()) & set(b.split())) for a, b in zip(sentences[:30], sentences[:29:-1], strict=True)]
    return Pairs("own", sentences[:30], sentences[:29:-1], np.array(shared, dtype=np.float64))


@pytest.fixture
def router(make_model: Callable[..., SentenceTransformer]) -> SentenceTransformer:
    """A query and a document encoder of different weights."""
    query, document = make_model("bert"), make_model("bert")
    with torch.no_grad():
        for parameter in query.parameters():
            parameter.add_(0.1)
    module = Router.for_query_document(query_modules=list(query), document_modules=list(document))
    return SentenceTransformer(modules=[module], device="cpu")


def evaluated(model: SentenceTransformer, pairs: Pairs, own: dict[str, Any] | None = None, **more: Any) -> SuiteResult:
    settings: dict[str, Any] = {"floor": False, "geometry": False, "bootstrap_samples": 0}
    return STSSuiteEvaluator([pairs], **(settings | more)).evaluate(model, "m", own=own)


def cosines(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    rows = np.arange(len(first))
    return pair_similarities(np.concatenate([first, second]), rows, rows + len(rows))


def check_scores(result: SuiteResult, expected: np.ndarray) -> None:
    np.testing.assert_allclose(result.tasks[0].similarities, expected, atol=1e-5)


# ---- similarity


@pytest.mark.parametrize("similarity", ["cosine", "dot", "euclidean", "manhattan"])
def test_the_models_own_similarity_is_used(model: SentenceTransformer, pairs: Pairs, similarity: str) -> None:
    model.similarity_fn_name = similarity  # type: ignore[assignment]
    evaluator = STSSuiteEvaluator([pairs], bootstrap_samples=5)
    metrics = evaluator(model)
    assert evaluator.primary_metric == f"avg_spearman_{similarity}" and evaluator.primary_metric in metrics
    result = evaluator.last_result
    assert result is not None and result.settings["similarity"] == similarity
    rows = np.arange(30)
    vectors = model.encode([*pairs.first, *pairs.second])
    check_scores(result, pair_similarities(vectors, rows, rows + 30, similarity))
    cosine = STSSuiteEvaluator([pairs], bootstrap_samples=5, similarity="cosine").evaluate(model)
    assert result.floor is not None and cosine.floor is not None
    assert result.floor.raw == cosine.floor.raw  # always by cosine
    assert cosine.settings["measured"]["similarity"] == {"used": "cosine", "own": similarity}


# ---- prompts


def test_prompts_of_the_model_and_of_the_caller(model: SentenceTransformer, pairs: Pairs) -> None:
    model.prompts = {"x": "the big dog ", "query": "", "document": ""}
    for more, prompt in (({"prompt": "a man is "}, "a man is "), ({"prompt_name": "x"}, "the big dog "), ({}, "")):
        result = evaluated(model, pairs, **more)
        check_scores(result, cosines(*(model.encode(side, prompt=prompt) for side in (pairs.first, pairs.second))))
        assert result.settings["measured"]["prompts"]["used"] == {"own": [prompt or None] * 2}
        assert result.settings["measured"]["prompts"]["own"] == {"own": [None, None]}
    model.default_prompt_name = "x"
    check_scores(
        evaluated(model, pairs),
        cosines(*(model.encode(side, prompt="the big dog ") for side in (pairs.first, pairs.second))),
    )
    check_scores(  # an empty one leaves the default prompt out
        evaluated(model, pairs, prompt=""),
        cosines(*(model.encode(side, prompt="") for side in (pairs.first, pairs.second))),
    )
    with pytest.raises(ValueError, match=r"prompt_name='nope'.*'x'"):
        evaluated(model, pairs, prompt_name="nope")


def test_the_hosts_empty_prompts_are_no_prompts_of_the_models_own(model: SentenceTransformer, pairs: Pairs) -> None:
    model.prompts, model.default_prompt_name = {"query": "", "document": "", "x": "a man "}, "x"
    result = evaluated(model, pairs)
    assert result.settings["measured"]["prompts"]["used"] == {"own": ["a man ", "a man "]} and not result.warnings


@pytest.mark.parametrize("columns", [QUESTIONS, QUESTIONS[::-1], ("Query text", "passage_1"), ("queryText", "docId")])
def test_query_and_document_prompts_are_those_of_the_host(
    model: SentenceTransformer, pairs: Pairs, columns: tuple[str, str]
) -> None:
    model.prompts = {"query": "find : ", "passage": "the big "}
    result = evaluated(model, dataclasses.replace(pairs, columns=columns))
    encoders = [model.encode_query, model.encode_document]
    if columns == QUESTIONS[::-1]:
        encoders.reverse()
    check_scores(result, cosines(*(f(side) for f, side in zip(encoders, _sides(pairs), strict=True))))
    assert not result.warnings
    (warning,) = evaluated(model, pairs).warnings
    assert "'query' and 'document'" in warning and "--routes query,document" in warning


def _sides(pairs: Pairs) -> tuple[list[str], list[str]]:
    return pairs.first, pairs.second


# ---- routes


def test_questions_and_answers_take_their_routes(router: SentenceTransformer, pairs: Pairs) -> None:
    expected = cosines(router.encode_query(pairs.first), router.encode_document(pairs.second))
    by_columns = evaluated(router, dataclasses.replace(pairs, columns=QUESTIONS))
    check_scores(by_columns, expected)
    assert by_columns.settings["measured"]["routes"]["used"] == {"own": ["query", "document"]}
    check_scores(evaluated(router, pairs, routes="query,document"), expected)
    check_scores(evaluated(router, pairs, routes=["query"]), cosines(*map(router.encode_query, _sides(pairs))))
    plain = evaluated(router, pairs)
    check_scores(plain, cosines(*map(router.encode, _sides(pairs))))
    assert "the routes 'query', 'document'" in plain.warnings[0]
    chosen = evaluated(router, dataclasses.replace(pairs, columns=QUESTIONS), routes="default")
    check_scores(chosen, cosines(*map(router.encode, _sides(pairs))))
    assert not chosen.warnings


def test_a_text_on_both_sides_is_encoded_once_by_each_route(router: SentenceTransformer) -> None:
    pairs = Pairs("own", ["a man", "a dog"], ["a man", "a dog"], np.array([1.0, 2.0]), columns=QUESTIONS)
    seen: list[tuple[str, str]] = []
    encode = router.encode

    def spy(texts: list[str], **kwargs: Any) -> Any:
        seen.extend((text, kwargs["task"]) for text in texts)
        return encode(texts, **kwargs)

    router.encode = spy  # type: ignore[method-assign]
    result = evaluated(router, pairs, floor=True, geometry=True)
    assert sorted(seen) == sorted((text, task) for text in ("a man", "a dog") for task in ("query", "document"))
    assert result.geometry["rows"] == 4 and result.floor is not None


def test_routes_that_are_missing_are_named(router: SentenceTransformer, pairs: Pairs) -> None:
    with pytest.raises(ValueError, match=r"'nope'.*'query', 'document'"):
        evaluated(router, pairs, routes="nope,query")
    with pytest.raises(ValueError, match="one for each side"):
        parse_routes("a,b,c")
    router[0].default_route = None
    with pytest.raises(ValueError, match=r"no default route.*'query', 'document'"):
        evaluated(router, pairs)
    told = evaluated(router, pairs, routes="query,document").settings["measured"]["routes"]
    assert told == {"used": {"own": ["query", "document"]}, "own": {"own": ["query", "document"]}}
    named = Router(
        {"question": list(router[0].sub_modules["query"]), "answer": list(router[0].sub_modules["document"])}
    )
    other = SentenceTransformer(modules=[named], device="cpu")
    found = evaluated(other, dataclasses.replace(pairs, columns=QUESTIONS))
    assert found.settings["measured"]["routes"]["used"] == {"own": ["question", "answer"]}


def test_texts_alone_go_by_their_column(router: SentenceTransformer, model: SentenceTransformer) -> None:
    assert way_of_texts(router, "question")[0].arguments == {"task": "query"}
    way, warning = way_of_texts(router)
    assert way.arguments == {} and "'query', 'document'" in warning
    assert way_of_texts(router, route="document")[0].arguments == {"task": "document"}
    assert way_of_texts(model, "question", prompt="x: ")[0].arguments == {"prompt": "x: "}
    for route in ("", "query,document", "nope"):
        with pytest.raises(ValueError, match=f"route={route!r}"):
            way_of_texts(router, route=route)
    assert "--route query)" in warning
    router[0].default_route = None
    with pytest.raises(ValueError, match=r"give route \(--route\)"):
        way_of_texts(router)


def test_a_prompt_and_its_name_are_one_too_many(model: SentenceTransformer, pairs: Pairs) -> None:
    model.prompts = {"x": "a dog "}
    with pytest.raises(ValueError, match="prompt='a cat ' and prompt_name='x' are both given"):
        evaluated(model, pairs, prompt="a cat ", prompt_name="x")
    with pytest.raises(ValueError, match="both given"):
        way_of_texts(model, prompt="a cat ", prompt_name="x")
    for wrong, error in (("\ud83d", ValueError), (5, TypeError)):
        with pytest.raises(error, match="prompt"):
            evaluated(model, pairs, prompt=wrong)


def test_columns_of_a_file_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "own.tsv"
    path.write_text("question\tanswer\tscore\na\tb\t1\n", encoding="utf-8")
    assert read_pairs(path, *QUESTIONS).columns == QUESTIONS


# ---- texts that are one input


def test_texts_of_the_same_tokens_are_one_input(model: SentenceTransformer, sentences: list[str]) -> None:
    first = [sentences[0], *sentences[1:9]]
    second = [" ".join(sentences[0].split()) + " ", *(text.upper() for text in sentences[1:9])]
    if not getattr(model.tokenizer, "do_lower_case", True):
        second[1:] = [f" {text}" for text in sentences[1:9]]
    evaluator = STSSuiteEvaluator.from_pairs(first, second, list(range(9)), bootstrap_samples=0, batch_size=4)
    result = evaluator.evaluate(model)
    assert result.tasks[0].similarities == [1.0] * 9 and result.geometry["rows"] == 9
    assert any("all similarities are equal" in warning for warning in result.warnings)


def test_texts_of_the_same_tokens_are_one_input_behind_prompts_and_routes(
    model: SentenceTransformer, router: SentenceTransformer, sentences: list[str]
) -> None:
    cases: list[tuple[SentenceTransformer, dict[str, str]]] = [(model, {"prompt": "a man "})]
    cases += [(router, {}), (router, {"routes": "query,document"}), (router, {"routes": "query", "prompt": "a dog "})]
    for judged, settings in cases:
        pairs = Pairs("own", [*sentences[:9], *(f" {text} " for text in sentences[:9])], sentences[9:18] * 2, GOLD)
        seen: list[str] = []
        encode = judged.encode

        def spy(texts: list[str], encode: Any = encode, seen: list[str] = seen, **kwargs: Any) -> Any:
            seen.extend(texts)
            return encode(texts, **kwargs)

        judged.encode = spy  # type: ignore[method-assign]
        similarities = evaluated(judged, pairs, **settings).tasks[0].similarities
        judged.encode = encode  # type: ignore[method-assign]
        assert similarities is not None and similarities[:9] == similarities[9:]
        assert sorted(seen) == sorted(sentences[:18])


def test_a_model_collapsed_but_for_rounding_is_undefined(model: SentenceTransformer, pairs: Pairs) -> None:
    dense = Dense(16, 16, activation_function=torch.nn.Identity())
    with torch.no_grad():
        dense.linear.weight.mul_(1e-9)
        dense.linear.bias.fill_(1.0)
    for similarity in ("cosine", "dot", "euclidean"):
        result = evaluated(SentenceTransformer(modules=[*model, dense], device="cpu"), pairs, similarity=similarity)
        assert np.isnan(result.average["spearman_all"].value)
        assert any("collapsed" in warning for warning in result.warnings)


# ---- compare


def _cut(model: SentenceTransformer, length: int) -> SentenceTransformer:
    shorter = copy.deepcopy(model)
    shorter.max_seq_length = length
    return shorter


def test_one_model_measured_in_two_ways_is_refused(model: SentenceTransformer, pairs: Pairs) -> None:
    result = evaluated(model, pairs)
    assert compare(result, SuiteResult.from_json(result.to_json())).average.value == 0
    dot = evaluated(model, pairs, similarity="dot")
    prompted = evaluated(model, pairs, prompt="a man ")
    truncated = copy.deepcopy(model)
    truncated.truncate_dim = 4
    for other, name in (
        (evaluated(_cut(model, 5), pairs), "max_seq_length is 5 for 'm' and"),
        (dot, r"similarity is dot for 'm' \(the model's own is cosine\) and cosine for 'm'"),
        (prompted, "prompts is 'a man '"),
        (evaluated(truncated, pairs), "truncate_dim is 4"),
        (evaluated(model, pairs, target_whitening=0), "target_whitening is 0"),
    ):
        with pytest.raises(ValueError, match=f"measured differently.*{name}"):
            compare(SuiteResult.from_json(other.to_json()), result)
    assert compare(dot, evaluated(model, pairs, similarity="dot")).average.value == 0


def test_a_setting_changed_for_one_of_two_models_is_refused(
    model: SentenceTransformer, make_model: Callable[..., SentenceTransformer], pairs: Pairs
) -> None:
    other = make_model("roberta")
    shorter = evaluated(_cut(model, 5), pairs, own={"max_seq_length": model.max_seq_length})
    with pytest.raises(ValueError, match=r"max_seq_length is 5 .*own is \d+"):
        compare(shorter, evaluated(other, pairs))
    with pytest.raises(ValueError, match="similarity"):
        compare(evaluated(model, pairs, similarity="dot"), evaluated(other, pairs))


def test_two_models_may_each_be_measured_as_they_are_used(
    model: SentenceTransformer, make_model: Callable[..., SentenceTransformer], pairs: Pairs
) -> None:
    other = _cut(make_model("roberta"), 9)
    other.similarity_fn_name = "dot"
    other.prompts, other.default_prompt_name = {"x": "a man "}, "x"
    notes = compare(evaluated(model, pairs), evaluated(other, pairs)).notes
    assert [note.split()[0] for note in notes] == ["similarity", "max_seq_length", "prompts"]


def test_a_model_with_routes_and_one_without_are_compared_on_the_same_routes(
    model: SentenceTransformer, router: SentenceTransformer, pairs: Pairs
) -> None:
    model.prompts = {"query": "a man ", "document": ""}
    routed, plain = (evaluated(one, pairs, routes="query,document") for one in (router, model))
    assert plain.settings["measured"]["prompts"]["own"] == {"own": ["a man ", None]}
    for first, second in ((routed, plain), (plain, routed)):
        assert [note.split()[0] for note in compare(first, second).notes] == ["prompts"]
    with pytest.raises(ValueError, match="evaluate both with the same routes"):
        compare(routed, evaluated(model, pairs, routes="default"))


def test_a_precision_that_somebody_chose_is_not_compared_with_another(
    model: SentenceTransformer, pairs: Pairs
) -> None:
    half = evaluated(copy.deepcopy(model).to(torch.bfloat16), pairs, own={"dtype": "float32"})
    with pytest.raises(ValueError, match=r"dtype is float32 .*bfloat16 .*own is float32.*the same dtype"):
        compare(evaluated(model, pairs), half)


def test_half_precision_and_versions_are_noted(model: SentenceTransformer, pairs: Pairs) -> None:
    result = evaluated(model, pairs)
    half = evaluated(copy.deepcopy(model).to(torch.bfloat16), pairs)
    half.versions["torch"] = "0.1"
    notes = compare(result, half).notes
    assert notes[0] == "dtype is float32 for 'm' and bfloat16 for 'm'" and "torch" in notes[1]


def test_weights_that_no_embedding_passes_do_not_make_another_model(model: SentenceTransformer, pairs: Pairs) -> None:
    other = _cut(model, 5)
    pooler = other[0].auto_model.pooler.dense.weight
    with torch.no_grad():
        pooler.add_(torch.ones_like(pooler))
    with pytest.raises(ValueError, match="max_seq_length"):
        compare(evaluated(model, pairs), evaluated(other, pairs))


def test_a_result_without_the_record_is_refused(model: SentenceTransformer, pairs: Pairs) -> None:
    result = evaluated(model, pairs)
    old = dataclasses.replace(result, settings={k: v for k, v in result.settings.items() if k != "measured"})
    with pytest.raises(ValueError, match=r"'m' does not say how it was measured"):
        compare(result, old)


# ---- training


def test_training_chooses_by_the_models_similarity(
    model: SentenceTransformer, sentences: list[str], pairs: Pairs, tmp_path: Path
) -> None:
    model.similarity_fn_name = "dot"
    settings: dict[str, Any] = {"epochs": 1, "batch_size": 20, "eval_steps": 1, "device": "cpu"}
    result = train_consert(
        SentenceTransformer(modules=[*model, Normalize()], similarity_fn_name="dot", device="cpu"),
        sentences,
        tmp_path / "out",
        dev=pairs,
        learning_rate=1e-3,
        warmup=0.0,
        show_progress_bar=False,
        **settings,
    )
    assert result.after is not None and result.after.settings["similarity"] == "dot"
    scores = [entry["eval_avg_spearman_dot"] for entry in result.log if "eval_avg_spearman_dot" in entry]
    assert result.step == 1 + int(np.argmax(scores))
    assert "| dev |" in (tmp_path / "out" / "README.md").read_text(encoding="utf-8")


def test_the_dropout_probe_sees_the_default_prompt(model: SentenceTransformer, sentences: list[str]) -> None:
    model.prompts, model.default_prompt_name = {"x": "the big dog "}, "x"
    seen: list[str | None] = []
    preprocess = model.preprocess

    def spy(texts: list[str], prompt: str | None = None, **kwargs: Any) -> Any:
        seen.append(prompt)
        return preprocess(texts, prompt=prompt, **kwargs)

    model.preprocess = spy  # type: ignore[method-assign]
    GeometryCallback(sentences).measure(model)
    assert set(seen) == {"the big dog "}
