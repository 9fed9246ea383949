"""Text files and tables with errors that say where: ``path:line: what is wrong``."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from st_plugins.core.reading.content import kind_of, read_content, unified
from st_plugins.core.reading.parsing import SEPARATORS, Rows, parse_delimited, parse_json, separator_of
from st_plugins.core.texts import text_fault

logger = logging.getLogger(__name__)

_USUAL_NAMES = {"text", "sentence", "sentence1", "sentence_a", "question", "question1", "premise", "score", "label"}


def to_score(value: Any) -> float:
    """Turn a field into a gold score."""
    try:
        # Python reads "4_5" as 45 and True as 1; neither is a score anybody meant to write.
        score = math.nan if isinstance(value, bool) or "_" in str(value) else float(value)
    except (TypeError, ValueError, OverflowError):
        score = math.nan
    if not math.isfinite(score):
        remedy = ""
        if isinstance(value, str) and value.count(",") == 1 and value.replace(",", "").strip().isdecimal():
            remedy = "; write a decimal point"
        elif isinstance(value, bool) or str(value).strip().casefold() in ("true", "false"):
            remedy = "; write 1 and 0"
        elif not str("" if value is None else value).strip():
            remedy = "; remove the row, or give it a score"
        raise ValueError(f"score {_shown(value)} is not a finite number{remedy}")
    return score


@dataclass(frozen=True, eq=False)
class Table:
    """The rows of a file and the line each began on."""

    path: Path
    columns: list[str]
    rows: list[list[Any]]  # each as long as the columns; text, except in JSON
    lines: list[int]

    @property
    def names(self) -> str:
        """The names of the columns, for messages."""
        return ", ".join(name or "(without a name)" for name in self.columns)

    def index(self, column: str, option: str = "") -> int:
        """Return the position of a column."""
        if column in self.columns:
            return self.columns.index(column)
        wanted = column.strip().casefold()
        alike = [at for at, name in enumerate(self.columns) if name.strip("\ufeff\u200b \t\xa0").casefold() == wanted]
        if len(alike) == 1:
            return alike[0]
        remedy = f"; name the right one with {option}=" if option else ""
        if len(self.columns) == 1 and kind_of(self.path) != "json":
            remedy = f"; separate columns by {', '.join(SEPARATORS.values())}"
        if any(_is_number(name) or name.count(" ") > 3 for name in self.columns):
            remedy = "; is that a row already? Write the names of the columns above it"
        raise ValueError(f"{self.path}:1: no column {column!r}; there are {self.names}{remedy}")

    def error(self, row: int, what: str) -> ValueError:
        """Return an exception that points at a row."""
        return ValueError(f"{self.path}:{self.lines[row]}: {what}")

    def texts(self, column: str, option: str = "") -> list[str]:
        """Return a column of texts."""
        at = self.index(column, option)
        for number, row in enumerate(self.rows):
            if not isinstance(row[at], str):
                raise self.error(number, f"{column} is {_shown(row[at])}; it must be text")
            if fault := text_fault(row[at]):
                raise self.error(number, f"{column} {fault}")
        return [row[at] for row in self.rows]

    def scores(self, column: str, option: str = "") -> list[float]:
        """Return a column of gold scores."""
        at = self.index(column, option)
        scores = []
        for number, row in enumerate(self.rows):
            try:
                scores.append(to_score(row[at]))
            except ValueError as error:
                raise self.error(number, str(error)) from None
        return scores


def read_table(path: Path) -> Table:
    """Read a table with named columns, whatever its name says."""
    # In a TSV file a quotation mark is an ordinary character, unless all of them show that a program put them there.
    table = try_table(path, read_content(path))
    if table is None:
        if not path.stat().st_size:
            raise ValueError(f"{path}: the file is empty")
        raise ValueError(
            f"file {str(path)!r} is none of .tsv, .csv, .jsonl (each with or without .gz), and its first line is no "
            "header of such a table; rename it, or write one of them"
        )
    return table


def try_table(path: Path, content: str, texts: bool = False) -> Table | None:
    """Make a table of the content of a file; None for what is none."""
    # With `texts` one text a line is wanted as well as a table: then what does not look like a table is none.
    kind, text = kind_of(path), unified(content)
    found = parse_json(text, path, certain=kind == "json")
    if found is None:
        found = _delimited(path, text, kind, texts)
    if found is None:
        return None
    table = Table(path, *found)
    for name in table.columns:
        if fault := text_fault(name):
            raise ValueError(f"{path}:1: the name of a column {fault}")
        if "\r" in name:
            raise ValueError(f"{path}:1: some lines end in a carriage return only, some do not; end all with \\n")
    if len(set(table.columns)) != len(table.columns):
        raise ValueError(f"{path}:1: a column name occurs twice: {table.names}; rename one")
    for number, row in enumerate(table.rows):
        if len(row) != len(table.columns):
            remedy = "put fields that hold a separator in double quotes" if any(row) else "remove the empty line"
            raise table.error(number, f"{len(row)} fields, but the header has {len(table.columns)}; {remedy}")
    if not table.rows:
        raise ValueError(f"{path}: there is no row; the file is empty or has only a header")
    return table


def _delimited(path: Path, text: str, kind: str, texts: bool) -> Rows | None:
    lines = text.split("\n", 1000)[:1000]
    usual = "," if kind == "csv" else "\t"
    first = lines[0].strip('"')
    if first.lower().startswith("sep=") and first[4:] in SEPARATORS:  # of Excel
        columns, rows, numbers = parse_delimited(text[len(lines[0]) + 1 :], first[4:], path, quoting=True)
        return Rows(columns, rows, [number + 1 for number in numbers])
    if kind in ("tsv", "csv"):
        separator = separator_of(lines[:1], usual)
    elif "\t" in lines[0] and len(lines) > 1 and len({line.count("\t") for line in lines}) == 1:
        separator = "\t"
    elif separator_of(lines[:1], usual) in lines[0] and (not texts or _names_columns(lines[0])):
        separator = separator_of(lines[:1], usual)
    else:
        return None
    if text == "":
        return Rows([], [], [])
    if separator != usual:
        logger.info("%s: the fields are separated by %s", path, SEPARATORS[separator])
    return parse_delimited(text, separator, path, quoting=separator != "\t" or kind == "csv")


def _names_columns(line: str) -> bool:
    """Return whether a line can only be the header of a table: words without spaces, one of them a usual name."""
    names = [name.strip().strip('"').casefold() for name in line.split(separator_of([line], ","))]
    return not any(" " in name for name in names) and not _USUAL_NAMES.isdisjoint(names)


def _shown(value: Any) -> str:
    """Return a value for a message, not all of it if it is long."""
    shown = repr(value)
    return shown if len(shown) <= 80 else f"{shown[:80]}..."


def _is_number(text: str) -> bool:
    try:
        to_score(text)
    except ValueError:
        return False
    return True
