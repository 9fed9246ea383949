"""What compress returns: the model, the choice, the certificate, and what it refuses."""

from __future__ import annotations

import base64
import json
import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.stats import spearmanr
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Dense, Normalize, Router
from sentence_transformers.sentence_transformer.modules import StaticEmbedding
from tokenizers import Tokenizer, models, pre_tokenizers

import st_plugins
from st_plugins.compression import Compressed, compress
from st_plugins.compression.choice.candidates import Candidate, Trial, of_size
from st_plugins.compression.choice.judge import PairJudge
from st_plugins.core.quantization import BITS
from st_plugins.data.pairs import Pairs
from st_plugins.data.retrieval import RetrievalData
from st_plugins.miniature import sts_pairs
from tests.compression.toys import TEXTS, WIDTH, encoder, raw_like, trained_like

ORDERED = ("rotation", "centered rotation", "soft whitening", "whitening", "shrunk whitening")
NEW = ["A boat is red.", "the dogs run fast", "Nobody sleeps here.", "a man eats"]


def unit(rows: Any) -> NDArray[np.float64]:
    rows = np.asarray(rows, dtype=np.float64)
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True))


@pytest.mark.parametrize("method", ORDERED)
def test_a_truncation_of_the_result_is_the_result_of_its_width(method: str) -> None:
    model = trained_like()
    wide = compress(model, TEXTS, 12, method=method).model
    narrow = compress(model, TEXTS, 5, method=method).model.encode(NEW)
    wide.truncate_dim = 5
    np.testing.assert_allclose(unit(wide.encode(NEW)), narrow, atol=2e-6)
    np.testing.assert_allclose(wide.encode(NEW, normalize_embeddings=True), narrow, atol=2e-6)


def test_a_rotation_is_the_svd_of_the_uncentered_rows_before_the_normalize() -> None:
    model = trained_like()
    small = compress(model, TEXTS, 6, method="rotation")
    kinds = [type(module) for module in small.model]
    assert kinds[-2:] == [Dense, Normalize]
    dense: Any = small.model[-2]
    assert dense.linear.bias is None and isinstance(dense.activation_function, torch.nn.Identity)
    head = SentenceTransformer(modules=[*model][:-1], device="cpu")
    different = list(dict.fromkeys(TEXTS))
    _, _, directions = np.linalg.svd(head.encode(different).astype(np.float64), full_matrices=False)
    expected = unit(head.encode(NEW) @ directions[:6].T)
    found = small.model.encode(NEW)
    np.testing.assert_allclose(np.abs(found), np.abs(expected), atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)
    assert len([*model]) == len(kinds) - 1  # the model that was given stays as it is
    centered: Any = compress(model, TEXTS, 6, method="centered rotation").model[-2]
    assert centered.linear.bias is not None


def test_truncation_keeps_the_first_numbers_and_all_of_them_are_the_model_itself() -> None:
    model = trained_like()
    small = compress(model, TEXTS, 6, method="truncation")
    np.testing.assert_allclose(small.model.encode(NEW), unit(model.encode(NEW)[:, :6]), atol=1e-6)
    same = compress(model, TEXTS, bytes=10**9)
    assert [*map(type, same.model)] == [*map(type, model)] and same.bytes == same.raw_bytes == 4 * WIDTH
    assert (same.model.encode(NEW) == model.encode(NEW)).all()
    assert (same.certificate.loss_bound, same.certificate.neighbors_bound) == (0, 1)


@pytest.mark.parametrize("normalized", [True, False])
@pytest.mark.parametrize("precision", ["float16", "int8", "int4", "int2", "binary"])
def test_what_is_stored_is_what_the_model_gives_also_where_lengths_differ(precision: str, normalized: bool) -> None:
    model = encoder(*([Normalize()] if normalized else []))
    small = compress(model, TEXTS, 8, precision=precision, method="whitening")
    vectors, codes = small.model.encode(NEW), small.encode(NEW)
    assert codes.nbytes == len(NEW) * small.bytes and small.bytes == 8 * BITS[precision] // 8
    read = small.quantization.vectors(codes)
    least = {"float16": 0.99999, "int8": 0.999, "int4": 0.97, "int2": 0.8, "binary": 0.6}[precision]
    cosines = (unit(read) * unit(vectors)).sum(axis=1)
    assert cosines.mean() > least, cosines
    if precision != "binary":
        np.testing.assert_allclose(np.linalg.norm(read), np.linalg.norm(vectors), rtol=0.3)


@pytest.mark.parametrize("size", [2, 8, 20])
def test_no_other_way_of_these_bytes_scores_better_on_held_out_texts(
    size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[Trial] = []

    def trial(*arguments: Any) -> Trial:
        tried.append(Trial(*arguments))
        return tried[0]

    monkeypatch.setattr(sys.modules["st_plugins.compression.compress"], "Trial", trial)
    small = compress(trained_like(), TEXTS, bytes=size)
    assert small.chosen.method in ("truncation", "rotation") and small.bytes <= size
    ways = of_size({"truncation": WIDTH, "rotation": WIDTH}, size, BITS)
    scores = {str(one): tried[0].score(one) for one in ways}
    assert scores[small.chosen.words] == min(scores.values()) < max(scores.values())


def test_the_smallest_that_keeps_the_promise_is_taken() -> None:
    model = trained_like()
    small = compress(model, TEXTS, max_loss=3.0)
    assert 0 < small.certificate.loss_bound <= 3.0
    strict = compress(model, TEXTS, max_loss=0.05)
    assert strict.bytes > small.bytes and strict.certificate.loss_bound <= 0.05
    for size in range(1, small.bytes):  # of the same ladder of dimensions nothing smaller keeps it
        try:
            less = compress(model, TEXTS, bytes=size, max_loss=3.0)
        except ValueError as error:
            assert "loses up to" in str(error)
        else:  # between the rungs
            assert less.chosen.dimension not in (16, 12, 8)
    with pytest.raises(ValueError, match=r"max_loss=0\.1 cannot be promised: .* loses up to \d"):
        compress(model, TEXTS, bytes=1, max_loss=0.1)


def test_size_dimension_and_precision_go_together() -> None:
    model = trained_like()
    assert (small := compress(model, TEXTS, 8)).quantization.precision == "float32" and small.bytes == 32
    both = compress(model, TEXTS, 8, bytes=4)
    assert both.chosen.dimension == 8 and both.bytes <= 4
    assert compress(model, TEXTS, bytes=4, precision="int8").chosen.words.endswith("4 x int8")
    assert compress(model, TEXTS, np.int64(8)).to_json()  # type: ignore[arg-type]
    sizes = [one.bytes for one in both.options]
    assert sizes == sorted(sizes, reverse=True) and sizes[0] == 4 * WIDTH
    losses = [one.certificate.loss for one in both.options]
    assert all(a <= b + 1e-9 for a, b in pairwise(losses))


def test_a_trained_shape_is_kept_and_a_raw_one_is_given_up() -> None:
    kept, changed = compress(trained_like(), TEXTS, bytes=8), compress(raw_like(), TEXTS, bytes=8)
    assert kept.chosen.method in ("truncation", "rotation") and "were changed" not in kept.summary()
    assert changed.chosen.method not in ("truncation", "rotation") and "were changed" in changed.summary()
    assert compress(raw_like(), TEXTS, bytes=8, method="rotation").chosen.method == "rotation"


def test_the_folder_is_plain_and_gives_the_same_vectors_and_bytes(tmp_path: Path) -> None:
    small = compress(trained_like(), TEXTS, bytes=5)
    small.save(tmp_path / "small")
    code = (
        "import sys, json, numpy\nfrom sentence_transformers import SentenceTransformer\n"
        "vectors = SentenceTransformer(sys.argv[1], device='cpu').encode(json.loads(sys.argv[2]))\n"
        "assert not [name for name in sys.modules if name.startswith('st_plugins')]\nnumpy.save(sys.argv[3], vectors)"
    )
    arguments = [str(tmp_path / "small"), json.dumps(NEW), str(tmp_path / "vectors.npy")]
    subprocess.run([sys.executable, "-c", code, *arguments], check=True, timeout=100)
    assert (np.load(tmp_path / "vectors.npy") == small.model.encode(NEW)).all()
    assert (st_plugins.load(tmp_path / "small").encode(NEW) == small.model.encode(NEW)).all()
    again = Compressed.load(tmp_path / "small", device="cpu")
    assert again.encode(NEW).tobytes() == small.encode(NEW).tobytes() and again.to_json() == small.to_json()
    assert again.summary() == small.summary() and again.to_markdown() == small.to_markdown()
    with pytest.raises(FileExistsError, match="overwrite"):
        small.save(tmp_path / "small")
    small.save(tmp_path / "small", overwrite=True)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("precious", encoding="utf-8")
    with pytest.raises(FileExistsError):
        small.save(tmp_path / "mine", overwrite=True)
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.txt"]


def test_the_picture_shows_numbers_from_zero_on() -> None:
    page = compress(raw_like(), TEXTS, bytes=8, show_progress_bar=False).to_html()
    encoded = re.search(r"data:image/svg\+xml;base64,([^\"]+)", page)
    assert encoded is not None
    labels = re.findall(r">([^<>]+)</text>", base64.b64decode(encoded.group(1)).decode())
    assert {"0", "0.1", "1", "8"} <= set(labels)
    assert not [label for label in labels if "$" in label or label.startswith("−")]  # no formulas, no gains


def test_a_damaged_record_is_named(tmp_path: Path) -> None:
    small = compress(trained_like(), TEXTS, bytes=5)
    small.save(tmp_path / "small")
    file = tmp_path / "small" / "compression.json"
    good = json.loads(file.read_text(encoding="utf-8"))
    for change in (
        {"chosen": None},
        {"chosen": {**good["chosen"], "certificate": 1}},
        {"chosen": {**good["chosen"], "more": 1}},
        {"options": 3},
        {"options": ["x"]},
        {"measured": [1]},
    ):
        file.write_text(json.dumps({**good, **change}), encoding="utf-8")
        with pytest.raises(ValueError, match=r"compression\.json is damaged"):
            Compressed.load(tmp_path / "small")
    for name in good.keys() - {"library", "versions"}:
        file.write_text(json.dumps({key: value for key, value in good.items() if key != name}), encoding="utf-8")
        with pytest.raises(ValueError, match=name):
            Compressed.load(tmp_path / "small")
    file.write_text("[]", encoding="utf-8")
    with pytest.raises(ValueError, match="JSON object"):
        Compressed.load(tmp_path / "small")
    file.unlink()
    with pytest.raises(FileNotFoundError, match=r"Compressed\.save writes it"):
        Compressed.load(tmp_path / "small")


def scored() -> Pairs:
    pairs = sts_pairs(150)
    return Pairs("own", pairs.first, pairs.second, pairs.scores)


def test_scored_pairs_choose_and_what_is_lost_on_them_is_a_paired_bootstrap() -> None:
    model, pairs = trained_like(), scored()
    small = compress(model, TEXTS, bytes=3, pairs=pairs)
    head = SentenceTransformer(modules=[*model][:-1], device="cpu")
    values = {}
    for method in ("truncation", "rotation"):
        for precision in BITS:
            try:
                one = compress(model, TEXTS, bytes=3, precision=precision, method=method)
            except ValueError:
                continue  # not one number of float32 fits
            sides = [one.quantization.vectors(one.encode(side)) for side in (pairs.first, pairs.second)]
            similarities = (unit(sides[0]) * unit(sides[1])).sum(axis=1)
            values[one.chosen.words] = spearmanr(pairs.scores, similarities).statistic
    assert values[small.chosen.words] == pytest.approx(max(values.values()), abs=1e-3)
    assert max(values.values()) > min(values.values()) + 0.02 and small.metric == "Spearman"

    vectors = [head.encode(side) for side in (pairs.first, pairs.second)]
    stored = [small.quantization.vectors(small.encode(side)) for side in (pairs.first, pairs.second)]
    old, new = ((unit(a) * unit(b)).sum(axis=1) for a, b in (vectors, stored))
    lost = spearmanr(pairs.scores, old).statistic - spearmanr(pairs.scores, new).statistic
    generator = np.random.default_rng(5)
    samples = []
    for _ in range(500):
        drawn = generator.integers(0, len(pairs), len(pairs))
        gold = pairs.scores[drawn]
        samples.append(spearmanr(gold, old[drawn]).statistic - spearmanr(gold, new[drawn]).statistic)
    assert small.measured is not None and small.measured.value == pytest.approx(lost, abs=1e-3)
    width = np.quantile(samples, 0.975) - np.quantile(samples, 0.025)
    assert small.measured.low == pytest.approx(np.quantile(samples, 0.025), abs=0.2 * width)
    assert small.measured.high == pytest.approx(np.quantile(samples, 0.975), abs=0.2 * width)
    assert "Measured on the labeled texts" in small.summary()


def test_a_retrieval_task_chooses_too() -> None:
    corpus = {f"d{row}": text for row, text in enumerate(TEXTS[:60])} | {"empty": ""}
    queries = {f"q{row}": text for row, text in enumerate(TEXTS[:60:6])}
    data = RetrievalData("own", corpus, queries, {f"q{row}": {f"d{6 * row}": 1} for row in range(10)})
    small = compress(trained_like(), TEXTS, bytes=4, retrieval=data)
    assert small.metric == "nDCG@10" and small.measured is not None
    with pytest.raises(ValueError, match="one of them has to choose"):
        compress(trained_like(), TEXTS, bytes=4, retrieval=data, pairs=scored())


def test_labels_that_cannot_choose_are_refused_before_anything_is_encoded(monkeypatch: pytest.MonkeyPatch) -> None:
    model = trained_like()
    monkeypatch.setattr(SentenceTransformer, "encode", lambda *_, **__: pytest.fail("encoded"))
    with pytest.raises(ValueError, match="all scores are 2, which says nothing"):
        compress(model, TEXTS, bytes=4, pairs=Pairs("own", ["a", "b"], ["c", "d"], np.array([2.0, 2.0])))
    for name in ("pairs", "retrieval"):
        with pytest.raises(TypeError, match=f"{name} must be "):
            compress(model, TEXTS, bytes=4, **{name: "file.tsv"})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="must be one of"):
        compress(model, TEXTS, bytes=4, precision="int3")


def test_an_undefined_score_is_the_lowest() -> None:
    judge = PairJudge(trained_like(), scored(), 32, None, None)
    assert judge.score(lambda vectors: np.ones_like(vectors)) == -1
    assert judge.score(lambda vectors: vectors) > 0.1


def routed() -> SentenceTransformer:
    query, document = ([*encoder()] for _ in range(2))
    for parameter in query[0].parameters():
        parameter.data.mul_(1.05)
    return SentenceTransformer(
        modules=[Router.for_query_document(query, document), Normalize()],
        device="cpu",
    )


def test_a_model_with_routes_needs_one_and_the_others_get_the_same_map() -> None:
    model = routed()
    with pytest.raises(ValueError, match="route is None, but the model has the routes 'document', 'query'"):
        compress(model, TEXTS, 6)
    small = compress(model, TEXTS, 6, route="document", method="rotation", pairs=scored())
    layer: Any = small.model[-2]
    weight = layer.linear.weight.detach().numpy()
    head = SentenceTransformer(modules=[*model][:-1], device="cpu")
    for encode, old in (
        (small.model.encode_query, head.encode_query),
        (small.model.encode_document, head.encode_document),
    ):
        np.testing.assert_allclose(encode(NEW), unit(old(NEW) @ weight.T), atol=1e-5)
    _, _, directions = np.linalg.svd(head.encode_document(list(dict.fromkeys(TEXTS))).astype(np.float64))
    np.testing.assert_allclose(np.abs(weight @ directions[:6].T), np.eye(6), atol=1e-3)


def test_pairs_are_encoded_by_the_routes_that_their_columns_name() -> None:
    model, pairs = routed(), scored()
    told = Pairs("own", pairs.first, pairs.second, pairs.scores, columns=("question", "answer"))
    judge = PairJudge(model, told, 32, None, None)
    np.testing.assert_allclose(judge.sides[0], model.encode_query(pairs.first), atol=1e-6)
    np.testing.assert_allclose(judge.sides[1], model.encode_document(pairs.second), atol=1e-6)
    judge = PairJudge(model, told, 32, None, "document")
    np.testing.assert_allclose(judge.sides[0], model.encode_document(pairs.first), atol=1e-6)


def static() -> SentenceTransformer:
    words = sorted({word for text in TEXTS for word in text.split()})
    tokenizer = Tokenizer(models.WordLevel({word: row for row, word in enumerate(["[UNK]", *words])}, "[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    torch.manual_seed(0)
    return SentenceTransformer(modules=[StaticEmbedding(tokenizer, embedding_dim=WIDTH)], device="cpu")


def dense(activation: torch.nn.Module) -> Dense:
    torch.manual_seed(0)
    return Dense(WIDTH, 12, activation_function=activation)


MODELS = {
    "static": static,
    "without Normalize": encoder,
    "Dense": lambda: encoder(dense(torch.nn.Identity())),
    "Dense with tanh": lambda: encoder(dense(torch.nn.Tanh()), Normalize()),
    "Dense after Normalize": lambda: encoder(Normalize(), dense(torch.nn.Identity())),
    "float16": lambda: trained_like().half(),
    "bfloat16": lambda: trained_like().bfloat16(),
}


@pytest.mark.parametrize("name", MODELS)
def test_models_of_all_kinds_come_back_from_disk(name: str, tmp_path: Path) -> None:
    model = MODELS[name]()
    small = compress(model, TEXTS, bytes=6)
    assert np.isfinite(small.certificate.loss) and small.bytes <= 6
    read = small.quantization.vectors(small.encode(TEXTS[:40]))
    assert (unit(read) * unit(small.model.encode(TEXTS[:40]))).sum(axis=1).mean() > 0.75
    small.save(tmp_path / "small")
    again = Compressed.load(tmp_path / "small", device="cpu")
    assert again.model.dtype == model.dtype
    assert again.encode(NEW).tobytes() == small.encode(NEW).tobytes()


def test_settings_of_the_model_stay_but_a_truncation_which_is_chosen_anew() -> None:
    model = trained_like()
    model.truncate_dim, model.similarity_fn_name = 7, "dot"
    model.prompts, model.default_prompt_name = {"query": "the ", "document": ""}, "query"
    small = compress(model, TEXTS, 12)
    assert small.model.truncate_dim is None and small.model.get_embedding_dimension() == 12
    assert small.model.similarity_fn_name == "dot" and small.model.default_prompt_name == "query"
    assert model.truncate_dim == 7
    unprompted = compress(model, TEXTS, 12, prompt="", method="rotation").model[-2]
    prompted = compress(model, TEXTS, 12, method="rotation").model[-2]
    assert not torch.equal(unprompted.linear.weight, prompted.linear.weight)  # type: ignore[union-attr, arg-type]


def test_each_different_text_counts_once() -> None:
    once, often = (compress(trained_like(), texts, bytes=5) for texts in (TEXTS, [*TEXTS, *TEXTS[:50] * 9]))
    assert once.to_json() == often.to_json() and once.texts == len({*TEXTS})


@pytest.mark.parametrize(
    ("texts", "told"),
    [
        (["a dog"] * 100, "all equal"),
        (["a dog"], "at least 2"),
        (["a dog", "a cat"] * 50, "too few, or too much alike"),
        (TEXTS[:30], "too few, or too much alike"),
        ([f"a dog{' ' * row}" for row in range(100)], "too few, or too much alike"),  # 100 texts, one vector
    ],
)
def test_texts_that_say_nothing_are_refused(texts: list[str], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        compress(trained_like(), texts, bytes=4)


def test_fewer_texts_than_dimensions_and_texts_of_one_word_do() -> None:
    words = sorted({word for text in TEXTS for word in text.split()})
    small = compress(trained_like(), words, bytes=4)
    assert small.recognized == {} and small.chosen.method in ("truncation", "rotation")
    from st_plugins.miniature import untrained_encoder

    wide = compress(untrained_encoder(128), list(dict.fromkeys(TEXTS))[:80], 100, method="rotation")
    assert wide.model.get_embedding_dimension() == 100
    with pytest.raises(ValueError, match="directions for whitening; give more texts"):
        compress(untrained_encoder(128), list(dict.fromkeys(TEXTS))[:80], 100, method="whitening")


def test_weights_that_are_not_finite_are_named() -> None:
    model = trained_like()
    next(iter(model.parameters())).data[:] = float("nan")
    with pytest.raises(ValueError, match="row 0 holds nan"):
        compress(model, TEXTS, bytes=4)


def test_what_is_no_list_of_texts_or_no_model_is_refused() -> None:
    with pytest.raises(TypeError, match="put it into a list"):
        compress(trained_like(), "texts", bytes=4)
    with pytest.raises(TypeError, match="must be a SentenceTransformer"):
        compress("model", TEXTS, bytes=4)  # type: ignore[arg-type]
    assert Candidate("rotation", 3, "int4").bytes == 2
