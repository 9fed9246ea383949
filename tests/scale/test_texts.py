"""Texts of many files: the same blocks whoever reads them, and faults by name before anything is computed."""

from __future__ import annotations

import copy
import json
import logging
import pickle
from pathlib import Path
from typing import Any

import pytest

from st_plugins.scale import Block, Texts
from st_plugins.scale.inner import reading
from st_plugins.scale.texts import is_source
from st_plugins.scale.texts import source as source_of


def write(path: Path, texts: list[str]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{text}\n" for text in texts), encoding="utf-8")
    return path


def rows(path: Path, *found: Any) -> Path:
    return write(path, [json.dumps(row) for row in found])


@pytest.fixture
def shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of five files, read as large ones, among them an empty and a blank one."""
    monkeypatch.setattr(reading, "SMALL", 16)
    for number, count in enumerate((7, 0, 10, 1, 3)):
        texts = [f"text {at} of file {number}" if at % 3 else " " for at in range(count)]
        write(tmp_path / "in" / f"{number}.txt", texts)
    return tmp_path / "in"


def plain(folder: Path) -> list[list[str]]:
    files = [file.read_text(encoding="utf-8").split("\n") for file in sorted(folder.glob("*.txt"))]
    return [[text for text in texts if text.strip()] for texts in files]


@pytest.mark.parametrize("size", [1, 2, 3, 100])
def test_blocks_are_the_texts_of_the_files_in_order(size: int, shards: Path) -> None:
    texts = Texts(shards, block_size=size)
    expected = [
        found[at : at + size] for found in plain(shards) for at in range(0, len(found), size)
    ]  # a block has texts of one file only
    blocks = list(texts.blocks())
    assert [block.texts for block in blocks] == expected and [block.number for block in blocks] == [
        *range(len(blocks))
    ]
    assert [block.first_row for block in blocks] == [sum(map(len, expected[:at])) for at in range(len(expected))]
    assert (
        list(texts) == [text for found in expected for text in found]
        and len(texts) == len(list(texts))
        and texts.scan().blocks == len(blocks)
    )
    assert texts.scan().characters == sum(map(len, texts)) and not texts.scan().missing
    assert all(block.ids is None for block in blocks)


def test_every_reader_reads_the_same_blocks(shards: Path) -> None:
    texts = Texts(shards, block_size=2)
    expected = list(texts.blocks())
    other: Texts = pickle.loads(pickle.dumps(texts._for_workers()))  # noqa: S301 - our own
    segments = texts.scan().segments
    assert [block for segment in reversed(segments) for block in other.read(segment)][::-1] == expected
    assert [block.number for segment in segments for block in other.read(segment, frozenset({1, 3}))] == [1, 3]
    with pytest.raises(ValueError, match="was made for workers, which are told what to read"):
        list(other)


def test_a_copy_for_workers_does_not_grow_with_the_blocks_but_by_their_marks(shards: Path) -> None:
    write(shards / "9.txt", [f"text {number}" for number in range(500)])
    texts = Texts(shards, block_size=1)
    blocks = texts.scan().blocks
    assert blocks > 500 and len(pickle.dumps(texts._for_workers())) < 8 * blocks + 1500 < len(pickle.dumps(texts))


@pytest.mark.parametrize("way", ["pickle", "copy"])
@pytest.mark.parametrize("scanned", [True, False])
def test_copies_are_whole(way: str, scanned: bool, shards: Path) -> None:
    texts = Texts(shards, block_size=2)
    if scanned:
        texts.scan()
    found: Texts = pickle.loads(pickle.dumps(texts)) if way == "pickle" else copy.copy(texts)  # noqa: S301 - our own
    assert list(found.blocks()) == list(texts.blocks()) and found.scan() == texts.scan() and len(list(found)) > 10


def test_what_is_read_in_one_piece_gives_wanted_blocks_only(tmp_path: Path) -> None:
    write(tmp_path / "a.csv", ["id,text", *(f"{at},text {at}" for at in range(10))])
    texts = Texts(tmp_path / "a.csv", "text", block_size=3)
    assert len(texts.scan().segments) == 1 and texts.scan().segments[0].rows == (3, 3, 3, 1)
    (segment,) = texts.scan().segments
    assert list(texts.read(segment, frozenset({1}))) == [Block(1, 3, ["text 3", "text 4", "text 5"], None)]
    assert list(texts.read(segment, frozenset())) == []


def test_the_checksum_tells_texts_and_ids_but_not_blocks(tmp_path: Path) -> None:
    rows(tmp_path / "a.jsonl", {"id": 1, "text": "ab"}, {"id": 2, "text": "c"})
    one = {Texts(tmp_path / "a.jsonl", "text", block_size=size).scan().checksum for size in (1, 2, 9)}
    assert len(one) == 1
    found = [one.pop(), Texts(tmp_path / "a.jsonl", "text", id_column="id").scan().checksum]
    for texts, ids in (
        (["a", "bc"], [1, 2]),
        (["ab", "c"], ["1", "2"]),
        (["ab", "c"], [12, 2]),
        (["c", "ab"], [1, 2]),
    ):
        rows(tmp_path / "a.jsonl", *({"id": one, "text": text} for text, one in zip(texts, ids, strict=True)))
        found += [Texts(tmp_path / "a.jsonl", "text", id_column="id").scan().checksum]
    assert len(set(found)) == len(found)


def test_the_checksum_tells_where_a_text_ends(tmp_path: Path) -> None:
    found = {Texts(write(tmp_path / "a.txt", texts)).scan().checksum for texts in (["a", "bc"], ["ab", "c"], ["abc"])}
    assert len(found) == 3


def test_ids_are_numbers_or_texts_in_all_files(tmp_path: Path) -> None:
    rows(tmp_path / "1.jsonl", {"id": -5, "text": "a"}, {"id": 2**63 - 1, "text": "b"}, {"id": 0, "text": "c"})
    texts = Texts(tmp_path, "text", id_column="id")
    assert [block.ids for block in texts.blocks()] == [[-5, 2**63 - 1, 0]] and texts.scan().numbered
    for late in (2**63, "x"):
        rows(tmp_path / "2.jsonl", {"id": late, "text": "d"})
        texts = Texts(tmp_path, "text", id_column="id")
        assert [block.ids for block in texts.blocks()] == [["-5", str(2**63 - 1), "0"], [str(late)]]


@pytest.mark.parametrize("large", [False, True])
def test_an_id_that_occurs_twice_is_named_with_both_places(
    large: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "SMALL", 16 if large else 1 << 20)
    rows(tmp_path / "1.jsonl", *({"id": f"n{at}", "text": "a"} for at in range(9)))
    rows(tmp_path / "2.jsonl", {"id": "n9", "text": "a"}, {"id": "n4", "text": "b"})
    for size in (1, 2, 100):
        with pytest.raises(ValueError, match=r"2\.jsonl:2: id 'n4' occurs twice, first at .*1\.jsonl:5; give every"):
            Texts(tmp_path, "text", id_column="id", block_size=size).scan()


def test_an_id_that_occurs_twice_is_found_in_a_table_on_its_line(tmp_path: Path) -> None:
    write(tmp_path / "a.csv", ["id,text", "1,a", '2,"b', 'c"', "1,d"])
    with pytest.raises(ValueError, match=r"a\.csv:5: id '1' occurs twice, first at .*a\.csv:2; give"):
        Texts(tmp_path / "a.csv", "text", id_column="id").scan()


def test_a_number_and_its_text_are_one_id(tmp_path: Path) -> None:
    rows(tmp_path / "a.jsonl", {"id": 1, "text": "a"}, {"id": "1", "text": "b"})
    with pytest.raises(ValueError, match="id '1' occurs twice"):
        Texts(tmp_path / "a.jsonl", "text", id_column="id").scan()


def broken(folder: Path) -> list[Path]:
    write(folder / "1.txt", ["a dog"])
    (folder / "2.txt").write_bytes(b"a cat\n\xff\n")
    (folder / "3.txt").symlink_to(folder / "nowhere")
    write(folder / "4.txt", ["a bird"])
    return [folder / "2.txt", folder / "3.txt"]


def test_a_file_that_cannot_be_read_stops(tmp_path: Path) -> None:
    broken(tmp_path)
    with pytest.raises(ValueError, match=r"2\.txt:2: byte 0xff is not UTF-8"):
        Texts(tmp_path).scan()
    (tmp_path / "2.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"3\.txt' does not exist"):
        Texts(f"{tmp_path}/*.txt").scan()


def test_or_is_left_out_with_a_warning_and_all_others_are_read(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bad = broken(tmp_path)
    texts = Texts(tmp_path, on_error="skip")
    assert list(texts) == ["a dog", "a bird"] and list(texts.scan().missing) == [str(file) for file in bad]
    assert [block.number for block in texts.blocks()] == [0, 1] and [block.first_row for block in texts.blocks()] == [
        0,
        1,
    ]
    assert "byte 0xff" in texts.scan().missing[str(bad[0])] and "does not exist" in texts.scan().missing[str(bad[1])]
    assert all(f"{file} is left out: " in caplog.text for file in bad)


def test_what_a_file_gave_before_its_fault_is_left_out_too(tmp_path: Path) -> None:
    rows(tmp_path / "1.jsonl", {"id": 1, "text": "a"}, {"id": 2, "text": "b"}, {"id": 3, "text": None})
    rows(tmp_path / "2.jsonl", {"id": 1, "text": "c"})
    texts = Texts(tmp_path, "text", id_column="id", on_error="skip", block_size=1)
    assert list(texts.blocks()) == [Block(0, 0, ["c"], [1])]
    assert texts.scan().characters == 1 and texts.scan().blocks == 1


def test_one_of_many_paths_that_is_missing_is_left_out_as_well(tmp_path: Path) -> None:
    paths = [write(tmp_path / "1.txt", ["a"]), tmp_path / "2.txt"]
    assert list(Texts(paths, on_error="skip").scan().missing) == [str(paths[1])]
    with pytest.raises(FileNotFoundError, match=r"2\.txt' does not exist; check the path"):
        Texts(paths)
    with pytest.raises(FileNotFoundError, match=r"2\.txt' does not exist; check the path$"):
        Texts(paths[1], on_error="skip")


@pytest.mark.parametrize("text", ["a dog", "is it a dog?"])
def test_texts_given_as_files_are_told_where_to_go(text: str) -> None:
    with pytest.raises(FileNotFoundError, match=r"check the pat\w+; texts in memory are encoded by model\.encode$"):
        Texts([text])
    with pytest.raises(FileNotFoundError, match=r"check the pat\w+$"):
        Texts(text)


def test_no_text_at_all_is_refused_and_says_why(tmp_path: Path) -> None:
    write(tmp_path / "1.txt", ["", " "])
    with pytest.raises(ValueError, match=r"has no text; every file is empty, blank or left out$"):
        Texts(tmp_path).scan()
    (tmp_path / "2.txt").write_bytes(b"\xff")
    with pytest.raises(ValueError, match=r"has no text; .*2\.txt:1: byte 0xff is not UTF-8"):
        Texts(tmp_path, on_error="skip").scan()


@pytest.mark.parametrize("after", ["fewer", "more", "others", "none"])
def test_a_file_that_changes_meanwhile_is_refused(after: str, shards: Path) -> None:
    texts = Texts(shards, block_size=2)
    texts.scan()
    path = shards / "2.txt"
    lines = path.read_text(encoding="utf-8").split("\n")
    changed = {"fewer": lines[:5], "more": ["new", *lines], "others": [line.upper() for line in lines], "none": []}
    write(path, changed[after])
    with pytest.raises(ValueError, match=r"2\.txt has other texts than a moment ago; do not change it meanwhile"):
        list(texts.blocks())


def test_paths_are_folders_patterns_and_links_and_each_file_is_read_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = write(tmp_path / "a" / "1.txt", ["1"]), write(tmp_path / "a" / "b" / "2.txt", ["2"])
    write(tmp_path / "a" / ".hidden.txt", ["x"])
    write(tmp_path / "a" / "_SUCCESS", [])
    odd = write(tmp_path / "a[1].txt", ["3"])
    (tmp_path / "a" / "link.txt").symlink_to(first)
    monkeypatch.chdir(tmp_path)
    with caplog.at_level(logging.WARNING):
        assert Texts("a").files == [first]
    assert "link.txt is left out: it is a link to the same file as" in caplog.text and "not read: b/." in caplog.text
    assert Texts("a/**/*.txt").files == [first, second] and Texts("a[1].txt").files == [odd]
    assert Texts(["a/1.txt", first, "./a/../a/1.txt", "a/b"]).files == [first, second]
    assert Texts("a/?.txt").files == [first]
    monkeypatch.chdir("/")
    assert list(Texts(first)) == ["1"]


@pytest.mark.parametrize("finished", [True, False])
def test_a_pattern_leaves_out_what_encode_wrote(
    finished: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    wanted = write(tmp_path / "a" / "b" / "part-0000000.parquet", ["1"])
    output = tmp_path / "a" / ("vectors" if finished else "vectors.unfinished")
    write(output / "part-0000000.parquet", ["2"])
    name = "manifest.json" if finished else "settings.json"
    told = json.dumps({"library": "st-plugins 0.1.0", "parts": []}) if finished else "{}"
    write(output / name, [told])
    # Of somebody else, or named itself.
    others = [write(tmp_path / "c" / part / "1.parquet", ["3"]) for part in ("x.unfinished", "y", "z")]
    write(tmp_path / "c" / "y" / "manifest.json", [json.dumps({"library": "other 2", "parts": []})])
    write(tmp_path / "c" / "z" / name, ["{"])
    assert Texts(f"{tmp_path}/**/*.parquet").files == [wanted, *others]
    assert f"not read: what encode wrote into {output}." in caplog.text
    with pytest.raises(FileNotFoundError, match="no file fits"):
        Texts(f"{output}/*.parquet")
    assert Texts(output / "part-0000000.parquet").files == [output / "part-0000000.parquet"]


@pytest.mark.parametrize(
    ("files", "pattern", "told"),
    [
        ([], "", "has no *.txt, *.jsonl or *.parquet file; it has nothing: name a file instead"),
        (["a.md"], "", "it has a.md: name a file instead"),
        (["b/a.txt"], "", "it has b/: give a pattern, as "),
        (
            ["a.txt", "b.jsonl"],
            "",
            "has files of several kinds, *.jsonl (1), *.txt (1); give a pattern",
        ),
        (["a.txt"], "*.parquet", "no file fits "),
        (["b/a.txt"], "*", "only folders such as "),
        (["a.txt"], "b.txt", "b.txt' does not exist; check the path"),
    ],
)
def test_nothing_to_read_is_told(files: list[str], pattern: str, told: str, tmp_path: Path) -> None:
    for file in files:
        write(tmp_path / "in" / file, ["a"])
    (tmp_path / "in").mkdir(exist_ok=True)
    with pytest.raises((ValueError, FileNotFoundError)) as raised:
        Texts(f"{tmp_path}/in/{pattern}".rstrip("/"))
    assert told in str(raised.value)


@pytest.mark.parametrize(
    ("paths", "settings", "told"),
    [
        ("", {}, "paths: '' is no path"),
        (" ", {}, "paths: ' ' is no path"),
        ("a\0b", {}, "is no path"),
        ([], {}, r"paths=\[\] names no file"),
        (None, {}, "paths is a NoneType; give a path"),
        (b"a.txt", {}, "paths is a bytes; give"),
        ([3], {}, "paths: 3 is a int"),
        ([b"a.txt"], {}, "paths: b'a.txt' is a bytes"),
        ("a.txt", {"block_size": 0}, "block_size=0 must be a whole number"),
        ("a.txt", {"block_size": True}, "block_size=True must be"),
        ("a.txt", {"block_size": 2.0}, "block_size=2.0 must be"),
        ("a.txt", {"on_error": "ignore"}, "on_error='ignore' must be 'stop' or 'skip'"),
        ("a.txt", {"column": ""}, "column='' must be the name of a column"),
        ("a.txt", {"column": 3}, "column=3 must be the name of a column"),
        ("a.txt", {"id_column": ["id"]}, "id_column=.* must be the name of a column"),
        ("a.txt", {"column": "text", "id_column": "text"}, "id_column='text' is the column of the texts"),
    ],
)
def test_settings_out_of_range_are_refused(paths: Any, settings: dict[str, Any], told: str) -> None:
    with pytest.raises((ValueError, TypeError), match=told):
        Texts(paths, **settings)


def test_files_with_other_columns_are_named(tmp_path: Path) -> None:
    rows(tmp_path / "1.jsonl", {"text": "a"})
    rows(tmp_path / "2.jsonl", {"body": "b"})
    with pytest.raises(ValueError, match=r"2\.jsonl:1: no column 'text'; there are body"):
        Texts(tmp_path, "text").scan()
    assert list(Texts(tmp_path, "text", on_error="skip")) == ["a"]


def test_parquet_files_with_other_columns_or_types_are_named(tmp_path: Path) -> None:
    arrow = pytest.importorskip("pyarrow")
    import pyarrow.parquet

    for name, table in (("1", {"text": ["a"]}), ("2", {"body": ["b"]}), ("3", {"text": [3]}), ("4", {"text": ["d"]})):
        pyarrow.parquet.write_table(arrow.table(table), tmp_path / f"{name}.parquet")
    found = Texts(tmp_path, "text", on_error="skip")
    assert list(found) == ["a", "d"]
    two, three = found.scan().missing.values()
    assert "2.parquet: no column 'text' to read; there are body (string)" in two
    assert "3.parquet: column 'text' holds no texts; there are text (int64)" in three


def test_a_text_is_no_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write(tmp_path / "deep" / "er" / "a.txt", ["a"])
    monkeypatch.chdir(tmp_path)
    for text in (
        "a sentence with ? and *",
        "a dog",
        "",
        " ",
        "a\nb",
        "x" * 5000,
        "a\0b",
        "~nobody/x",
        "a [dog] sleeps",
    ):
        assert not is_source(text), text
    for path in ("deep/er/a.txt", "deep", "**/a.txt", "deep/**/*.txt", file, [file], Texts(file)):
        assert is_source(path), path
    assert not is_source(["deep/er/a.txt"]) and not is_source([]) and not is_source(None)
    assert list(source_of("**/a.txt")) == ["a"]
