"""Write tables that :func:`st_plugins.data.files.read_table` reads back, whole or not at all."""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from st_plugins.atomic import atomic_file
from st_plugins.data.files import format_of

__all__ = ["check_writable", "write_table"]

_FORMATS = ("tsv", "csv", "jsonl")


def check_writable(path: Path, overwrite: bool) -> None:
    """Raise an error if a table cannot be written here, before it is computed.

    Args:
        path: The file.
        overwrite: Whether an existing file may be replaced.

    Raises:
        FileExistsError: It exists, and ``overwrite`` is False; or it is a folder.
        ValueError: The format is unknown.
    """
    if path.is_dir() or (path.exists() and not overwrite):
        raise FileExistsError(f"{str(path)!r} exists; choose another file, or overwrite it")
    if format_of(path) not in _FORMATS:
        raise ValueError(f"file {str(path)!r} is none of .tsv, .csv, .jsonl (each with or without .gz); rename it")


def write_table(path: Path, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    r"""Write a table with named columns in the format of the file's name.

    Args:
        path: A ``.tsv`` (no quoting), ``.csv`` or ``.jsonl`` file, with or without ``.gz``; replaced if it exists.
        columns: Column names.
        rows: One value a column. Numbers are written as Python does.

    Raises:
        ValueError: The format is unknown, or a value holds a tab or a line break, which ``.tsv`` cannot say.

    Example:
        >>> import tempfile
        >>> from st_plugins.data.files import read_table
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = Path(folder, "scores.csv")
        ...     write_table(file, ["text", "score"], [["a dog, a cat", 0.5]])
        ...     read_table(file).rows
        [['a dog, a cat', '0.5']]
    """
    check_writable(path, overwrite=True)
    kind = format_of(path)
    text = _jsonl(columns, rows) if kind == "jsonl" else _tsv(columns, rows) if kind == "tsv" else _csv(columns, rows)
    data = text.encode()
    with atomic_file(path) as temporary:
        temporary.write_bytes(gzip.compress(data, mtime=0) if path.name.lower().endswith(".gz") else data)


def _jsonl(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    lines = (json.dumps(dict(zip(columns, row, strict=True)), ensure_ascii=False) for row in rows)
    return "".join(f"{line}\n" for line in lines)


def _csv(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows([columns, *rows])
    return text.getvalue()


def _tsv(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    lines = []
    for number, row in enumerate([columns, *rows]):
        values = [str(value) for value in row]
        for value in values:
            if any(character in value for character in "\t\n\r"):
                raise ValueError(
                    f"row {number} holds a tab or line break in {value[:40]!r}, which .tsv cannot say; write .csv or "
                    ".jsonl"
                )
        lines.append("\t".join(values))
    return "".join(f"{line}\n" for line in lines)
