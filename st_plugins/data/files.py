"""Text files and tables with errors that say where: ``path:line: what is wrong``."""

from __future__ import annotations

import csv
import gzip
import io
import json
import math
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["Table", "format_of", "read_content", "read_lines", "read_table", "to_score"]


def format_of(path: Path) -> str:
    """Return the file's format by its name.

    Args:
        path: A file name, with or without ``.gz``.

    Returns:
        The suffix in lower case without the dot and without ``.gz``: ``"tsv"``, ``"csv"``, ``"jsonl"``, ``"txt"``, ...
    """
    name = path.name.lower().removesuffix(".gz")
    return name.rpartition(".")[2] if "." in name else ""


def read_content(path: Path) -> str:
    """Read a UTF-8 file, unpacked if its name ends in ``.gz``, without a byte order mark.

    Args:
        path: The file.

    Returns:
        Its text, line ends untouched.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is not UTF-8, or not a whole gzip file.
    """
    if not path.is_file():
        raise FileNotFoundError(f"file {str(path)!r} does not exist; check the path")
    data = path.read_bytes()
    if path.name.lower().endswith(".gz"):
        try:
            data = gzip.decompress(data)
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise ValueError(f"{path}: not a whole gzip file ({error}); fetch it again") from None
    try:
        return data.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ValueError(
            f"{path}:{line}: byte 0x{data[error.start]:02x} is not UTF-8; save the file as UTF-8"
        ) from None


def read_lines(path: Path) -> list[str]:
    r"""Return the lines of a file, split on ``\n`` only; a ``\r`` before it and empty lines at the end are dropped.

    Args:
        path: The file, see :func:`read_content`.

    Returns:
        The lines without their ends. ``str.splitlines`` would also split on characters that occur inside texts.
    """
    return [line.removesuffix("\r") for line in read_content(path).rstrip("\r\n").split("\n")]


def to_score(value: Any) -> float:
    """Turn a field into a gold score.

    Args:
        value: A number, or text that spells one.

    Returns:
        The score.

    Raises:
        ValueError: It is no number, or not a finite one.
    """
    try:
        # Python reads "4_5" as 45 and True as 1; neither is a score anybody meant to write.
        score = math.nan if isinstance(value, bool) or "_" in str(value) else float(value)
    except (TypeError, ValueError, OverflowError):
        score = math.nan
    if not math.isfinite(score):
        raise ValueError(f"score {value!r} is not a finite number")
    return score


@dataclass(frozen=True, eq=False)
class Table:
    """The rows of a file and the line each began on.

    Args:
        path: The file.
        columns: Column names.
        rows: One list a row, as long as ``columns``. Text, except in JSONL files.
        lines: Line number of each row, from 1.
    """

    path: Path
    columns: list[str]
    rows: list[list[Any]]
    lines: list[int]

    def index(self, column: str, option: str = "") -> int:
        """Return the position of a column.

        Args:
            column: Its name.
            option: The argument that names it, for the error message.

        Returns:
            The position, from 0.

        Raises:
            ValueError: There is no such column.
        """
        if column not in self.columns:
            remedy = f"; name the right one with {option}=" if option else ""
            raise ValueError(f"{self.path}:1: no column {column!r}; there are {', '.join(self.columns)}{remedy}")
        return self.columns.index(column)

    def error(self, row: int, what: str) -> ValueError:
        """Return an exception that points at a row.

        Args:
            row: Its index.
            what: What is wrong with it.

        Returns:
            The exception, to be raised.
        """
        return ValueError(f"{self.path}:{self.lines[row]}: {what}")

    def texts(self, column: str, option: str = "") -> list[str]:
        """Return a column of texts.

        Args:
            column: Its name.
            option: The argument that names it, for the error message.

        Returns:
            One text a row.

        Raises:
            ValueError: There is no such column, or a field is not text.
        """
        at = self.index(column, option)
        for number, row in enumerate(self.rows):
            if not isinstance(row[at], str):
                raise self.error(number, f"{column} is {row[at]!r}; it must be text")
        return [row[at] for row in self.rows]

    def scores(self, column: str, option: str = "") -> list[float]:
        """Return a column of gold scores.

        Args:
            column: Its name.
            option: The argument that names it, for the error message.

        Returns:
            One score a row.

        Raises:
            ValueError: There is no such column, or a field is not a finite number.
        """
        at = self.index(column, option)
        scores = []
        for number, row in enumerate(self.rows):
            try:
                scores.append(to_score(row[at]))
            except ValueError as error:
                raise self.error(number, str(error)) from None
        return scores


def read_table(path: Path) -> Table:
    """Read a table with named columns.

    TSV files have no quoting (a quotation mark is an ordinary character), CSV files follow the usual dialect (fields
    in double quotes may hold commas and line breaks), JSONL files have one object a line.

    Args:
        path: A ``.tsv``, ``.csv`` or ``.jsonl`` file, with or without ``.gz``.

    Returns:
        The table; it has at least one row.

    Raises:
        ValueError: The format is unknown, or the file is empty, ragged or broken.
    """
    readers = {"tsv": _read_tsv, "csv": _read_csv, "jsonl": _read_jsonl}
    kind = format_of(path)
    if kind not in readers:
        raise ValueError(f"file {str(path)!r} is none of .tsv, .csv, .jsonl (each with or without .gz); rename it")
    table = readers[kind](path)
    if len(set(table.columns)) != len(table.columns):
        raise ValueError(f"{path}:1: a column name occurs twice: {', '.join(table.columns)}; rename one")
    for number, row in enumerate(table.rows):
        if len(row) != len(table.columns):
            raise table.error(number, f"{len(row)} fields, but the header has {len(table.columns)}")
    if not table.rows:
        raise ValueError(f"{path}: there is no row; the file is empty or has only a header")
    return table


def _read_tsv(path: Path) -> Table:
    header, *rows = (line.split("\t") for line in read_lines(path))
    return Table(path, header, rows, list(range(2, len(rows) + 2)))


def _read_csv(path: Path) -> Table:
    reader = csv.reader(io.StringIO(read_content(path).rstrip("\r\n"), newline=""), strict=True)
    rows: list[list[Any]] = []
    lines = []
    start = 1
    try:
        for row in reader:
            rows.append(row)
            lines.append(start)
            start = reader.line_num + 1  # a quoted field may span lines
    except csv.Error as error:
        raise ValueError(f"{path}:{start}: {error}") from None
    return Table(path, rows[0] if rows else [], rows[1:], lines[1:])


def _read_jsonl(path: Path) -> Table:
    columns: list[str] = []
    rows = []
    lines = read_lines(path)
    for number, line in enumerate(lines if lines != [""] else [], start=1):
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}:{number}: not JSON ({error.msg}); write one object a line") from None
        if not isinstance(row, dict):
            raise ValueError(f"{path}:{number}: {line[:40]!r} is not an object with named columns")
        columns = columns or list(row)
        missing = [column for column in columns if column not in row]
        if missing:
            raise ValueError(f"{path}:{number}: no {', '.join(missing)}; the first line has {', '.join(columns)}")
        rows.append([row[column] for column in columns])
    return Table(path, columns, rows, list(range(1, len(rows) + 1)))
