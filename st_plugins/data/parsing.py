"""Take the text of a table apart: fields between separators, with quotes or without, and JSON."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, NamedTuple

__all__ = ["SEPARATORS", "Rows", "parse_delimited", "parse_json", "separator_of"]

SEPARATORS = {"\t": "tabs", ",": "commas", ";": "semicolons", "|": "vertical bars"}


class Rows(NamedTuple):
    """A table as it is written.

    Args:
        columns: Names of the columns.
        rows: One list a row.
        lines: Line on which each row begins, from 1.
    """

    columns: list[str]
    rows: list[list[Any]]
    lines: list[int]


def separator_of(lines: list[str], usual: str) -> str:
    """Find out what separates the fields of a table.

    Args:
        lines: Its first lines, the header first.
        usual: What separates them where nothing speaks against it.

    Returns:
        One of `SEPARATORS`: the usual one if the header has it, otherwise the one of which the header has most.

    Example:
        >>> separator_of(["sentence1;sentence2;score", "a;b;1,5"], ",")
        ';'
    """
    header = re.sub('"[^"]*"', "", lines[0]) if lines else ""
    counts = {separator: header.count(separator) for separator in SEPARATORS}
    if counts[usual] or not any(counts.values()):
        return usual
    return max(counts, key=lambda separator: counts[separator])


def parse_delimited(text: str, separator: str, path: Path, quoting: bool) -> Rows:
    """Split a table with a header into fields.

    Args:
        text: The content, lines ending in a line feed.
        separator: What is between two fields.
        path: The file, for messages.
        quoting: Whether fields in double quotes may hold separators, line breaks and doubled quotes. Without, a
            quotation mark is an ordinary character; unless the file shows that a program quoted its fields: every
            field with a quotation mark is wholly in quotes, those inside are doubled, and some field needed it.

    Returns:
        The table.

    Raises:
        ValueError: A quoted field does not end where it should.
    """
    found = None
    if '"' in text:
        found = _quoted(text, separator, path) if quoting else _as_quoted_by_a_program(text, separator)
    if found is None:
        lines = text.split("\n")
        found = (
            [line.split(separator) if line or not quoting else [] for line in lines],
            list(range(1, len(lines) + 1)),
        )
    rows, numbers = found
    return Rows(rows[0], rows[1:], numbers[1:]) if rows else Rows([], [], [])


def _quoted(text: str, separator: str, path: Path) -> tuple[list[list[str]], list[int]]:
    """Split as spreadsheets do. Not by `csv`, whose limit on the length of a field holds for the whole process."""
    mark = re.escape(separator)
    field = re.compile(rf'"([^"]*(?:""[^"]*)*)"(?={mark}|\n|\Z)|([^"\n{mark}][^\n{mark}]*)?(?={mark}|\n|\Z)')
    rows: list[list[str]] = [[]]
    numbers, number, at = [1], 1, 0
    while True:
        match = field.match(text, at)
        if match is None:
            ended = re.compile('"[^"]*(?:""[^"]*)*"').match(text, at)
            what = "text after the closing quotation mark" if ended else "unexpected end of data inside quotes"
            raise ValueError(f"{path}:{numbers[-1]}: {what}; double the quotation marks inside quoted fields")
        quoted, plain = match.groups()
        rows[-1].append(plain or "" if quoted is None else quoted.replace('""', '"'))
        number += text.count("\n", at, match.end())
        at = match.end()
        if at == len(text):
            return [[] if row == [""] else row for row in rows], numbers
        if text[at] == "\n":
            number += 1
            rows.append([])
            numbers.append(number)
        at += 1


def _as_quoted_by_a_program(text: str, separator: str) -> tuple[list[list[str]], list[int]] | None:
    """Split a table whose quotation marks can only come from a program that quotes, such as pandas; otherwise None."""
    mark = re.escape(separator)
    field = re.compile(rf'"([^"]*(?:""[^"]*)*)"(?={mark}|\n|\Z)|([^"\n{mark}]*)(?={mark}|\n|\Z)')
    rows: list[list[str]] = [[]]
    numbers, number, at = [1], 1, 0
    needed = text.startswith('"')  # the header is quoted: all fields are
    while True:
        match = field.match(text, at)
        if match is None:
            return None
        quoted, plain = match.groups()
        if quoted is not None:
            needed = needed or any(character in quoted for character in ('""', separator, "\n"))
        rows[-1].append(plain if quoted is None else quoted.replace('""', '"'))
        number += text.count("\n", at, match.end())
        at = match.end()
        if at == len(text):
            break
        if text[at] == "\n":
            number += 1
            rows.append([])
            numbers.append(number)
        at += 1
    even = all(len(row) == len(rows[0]) for row in rows)
    return (rows, numbers) if needed and even else None


def parse_json(text: str, path: Path, certain: bool) -> Rows | None:
    """Read JSON: an array, an object with one array in it, or one value a line; of objects, or of texts.

    Args:
        text: The content.
        path: The file, for messages.
        certain: Whether it has to be JSON; otherwise what is none is not read.

    Returns:
        The table. Texts without a name get the column ``text``. None for what is no JSON.

    Raises:
        ValueError: It is broken, or neither objects nor texts; the message names the line.
    """
    start = text.lstrip()[:1]
    if not start or (not certain and start not in "[{"):
        return Rows([], [], []) if certain else None
    items = _array(text, text.index("["), path, certain) if start == "[" else None
    if items is None:
        items = _lines(text, path, certain)
    return None if items is None else _table(items, text, path)


def _array(text: str, at: int, path: Path, certain: bool) -> list[tuple[int, Any]] | None:
    """Return the values of an array with their lines; None where it is one line of several, or no JSON."""
    decoder, space = json.JSONDecoder(), re.compile(r"[\s]*")
    items: list[tuple[int, Any]] = []
    number, counted = 1, 0
    at += 1
    try:
        while True:
            at = _end(space, text, at)
            if text[at : at + 1] == "]" and not items:
                break
            number, counted = number + text.count("\n", counted, at), at
            value, at = decoder.raw_decode(text, at)
            items.append((number, value))
            at = _end(space, text, at)
            if text[at : at + 1] == "]":
                break
            if text[at : at + 1] != ",":
                raise json.JSONDecodeError("Expecting ',' or ']'", text, at)
            at += 1
    except json.JSONDecodeError as error:
        if not certain:
            return None
        raise ValueError(f"{path}:{error.lineno}: not JSON ({error.msg}); write the file again") from None
    rest = text[at + 1 :].strip()
    return items if not rest or rest[0] in ",}" else None


def _lines(text: str, path: Path, certain: bool) -> list[tuple[int, Any]] | None:
    items: list[tuple[int, Any]] = []
    for number, line in enumerate(text.rstrip().split("\n"), start=1):
        try:
            items.append((number, json.loads(line)))
        except json.JSONDecodeError as error:
            whole = _object(text, path) if not items else None
            if whole is not None:
                return whole
            if not certain and not any(isinstance(value, dict) for _, value in items):
                return None
            raise ValueError(f"{path}:{number}: not JSON ({error.msg}); write one object a line") from None
    lists = _object(text, path) if len(items) == 1 and isinstance(items[0][1], dict) else None
    return lists or items


def _object(text: str, path: Path) -> list[tuple[int, Any]] | None:
    """Return the array that an object holds, as many sites export it; None for other objects, and for no JSON."""
    try:
        value = json.loads(text)
    except json.JSONDecodeError:
        return None
    if not isinstance(value, dict):
        return None
    lists = [name for name, inner in value.items() if isinstance(inner, list)]
    if len(lists) == 1:
        match = re.search(re.escape(json.dumps(lists[0], ensure_ascii=False)) + r"\s*:\s*\[", text)
        if match:
            items = _array(text, match.end() - 1, path, certain=True)
            before = text.count("\n", 0, match.end() - 1)
            if items is not None and len(items) == len(value[lists[0]]):
                return [(max(number, before + 1), inner) for number, inner in items]
        return [(1, inner) for inner in value[lists[0]]]
    if lists or text.strip().count("\n"):
        raise ValueError(
            f"{path}:1: an object with {', '.join(list(value)[:8])}, of which {len(lists)} are arrays; write an array "
            "of objects, or one object a line (JSON lines)"
        )
    return None


def _table(items: list[tuple[int, Any]], text: str, path: Path) -> Rows:
    """Make a table of objects, or of texts."""
    if items and all(isinstance(value, str) for _, value in items):
        return Rows(["text"], [[value] for _, value in items], [number for number, _ in items])
    columns: list[str] = []
    rows = []
    for number, value in items:
        if not isinstance(value, dict):
            shown = text.split("\n")[number - 1].strip()[:40]
            raise ValueError(f"{path}:{number}: {shown!r} is not an object with named columns")
        columns = columns or list(value)
        missing = [column for column in columns if column not in value]
        if missing:
            raise ValueError(f"{path}:{number}: no {', '.join(missing)}; the first line has {', '.join(columns)}")
        rows.append([value[column] for column in columns])
    return Rows(columns, rows, [number for number, _ in items])


def _end(pattern: re.Pattern[str], text: str, at: int) -> int:
    match = pattern.match(text, at)
    return match.end() if match else at
