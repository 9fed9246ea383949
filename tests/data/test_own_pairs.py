"""The user's own pairs and texts: three formats read alike, and every broken file by file and line."""

from __future__ import annotations

import gzip
import json
import logging
from pathlib import Path

import numpy as np
import pytest

from st_plugins.data import Pairs, read_pairs, read_texts

TEXTS1 = ['a 5" nail', "comma, here", "naïve 你好"]
TEXTS2 = ["a nail", "no comma", "hello"]
SCORES = [4.5, 0.0, 2.25]


def write(path: Path, text: str | bytes) -> Path:
    data = text.encode() if isinstance(text, str) else text
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def as_text(kind: str) -> str:
    rows = list(zip(TEXTS1, TEXTS2, SCORES, strict=True))
    if kind == "jsonl":
        return "".join(json.dumps({"sentence1": a, "sentence2": b, "score": s}) + "\n" for a, b, s in rows)
    if kind == "tsv":
        return "".join(f"{a}\t{b}\t{s}\n" for a, b, s in [("sentence1", "sentence2", "score"), *rows])
    quoted = ['"a 5"" nail",a nail,4.5', '"comma, here",no comma,0', "naïve 你好,hello,2.25"]
    return "\n".join(["sentence1,sentence2,score", *quoted]) + "\n"


@pytest.mark.parametrize("kind", ["tsv", "csv", "jsonl"])
@pytest.mark.parametrize("packed", ["", ".gz"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_three_formats_read_alike(tmp_path: Path, kind: str, packed: str, end: str, mark: str) -> None:
    path = write(tmp_path / f"my.pairs.{kind}{packed}", mark + as_text(kind).replace("\n", end))
    pairs = read_pairs(path)
    assert (pairs.first, pairs.second, pairs.scores.tolist()) == (TEXTS1, TEXTS2, SCORES)
    assert (pairs.name, pairs.source, pairs.warnings) == ("my", str(path), ())
    assert pairs.subsets == ["my", "my", "my"]


def test_columns_and_name_can_be_chosen(tmp_path: Path) -> None:
    path = write(tmp_path / "x.csv", "id,q,a,gold\n7,one,two,3\n")
    pairs = read_pairs(path, first="q", second="a", score="gold", name="faq")
    assert (pairs.name, pairs.first, pairs.second, pairs.scores.tolist()) == ("faq", ["one"], ["two"], [3.0])


def test_csv_field_with_a_line_break_keeps_the_line_numbers_right(tmp_path: Path) -> None:
    path = write(tmp_path / "x.csv", 'sentence1,sentence2,score\n"two\nlines",b,1\nc,d,high\n')
    with pytest.raises(ValueError, match=r"x\.csv:4: score 'high'"):
        read_pairs(path)
    write(path, 'sentence1,sentence2,score\n"two\nlines",b,1\n')
    assert read_pairs(path).first == ["two\nlines"]


def test_empty_texts_are_kept_and_counted(tmp_path: Path) -> None:
    pairs = read_pairs(write(tmp_path / "x.tsv", "sentence1\tsentence2\tscore\n\tb\t1\na\t \t2\na\tb\t3\n"))
    assert pairs.first == ["", "a", "a"]
    assert pairs.warnings == ("x: 2 of the 6 texts are empty",)


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("x.tsv", "a\tb\tscore\n1\t2\t3\n", ":1: no column 'sentence1'; there are a, b, score; name the right one"),
        ("x.tsv", "sentence1\tb\tscore\n1\t2\t3\n", "with second="),
        ("x.csv", "sentence1;sentence2;score\n1;2;1,5\n", ":2: score '1,5' is not a finite number; write a decimal"),
        ("x.tsv", "sentence1\tsentence2\tscore\na\tb\t1\na\tb\n", ":3: 2 fields, but the header has 3"),
        ("x.csv", "sentence1,sentence2,score\na,b,c,1\n", ":2: 4 fields, but the header has 3"),
        ("x.csv", "sentence1,sentence2,score\na,b,1\n\na,b,1\n", ":3: 0 fields"),
        ("x.csv", 'sentence1,sentence2,score\na,b,1\n"a,b,1\n', ":3: unexpected end of data"),
        ("x.tsv", "sentence1\tsentence2\tscore\na\tb\t\n", ":2: score '' is not a finite number"),
        ("x.csv", "sentence1,sentence2,score\na,b,NaN\n", ":2: score 'NaN' is not a finite number"),
        ("x.jsonl", '{"sentence1": "a", "sentence2": "b", "score": NaN}\n', ":1: score nan is not a finite number"),
        ("x.jsonl", '{"sentence1": "a", "sentence2": "b", "score": true}\n', ":1: score True is not a finite number"),
        ("x.jsonl", '{"sentence1": "a", "sentence2": 3, "score": 1}\n', ":1: sentence2 is 3; it must be text"),
        ("x.jsonl", '{"sentence1": null, "sentence2": "b", "score": 1}\n', ":1: sentence1 is None"),
        (
            "x.jsonl",
            '{"sentence1": "a", "sentence2": "b", "score": 1}\n{"sentence1": "a"}\n',
            ":2: no sentence2, score",
        ),
        ("x.jsonl", '{"sentence1": "a"\n', ":1: not JSON"),
        ("x.jsonl", '["a", "b", 1]\n', ':1: \'["a", "b", 1]\' is not an object'),
        ("x.jsonl", "", ": there is no row"),
        ("x.csv", "", ": there is no row"),
        ("x.tsv", "sentence1\tsentence2\tscore\n", ": there is no row"),
        ("x.tsv", b"sentence1\tsentence2\tscore\na\tb\t1\n\xff\tb\t1\n", ":3: byte 0xff is not UTF-8"),
        ("x.xlsx", "a", "is none of .tsv, .csv, .jsonl"),
        ("plain", "a", "is none of .tsv, .csv, .jsonl"),
    ],
)
def test_broken_pairs_are_named_with_their_line(tmp_path: Path, file: str, text: str | bytes, message: str) -> None:
    path = write(tmp_path / file, text)
    with pytest.raises(ValueError) as caught:
        read_pairs(path)
    assert message in str(caught.value)
    assert str(path) in str(caught.value)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no\.tsv' does not exist"):
        read_pairs(tmp_path / "no.tsv")
    with pytest.raises(FileNotFoundError, match=r"no\.txt' does not exist"):
        read_texts(tmp_path / "no.txt")


@pytest.mark.parametrize("file", ["x.txt", "x.txt.gz", "x"])
def test_one_text_a_line(tmp_path: Path, file: str, caplog: pytest.LogCaptureFixture) -> None:
    path = write(tmp_path / file, '\ufeffone "quoted\ttext\r\n\n  \nnext\u2028still\nlast')
    with caplog.at_level(logging.INFO, logger="st_plugins"):
        assert read_texts(path) == ['one "quoted\ttext', "next\u2028still", "last"]
    assert "2 blank lines skipped, 3 texts kept" in caplog.text


def test_texts_from_a_column(tmp_path: Path) -> None:
    path = write(tmp_path / "x.csv", 'id,text\n1,"a, b"\n2,\n3,c\n')
    assert read_texts(path, column="text") == ["a, b", "c"]
    with pytest.raises(ValueError, match="no column 'body'; there are id, text; name the right one with column="):
        read_texts(path, column="body")
    with pytest.raises(ValueError, match="say which column holds the texts with column=; there are id, text"):
        read_texts(path)


def test_texts_from_a_folder_in_the_order_of_names(tmp_path: Path) -> None:
    write(tmp_path / "b.txt.gz", "three\n")
    write(tmp_path / "a.txt", "one\ntwo\n")
    write(tmp_path / "c.md", "not read\n")
    assert read_texts(tmp_path) == ["one", "two", "three"]
    with pytest.raises(ValueError, match="has no columns"):
        read_texts(tmp_path, column="text")


def test_no_text_at_all(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="there is no text in it"):
        read_texts(write(tmp_path / "x.txt", "\n \n"))
    with pytest.raises(ValueError, match="there is no text in it"):
        read_texts(write(tmp_path / "x.txt", ""))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"has no \*\.txt"):
        read_texts(tmp_path / "empty")


def test_texts_that_are_not_utf8(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"x\.txt:2: byte 0xe9 is not UTF-8"):
        read_texts(write(tmp_path / "x.txt", b"one\ncaf\xe9\n"))


def test_other_pairs_have_another_checksum() -> None:
    def checksum(first: list[str], second: list[str]) -> str:
        return Pairs("x", first, second, np.ones(len(first))).checksum

    assert checksum(["a\tb"], ["c"]) != checksum(["a"], ["b\tc"])
    assert checksum(["a", "b"], ["c", "d"]) != checksum(["a"], ["c\nx\t1.0\tb\td"])
    assert checksum(["a"], ["é"]) == checksum(["a"], ["é"])
