"""Reading retrieval tasks in the layout of BEIR, and labeled texts."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path

import pytest

from st_plugins.data import LabeledTexts, RetrievalData, read_labeled_texts, read_retrieval

CORPUS = [
    {"_id": "d1", "title": "Dogs", "text": "They bark.", "metadata": {}},
    {"_id": 2, "title": None, "text": "Cats purr."},
    {"_id": "d3", "title": "", "text": ""},
]
QUERIES = [{"_id": "q1", "text": "who barks"}, {"_id": 2, "text": "who purrs"}, {"_id": "q3", "text": "who sings"}]
QRELS = "query-id\tcorpus-id\tscore\nq1\td1\t2\nq1\t2\t0\n2\t2\t1\n"


def _lines(rows: list[dict[str, object]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a task in the layout of BEIR."""
    task = tmp_path / "pets"
    (task / "qrels").mkdir(parents=True)
    (task / "corpus.jsonl").write_text(_lines(CORPUS))
    (task / "queries.jsonl").write_text(_lines(QUERIES))
    (task / "qrels" / "test.tsv").write_text(QRELS)
    return task


def test_what_is_read_is_what_the_leaderboard_encodes(folder: Path) -> None:
    data = read_retrieval(folder)
    assert data.name == "pets"
    assert data.corpus == {"d1": "Dogs They bark.", "2": "Cats purr.", "d3": ""}
    assert data.queries == {"q1": "who barks", "2": "who purrs"}
    assert data.qrels == {"q1": {"d1": 2, "2": 0}, "2": {"2": 1}}
    assert data.checksum != RetrievalData("pets", data.corpus, data.queries, {**data.qrels, "2": {"2": 2}}).checksum
    assert data.warnings == (
        "pets: 1 of the 3 queries have no relevant document and are left out",
        "pets: 1 of the 3 documents are empty",
    )


def test_packed_files_with_a_prefix_marks_and_carriage_returns_give_the_same(folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    for name in ("corpus.jsonl", "queries.jsonl", "qrels/test.tsv"):
        text = (folder / name).read_text().replace("\n", "\r\n")
        packed = gzip.compress(b"\xef\xbb\xbf" + text.encode())
        (other / f"pets_{name.replace('/test', '')}.gz").write_bytes(packed)
    assert read_retrieval(other).checksum == read_retrieval(folder).checksum
    with pytest.raises(ValueError, match=r"split='dev': .* has no splits"):
        read_retrieval(other, "dev")


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("corpus.jsonl", None, "has neither corpus.jsonl nor NAME_corpus.jsonl"),
        ("queries.jsonl", None, "queries.jsonl (or the same with .gz) does not exist"),
        ("qrels/test.tsv", None, "there are the splits dev"),
        ("corpus.jsonl", _lines([{"id": "d1", "text": "x"}]), "corpus.jsonl:1: no _id; write one object"),
        ("corpus.jsonl", _lines([*CORPUS, {"_id": "d4", "title": ""}]), "corpus.jsonl:4: no text"),
        ("corpus.jsonl", _lines([*CORPUS, CORPUS[1]]), "corpus.jsonl:4: _id '2' occurs twice, first on line 2"),
        ("corpus.jsonl", _lines([{"_id": "d1", "title": 7, "text": "x"}]), "corpus.jsonl:1: title is 7"),
        ("corpus.jsonl", _lines([{"_id": 1.5, "text": "x"}]), "corpus.jsonl:1: _id is 1.5"),
        ("queries.jsonl", _lines([{"_id": "", "text": "x"}]), "queries.jsonl:1: _id is ''"),
        ("queries.jsonl", _lines([{"_id": "q1", "text": None}]), "queries.jsonl:1: text is None; it must be text"),
        ("queries.jsonl", '{"_id": "q1", "text": ', "queries.jsonl:1: not JSON"),
        ("queries.jsonl", "", "queries.jsonl:1: not JSON"),
        ("queries.jsonl", "[1]", "queries.jsonl:1: no _id and no text"),
        ("qrels/test.tsv", QRELS + "q1\td9\t1\nq1\td8\t1\n", "corpus.jsonl, nor are those of 1 more lines"),
        ("qrels/test.tsv", QRELS + "q9\td1\t1\n", "test.tsv:5: query-id 'q9' is not in"),
        ("qrels/test.tsv", QRELS + "q1\td3\t0.5\n", "test.tsv:5: score 0.5 is not a whole number"),
        ("qrels/test.tsv", QRELS + "q1\td3\tyes\n", "test.tsv:5: score 'yes' is not a finite number"),
        ("qrels/test.tsv", QRELS + "q1\td1\t1\n", "test.tsv:5: query 'q1' and document 'd1' have the scores 2 and 1"),
        ("qrels/test.tsv", "q1\t0\td1\t1\nq2\t0\td1\t1\n", "test.tsv:1: no column 'query-id'"),
        ("qrels/test.tsv", "query-id\tcorpus-id\tscore\nq1\td1\t0\n", "no document is relevant for any query"),
        ("qrels/test.tsv", "query-id\tcorpus-id\tscore\n", "there is no row"),
    ],
)
def test_bad_files_are_refused_by_name_and_line(folder: Path, file: str, content: str | None, said: str) -> None:
    (folder / "qrels" / "dev.tsv").write_text(QRELS)
    if content is None:
        (folder / file).unlink()
    else:
        (folder / file).write_text(content)
    with pytest.raises((ValueError, FileNotFoundError)) as raised:
        read_retrieval(folder)
    assert said in str(raised.value)


def test_a_cut_download_a_missing_folder_and_two_tasks_are_refused(folder: Path, tmp_path: Path) -> None:
    whole = gzip.compress((folder / "corpus.jsonl").read_bytes())
    (folder / "corpus.jsonl").unlink()
    (folder / "corpus.jsonl.gz").write_bytes(whole[:-12])
    with pytest.raises(ValueError, match=r"corpus.jsonl.gz: not a whole gzip file"):
        read_retrieval(folder)
    with pytest.raises(FileNotFoundError, match="none' does not exist"):
        read_retrieval(tmp_path / "none")
    for name in ("cats", "dogs"):
        (tmp_path / f"{name}_corpus.jsonl").touch()
    with pytest.raises(ValueError, match="holds the tasks cats, dogs"):
        read_retrieval(tmp_path)


def test_data_made_by_hand_is_held_to_the_same() -> None:
    corpus, queries = {"d1": "a dog"}, {"q1": "dogs"}
    with pytest.raises(ValueError, match="qrels name 1 documents that do not exist, the first 'd2'"):
        RetrievalData("pets", corpus, queries, {"q1": {"d1": 1, "d2": 1}})
    with pytest.raises(ValueError, match="qrels name 1 queries that do not exist, the first 'q2'"):
        RetrievalData("pets", corpus, queries, {"q1": {"d1": 1}, "q2": {"d1": 1}})
    with pytest.raises(ValueError, match="lone surrogate"):
        RetrievalData("pets", {"d1": "\ud800"}, queries, {"q1": {"d1": 1}})
    with pytest.raises(TypeError, match="ids and texts must be str"):
        RetrievalData("pets", {1: "a dog"}, queries, {"q1": {1: 1}})  # type: ignore[dict-item]


def test_labeled_texts_are_read_and_empty_ones_counted(tmp_path: Path) -> None:
    path = tmp_path / "pets.tsv"
    path.write_text("class\tsentence\n1\ta dog\n0\t\n")
    data = read_labeled_texts(path, text="sentence", label="class")
    assert (data.name, data.texts, data.labels) == ("pets", ["a dog", ""], ["1", "0"])
    assert data.warnings == ("pets: 1 of the 2 texts are empty",)
    assert data.checksum != LabeledTexts("pets", data.texts, ["0", "1"]).checksum


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("text\tlabel\na\tx\nb\t\n", "pets.tsv:3: label is empty"),
        ("text\tlabel\na\tx\nb\tX\n", "pets.tsv:3: label is 'X', but 'x' on line 2"),
        ("text\tlabel\na\tx\nb\tx\n", "pets.tsv: label is 'x' on every line"),
        ("text\tclass\na\tx\n", "pets.tsv:1: no column 'label'; there are text, class"),
    ],
)
def test_bad_labels_are_refused_by_name_and_line(tmp_path: Path, content: str, said: str) -> None:
    path = tmp_path / "pets.tsv"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"pets\.tsv") as raised:
        read_labeled_texts(path)
    assert said in str(raised.value)


def test_labeled_texts_made_by_hand_are_held_to_the_same() -> None:
    with pytest.raises(ValueError, match="2 texts and 1 labels"):
        LabeledTexts("pets", ["a", "b"], ["x"])
    with pytest.raises(ValueError, match="of the class 'x'"):
        LabeledTexts("pets", ["a", "b"], ["x", "x"])


@pytest.mark.skipif("ST_PLUGINS_DATA" not in os.environ, reason="the variable names no data folder")
def test_cranfield_is_read_whole() -> None:
    data = read_retrieval(Path(os.environ["ST_PLUGINS_DATA"], "retrieval"))
    assert (data.name, len(data.corpus), len(data.queries)) == ("cranfield", 1400, 225)
    assert sum(map(len, data.qrels.values())) == 1837
