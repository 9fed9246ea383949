"""Take the text of a table apart: fields between separators, with quotes or without, and JSON."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, NamedTuple

_SPACE = re.compile(r"[ \t\r\n]*")  # of JSON, which knows no other
_STRING = r'"(?:[^"\\\n]|\\.)*"'
# An object with a name, or an array of objects or of texts: no text that is meant as such begins so.
_BEGINS_AS_JSON = re.compile(rf'\s*\[?\s*{{\s*{_STRING}\s*:|\s*\[\s*{_STRING}\s*(?:,\s*"|,?\s*\n)')

SEPARATORS = {"\t": "tabs", ",": "commas", ";": "semicolons", "|": "vertical bars"}


class Rows(NamedTuple):
    """A table as it is written."""

    columns: list[str]
    rows: list[list[Any]]
    lines: list[int]  # on which each row begins, from 1


def separator_of(lines: list[str], usual: str) -> str:
    """Find out what separates the fields of a table."""
    header = re.sub('"[^"]*"', "", lines[0]) if lines else ""
    counts = {separator: header.count(separator) for separator in SEPARATORS}
    if counts[usual] or not any(counts.values()):
        return usual
    return max(counts, key=lambda separator: counts[separator])


def parse_delimited(text: str, separator: str, path: Path, quoting: bool) -> Rows:
    """Split a table with a header into fields."""
    # Without quoting a quotation mark is an ordinary character, unless the file shows that a program put it there.
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
    """Split as spreadsheets do, with double quotes around fields that hold separators, line breaks or quotes."""
    mark = re.escape(separator)
    # Some write a space after the separator, before the quotation mark.
    field = re.compile(rf' *"([^"]*(?:""[^"]*)*)"(?={mark}|\n|\Z)|([^"\n{mark}][^\n{mark}]*)?(?={mark}|\n|\Z)')
    rows, numbers, end = _fields(text, field)
    if end < len(text):
        ended = re.compile('"[^"]*(?:""[^"]*)*"').match(text, end)
        what = "text after the closing quotation mark" if ended else "unexpected end of data inside quotes"
        raise ValueError(f"{path}:{numbers[-1]}: {what}; double the quotation marks inside quoted fields")
    return [[] if row == [""] else row for row in rows], numbers


def _as_quoted_by_a_program(text: str, separator: str) -> tuple[list[list[str]], list[int]] | None:
    """Split a table whose quotation marks can only come from a program that quotes, such as pandas; otherwise None."""
    # Every field with a quotation mark is wholly in quotes, those inside are doubled, and some field needed it: it
    # stands in the header, whose quotes mean that all fields have them, or holds what would end a field without.
    mark = re.escape(separator)
    field = re.compile(rf'"([^"]*(?:""[^"]*)*)"(?={mark}|\n|\Z)|([^"\n{mark}]*)(?={mark}|\n|\Z)')
    rows, numbers, end = _fields(text, field)
    if end < len(text) or any(len(row) != len(rows[0]) for row in rows):
        return None
    needed = any(character in cell for row in rows for cell in row for character in ('"', separator, "\n"))
    return (rows, numbers) if needed or text.startswith('"') else None


def _fields(text: str, field: re.Pattern[str]) -> tuple[list[list[str]], list[int], int]:
    """Return rows, the line on which each begins, and where a field was not as its pattern has it; the end if none."""
    # Not by `csv`, whose limit on the length of a field holds for the whole process.
    rows: list[list[str]] = [[]]
    numbers, number, at = [1], 1, 0
    while match := field.match(text, at):
        quoted, plain = match.groups()
        rows[-1].append(plain or "" if quoted is None else quoted.replace('""', '"'))
        number += 0 if quoted is None else quoted.count("\n")
        at = match.end()
        if at == len(text):
            break
        if text[at] == "\n":
            number += 1
            rows.append([])
            numbers.append(number)
        at += 1
    return rows, numbers, at


def parse_json(text: str, path: Path, certain: bool) -> Rows | None:
    """Read JSON: an array, an object with one array in it, or values one after another; of objects, or of texts."""
    start = _end(_SPACE, text, 0)
    # Where it is not certain to be JSON, what is none is left alone, unless it begins as only JSON does.
    if not certain and text[start : start + 1] not in ("[", "{"):
        return None
    is_array = text[start : start + 1] == "["
    try:
        items, end = _values(text, start + is_array, is_array)
        if is_array and _end(_SPACE, text, end + 1) < len(text):  # several arrays
            items, end = _values(text, start, False)
    except (ValueError, RecursionError) as error:
        if not certain and not _BEGINS_AS_JSON.match(text):
            return None
        what = error.msg if isinstance(error, json.JSONDecodeError) else str(error).split(";")[0]
        line = f":{error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
        raise ValueError(f"{path}{line}: not JSON ({what}); write one object a line, or an array of objects") from None
    if len(items) == 1 and not is_array and isinstance(items[0][1], dict):
        items = _inside(items[0][1], text, path) or items
    return _table(items, text, path)


def _values(text: str, at: int, is_array: bool) -> tuple[list[tuple[int, Any]], int]:
    """Return values with their lines, those of an array up to its end or all there are, and where they end."""
    decoder = json.JSONDecoder()
    items: list[tuple[int, Any]] = []
    number, counted = 1, 0
    at = _end(_SPACE, text, at)
    while at < len(text) and (items or not is_array or text[at] != "]"):
        number, counted = number + text.count("\n", counted, at), at
        try:
            value, end = decoder.raw_decode(text, at)
        except json.JSONDecodeError as error:
            whole_line = not is_array and text[at : text.find("\n", at)].strip() not in ("{", "[")
            raise json.JSONDecodeError(error.msg, text, at) if whole_line else error from None
        items.append((number, value))
        at = _end(_SPACE, text, end)
        if is_array and text[at : at + 1] != ",":
            break
        if is_array:
            at = _end(_SPACE, text, at + 1)
    if is_array and text[at : at + 1] != "]":
        raise json.JSONDecodeError("Expecting ',' or ']'", text, at)
    return items, at


def _inside(value: dict[str, Any], text: str, path: Path) -> list[tuple[int, Any]] | None:
    """Return the array that an object is there to hold, as many sites export it; None for an object that is a row."""
    arrays = [name for name, inner in value.items() if isinstance(inner, list)]
    records = [name for name in arrays if value[name] and isinstance(value[name][0], dict)]
    if len(arrays) == 1 and (records or len(value) == 1):
        name = arrays[0]
        for match in re.finditer(re.escape(json.dumps(name, ensure_ascii=False)) + r"\s*:\s*\[", text):
            items, _ = _values(text, match.end(), True)
            if [inner for _, inner in items] == value[name]:
                return items
        return [(1, inner) for inner in value[name]]
    if value and all(isinstance(inner, list | dict) for inner in value.values()):
        raise ValueError(
            f"{path}:1: an object with {', '.join(list(value)[:8])}, of which {len(arrays)} are arrays; write an "
            "array of objects, or one object a line (in pandas orient='records')"
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
            shown = text.split("\n")[number - 1].strip()
            raise ValueError(
                f"{path}:{number}: {shown[:40]!r} is not an object with named columns, nor are all of them texts"
            )
        columns = columns or list(value)
        try:
            rows.append([value[column] for column in columns])
        except KeyError:
            missing = [column for column in columns if column not in value]
            raise ValueError(
                f"{path}:{number}: no {', '.join(missing)}; the first line has {', '.join(columns)}"
            ) from None
    if rows and not columns:
        raise ValueError(f"{path}:{items[0][0]}: an object without columns; give each row its texts by name")
    return Rows(columns, rows, [number for number, _ in items])


def _end(pattern: re.Pattern[str], text: str, at: int) -> int:
    match = pattern.match(text, at)
    return match.end() if match else at
