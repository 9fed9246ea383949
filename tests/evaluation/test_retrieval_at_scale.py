"""Retrieval in a corpus of parts, against a full sort in float64, and in files against the same vectors in memory."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer

from st_plugins.core.quantization import Quantization
from st_plugins.data import RetrievalData, read_retrieval
from st_plugins.evaluation import RetrievalEvaluator, read_result, score_retrieval
from st_plugins.evaluation.measuring import nearest
from st_plugins.evaluation.measuring.nearest import Search
from st_plugins.scale import Embeddings, Local, Ray, Texts, encode

pytest.importorskip("pyarrow")

from st_plugins.scale.inner.parts import WriteParts
from st_plugins.scale.texts import Block

Floats = NDArray[np.float32]
SIMILARITIES = ("cosine", "dot", "euclidean", "manhattan")


def sorted_in_full(similarity: str, queries: Floats, ids: NDArray[np.str_], documents: Floats, depth: int) -> Any:
    """Sort all documents of each query by similarity in float64 and by id."""
    found = []
    for query in queries.astype(np.float64):
        rows = documents.astype(np.float64)
        if similarity == "euclidean":
            values = -np.sqrt(((rows - query) ** 2).sum(axis=1))
        elif similarity == "manhattan":
            values = -np.abs(rows - query).sum(axis=1)
        else:
            values = (rows * query).sum(axis=1)
        if similarity == "cosine":
            norms = np.sqrt((query * query).sum()) * np.sqrt((rows * rows).sum(axis=1))
            values = np.round(np.divide(values, norms, out=np.zeros_like(values), where=norms > 0), 6)
        best = ids[np.lexsort((ids, -values))[:depth]].tolist()
        found.append(best + [""] * (depth - len(best)))
    return found


VECTORS: dict[str, Callable[[np.random.Generator, tuple[int, int]], NDArray[Any]]] = {
    "normal": lambda generator, shape: generator.normal(size=shape),
    "binary": lambda generator, shape: np.sign(generator.normal(size=shape)),
    # Similarities that float32 does not tell apart, and vectors of very different lengths.
    "close": lambda generator, shape: 5 + 1e-4 * generator.normal(size=shape),
    "long and short": lambda generator, shape: (
        generator.normal(size=shape) * 10.0 ** generator.integers(-6, 6, size=(shape[0], 1))
    ),
}


@pytest.mark.parametrize("kind", VECTORS)
@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_the_nearest_are_those_of_a_full_sort_whatever_the_parts(
    similarity: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for seed in range(12):
        generator = np.random.default_rng(seed)
        documents, width, depth = (int(generator.integers(*ends)) for ends in ((1, 300), (1, 40), (1, 50)))
        queries, corpus = (VECTORS[kind](generator, (size, width)).astype(np.float32) for size in (9, documents))
        corpus[generator.integers(documents, size=documents // 3)] = corpus[generator.integers(documents)]
        corpus[0], queries[0] = 0, 0
        ids = np.array([str(number) for number in generator.permutation(documents)])  # "10" comes before "9"
        expected = sorted_in_full(similarity, queries, ids, corpus, depth)
        monkeypatch.setattr(nearest, "_QUERIES", int(generator.integers(1, 10)))
        monkeypatch.setattr(nearest, "_DOCUMENTS", int(generator.integers(1, 100)))
        order = generator.permutation(documents)
        cuts = np.sort(generator.integers(0, documents + 1, size=4))  # empty parts among them
        parts = [(ids[rows], corpus[rows]) for rows in np.split(order, cuts)]
        search = Search(queries, similarity, depth)
        assert search.among(parts).ids.tolist() == expected
        # Found in several places, and merged in another order.
        found = search.empty()
        for part in reversed(parts):
            found.merge(search.among([part]))
        assert found.ids.tolist() == expected and found.count == documents


def test_equals_at_the_border_are_chosen_by_id_over_all_parts() -> None:
    same = np.ones((3, 4), dtype=np.float32)
    parts = [(["d", "e", "f"], same), (["b", "a", "z"], same), ([], same[:0]), (["c"], same[:1])]
    assert Search(same[:1], "cosine", 3).among(parts).ids.tolist() == [["a", "b", "c"]]
    assert Search(same[:1], "cosine", 3).among([([10, 9, 2], same)]).ids.tolist() == [["10", "2", "9"]]  # as text


def write(folder: Path, ids: list[str], vectors: Floats, size: int, precision: str = "float32") -> Embeddings:
    """Write vectors as `encode` writes those of texts, in parts of some size."""
    folder.mkdir()
    stored = Quantization(precision, vectors.shape[1])
    stored.save(folder)
    parts = []
    for number, first in enumerate(range(0, len(ids), size)):
        block = Block(number, first, [""] * len(ids[first : first + size]), list(ids[first : first + size]))
        parts.append(json.loads(WriteParts(folder, "run", stored)(block, vectors[first : first + size])))
    manifest = {"dimension": vectors.shape[1], "precision": precision, "texts": len(ids), "parts": parts}
    (folder / "manifest.json").write_text(json.dumps(manifest | {"missing": {}, "settings": {"texts": "of all"}}))
    return Embeddings(folder)


def made(documents: int = 250, width: int = 8) -> tuple[RetrievalData, Floats, Floats]:
    generator = np.random.default_rng(3)
    corpus = {f"d{number}": f"document {number}" for number in generator.permutation(documents)}
    queries = {f"q{number}": f"query {number}" for number in range(20)}
    qrels = {
        query: {str(one): int(generator.integers(1, 4)) for one in generator.choice(list(corpus), 9, replace=False)}
        for query in queries
    }
    vectors = [generator.normal(size=(size, width)).astype(np.float32) for size in (20, documents)]
    return RetrievalData("made", corpus, queries, qrels), *vectors


@pytest.mark.parametrize("similarity", SIMILARITIES)
@pytest.mark.parametrize("documents", [60, 250])  # fewer than are looked at, and more
def test_scores_from_files_have_the_bits_of_those_from_memory(similarity: str, documents: int, tmp_path: Path) -> None:
    data, queries, corpus = made(documents)
    expected = score_retrieval(queries, corpus, data, similarity=similarity)
    ids = list(data.corpus)
    for size in (1000, 37):
        turned = np.random.default_rng(size).permutation(documents)
        stored = write(tmp_path / str(size), [ids[row] for row in turned], corpus[turned], size)
        assert score_retrieval(queries, stored, data, similarity=similarity) == expected
        partial = replace(data, corpus={}, partial=True)
        found = score_retrieval(queries, stored, partial, similarity=similarity)
        assert found.per_unit == expected.per_unit and found.scores == expected.scores
        assert found.details == {"documents": documents}


def test_a_corpus_that_is_not_read_is_known_by_the_checksum_of_its_texts(tmp_path: Path) -> None:
    data, queries, corpus = made()
    stored = write(tmp_path / "e", list(data.corpus), corpus, 100)
    few = replace(data, corpus={"d1": data.corpus["d1"]}, partial=True)
    none = replace(data, corpus={}, partial=True)
    assert few.checksum == none.checksum != data.checksum
    one, two = (score_retrieval(queries, stored, partial).checksum for partial in (few, none))
    assert one == two != none.checksum
    stored.manifest["settings"]["texts"] = "of others"
    assert score_retrieval(queries, stored, none).checksum != one


def test_collapsed_embeddings_in_files_are_undefined(tmp_path: Path) -> None:
    data, queries, corpus = made()
    stored = write(tmp_path / "e", list(data.corpus), np.ones_like(corpus), 40)
    task = score_retrieval(queries, stored, data)
    assert np.isnan(task.score.value) and "undefined" in task.warnings[0]


def test_a_folder_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    data, queries, corpus = made()
    ids = list(data.corpus)
    judged = next(iter(data.qrels["q0"]))
    rest = [row for row, one in enumerate(ids) if one != judged]
    fewer = write(tmp_path / "fewer", [ids[row] for row in rest], corpus[rest], 100)
    for task in (data, replace(data, corpus={}, partial=True)):
        with pytest.raises(ValueError, match=f"fewer' lacks 1 of the .* documents of 'made', the first is '{judged}'"):
            score_retrieval(queries, fewer, task)
    more = write(tmp_path / "more", [*ids, "x", "y"], np.concatenate([corpus, corpus[:2]]), 100)
    with pytest.raises(ValueError, match="more' has 2 documents that are not in the corpus of 'made'"):
        score_retrieval(queries, more, data)
    with pytest.raises(ValueError, match=r"query_vectors have 3 dimensions and .*more' 8; encode"):
        score_retrieval(queries[:, :3], more, data)
    with pytest.raises(ValueError, match="engine='ray' goes with Embeddings"):
        score_retrieval(queries, corpus, data, engine="ray")
    with pytest.raises(ValueError, match="data without all of its documents goes with Embeddings"):
        score_retrieval(queries, corpus, replace(data, partial=True))
    with pytest.raises(ValueError, match="workers=2"):
        score_retrieval(queries, more, data, engine=Local(workers=2))
    corpus[150] = np.nan
    with pytest.raises(ValueError, match=f"the vector of document '{ids[150]}' holds NaN"):
        Search(queries, "dot", 5).among([(ids[:100], corpus[:100]), (ids[100:], corpus[100:])])


@pytest.fixture
def pets(sentences: list[str], tmp_path: Path) -> Path:
    """A task in files, and its corpus as `encode` is to read it."""
    folder = tmp_path / "pets"
    folder.mkdir()
    titled = [f"the {number} title" for number in range(40)]
    for name, texts in (("corpus", sentences[:40]), ("queries", sentences[40:])):
        rows = [{"_id": f"{name[0]}{row}", "text": text} for row, text in enumerate(texts)]
        rows = [row | {"title": title} for row, title in zip(rows, titled, strict=False)] if name[0] == "c" else rows
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (folder / "qrels").mkdir()
    judged = [f"q{row}\tc{(7 * row + 3) % 40}\t{1 + row % 2}" for row in range(20)]
    (folder / "qrels" / "test.tsv").write_text("\n".join(["query-id\tcorpus-id\tscore", *judged]))
    whole = [json.dumps({"id": one, "body": text}) for one, text in read_retrieval(folder).corpus.items()]
    (folder / "whole.jsonl").write_text("\n".join(whole))
    return folder


def encoded(model: SentenceTransformer, pets: Path, **settings: Any) -> Embeddings:
    texts = Texts(pets / settings.pop("file", "whole.jsonl"), settings.pop("column", "body"), block_size=7,
                  id_column=settings.pop("ids", "id"))  # fmt: skip
    return encode(model, texts, pets / f"e{len(list(pets.iterdir()))}", **settings)


@pytest.mark.parametrize("precision", ["float32", "int8", "binary"])
def test_a_model_is_evaluated_on_the_stored_corpus(
    model: SentenceTransformer, pets: Path, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = encoded(model, pets, precision=precision)
    data, few = read_retrieval(pets), read_retrieval(pets, documents=5)
    assert few.partial and list(few.corpus) == list(data.corpus)[:5] and few.qrels == data.qrels
    by_id = {one: vector for ids, vectors in stored for one, vector in zip(ids, vectors, strict=True)}
    queries = model.encode_query(list(data.queries.values()))
    expected = score_retrieval(queries, np.stack([by_id[one] for one in data.corpus]), data)
    plain, seen = model.encode, []

    def counting(texts: list[str], **arguments: Any) -> Any:
        seen.extend(texts)
        return plain(texts, **arguments)

    monkeypatch.setattr(model, "encode", counting)
    for task in (data, few):
        seen.clear()
        found = RetrievalEvaluator(task, corpus_embeddings=stored.folder).evaluate(model).tasks[0]
        assert found.per_unit == expected.per_unit
        assert len(seen) == 20 + (8 if task is data else 5)
    assert len(RetrievalEvaluator(data, corpus_embeddings=stored)(model)) == 5


def test_embeddings_of_something_else_are_refused(
    model: SentenceTransformer, make_model: Callable[..., SentenceTransformer], pets: Path
) -> None:
    few = read_retrieval(pets, documents=4)

    def evaluate(stored: Embeddings, **settings: Any) -> Any:
        return RetrievalEvaluator(few, corpus_embeddings=stored, **settings).evaluate(model)

    with pytest.raises(ValueError, match="are of another model"):
        evaluate(encoded(make_model("roberta"), pets))
    with pytest.raises(ValueError, match=r"have 16 dimensions and .* 8"):
        model.truncate_dim = 8
        short = encoded(model, pets)
        model.truncate_dim = None
        evaluate(short)
    with pytest.raises(ValueError, match="encoded with prompt 'the man ', and documents are with None"):
        evaluate(encoded(model, pets, prompt="the man "))
    assert evaluate(encoded(model, pets, prompt="the man "), prompt="the man ").tasks[0].units == 20
    with pytest.raises(ValueError, match=r"another embedding of 'c\d+' than its text"):  # without titles
        evaluate(encoded(model, pets, file="corpus.jsonl", column="text", ids="_id"))
    with pytest.raises(FileNotFoundError, match="has no manifest"):
        RetrievalEvaluator(few, corpus_embeddings=pets)
    with pytest.raises(ValueError, match="data without all of its documents goes with corpus_embeddings"):
        RetrievalEvaluator(few)
    with pytest.raises(ValueError, match="engine='ray' goes with corpus_embeddings"):
        RetrievalEvaluator(read_retrieval(pets), engine="ray")


def test_empty_documents_are_not_among_the_embeddings_which_is_said(model: SentenceTransformer, pets: Path) -> None:
    lines = (pets / "corpus.jsonl").read_text().splitlines()
    lines += [json.dumps({"_id": "empty", "text": " "})]
    (pets / "corpus.jsonl").write_text("\n".join(lines))
    data = read_retrieval(pets)
    found = RetrievalEvaluator(data, corpus_embeddings=encoded(model, pets)).evaluate(model)
    assert any("1 empty documents are not among the embeddings" in warning for warning in found.warnings)


def test_empty_documents_that_were_encoded_are_documents_like_others(model: SentenceTransformer, pets: Path) -> None:
    lines = (pets / "corpus.jsonl").read_text().splitlines()
    (pets / "corpus.jsonl").write_text("\n".join([json.dumps({"_id": "empty", "title": "", "text": " "}), *lines]))
    data, few = read_retrieval(pets), read_retrieval(pets, documents=4)
    assert data.corpus["empty"] == few.corpus["empty"] == ""
    whole = [json.dumps({"id": one, "body": text}) for one, text in data.corpus.items()]
    (pets / "whole.jsonl").write_text("\n".join(whole))
    stored = encoded(model, pets)
    expected = RetrievalEvaluator(data).evaluate(model).tasks[0]
    for task in (data, few):
        found = RetrievalEvaluator(task, corpus_embeddings=stored).evaluate(model).tasks[0]
        assert found.details == {"documents": 41} and not any("not among" in one for one in found.warnings)
        assert found.score.value == pytest.approx(expected.score.value, abs=1e-3)


def test_one_process_is_no_other_engine(model: SentenceTransformer, pets: Path) -> None:
    data, queries, corpus = made()
    expected = score_retrieval(queries, corpus, data)
    for engine in (Local(), Local(workers=1)):
        assert score_retrieval(queries, corpus, data, engine=engine) == expected
        assert RetrievalEvaluator(read_retrieval(pets), engine=engine).evaluate(model).tasks[0].units == 20
    with pytest.raises(ValueError, match=r"engine=Local\(workers=2\) goes with corpus_embeddings"):
        RetrievalEvaluator(data, engine=Local(workers=2))
    with pytest.raises(ValueError, match="engine='sun' must be 'local' or 'ray'"):
        RetrievalEvaluator(data, engine="sun")


def test_the_command_names_the_cluster(
    command: Callable[..., tuple[int, str, str]], pets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("ray")
    seen: list[Any] = []

    def evaluator(*data: Any, **settings: Any) -> Any:
        seen.append(settings["engine"])
        raise ValueError("enough")

    monkeypatch.setattr("st_plugins.evaluation.RetrievalEvaluator", evaluator)
    given = ("evaluate", str(pets), "--retrieval", str(pets), "--corpus-embeddings", str(pets), "--engine", "ray")
    code, _, err = command(*given, "--address", "head:6379", "--workers", "3")
    assert code == 1 and "enough" in err and seen == [Ray("head:6379", 3)]


def test_prompts_and_routes_of_a_model_are_those_of_the_stored_corpus(model: SentenceTransformer, pets: Path) -> None:
    model.prompts = {"document": "a boat ", "query": "the man "}
    few = read_retrieval(pets, documents=4)
    with pytest.raises(ValueError, match="encoded with prompt None, and documents are with 'a boat '"):
        RetrievalEvaluator(few, corpus_embeddings=encoded(model, pets)).evaluate(model)
    stored = encoded(model, pets, prompt="a boat ")
    assert RetrievalEvaluator(few, corpus_embeddings=stored).evaluate(model).tasks[0].units == 20


def test_the_command_searches_stored_embeddings(
    command: Callable[..., tuple[int, str, str]],
    model: SentenceTransformer,
    pets: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    model.save(str(tmp_path / "m"), create_model_card=False)
    stored = encoded(model, pets)
    given = ("evaluate", "m", "--retrieval", "pets", "--device", "cpu", "--bootstrap-samples", "20")
    assert command(*given, "--output", "memory")[0] == 0
    code, _, err = command(*given, "--output", "files", "--corpus-embeddings", str(stored.folder))
    assert code == 0, err
    one, two = (read_result(name).tasks[0] for name in ("memory", "files"))
    assert one.score.value == pytest.approx(two.score.value, abs=1e-3)
    code, _, err = command(*given, "--engine", "ray")
    assert code == 1 and "--engine has no effect without --corpus-embeddings" in err
    code, _, err = command(*given, "--engine", "sun", "--corpus-embeddings", str(stored.folder))
    assert code == 2 and "--engine" in err and "'local', 'ray'" in err
    searched = (*given, "--corpus-embeddings", str(stored.folder))
    for option, value in (("--address", "auto"), ("--workers", "2")):
        code, _, err = command(*searched, option, value)
        assert code == 1 and f"{option} has no effect with --engine local" in err, err
        code, _, err = command(*given, option, value)
        assert code == 1 and f"{option} has no effect without --corpus-embeddings" in err, err
    code, _, err = command("evaluate", "m", "--clustering", "x.csv", "--corpus-embeddings", str(stored.folder))
    assert code == 1 and "--corpus-embeddings has no effect without --retrieval" in err


@pytest.mark.slow
@pytest.mark.enable_socket
def test_ray_finds_the_same(ray_cluster: Any, tmp_path: Path) -> None:
    data, queries, corpus = made()
    expected = score_retrieval(queries, corpus, data)
    stored = write(tmp_path / "e", list(data.corpus), corpus, 11)
    assert score_retrieval(queries, stored, data, engine="ray") == expected
    stored.files[4].write_bytes(stored.files[5].read_bytes())
    with pytest.raises(ValueError, match="lacks 11 of the 250 documents"):
        score_retrieval(queries, stored, data, engine="ray")
    stored.files[4].write_bytes(b"nothing")
    with pytest.raises(ValueError, match=stored.files[4].name):  # what the task raised, not Ray's report of it
        score_retrieval(queries, stored, data, engine="ray")
