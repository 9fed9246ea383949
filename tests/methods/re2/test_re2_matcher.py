"""RE2 as a pair model: against the bare network pair by pair, and against the host's cross-encoders."""

from __future__ import annotations

import json
import logging
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from scipy.stats import pearsonr
from sentence_transformers import CrossEncoder, SentenceTransformer
from sentence_transformers.cross_encoder.evaluation import (
    CrossEncoderClassificationEvaluator,
    CrossEncoderCorrelationEvaluator,
    CrossEncoderRerankingEvaluator,
)
from torch import Tensor, nn

from st_plugins.matching import LearnedEmbedding, RE2Config, RE2Matcher, RE2Schedule, TransformerTokens, WordVectors
from st_plugins.methods.re2.alignment_explanation import AlignmentExplanation

MakeModel = Callable[..., SentenceTransformer]
CONFIG = RE2Config(blocks=2, encoder_layers=1, hidden_dimension=8, dropout=0.1)
NLI = ["contradiction", "neutral", "entailment"]
SOURCES = ("learned", "vectors", "transformer")


@pytest.fixture
def make_source(make_model: MakeModel, sentences: list[str], tmp_path: Path) -> Callable[..., Any]:
    """Return a factory of sources of token vectors by name."""

    def build(kind: str = "learned", trainable: bool | None = None) -> Any:
        if kind == "transformer":
            return TransformerTokens(make_model("bert"), bool(trainable))
        if kind == "learned":
            return LearnedEmbedding.from_tokenizer(make_model("bert").tokenizer, 12, trainable is not False)
        words = sorted({word for text in sentences for word in text.split()} - {"guitar", "."})
        path = tmp_path / "vectors.txt"
        path.write_text(
            "".join(f"{word} {i / 20} {i % 3 - 1} {-i / 7:.3f}\n" for i, word in enumerate(words)), "utf-8"
        )
        return WordVectors.from_file(path, trainable=bool(trainable))

    return build


@pytest.fixture
def matcher(make_source: Callable[..., Any]) -> RE2Matcher:
    return RE2Matcher(make_source(), CONFIG).eval()


def alone(matcher: RE2Matcher, pair: tuple[str, str]) -> Tensor:
    """Logits of one pair by the network itself, nothing padded, nothing kept."""
    with torch.no_grad():
        sides = []
        for text in pair:
            vectors, mask = matcher.source(matcher.source.tokenize([text]))
            sides += [vectors[mask][None], torch.ones(1, int(mask.sum()), dtype=torch.bool)]
        logits: Tensor = matcher.network(*sides)[0]
    return logits


@pytest.mark.parametrize("kind", SOURCES)
@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_predict_is_the_network_pair_by_pair(
    make_source: Callable[..., Any], sentences: list[str], kind: str, batch_size: int
) -> None:
    matcher = RE2Matcher(make_source(kind), CONFIG, NLI).eval()
    pairs = [*zip(sentences[:9], sentences[30:39], strict=True), ("a dog", sentences[0]), ("", "a dog"), ("a dog", "")]
    pairs += [("", ""), ("a", "a a a a the the the dog dog dog")]
    expected = torch.stack([alone(matcher, pair) for pair in pairs])
    assert expected.isfinite().all() and expected[:9].std(dim=0).min() > 1e-4
    np.testing.assert_allclose(matcher.predict(pairs, batch_size=batch_size), expected, atol=2e-5)
    probabilities = matcher.predict(pairs, batch_size=batch_size, apply_softmax=True)
    np.testing.assert_allclose(probabilities, expected.exp() / expected.exp().sum(1, keepdim=True), atol=2e-5)


def test_a_score_is_a_sigmoid_and_the_training_forward_is_the_same(matcher: RE2Matcher, sentences: list[str]) -> None:
    pairs = list(zip(sentences[:5], [*sentences[40:44], ""], strict=True))
    logits = [float(alone(matcher, pair)) for pair in pairs]
    np.testing.assert_allclose(matcher.predict(pairs), [1 / (1 + math.exp(-logit)) for logit in logits], atol=1e-6)
    np.testing.assert_allclose(matcher.predict(pairs, activation_fn=nn.Identity()), logits, atol=1e-5)
    columns = [matcher.source.tokenize([pair[side] for pair in pairs]) for side in (0, 1)]
    np.testing.assert_allclose(matcher(*columns).detach()[:, 0], logits, atol=1e-5)


def test_predict_has_the_manners_of_a_cross_encoder(
    make_source: Callable[..., Any], sentences: list[str], encoder_folder: Path
) -> None:
    pairs = [(sentences[0], sentences[1]), (sentences[2], sentences[3])]
    for labels in (None, NLI):
        ours: Any = RE2Matcher(make_source(), CONFIG, labels)
        theirs: Any = CrossEncoder(str(encoder_folder), num_labels=ours.num_labels, device="cpu")
        for inputs in (pairs, [list(pair) for pair in pairs], np.array(pairs), pairs[0], list(pairs[0]), pairs[:1]):
            for options in ({}, {"convert_to_tensor": True}, {"convert_to_numpy": False}, {"apply_softmax": True}):
                found, expected = ours.predict(inputs, **options), theirs.predict(inputs, **options)
                assert type(found) is type(expected), (inputs, options)
                assert np.shape(found) == np.shape(expected)
                assert getattr(found, "dtype", None) == getattr(expected, "dtype", None)
    assert ours.predict([]).shape == (0, 3)


def test_rank_sorts_the_scores_of_the_pairs(matcher: RE2Matcher, sentences: list[str]) -> None:
    documents = [*sentences[:12], "", sentences[3]]
    scores = matcher.predict([("a big dog", document) for document in documents])
    order = sorted(range(14), key=lambda row: -scores[row])
    for given in (documents, matcher.encode_texts(documents), matcher.encode_texts(documents, batch_size=1)):
        found = matcher.rank("a big dog", given, batch_size=5)
        np.testing.assert_allclose([entry["score"] for entry in found], scores[order], atol=1e-6)
        assert [entry["corpus_id"] for entry in found][:5] == order[:5]
    best = matcher.rank("a big dog", documents, top_k=2, return_documents=True)
    assert [entry["text"] for entry in best] == [documents[row] for row in order[:2]]
    assert matcher.rank("a dog", []) == []
    with pytest.raises(ValueError, match="rank needs a score, num_labels=1, but there are 3 classes; use predict"):
        RE2Matcher(matcher.source, CONFIG, NLI).rank("a dog", documents)


def test_equal_texts_have_equal_scores_and_keep_their_order(matcher: RE2Matcher, sentences: list[str]) -> None:
    longer = [f"{text} {text} {text}" for text in sentences[:20]]  # so that equal pairs would be padded differently
    documents = [sentences[3], *longer, sentences[3], *sentences[:20], sentences[3]]
    alike = [row for row, text in enumerate(documents) if text == sentences[3]]
    scored: list[int] = []  # equal pairs once: in batches of other lengths their scores could differ by a rounding
    matcher.network.prediction.register_forward_pre_hook(lambda module, inputs: scored.append(len(inputs[0])))
    for given in (documents, matcher.encode_texts(documents, batch_size=3)):
        found = matcher.rank("a big dog", given, batch_size=2)
        assert [entry["corpus_id"] for entry in found if entry["corpus_id"] in alike] == alike
        assert len({entry["score"] for entry in found if entry["corpus_id"] in alike}) == 1
    assert sum(scored) == 2 * 40
    scores = matcher.predict([("a big dog", text) for text in documents], batch_size=1)
    assert sum(scored) == 3 * 40
    assert len(set(scores[alike].tolist())) == 1 and len(set(scores.tolist())) == 40


def test_each_text_is_embedded_and_encoded_once(
    matcher: RE2Matcher, sentences: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    embedded: list[int] = []
    encoded: list[int] = []
    tokenize = matcher.source.tokenize
    monkeypatch.setattr(
        matcher.source, "tokenize", lambda texts, *rest: embedded.append(len(texts)) or tokenize(texts, *rest)
    )
    first: Any = matcher.network.blocks[0]
    first.encoder.register_forward_pre_hook(lambda module, inputs: encoded.append(len(inputs[0])))
    matcher.rank("a dog", sentences[:10], batch_size=2)
    assert sum(embedded) == sum(encoded) == 11
    documents = matcher.encode_texts(sentences[:10])
    assert sum(embedded) == sum(encoded) == 21
    assert all(text.vectors.untyped_storage().nbytes() == 4 * text.vectors.numel() for text in documents)
    matcher.rank("a cat", documents)
    assert sum(embedded) == sum(encoded) == 22
    matcher.predict([("a dog", text) for text in sentences[:10]])
    assert sum(embedded) == sum(encoded) == 33


def test_predicting_leaves_modes_and_random_numbers_alone(matcher: RE2Matcher) -> None:
    matcher.train()
    modes = [module.training for module in matcher.modules()]
    state = torch.get_rng_state()
    assert np.array_equal(*[matcher.predict(("a dog", "a cat")) for _ in range(2)])
    matcher.rank("a dog", ["a cat"])
    matcher.explain(("a dog", "a cat"))
    assert torch.equal(torch.get_rng_state(), state) and [module.training for module in matcher.modules()] == modes
    with pytest.raises(ValueError, match="inputs must be pairs"):
        matcher.predict(["a dog"])
    assert [module.training for module in matcher.modules()] == modes


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(matcher: RE2Matcher, sentences: list[str], dtype: torch.dtype) -> None:
    pairs = [*zip(sentences[:5], sentences[30:35], strict=True), ("", "a dog")]
    expected = matcher.predict(pairs)
    found = matcher.to(dtype).predict(pairs)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=0.05)


@pytest.mark.parametrize("kind", SOURCES)
def test_an_explanation_is_what_the_network_computes(make_source: Callable[..., Any], kind: str) -> None:
    matcher = RE2Matcher(make_source(kind), CONFIG, NLI).eval()
    pair = ("the big dog is reading .", "a dog")
    found = matcher.explain(pair)
    assert isinstance(found, AlignmentExplanation) and (found.first, found.second) == pair and len(found.blocks) == 2
    words = ["the", "big", "dog", "is", "reading"]  # word vectors have no full stop
    assert [piece for piece in found.first_tokens if piece != "."][:4] == words[:4]
    maps: list[tuple[Tensor, Tensor]] = []
    sides = []
    for text in pair:
        vectors, mask = matcher.source(matcher.source.tokenize([text]))
        sides += [vectors[mask][None], torch.ones(1, int(mask.sum()), dtype=torch.bool)]
    matcher.network(*sides, maps=maps)
    for block, (for_a, for_b) in zip(found.blocks, maps, strict=True):
        assert (
            block.first_to_second.shape
            == (len(found.first_tokens), len(found.second_tokens))
            == block.second_to_first.T.shape
        )
        np.testing.assert_allclose(block.first_to_second, for_a[0].detach(), atol=1e-6)
        np.testing.assert_allclose(block.second_to_first, for_b[0].detach(), atol=1e-6)
        np.testing.assert_allclose(block.first_to_second.sum(1), 1.0, atol=1e-6)
    probabilities = matcher.predict(pair, apply_softmax=True)
    assert list(found.scores) == NLI
    np.testing.assert_allclose(list(found.scores.values()), probabilities, atol=1e-6)
    score = RE2Matcher(matcher.source, CONFIG).eval()
    assert score.explain(pair).scores == {"score": pytest.approx(float(score.predict(pair)), abs=1e-6)}


def test_an_explanation_of_what_was_read(matcher: RE2Matcher) -> None:
    short = RE2Matcher(matcher.source, RE2Config(blocks=1, hidden_dimension=4, max_seq_length=2))
    assert short.explain(("the big dog is reading", "a dog runs")).first_tokens == ("the", "big")
    for pair in (("", "a dog"), ("a dog", " ")):
        with pytest.raises(ValueError, match="has no token, there is nothing to explain; give at least one"):
            matcher.explain(pair)
    with pytest.raises(ValueError, match=r"explain takes one pair of texts, \(text, text\), got 2"):
        matcher.explain([("a", "b"), ("c", "d")])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="inputs must be pairs of texts"):
        matcher.explain("a dog")  # type: ignore[arg-type]


def test_the_hosts_evaluators_run_on_it(make_source: Callable[..., Any], sentences: list[str], tmp_path: Path) -> None:
    pairs = [list(pair) for pair in zip(sentences[:20], sentences[30:50], strict=True)]
    classes: Any = RE2Matcher(make_source(), CONFIG, NLI)
    truth = classes.predict(pairs).argmax(axis=1)
    labels = [int(label) if row < 15 else (int(label) + 1) % 3 for row, label in enumerate(truth)]
    evaluator: Any = CrossEncoderClassificationEvaluator(pairs, labels, name="dev", show_progress_bar=False)
    assert evaluator(classes, str(tmp_path))["dev_f1_micro"] == pytest.approx(0.75)
    score: Any = RE2Matcher(make_source(), CONFIG)
    scores = score.predict(pairs)
    binary: Any = CrossEncoderClassificationEvaluator(pairs, (scores > np.median(scores)).astype(int).tolist())
    assert binary(score)["average_precision"] == pytest.approx(1.0)
    gold = np.linspace(0, 1, 20)
    correlation = CrossEncoderCorrelationEvaluator(pairs, gold.tolist(), name="dev")
    assert correlation(score)["dev_pearson"] == pytest.approx(pearsonr(gold, scores)[0], abs=1e-6)
    documents = sentences[:8]
    best = score.rank("a dog", documents, top_k=1, return_documents=True)[0]["text"]
    sample = {"query": "a dog", "positive": [best], "negative": [text for text in documents if text != best]}
    reranking = CrossEncoderRerankingEvaluator([sample], name="dev", at_k=3, show_progress_bar=False)
    assert reranking(score)["dev_mrr@3"] == 1.0


@pytest.mark.parametrize("kind", SOURCES)
def test_saved_and_loaded_it_is_the_same_to_the_bit(
    make_source: Callable[..., Any], sentences: list[str], tmp_path: Path, kind: str
) -> None:
    matcher = RE2Matcher(make_source(kind), "wikiqa", NLI if kind == "learned" else None).eval()
    pairs = list(zip(sentences[:6], [*sentences[20:25], ""], strict=True))
    matcher.save(tmp_path / "saved")
    again = RE2Matcher.load(tmp_path / "saved")
    assert not any(module.training for module in again.modules())
    assert (again.config, again.schedule, again.labels) == (matcher.config, matcher.schedule, matcher.labels)
    assert again.schedule == RE2Schedule.named("wikiqa") and type(again.source) is type(matcher.source)
    assert np.array_equal(again.predict(pairs), matcher.predict(pairs))
    again.save(tmp_path / "again")
    assert np.array_equal(RE2Matcher.load(tmp_path / "again").predict(pairs), matcher.predict(pairs))
    names = sorted(path.name for path in (tmp_path / "saved").iterdir())
    assert names == [".st-plugins.json", "README.md", "matcher.json", "matcher.safetensors", "source"]
    assert not [path for path in tmp_path.rglob("*") if path.suffix in (".bin", ".pt", ".pkl", ".py")]
    assert str(tmp_path) not in "".join(path.read_text("utf-8") for path in (tmp_path / "saved").rglob("*.json"))


def test_it_loads_in_a_new_process(matcher: RE2Matcher, tmp_path: Path) -> None:
    matcher.save(tmp_path / "saved")
    pairs = [("a dog is reading", "a cat"), ("", "a big book")]
    program = (
        "import sys, json; from st_plugins.matching import RE2Matcher\n"
        "print(json.dumps(RE2Matcher.load(sys.argv[1], 'cpu').predict(json.loads(sys.argv[2])).tolist()))"
    )
    arguments = [str(tmp_path / "saved"), json.dumps(pairs)]
    run = subprocess.run([sys.executable, "-c", program, *arguments], check=True, capture_output=True, text=True)
    assert json.loads(run.stdout) == matcher.predict(pairs).tolist()


def test_a_folder_is_replaced_on_demand_only(matcher: RE2Matcher, tmp_path: Path) -> None:
    matcher.save(tmp_path / "saved")
    with pytest.raises(FileExistsError, match="exists and is not empty"):
        matcher.save(tmp_path / "saved")
    nn.init.ones_(matcher.network.prediction.outer.bias)
    matcher.save(tmp_path / "saved", overwrite=True)
    assert RE2Matcher.load(tmp_path / "saved").network.prediction.outer.bias.item() == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["saved"]


def test_folders_that_are_damaged_foreign_or_incomplete(
    matcher: RE2Matcher, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "saved"
    matcher.save(folder)
    record, tensors = folder / "matcher.json", folder / "matcher.safetensors"
    text, data = record.read_text(), tensors.read_bytes()

    def fails(error: type[Exception], message: str) -> None:
        with pytest.raises(error, match=message):
            RE2Matcher.load(folder)
        record.write_text(text)
        tensors.write_bytes(data)

    def edited(**changes: Any) -> None:
        record.write_text(json.dumps({**json.loads(text), **changes}))

    record.write_text("{")
    fails(ValueError, "matcher.json is damaged")
    edited(type="RE3")
    fails(ValueError, "matcher.json is of a 'RE3', not of an RE2Matcher")
    edited(source="os.system")
    fails(ValueError, "matcher.json does not describe an RE2Matcher: KeyError")
    edited(config={"blocks": 0})
    fails(ValueError, "matcher.json does not describe an RE2Matcher.*blocks")
    edited(labels=["a", "a"])
    fails(ValueError, "matcher.json does not describe an RE2Matcher: labels must be")
    record.write_text(json.dumps({"type": "RE2Matcher"}))
    fails(ValueError, "matcher.json does not describe an RE2Matcher.*source")
    edited(labels=NLI)
    fails(ValueError, r"matcher.safetensors does not fit .*num_labels 3 has prediction.outer.bias of shape \(3,\)")
    tensors.write_bytes(data[:100])
    fails(ValueError, "matcher.safetensors is damaged")
    save_file({name: tensor for name, tensor in load_file(tensors).items() if "outer" not in name}, tensors)
    fails(ValueError, "(?s)matcher.safetensors does not fit.*outer")
    tensors.unlink()
    fails(FileNotFoundError, r"has no matcher.safetensors; give a folder that RE2Matcher.save wrote")
    edited(colour="red")
    RE2Matcher.load(folder)
    assert "Ignoring ['colour']" in caplog.text
    (folder / "source" / "source.json").write_text("[]")
    fails(ValueError, r"source.json")
    for path in (tmp_path, tmp_path / "none"):
        with pytest.raises(FileNotFoundError, match=r"has no matcher\.json; give a folder"):
            RE2Matcher.load(path)


def test_arguments_that_do_not_suit(matcher: RE2Matcher, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(
        ValueError, match=r"config must be 'snli', 'quora', 'scitail', 'wikiqa', 'small' or an RE2Config, got 'x'"
    ):
        RE2Matcher(matcher.source, "x")
    for labels in (["yes"], ["yes", "yes"], [0, 1], "yes", 3):
        with pytest.raises(ValueError, match="labels must be at least two different names, or None for a score; got"):
            RE2Matcher(matcher.source, CONFIG, labels)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="source must be LearnedEmbedding, TransformerTokens, WordVectors, got Linear"):
        RE2Matcher(nn.Linear(1, 1), CONFIG)
    with pytest.raises(ValueError, match="an RE2Matcher has no prompts, got 'query'; leave it out"):
        matcher.predict(("a", "b"), prompt_name="query")
    with pytest.raises(TypeError, match="texts must be a list of texts, got 'a dog'"):
        matcher.encode_texts("a dog")
    for call in (lambda: matcher.predict([], batch_size=0), lambda: matcher.rank("a", ["b"], batch_size=-1)):
        with pytest.raises(ValueError, match="batch_size must be at least 1, got"):
            call()
    wrong: list[Any] = [("a", "b", "c"), None, ("a", None), ("a", math.nan), {"a": "b"}, 3, (1, 2)]
    for inputs in (["a dog"], "a dog", ["a", "b", "c"], [("a", "b"), ("a",)], *([("a", "b"), item] for item in wrong)):
        with pytest.raises(ValueError, match=r"inputs must be pairs of texts, \(text, text\), but entry [01] is"):
            matcher.predict(inputs)
    for nothing in (None, {"a": "b"}, 3):
        with pytest.raises(ValueError, match=r"inputs must be pairs of texts, \(text, text\), got"):
            matcher.predict(nothing)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match=r"inputs must be pairs of texts, \(text, text\), got"):
            matcher.explain(nothing)  # type: ignore[arg-type]
        for method in (lambda given: matcher.rank("a", given), matcher.encode_texts):
            with pytest.raises(TypeError, match=r"(documents|texts) must be a list of texts, got"):
                method(nothing)
    for documents in (["a", None], [("a", "b")], ["a", math.nan]):
        with pytest.raises(TypeError, match=r"but entry [01] is a (NoneType|tuple|float)"):
            matcher.rank("a", documents)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="documents must be a list of texts, got 'a dog'; put it into a list"):
        matcher.rank("a", "a dog")
    for query in (None, ["a"], 3):
        with pytest.raises(TypeError, match=r"query must be a text, got a (NoneType|list|int)"):
            matcher.rank(query, ["a"])  # type: ignore[arg-type]
    for top_k in (0, -1):
        with pytest.raises(ValueError, match="top_k must be at least 1, or None for all, got"):
            matcher.rank("a", ["b", "c"], top_k=top_k)
    nn.init.constant_(matcher.network.prediction.outer.bias, math.nan)
    with pytest.raises(ValueError, match=r"the logits of pairs \[0, 2\] are NaN or infinite; check the weights"):
        matcher.predict([("a", "b"), ("a", "b"), ("a", "dog")])
    with pytest.raises(ValueError, match=r"the logits of pairs \[0, 1\] are NaN or infinite; check the weights"):
        matcher.predict([("a", "b"), ("a", "dog")])


def test_progress_follows_the_argument_and_the_level_of_logging(
    matcher: RE2Matcher, capsys: pytest.CaptureFixture[str]
) -> None:
    logger = logging.getLogger("st_plugins.core.pair_model")
    level = logger.level
    for asked, at, shown in ((None, logging.WARNING, False), (None, logging.INFO, True), (False, logging.INFO, False)):
        logger.setLevel(at)
        matcher.predict([("a", "b")], show_progress_bar=asked)
        assert ("Pairs" in capsys.readouterr().err) == shown
    logger.setLevel(level)
