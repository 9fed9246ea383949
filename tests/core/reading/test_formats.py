"""Files are what their content says, whatever their name: read right, or refused with place and remedy."""

from __future__ import annotations

import csv
import gzip
import json
import logging
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from st_plugins import whiten
from st_plugins.core.labeled import LabeledPairs
from st_plugins.core.reading.tables import to_score
from st_plugins.data import Pairs, read_pairs, read_texts
from st_plugins.evaluation import STSSuiteEvaluator
from st_plugins.explain import explain_pair
from st_plugins.matching import AnonymizedPairs, LearnedEmbedding
from st_plugins.methods.contrastive.train_preparation import distinct_texts
from st_plugins.methods.re2.vectors import read_vectors

HEAD = ["sentence1", "sentence2", "score"]
ROWS: list[list[Any]] = [["a dog, a cat", 'say "hi"', 4.5], ["naïve 你好", "x|y;z", 0.0]]
RECORDS = [dict(zip(HEAD, row, strict=True)) for row in ROWS]


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def quoted(separator: str) -> str:
    lines = []
    for row in [HEAD, *ROWS]:
        cells = [str(cell) for cell in row]
        lines.append(separator.join('"' + cell.replace('"', '""') + '"' for cell in cells))
    return "\n".join(lines) + "\n"


def plain(separator: str = "\t") -> str:
    return "".join(separator.join(map(str, row)) + "\n" for row in [HEAD, *ROWS])


FILES = {
    "array.json": json.dumps(RECORDS),
    "indented.json": json.dumps(RECORDS, indent=1),
    "array.jsonl": json.dumps(RECORDS),
    "array.txt": json.dumps(RECORDS, indent=2, ensure_ascii=False),
    "inside.json": json.dumps({"version": "1", "data": RECORDS}, indent=1),
    "lines.ndjson": "\n".join(map(json.dumps, RECORDS)),
    "lines.json": "\n".join(map(json.dumps, RECORDS)) + "\n\n",
    "lines.txt": "\r\n".join(map(json.dumps, RECORDS)),
    "lines": "\n".join(map(json.dumps, RECORDS)),
    "after-one-another.json": "".join(map(json.dumps, RECORDS)),
    "indented-after-one-another.txt": "\n".join(json.dumps(record, indent=2) for record in RECORDS),
    "blank-lines.jsonl": "\n\n".join(map(json.dumps, RECORDS)) + "\n\n",
    "twice-packed.jsonl.gz": gzip.compress(gzip.compress("\n".join(map(json.dumps, RECORDS)).encode())),
    "x.csv~": quoted(","),
    "space-before-quote.csv": quoted(",").replace(',"', ', "'),
    "excel-quoted.csv": '"sep=,"\r\n' + quoted(",").replace("\n", "\r\n"),
    "returns.csv": quoted(",").replace("\n", "\r\r\n"),
    "x.tsv.bak": plain(),
    "x.tab": plain(),
    "x.data": plain(),
    "x": plain(),
    "x.TSV": plain(),
    "pandas.tsv": plain().replace('say "hi"', '"say ""hi"""'),
    "all.tsv": quoted("\t"),
    "tabs.csv": plain(),
    "quoted tabs.csv": quoted("\t"),
    "x.csv": quoted(","),
    "x.CSV": quoted(","),
    "semicolons.csv": quoted(";"),
    "bars.csv": quoted("|"),
    "excel.csv": "sep=;\r\n" + quoted(";").replace("\n", "\r\n"),
    "commas.tsv": quoted(","),
    "old mac.tsv": plain().replace("\n", "\r"),
    "unpacked.tsv": gzip.compress(plain().encode()),
    "utf16.tsv": plain().encode("utf-16"),
    "utf16.csv": ("\ufeff" + quoted(",")).encode("utf-16-be"),
    "mark.json": b"\xef\xbb\xbf" + json.dumps(RECORDS).encode(),
    "index.csv": "".join(f"{'' if n == 0 else n},{line}\n" for n, line in enumerate(quoted(",").splitlines())),
    "spelled.tsv": plain().replace("sentence1\tsentence2\tscore", " Sentence1 \tSENTENCE2\tScore"),
}


@pytest.mark.parametrize("name", FILES)
def test_pairs_are_found_by_content(tmp_path: Path, name: str) -> None:
    pairs = read_pairs(write(tmp_path / name, FILES[name]))
    assert [list(row) for row in zip(pairs.first, pairs.second, pairs.scores, strict=True)] == ROWS


@pytest.mark.parametrize(
    "line",
    ['a 5" nail\ta nail\t3', '"quoted" words\tb\t1', '"Hello."\t"Bye."\t2', '"a ""b"""\tan 8" pipe\t2', '"open\tb\t1'],
)
def test_quotation_marks_that_no_program_wrote_stay(tmp_path: Path, line: str) -> None:
    pairs = read_pairs(write(tmp_path / "x.tsv", f"sentence1\tsentence2\tscore\n{line}\n"))
    assert [pairs.first[0], pairs.second[0]] == line.split("\t")[:2]


def test_line_breaks_and_tabs_in_quoted_fields(tmp_path: Path) -> None:
    text = 'sentence1\tsentence2\tscore\n"a\tb\nc"\td\t1\ne\tf\tmany\n'
    with pytest.raises(ValueError, match=r"x\.tsv:4: score 'many'"):
        read_pairs(write(tmp_path / "x.tsv", text))
    assert read_pairs(write(tmp_path / "x.tsv", text.replace("many", "2"))).first == ["a\tb\nc", "e"]


def test_cells_may_be_long_and_the_limit_of_csv_is_left_alone(tmp_path: Path) -> None:
    limit, long = csv.field_size_limit(), "word " * 30_000
    path = write(tmp_path / "x.csv", f'sentence1,sentence2,score\n"{long}, ""x""",b,1\n{long},b,2\n')
    assert [len(text) for text in read_pairs(path).first] == [150_005, 150_000]
    assert csv.field_size_limit() == limit


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.csv", b"PK\x03\x04rest", "ZIP archive or an Office file (xlsx, docx), not text; export it as CSV"),
        ("x.jsonl", b"PAR1rest", "a Parquet file"),
        ("x.txt", b"%PDF-1.4", "a PDF"),
        ("x.txt", b"\x89PNG\r\n", "a picture"),
        ("x.tsv.gz", b"sentence1\tsentence2\tscore\n", "not a whole gzip file"),
        ("x.txt", b"a\nb\x00c\n", "x.txt:2: a NUL character"),
        ("x.txt", "one\ntwo\n".encode("utf-16-le"), "x.txt:1: a NUL character"),
        ("x.txt", b"one\ncaf\xe9\n", "x.txt:2: byte 0xe9 is not UTF-8"),
        ("x.json", '[{"text": "a"},\n {"text": }]', "x.json:2: not JSON"),
        ("x.json", '[{"text": "a"},\n 3]', "x.json:2: '3]' is not an object"),
        ("x.json", '{"a": ["x"], "b": ["y"]}', "an object with a, b, of which 2 are arrays"),
        ("x.json", "plain text", "x.json:1: not JSON"),
        ("x.txt", '{"text": "a"}\nb\n', "x.txt:2: not JSON"),
        ("x.txt", "[1, 2]\n[3, 4]\n", "x.txt:1: '[1, 2]' is not an object"),
        ("x.json", "[]", "there is no row"),
        ("x.txt", "1\ta dog\n2\ta cat\n", "say which column holds the texts"),
        ("x.json", '[{"title": "a", "body": "b"}]', "say which column holds the texts with column=; there are title"),
        ("x.json", '[{"text": "a"}, {"text": "\\ud83d"}]', "x.json:1: text holds half a character, '\\ud83d'"),
    ],
)
def test_texts_that_are_none_are_refused(tmp_path: Path, name: str, content: str | bytes, message: str) -> None:
    with pytest.raises(ValueError) as caught:
        read_texts(write(tmp_path / name, content))
    assert message in str(caught.value) and str(tmp_path / name) in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("x.json", '["one", "two"]'),
        ("x.txt", '[\n "one",\n "two"\n]\n'),
        ("x.jsonl", '"one"\n"two"\n'),
        ("x.json", '{"texts": ["one", "two"]}'),
        ("x.ndjson", '{"id": 1, "text": "one"}\n{"id": 2, "text": "two"}\n'),
        ("x.csv", "text\none\ntwo\n"),
        ("x", "one\ntwo"),
        ("x.md", "one\rtwo\r"),
    ],
)
def test_texts_are_found_by_content(tmp_path: Path, name: str, content: str) -> None:
    assert read_texts(write(tmp_path / name, content)) == ["one", "two"]


def test_text_that_begins_with_a_bracket_is_text(tmp_path: Path) -> None:
    lines = ["[1] A reference.", "{curly} words", '"Said," he said', "a\tb"]
    assert read_texts(write(tmp_path / "x.txt", "\n".join(lines))) == lines
    assert read_texts(write(tmp_path / "y.txt", "\n".join(lines[1:]))) == lines[1:]


def test_a_folder_says_what_it_skips(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("a.txt", "b.jsonl", "c.parquet", "README.md"):
        write(tmp_path / name, "one")
    (tmp_path / "more").mkdir()
    assert read_texts(tmp_path) == ["one"]
    assert "skipped: b.jsonl, c.parquet, more/" in caplog.text and "README" not in caplog.text
    (tmp_path / "a.txt").unlink()
    with pytest.raises(ValueError, match=r"has no \*\.txt .*it has README\.md, b\.jsonl, c\.parquet, more/"):
        read_texts(tmp_path)


def test_a_first_row_that_is_no_header_is_said(tmp_path: Path) -> None:
    path = write(tmp_path / "x.tsv", "a dog runs\ta cat runs\t4.5\nb\tc\t1\n")
    with pytest.raises(ValueError, match=r"x\.tsv:1: no column 'sentence1'.*is that a row already"):
        read_pairs(path)
    path = write(tmp_path / "x.csv", ",,score\n1,a,2\n")
    with pytest.raises(ValueError, match=r"occurs twice: \(without a name\), \(without a name\), score"):
        read_pairs(path)


def test_half_a_character_is_named_wherever_texts_come_in(tmp_path: Path, model: Any) -> None:
    half = "half \ud83d"
    rows = [*RECORDS, {"sentence1": "a", "sentence2": half, "score": 1}]
    path = write(tmp_path / "x.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(ValueError, match=r"^.*x\.jsonl:3: sentence2 holds half a character"):
        read_pairs(path)
    with pytest.raises(ValueError, match=r"second\[1\] holds half a character"):
        Pairs("mine", ["a", "b"], ["c", half], np.ones(2))
    with pytest.raises(ValueError, match="row 1 of train holds half a character"):
        LabeledPairs.read([("a", "b", 1), (half, "c", 0)], ["0", "1"])
    with pytest.raises(ValueError, match=r"texts\[2\] holds half a character"):
        whiten(model, ["a", "b", half, "c"])
    with pytest.raises(ValueError, match=r"texts\[1\] holds half a character"):
        distinct_texts(["a", half])
    with pytest.raises(ValueError, match=r"text\[0\] holds half a character"):
        explain_pair(model, half, "a")
    with pytest.raises(ValueError, match=r"floor_texts\[1\] holds half a character"):
        STSSuiteEvaluator.from_pairs(["a"], ["b"], [1], floor_texts=["a", half])
    with pytest.raises(ValueError, match=r"texts\[1\] holds half a character"):
        LearnedEmbedding.from_texts(["a", half], 8)
    with pytest.raises(ValueError, match=r"texts\[1\] holds half a character"):
        LearnedEmbedding.from_texts(["a dog"], 8).tokenize(["a", half])


def test_vectors_with_a_mark_packed_or_binary(tmp_path: Path) -> None:
    words, vectors = read_vectors(write(tmp_path / "x.txt", b"\xef\xbb\xbfthe 1 2\ndog 3 4\n"))
    assert words == ["the", "dog"] and vectors.tolist() == [[1, 2], [3, 4]]
    assert read_vectors(write(tmp_path / "x.txt", b"\xef\xbb\xbf2 2\nthe 1 2\ndog 3 4\n"))[0] == ["the", "dog"]
    with pytest.raises(ValueError, match=r"x\.zip is a ZIP archive; unpack it"):
        read_vectors(write(tmp_path / "x.zip", b"PK\x03\x04rest"))
    with pytest.raises(ValueError, match=r"x\.bin, line 2: is binary.*save_word2vec_format"):
        read_vectors(write(tmp_path / "x.bin", b"2 2\nthe " + np.ones(2, np.float32).tobytes() + b"\ndog"))


def test_what_separates_fields_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="st_plugins"):
        read_pairs(write(tmp_path / "x.csv", FILES["tabs.csv"]))
    assert "the fields are separated by tabs" in caplog.text


@pytest.mark.parametrize("name", ["x.txt", "x.dat", "x", "x.csv.txt"])
@pytest.mark.parametrize("separator", [",", ";", "|"])
def test_a_table_is_no_text_whatever_its_name(tmp_path: Path, name: str, separator: str) -> None:
    path = write(tmp_path / name, plain(separator).replace("x|y;z", "xyz").replace("dog, a", "dog a"))
    with pytest.raises(ValueError, match="say which column holds the texts with column=; there are sentence1, "):
        read_texts(path)
    assert read_texts(path, column="sentence1") == ["a dog a cat", "naïve 你好"]


def test_a_row_with_an_array_is_a_row(tmp_path: Path) -> None:
    path = write(tmp_path / "x.jsonl", json.dumps({"text": "a dog", "tokens": ["a", "dog"]}))
    assert read_texts(path, column="text") == ["a dog"]
    assert read_texts(write(path, json.dumps({"texts": ["a dog", "a cat"]}))) == ["a dog", "a cat"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.txt", json.dumps(RECORDS, indent=1)[:-30], r"x\.txt:\d+: not JSON"),
        ("x.txt", '[\n "a",\n "b', r"x\.txt:3: not JSON"),
        ("x.jsonl", '{"text": "a"}\n{"text": "b\n{"text": "c"}', r"x\.jsonl:2: not JSON"),
        ("x.json", "[" * 100_000, r"x\.json: not JSON \(maximum recursion"),
        ("x.jsonl", '{"text": "a", "n": 1' + "0" * 5000 + "}", r"x\.jsonl: not JSON \(Exceeds the limit"),
        ("x.json", '{"text": {"0": "a"}, "n": {"0": 1}}', "in pandas orient='records'"),
        ("x.json", "{}", "an object without columns"),
        ("x.jsonl", '{"text\\ud83d": "a"}', r"x\.jsonl:1: the name of a column holds half a character"),
        ("x.csv", "text\na, b\n", r"x\.csv:2: 2 fields, but the header has 1; put fields that hold a separator in"),
        ("x.csv", "text,n\na,1\n\nb,2\n", r"x\.csv:3: .*remove the empty line"),
        ("x.csv", "text,n\ra,1\rb,2\n", r"x\.csv:1: some lines end in a carriage return only"),
        ("x.txt", "version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "a pointer of Git LFS"),
        ("x.txt", "<!DOCTYPE html>\n<html>404</html>\n", "a web page"),
    ],
)
def test_what_is_broken_is_refused_with_a_remedy(tmp_path: Path, name: str, content: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_texts(write(tmp_path / name, content))


@pytest.mark.parametrize(
    "content", ["[1] Smith\n[2] Jones\n", '{\n  "use strict";\n}\n', "{}\nfoo\n", "[" * 9999 + "\nb\n"]
)
def test_text_that_looks_a_little_like_json_is_text(tmp_path: Path, content: str) -> None:
    assert read_texts(write(tmp_path / "x.txt", content)) == content.strip().split("\n")


def test_what_text_may_hide_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert read_texts(write(tmp_path / "x.txt", "Text\na\rb\n")) == ["Text", "a\rb"]
    assert "'Text' is taken for a text; if it is a header" in caplog.text
    assert "1 texts hold a carriage return" in caplog.text
    assert read_texts(write(tmp_path / "x.txt", "\ufeffa\n\ufeffb\n")) == ["a", "b"]


def test_pipes_and_folders_are_refused_by_name(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for read in (read_pairs, read_texts, read_vectors, AnonymizedPairs.read):
        with pytest.raises(ValueError, match=r"pipe' is a pipe or a device, .*write what comes from it to a file"):
            read(tmp_path / "pipe")
    for read in (read_pairs, AnonymizedPairs.read):
        with pytest.raises(ValueError, match="is a folder; name a file in it"):
            read(tmp_path)


def test_vectors_of_another_encoding_are_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(ValueError, match="is UTF-16; save it as UTF-8"):
        read_vectors(write(tmp_path / "x.vec", "dog 1 2\n".encode("utf-16")))
    read_vectors(write(tmp_path / "x.vec", "é 1 2\ndog 1 2\n".encode("latin-1")))
    assert "1 words hold bytes that are not UTF-8" in caplog.text


@pytest.mark.parametrize(
    ("value", "remedy"), [("1,5", "decimal point"), ("True", "1 and 0"), (True, "1 and 0"), (None, "remove the row")]
)
def test_a_score_that_is_none_is_refused_with_a_remedy(value: Any, remedy: str) -> None:
    with pytest.raises(ValueError, match=f"is not a finite number; .*{remedy}"):
        to_score(value)
    with pytest.raises(ValueError, match=r"score 10+\.\.\. is not"):
        to_score(10**400)


def take_floor_texts(texts: Any) -> object:
    return STSSuiteEvaluator.from_pairs(["a"], ["b"], [1], floor_texts=texts)


@pytest.mark.parametrize(
    "take",
    [take_floor_texts, lambda texts: LearnedEmbedding.from_texts(texts, 8), distinct_texts],
    ids=["floor_texts", "LearnedEmbedding", "distinct_texts"],
)
def test_texts_are_a_list_of_texts_wherever_they_come_in(take: Any) -> None:
    for texts in (["a dog", None], ["a dog", 3], ["a dog", b"a cat"], ["a dog", float("nan")], [["a dog"]]):
        with pytest.raises(TypeError, match=r"texts must be strings, but \w+\[\d\] is a"):
            take(texts)
    for texts in ("a dog", {"text": ["a dog", "a cat"]}):
        with pytest.raises((TypeError, ValueError), match="texts must be a list of"):
            take(texts)
    for texts in (np.array(["a dog", "a cat"]), (text for text in ["a dog", "a cat"])):
        assert take(texts)


def test_pairs_of_one_string_are_refused() -> None:
    with pytest.raises(TypeError, match="first must be a list, got 'ab'"):
        Pairs("mine", "ab", ["a", "b"], np.ones(2))  # type: ignore[arg-type]
