"""Write tables that :func:`st_plugins.core.reading.tables.read_table` reads back, whole or not at all."""

from __future__ import annotations

import csv
import gzip
import io
import json
import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from st_plugins.core.reading.content import format_of
from st_plugins.core.writing.atomic import Target, file_target

logger = logging.getLogger(__name__)


def table_target(
    path: str | Path,
    *,
    name: str = "path",
    overwrite: bool = False,
    inputs: Iterable[str | Path | None] = (),
    column: str = "",
) -> Target:
    """Look whether a table can be written, before it is computed."""
    kind = format_of(Path(path))
    if kind not in _WRITERS:
        raise ValueError(f"{name} {str(path)!r} is none of .tsv, .csv, .jsonl (each with or without .gz); rename it")
    # What a header of ours holds, and hardly a file of someone else:
    mark = {"tsv": f"\t{column}", "csv": f",{column}", "jsonl": f'"{column}": '}[kind] if column else ""
    return file_target(path, name=name, overwrite=overwrite, inputs=inputs, mark=mark.encode())


def write_table(path: str | Path | Target, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    r"""Write a table with named columns in the format of the file's name."""
    target = path if isinstance(path, Target) else table_target(path)
    data = _WRITERS[format_of(target.path)](columns, rows).encode()
    with target.write() as file:
        # No time in the header: the same table gives the same bytes.
        file.write_bytes(gzip.compress(data, mtime=0) if file.name.lower().endswith(".gz") else data)


def append_row(path: Path, columns: Sequence[str], row: Sequence[Any]) -> None:
    """Append a row to a CSV table, which is created if need be; a table with other columns is left alone."""
    new = not path.exists()
    if not new:
        with path.open(newline="", encoding="utf-8") as file:
            if next(csv.reader(file), None) != list(columns):
                logger.warning("%s has other columns than %s: the row %s is not added.", path, columns, row)
                return
    with path.open("a", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([*([columns] if new else []), row])


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


_WRITERS = {"tsv": _tsv, "csv": _csv, "jsonl": _jsonl}
