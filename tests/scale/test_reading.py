"""Large files give the texts that small ones give, from the beginning and from every place in them."""

from __future__ import annotations

import dataclasses
import gzip
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from st_plugins.data.own import read_texts
from st_plugins.scale.inner import reading
from st_plugins.scale.inner.reading import Place, TextFile

LINES = [
    "a dog sleeps",
    "",
    "\N{GREEK SMALL LETTER ALPHA}\N{SNOWMAN}\N{GRINNING FACE} and more",
    "   ",
    '"quoted", with a comma',
    "a\ttab, once",
    "\u2028 is no line break, nor is \x0b or \x85",
    "  spaces are kept  ",
    "\ufeffa mark inside",
    "[sic] is no array",
    "the last",
]


def lines(end: str = "\n", last: bool = True) -> bytes:
    return (end.join(LINES) + (end if last else "")).encode()


def objects(end: str = "\n", *, ascii: bool = False) -> bytes:
    rows = [json.dumps({"id": at, "text": line or "x"}, ensure_ascii=ascii) for at, line in enumerate(LINES)]
    return (end.join([*rows[:3], "", *rows[3:]]) + end).encode()


def strings() -> bytes:
    return "\n".join(json.dumps(line) for line in LINES).encode()


FILES: dict[str, tuple[str, bytes, str | None]] = {
    "lines": ("a.txt", lines(), None),
    "lines of Windows": ("a.txt", lines("\r\n"), None),
    "lines of two programs": ("a.txt", lines("\r\r\n"), None),
    "an old Macintosh": ("a.txt", lines("\r"), None),
    "no end": ("a.txt", lines(last=False), None),
    "carriage returns inside": ("a.txt", b"one\rtwo\nthree\rfour\r\nfive\r", None),
    "blank ends": ("a.txt", lines() + b"\n\n\r\n \n", None),
    "a mark": ("a.txt", b"\xef\xbb\xbf" + lines(), None),
    "two marks": ("a.txt", b"\xef\xbb\xbf\xef\xbb\xbf" + lines(), None),
    "UTF-16": ("a.txt", lines().decode().encode("utf-16"), None),
    "UTF-32": ("a.txt", lines().decode().encode("utf-32"), None),
    "without a name": ("corpus", lines(), None),
    "another language": ("corpus.en", lines(), None),
    "packed": ("a.txt.gz", gzip.compress(lines()), None),
    "packed, in parts": ("a.txt.gz", gzip.compress(lines()) + gzip.compress(lines()), None),
    "packed twice": ("a.txt.gz", gzip.compress(gzip.compress(lines())), None),
    "packed without a name": ("a.txt", gzip.compress(lines()), None),
    "objects": ("a.jsonl", objects(), "text"),
    "objects, found": ("a.jsonl", objects(), None),
    "objects, another spelling": ("a.jsonl", objects(), "Text"),
    "objects of Windows": ("a.jsonl", objects("\r\n"), "text"),
    "objects in ASCII": ("a.ndjson", objects(ascii=True), "text"),
    "objects, packed": ("a.jsonl.gz", gzip.compress(objects()), "text"),
    "objects with a mark": ("a.jsonl", b"\xef\xbb\xbf" + objects(), "text"),
    "strings": ("a.jsonl", strings(), None),
    "objects of several lines": ("a.jsonl", b'{\n"text":\n"a"\n}\n{\n"text": "b"}\n', "text"),
    "an array": ("a.json", json.dumps([{"text": line} for line in LINES]).encode(), "text"),
    "an array of several lines": ("a.json", json.dumps([{"text": line} for line in LINES], indent=1).encode(), "text"),
    "an array in an object": ("a.json", json.dumps({"data": [{"text": "a"}, {"text": "b"}]}).encode(), "text"),
    "objects named as text": ("a.txt", objects(), "text"),
    "a table named as text": ("a.txt", b'text\tscore\n"a" b\t1\nc\t2\n', "text"),
    "a table": ("a.csv", b'id,text\n1,"a\nb, c"\n2,d\n', "text"),
    "a column of texts": ("a.tsv", b"text\na\n\nb\n".replace(b"\n\n", b"\n"), None),
}


@pytest.fixture(params=["small", "large"])
def sized(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Read files as small ones are read, and as large ones are."""
    reading._layout.cache_clear()
    if request.param == "large":
        monkeypatch.setattr(reading, "SMALL", 16)
        monkeypatch.setattr(reading, "_LONG", 1 << 16)
    return str(request.param)


def streamed(file: TextFile) -> bool:
    return file._layout().kind == "lines"


@pytest.mark.parametrize("name", FILES)
def test_the_texts_are_those_of_the_readers_of_small_files(name: str, sized: str, tmp_path: Path) -> None:
    path, content, column = tmp_path / FILES[name][0], FILES[name][1], FILES[name][2]
    path.write_bytes(content)
    file = TextFile(path, column)
    assert [row.text for row in file.rows()] == read_texts(path, column)


def test_most_of_them_are_streamed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(reading, "SMALL", 16)
    found = set()
    for at, (name, (file, content, column)) in enumerate(FILES.items()):
        path = tmp_path / f"{at}" / file
        path.parent.mkdir()
        path.write_bytes(content)
        found |= {name} if streamed(TextFile(path, column)) else set()
    assert {"lines", "lines of Windows", "a mark", "objects", "objects, found", "strings", "packed"} <= found
    assert {"without a name", "another language", "objects, another spelling", "objects with a mark"} <= found
    assert not found & {"UTF-16", "an array", "a table", "objects named as text", "packed twice"}


@pytest.mark.parametrize("name", ["lines", "lines of Windows", "no end", "a mark", "objects", "strings"])
def test_reading_can_begin_anywhere(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(reading, "SMALL", 16)
    path = tmp_path / FILES[name][0]
    path.write_bytes(FILES[name][1])
    file = TextFile(path, FILES[name][2], "id" if name == "objects" else None)
    whole = list(file.rows())
    assert file.seekable and streamed(file)
    for at, row in enumerate(whole):
        assert list(file.rows(Place(row.offset, row.line))) == whole[at:]
    assert [row.line + 1 for row in whole] == sorted({row.line + 1 for row in whole})


def test_a_character_on_the_border_of_what_is_looked_at_is_whole(tmp_path: Path) -> None:
    # Three bytes a character: in one of the three the first mebibyte ends inside of one.
    for shift in range(3):
        path = tmp_path / f"{shift}.txt"
        path.write_bytes(b"x" * shift + ("\N{SNOWMAN}" * 99 + "\n").encode() * 4000)
        file = TextFile(path)
        assert streamed(file) and [row.text for row in file.rows()] == read_texts(path)


def test_a_text_of_ten_megabytes_is_one_text(tmp_path: Path) -> None:
    path = tmp_path / "long.txt"
    path.write_text(f"{'word ' * 2_000_000}\nshort\n", encoding="utf-8")
    assert streamed(TextFile(path)) and [len(row.text) for row in TextFile(path).rows()] == [10_000_000, 5]


def test_objects_may_lack_what_nobody_asks_for(sized: str, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"id": 1, "text": "a", "title": "t"}\n{"text": "b", "id": 2}\n', encoding="utf-8")
    assert [(row.text, row.id) for row in TextFile(path, "text", "id").rows()] == [("a", 1), ("b", 2)]
    assert [row.text for row in TextFile(path, "text").rows()] == ["a", "b"]


def test_the_column_of_the_ids_is_not_taken_for_the_texts(sized: str, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"id": "x", "text": "a"}\n{"id": "y", "text": "b"}\n', encoding="utf-8")
    assert [(row.text, row.id) for row in TextFile(path, None, "id").rows()] == [("a", "x"), ("b", "y")]


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.csv", "a.txt.gz"])
@pytest.mark.parametrize("content", [b"", b"\n \r\n"])
def test_a_file_without_texts_is_no_fault(name: str, content: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    assert list(TextFile(tmp_path / name, "text", "id").rows()) == []


PADDING = b'{"id": "first", "text": "the first line is long enough"}\n'
FAULTS: dict[str, tuple[str, bytes, str | None, str | None, str]] = {
    "not UTF-8": (
        "a.txt",
        b"a line that is sound\n" * 5 + b"b \xff\n",
        None,
        None,
        "{path}:6: byte 0xff is not UTF-8; save",
    ),
    "NUL": ("a.txt", b"a line that is sound\n" * 5 + b"b\0c\n", None, None, "{path}:6: a NUL character: no text"),
    "UTF-16 without a mark": ("a.txt", "a line\nb\n".encode("utf-16-le") * 4, None, None, "{path}:1: a NUL character"),
    "a web page": ("a.txt", b"<!DOCTYPE html>\n<html>\n</html>\n", None, None, "{path}: is a web page"),
    "a surrogate": ("a.jsonl", PADDING + b'{"id": "b", "text": "\\ud800"}\n', "text", None, "holds half a character"),
    "a surrogate as an id": (
        "a.jsonl",
        PADDING + b'{"id": "\\ud800", "text": "b"}\n',
        "text",
        "id",
        ":2: id holds half",
    ),
    "no JSON": ("a.jsonl", PADDING + b'{"text": "b"\n', "text", None, "{path}:2"),
    "a missing text": ("a.jsonl", PADDING + b'{"id": "b"}\n', "text", None, "{path}:2: no text; "),
    "a missing id": ("a.jsonl", PADDING + b'{"text": "b"}\n', "text", "id", "{path}:2: no id; "),
    "null": ("a.jsonl", PADDING + b'{"id": "b", "text": null}\n', "text", None, "{path}:2: text is None; it must be"),
    "a number": ("a.jsonl", PADDING + b'{"id": "b", "text": 5}\n', "text", None, "{path}:2: text is 5; it must be"),
    "a list": ("a.jsonl", PADDING + b'{"id": "b", "text": ["b"]}\n', "text", None, "{path}:2: text is ['b']; it must"),
    "another kind": ("a.jsonl", PADDING + b'"b"\n', "text", None, "{path}:2"),
    "an id that is true": ("a.jsonl", PADDING + b'{"id": true, "text": "b"}\n', "text", "id", "{path}:2: id is True;"),
    "a broken number": ("a.jsonl", PADDING + b'{"id": 1.5, "text": "b"}\n', "text", "id", "{path}:2: id is 1.5;"),
    "an id that is null": ("a.jsonl", PADDING + b'{"id": null, "text": "b"}\n', "text", "id", "{path}:2: id is None;"),
    "a blank id": (
        "a.jsonl",
        PADDING + b'{"id": " ", "text": "b"}\n',
        "text",
        "id",
        "{path}:2: id is ' ';",
    ),
    "no such column": ("a.jsonl", PADDING * 2, "body", None, "{path}:1: no column 'body'; there are id, text"),
    "no such ids": ("a.jsonl", PADDING * 2, "text", "key", "{path}:1: no column 'key'; there are id, text"),
    "two columns": ("a.jsonl", PADDING * 2, None, None, "{path}: say which column holds the texts"),
    "a column of lines": ("a.txt", b"a line\nanother line\n", "text", None, "column='text': {path} is read as one"),
    "ids of lines": ("a.txt", b"a line\nanother line\n", None, "id", "id_column='id': {path} is read as one"),
    "half a packed file": (
        "a.txt.gz",
        gzip.compress(bytes(range(10, 120)) * 20)[:60],
        None,
        None,
        "{path}: not a whole",
    ),
    "packed in name only": ("a.txt.gz", b"a line\nanother line\n", None, None, "{path}: not a whole gzip file"),
    "damaged": ("a.txt.gz", gzip.compress(lines())[:-6] + b"abcdef", None, None, "{path}: not a whole gzip file"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_named_with_its_place(name: str, sized: str, tmp_path: Path) -> None:
    file, content, column, ids, told = FAULTS[name]
    (tmp_path / file).write_bytes(content)
    with pytest.raises(ValueError) as raised:
        list(TextFile(tmp_path / file, column, ids).rows())
    assert told.format(path=tmp_path / file) in str(raised.value)


def test_a_look_at_a_file_is_forgotten_when_it_changes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(reading, "SMALL", 16)
    path = tmp_path / "a.jsonl"
    path.write_bytes(PADDING * 2)
    assert [row.id for row in TextFile(path, "text", "id").rows()] == ["first"] * 2
    path.write_bytes(PADDING.replace(b"text", b"body") * 3)
    assert len(list(TextFile(path, "body").rows())) == 3
    with pytest.raises(ValueError, match="no column 'text'"):
        list(TextFile(path, "text", "id").rows())


def test_a_carriage_return_inside_a_text_is_told(sized: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "a.txt").write_bytes(b"one line\rone more\r\nanother line\r\n")
    assert [row.text for row in TextFile(tmp_path / "a.txt").rows()] == ["one line\rone more", "another line"]
    assert "1 texts hold a carriage return" in caplog.text


Write = Callable[..., Path]


@pytest.fixture
def parquet(tmp_path: Path) -> Write:
    """Write columns as a Parquet file."""
    arrow = pytest.importorskip("pyarrow")
    import pyarrow.parquet

    def write(columns: dict[str, object], **options: object) -> Path:
        pyarrow.parquet.write_table(arrow.table(columns), tmp_path / "a.parquet", **options)
        return tmp_path / "a.parquet"

    return write


def test_parquet_can_be_read_from_any_row(parquet: Write) -> None:
    texts = [f"text {at}" if at % 7 else " " for at in range(10_000)]
    path = parquet({"id": list(range(10_000)), "text": texts}, row_group_size=4500)
    expected = [(text, at) for at, text in enumerate(texts)]  # blank ones too, as each has an id
    assert [row.text for row in TextFile(path, "text").rows()] == [text for text in texts if text.strip()]
    file = TextFile(path, "text", "id")
    assert file.seekable
    for start in (0, 1, 4095, 4096, 4499, 4500, 4501, 8999, 9000, 9999):
        found = [(row.text, row.id) for row in file.rows(Place(start, start))]
        assert found == [one for one in expected if one[1] >= start]
    assert [row.offset for row in file.rows()] == [at for _, at in expected]


def test_columns_of_texts_have_several_types(parquet: Write) -> None:
    import pyarrow as arrow

    for kind in (
        arrow.string(),
        arrow.large_string(),
        arrow.string_view(),
        arrow.dictionary(arrow.int32(), arrow.string()),
    ):
        path = parquet({"body": arrow.array(["a", "b", "a"]).cast(kind), "n": [1, 2, 3]})
        assert [row.text for row in TextFile(path).rows()] == ["a", "b", "a"], kind


def test_parquet_without_rows_has_no_texts(parquet: Write) -> None:
    import pyarrow as arrow

    assert list(TextFile(parquet({"text": arrow.array([], arrow.string())})).rows()) == []


@pytest.mark.parametrize(
    ("columns", "column", "ids", "told"),
    [
        ({"text": ["a", None]}, None, None, "{path}:2: text is None; it must be text"),
        ({"text": [b"a", b"b"]}, "text", None, "{path}: column 'text' holds no texts; there are text (binary)"),
        ({"text": [["a"], ["b"]]}, "text", None, "{path}: column 'text' holds no texts; there are text (list<"),
        (
            {"text": [1, 2]},
            None,
            None,
            "say which column holds the texts with column=; there are text (int64)",
        ),
        ({"a": ["x"], "b": ["y"]}, None, None, "{path}: say which column holds the texts"),
        ({"a": ["x"]}, "b", None, "{path}: no column 'b' to read; there are a (string)"),
        ({"a": ["x"]}, "a", "id", "{path}: no column 'id' for the ids to read; there are a (string)"),
        ({"a": ["x"], "id": [1.5]}, "a", "id", "{path}: column 'id' is of type double; give every text an id"),
        ({"a": ["x"], "id": [True]}, "a", "id", "{path}: column 'id' is of type bool; give every text an id"),
        ({"a": ["x", "y"], "id": [1, None]}, "a", "id", "{path}:2: id is None; give every text an id"),
    ],
)
def test_a_fault_of_parquet_is_named(
    columns: dict[str, object], column: str | None, ids: str | None, told: str, parquet: Write
) -> None:
    path = parquet(columns)
    with pytest.raises(ValueError) as raised:
        list(TextFile(path, column, ids).rows())
    assert told.format(path=path) in str(raised.value)


@pytest.mark.parametrize("extended", ["id", "text"])
def test_values_of_extension_types_are_never_made(
    extended: str, parquet: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray's `arrow_pickled_object` unpickles in `to_pylist`."""
    arrow = pytest.importorskip("pyarrow")

    class Scalar(arrow.ExtensionScalar):  # type: ignore[misc]
        def as_py(self, **_: object) -> object:
            raise SystemError("code of the file ran")

    class Kind(arrow.ExtensionType):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__(arrow.string(), "tests.evil")

        def __arrow_ext_serialize__(self) -> bytes:
            return b""

        @classmethod
        def __arrow_ext_deserialize__(cls, storage: object, data: bytes) -> Kind:
            return cls()

        def __arrow_ext_scalar_class__(self) -> type:
            return Scalar

        def __str__(self) -> str:
            return "string"

    arrow.register_extension_type(Kind())
    try:
        evil = arrow.ExtensionArray.from_storage(Kind(), arrow.array(["a", "b"]))
        path = parquet({"id": [1, 2], "text": ["a", "b"]} | {extended: evil})
        with pytest.raises(ValueError, match=rf"a\.parquet: column '{extended}' (is of type|holds no texts)"):
            list(TextFile(path, "text", "id").rows())
    finally:
        arrow.unregister_extension_type("tests.evil")


@pytest.mark.parametrize("kind", ["int8", "uint64", "string", "large_string", "of words", "of numbers"])
def test_ids_have_several_types(kind: str, parquet: Write) -> None:
    arrow = pytest.importorskip("pyarrow")
    ids = arrow.array([3, 1, 2]) if kind in ("int8", "uint64", "of numbers") else arrow.array(["c", "a", "b"])
    ids = ids.dictionary_encode() if kind.startswith("of ") else ids.cast(kind)
    path = parquet({"text": ["x", "y", "z"], "id": ids})
    assert [row.id for row in TextFile(path, "text", "id").rows()] == ids.to_pylist()


def test_parquet_that_is_damaged_is_named(parquet: Write, tmp_path: Path) -> None:
    import pyarrow as arrow

    path = parquet({"text": [f"text {at}" for at in range(5000)]}, compression="none", use_dictionary=False)
    whole = path.read_bytes()
    bad = bytearray(whole)
    bad[400:4000] = b"\xff" * 3600
    twice = tmp_path / "twice.parquet"
    arrow.parquet.write_table(arrow.Table.from_arrays([arrow.array(["a"])] * 2, ["text", "text"]), twice)
    for content in (whole[:-100], b"", b"a text file\n", whole[:4], bytes(bad)):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"a\.parquet: not a whole Parquet file \(.*\); fetch it again$"):
            list(TextFile(path).rows())
    with pytest.raises(ValueError, match=r"twice\.parquet: no column 'text' to read; it occurs more than once: text"):
        list(TextFile(twice, "text").rows())


def test_a_file_of_parquet_needs_no_name(parquet: Write, tmp_path: Path) -> None:
    path = parquet({"text": ["a", "b"]}).rename(tmp_path / "blob")
    file = TextFile(path)
    assert [row.text for row in file.rows()] == ["a", "b"] and file.seekable
    assert dataclasses.replace(file, column="text") != file
