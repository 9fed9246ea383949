"""Text files and tables with errors that say where: ``path:line: what is wrong``."""

from __future__ import annotations

import codecs
import gzip
import logging
import math
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from st_plugins.data.parsing import SEPARATORS, Rows, parse_delimited, parse_json, separator_of

__all__ = [
    "Table",
    "check_texts",
    "format_of",
    "read_content",
    "read_lines",
    "read_table",
    "text_fault",
    "to_score",
    "try_table",
]

logger = logging.getLogger(__name__)

_KINDS = {"tsv": "tsv", "tab": "tsv", "csv": "csv", "jsonl": "json", "ndjson": "json", "json": "json", "txt": "txt"}
_FOREIGN = {
    b"PK\x03\x04": "a ZIP archive or an Office file (xlsx, docx)",
    b"\xd0\xcf\x11\xe0": "an old Office file (xls, doc)",
    b"PAR1": "a Parquet file",
    b"ARROW1": "an Arrow file",
    b"%PDF": "a PDF",
    b"\x89PNG": "a picture (PNG)",
    b"\xff\xd8\xff": "a picture (JPEG)",
    b"GIF8": "a picture (GIF)",
    b"SQLite format 3": "an SQLite database",
    b"\x89HDF": "an HDF5 file",
    b"\x93NUMPY": "a NumPy array",
    b"BZh": "packed with bzip2",
    b"\xfd7zXZ": "packed with xz",
    b"\x28\xb5\x2f\xfd": "packed with zstandard",
    b"7z\xbc\xaf": "packed with 7-Zip",
}
_WIDE = {codecs.BOM_UTF32_LE: "utf-32", codecs.BOM_UTF32_BE: "utf-32", codecs.BOM_UTF16_LE: "utf-16",
         codecs.BOM_UTF16_BE: "utf-16"}  # fmt: skip


def format_of(path: Path) -> str:
    """Return the file's format by its name.

    Args:
        path: A file name, with or without ``.gz``.

    Returns:
        The suffix in lower case without the dot and without ``.gz``: ``"tsv"``, ``"csv"``, ``"jsonl"``, ``"txt"``, ...
    """
    name = path.name.lower().removesuffix(".gz")
    return name.rpartition(".")[2] if "." in name else ""


def kind_of(path: Path) -> str:
    """Return what a file's name says of its content: ``"tsv"``, ``"csv"``, ``"json"``, ``"txt"``, or nothing."""
    parts = path.name.lower().split(".")[1:]
    return next((_KINDS[part] for part in reversed(parts) if part in _KINDS), "")  # pairs.tsv.bak is a tsv


def read_content(path: Path) -> str:
    """Read a text file, unpacked if it is a gzip file, in UTF-8 or, with a byte order mark, UTF-16 or UTF-32.

    Args:
        path: The file.

    Returns:
        Its text without a byte order mark, line ends untouched.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is no text, not UTF-8, or not a whole gzip file; the message names the remedy.
    """
    if not path.is_file():
        raise FileNotFoundError(f"file {str(path)!r} does not exist; check the path")
    data = path.read_bytes()
    if data.startswith(b"\x1f\x8b") or path.name.lower().endswith(".gz"):
        try:
            data = gzip.decompress(data)
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise ValueError(f"{path}: not a whole gzip file ({error}); fetch it again") from None
    for magic, what in _FOREIGN.items():
        if data.startswith(magic):
            raise ValueError(f"{path}: is {what}, not text; export it as CSV or JSON lines")
    wide = next((name for mark, name in _WIDE.items() if data.startswith(mark)), "")
    try:
        text = data.decode(wide or "utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ValueError(
            f"{path}:{line}: byte 0x{data[error.start]:02x} is not {wide.upper() or 'UTF-8'}; save the file as UTF-8"
        ) from None
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise ValueError(f"{path}:{line}: a NUL character: no text, or UTF-16 without its mark; save it as UTF-8")
    return text


def unified(text: str) -> str:
    r"""Return text whose lines end in a line feed only, without empty lines at the end."""
    if "\n" not in text:  # of an old Macintosh; beside line feeds it is part of a text
        text = text.replace("\r", "\n")
    return text.replace("\r\n", "\n").rstrip("\r\n")


def read_lines(path: Path) -> list[str]:
    r"""Return the lines of a file, split on ``\n`` only; a ``\r`` before it and empty lines at the end are dropped.

    Args:
        path: The file, see :func:`read_content`.

    Returns:
        The lines without their ends. ``str.splitlines`` would also split on characters that occur inside texts.
    """
    return unified(read_content(path)).split("\n")


def text_fault(text: str) -> str:
    r"""Return why a text cannot be encoded, or nothing.

    Args:
        text: The text.

    Returns:
        What is wrong, to be put behind the place.

    Example:
        >>> text_fault("half an emoji: \ud83d")
        "holds half a character, '\\ud83d' (a lone surrogate, as cutting a text in the middle leaves it); repair it"
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        half = ascii(text[error.start])
        return (
            f"holds half a character, {half} (a lone surrogate, as cutting a text in the middle leaves it); repair it"
        )
    return ""


def check_texts(texts: Iterable[str], name: str) -> None:
    """Refuse texts that cannot be encoded.

    Args:
        texts: The texts.
        name: The argument that they are, for the message.

    Raises:
        ValueError: A text holds half a character; the message names its index.

    Example:
        >>> check_texts(["a dog", "a cat"], "texts")
    """
    for index, text in enumerate(texts):
        if fault := text_fault(text):
            raise ValueError(f"{name}[{index}] {fault}")


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
        comma = isinstance(value, str) and value.count(",") == 1 and value.replace(",", "").strip().isdecimal()
        raise ValueError(f"score {value!r} is not a finite number{'; write a decimal point' if comma else ''}")
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
        if column in self.columns:
            return self.columns.index(column)
        wanted = column.strip().casefold()
        alike = [at for at, name in enumerate(self.columns) if name.strip("\ufeff\u200b \t").casefold() == wanted]
        if len(alike) == 1:
            return alike[0]
        remedy = f"; name the right one with {option}=" if option else ""
        shown = ", ".join(name or "(without a name)" for name in self.columns)
        if any(_is_number(name) or name.count(" ") > 3 for name in self.columns):
            remedy = "; is that a row already? Write the names of the columns above it"
        raise ValueError(f"{self.path}:1: no column {column!r}; there are {shown}{remedy}")

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
            if fault := text_fault(row[at]):
                raise self.error(number, f"{column} {fault}")
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
    """Read a table with named columns, whatever its name says.

    Fields may be separated by tabs, commas, semicolons or vertical bars. In CSV files fields in double quotes may hold
    separators and line breaks; in TSV files a quotation mark is an ordinary character, unless all of them show that a
    program such as pandas put them there. JSON may be an array, an object with an array in it, or one object a line.

    Args:
        path: The file, packed with gzip or not.

    Returns:
        The table; it has at least one row.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is no table, or empty, ragged or broken.
    """
    table = try_table(path, read_content(path))
    if table is None:
        raise ValueError(
            f"file {str(path)!r} is none of .tsv, .csv, .jsonl (each with or without .gz), and its first line is no "
            "header of such a table; rename it, or write one of them"
        )
    return table


def try_table(path: Path, content: str, texts: bool = False) -> Table | None:
    """Make a table of the content of a file.

    Args:
        path: The file.
        content: Its content.
        texts: Whether one text a line is wanted as well as a table: then what does not look like a table is none.

    Returns:
        The table; None for what is none.

    Raises:
        ValueError: It is a table, but an empty, ragged or broken one.
    """
    kind, text = kind_of(path), unified(content)
    found = parse_json(text, path, certain=kind == "json")
    if found is None:
        found = _delimited(path, text, kind, texts)
    if found is None:
        return None
    table = Table(path, *found)
    if len(set(table.columns)) != len(table.columns):
        shown = ", ".join(name or "(without a name)" for name in table.columns)
        raise ValueError(f"{path}:1: a column name occurs twice: {shown}; rename one")
    for number, row in enumerate(table.rows):
        if len(row) != len(table.columns):
            raise table.error(number, f"{len(row)} fields, but the header has {len(table.columns)}")
    if not table.rows:
        raise ValueError(f"{path}: there is no row; the file is empty or has only a header")
    return table


def _delimited(path: Path, text: str, kind: str, texts: bool) -> Rows | None:
    lines = text.split("\n", 1000)[:1000]
    usual = "," if kind == "csv" else "\t"
    if kind == "csv" and lines[0].lower().startswith("sep=") and lines[0][4:] in SEPARATORS:  # of Excel
        columns, rows, numbers = parse_delimited(text[len(lines[0]) + 1 :], lines[0][4:], path, quoting=True)
        return Rows(columns, rows, [number + 1 for number in numbers])
    if kind in ("tsv", "csv"):
        separator = separator_of(lines[:1], usual)
    elif "\t" in lines[0] and len(lines) > 1 and len({line.count("\t") for line in lines}) == 1:
        separator = "\t"
    elif not texts and separator_of(lines[:1], usual) in lines[0]:
        separator = separator_of(lines[:1], usual)
    else:
        return None
    if text == "":
        return Rows([], [], [])
    if separator != usual:
        logger.info("%s: the fields are separated by %s", path, SEPARATORS[separator])
    return parse_delimited(text, separator, path, quoting=separator != "\t" or kind == "csv")


def _is_number(text: str) -> bool:
    try:
        to_score(text)
    except ValueError:
        return False
    return True
