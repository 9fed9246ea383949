"""The texts of one file from the beginning or from a place in it, in memory that does not grow with the file."""

from __future__ import annotations

import codecs
import gzip
import json
import logging
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from st_plugins.core.reading.content import decoded, format_of, kind_of, read_content, regular
from st_plugins.core.reading.tables import Table, try_table
from st_plugins.core.texts import text_fault
from st_plugins.data.own import text_column, texts_in

logger = logging.getLogger(__name__)

SMALL = 1 << 20  # bytes: read whole, with everything that the readers of small files find out about them
_LONG = 64 << 20  # bytes: a first line that is longer is no text
_ROWS = 4096  # of a Parquet file at a time
_PARQUET = b"PAR1"
_MARK = "\ufeff"
_WIDE = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE, codecs.BOM_UTF32_BE)  # that of UTF-32 LE begins as the first
_WORDS = ("string", "large_string", "string_view")
_BROKEN_GZIP = (gzip.BadGzipFile, EOFError, zlib.error)


class Place(NamedTuple):
    """Where in a file to begin: so many bytes (rows of a Parquet file) and lines lie before."""

    offset: int = 0
    line: int = 0


class Row(NamedTuple):
    """One text, with what stands in the column of ids, and how many bytes or rows, and lines, lie before."""

    text: str
    id: str | int | None
    offset: int
    line: int


class _Layout(NamedTuple):
    """What a look at the beginning of a file says: how to read it, and the columns of JSON lines, "" for none."""

    kind: str  # "parquet", "lines" or "whole"
    packed: bool = False
    column: str = ""
    id_column: str = ""


@dataclass(frozen=True)
class TextFile:
    """A file of texts: Parquet, JSON lines, one text a line, or another table."""

    path: Path
    column: str | None = None
    id_column: str | None = None

    @property
    def seekable(self) -> bool:
        """Whether reading can begin anywhere."""
        layout = self._layout()
        return layout.kind in ("parquet", "lines") and not layout.packed

    def rows(self, start: Place = Place()) -> Iterator[Row]:  # noqa: B008 - it cannot be changed
        """Yield the texts; a blank one only if it has an id, under which it will be looked for."""
        layout = self._layout()
        if layout.kind == "parquet":
            return self._parquet(start)
        return self._lines(start, layout) if layout.kind == "lines" else self._whole()

    def _layout(self) -> _Layout:
        found = regular(self.path).stat()
        return _layout(self, found.st_size, found.st_mtime_ns)

    def _lines(self, start: Place, layout: _Layout) -> Iterator[Row]:
        offset, number = start
        is_json, returns, line = kind_of(self.path) == "json", 0, b""
        with _opened(self.path, layout.packed) as file:
            try:
                file.seek(offset)
                for line in file:
                    number += 1
                    text = line.decode().rstrip("\n")
                    if "\0" in text:
                        raise ValueError(f"{self.path}:{number}: a NUL character: no text; save the file as UTF-8")
                    if "\r" in text:
                        text = text.rstrip("\r")
                        returns += "\r" in text
                    if text[:1] == _MARK:  # inside it comes from files that were put one behind another
                        text = text.lstrip(_MARK) if number == 1 else text[1:]
                    key: str | int | None = None
                    if is_json and text.strip():
                        text, key = self._of_json(text, number, layout)
                    if text.strip() or key is not None:
                        yield Row(text, key, offset, number - 1)
                    offset += len(line)
            except _BROKEN_GZIP as error:
                raise _no_gzip(self.path, error) from None
            except UnicodeDecodeError as error:
                raise ValueError(
                    f"{self.path}:{number}: byte 0x{line[error.start]:02x} is not UTF-8; save the file as UTF-8"
                ) from None
        if returns and not start.offset:
            say = "%s: %d texts hold a carriage return; if it ends a line, write \\n there"
            logger.warning(say, self.path, returns)

    def _of_json(self, text: str, number: int, layout: _Layout) -> tuple[str, Any]:
        try:
            value = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{self.path}:{number}: not JSON ({error}); write one object a line") from None
        if not layout.column:
            return self._checked(value, number, "the line"), None
        names = [layout.column, *([layout.id_column] if layout.id_column else [])]
        missing = [name for name in names if not isinstance(value, dict) or name not in value]
        if missing:
            raise ValueError(f"{self.path}:{number}: no {' and no '.join(missing)}; write one object with them a line")
        key = self._key(value[layout.id_column], number) if layout.id_column else None
        return self._checked(value[layout.column], number, layout.column), key

    def _parquet(self, start: Place) -> Iterator[Row]:
        with opened_parquet(self.path) as file:
            column = self._parquet_column(file)
            for first, texts, keys in self._batches(file, column, start.offset):
                for row, (text, key) in enumerate(zip(texts, keys, strict=True), start=first):
                    if row >= start.offset:
                        found = None if self.id_column is None else self._key(key, row + 1)
                        if self._checked(text, row + 1, column).strip() or found is not None:
                            yield Row(text, found, row, row)

    def _batches(self, file: Any, column: str, start: int) -> Iterator[tuple[int, list[Any], list[Any]]]:
        """Yield the number of the first row, the texts and the ids of some rows, from near a row on."""
        import pyarrow as arrow

        names, at = [column, *([self.id_column] if self.id_column else [])], 0
        try:
            for group in range(file.metadata.num_row_groups):
                rows = file.metadata.row_group(group).num_rows
                first, at = at, at + rows
                if at <= start:
                    continue
                for batch in file.iter_batches(_ROWS, row_groups=[group], columns=names):
                    if first + len(batch) > start:
                        texts = batch.column(column).to_pylist()
                        yield first, texts, batch.column(names[1]).to_pylist() if names[1:] else [None] * len(texts)
                    first += len(batch)
        except (arrow.ArrowException, OSError, ValueError) as error:
            raise _no_parquet(self.path, error) from None

    def _parquet_column(self, file: Any) -> str:
        """Return the column of the texts, or say what is wrong with the columns."""
        schema = file.schema_arrow
        there = ", ".join(f"{field.name} ({field.type})" for field in schema) or "none"
        words = [field.name for field in schema if _is_text(field.type)]
        for name in (self.column, self.id_column):
            if name is not None and schema.names.count(name) != 1:
                what = "there are" if name not in schema.names else "it occurs more than once:"
                told = "for the ids " if name == self.id_column else ""
                raise ValueError(f"{self.path}: no column {name!r} {told}to read; {what} {there}")
        # Before any value is read: those of an extension type can run code of its own.
        kind = None if self.id_column is None else schema.field(self.id_column).type
        if kind is not None and not is_id(kind):
            raise ValueError(
                f"{self.path}: column {self.id_column!r} is of type {kind}; give every text an id, a text or a whole "
                "number"
            )
        if self.column is None:
            candidates = [name for name in words if name != self.id_column]
            usual = [name for name in candidates if name.casefold() in ("text", "sentence", "content")]
            if len(candidates) != 1 and len(usual) != 1:
                raise ValueError(f"{self.path}: say which column holds the texts with column=; there are {there}")
            return str((candidates if len(candidates) == 1 else usual)[0])
        if self.column not in words:
            raise ValueError(f"{self.path}: column {self.column!r} holds no texts; there are {there}")
        return self.column

    def _whole(self) -> Iterator[Row]:
        content = read_content(self.path)
        if not content.strip():
            return
        try:
            found = self._of_table(content) if self.id_column is not None else self._of_texts(content)
        except ValueError:
            rows = self._of_objects(content)
            if rows is None:
                raise
            found = rows
        yield from (row for row in found if row.text.strip() or row.id is not None)

    def _of_texts(self, content: str) -> list[Row]:
        texts = texts_in(content, self.path, self.column)
        return [Row(self._sound(text, number + 1), None, number, number) for number, text in enumerate(texts)]

    def _of_table(self, content: str) -> list[Row]:
        table = try_table(self.path, content)
        if table is None:
            raise self._no_ids()
        texts = table.texts(self.column or self._text_column(table), "column")
        at = table.index(self.id_column or "", "id_column")
        return [
            Row(text, self._key(row[at], line), line - 1, line - 1)
            for row, text, line in zip(table.rows, texts, table.lines, strict=True)
        ]

    def _of_objects(self, content: str) -> list[Row] | None:
        """Read JSON lines that lack only what nobody asks for, as large files of them are read; None for others."""
        layout = _json_layout(self, content) if kind_of(self.path) == "json" and self.column else None
        if layout is None or layout.kind != "lines":
            return None
        try:
            lines = enumerate(content.split("\n"), start=1)
            rows = [(number, *self._of_json(line, number, layout)) for number, line in lines if line.strip()]
        except ValueError:
            return None
        return [Row(text, key, number - 1, number - 1) for number, text, key in rows]

    def _text_column(self, table: Table) -> str:
        """Return the only column that can hold the texts, which that of the ids does not."""
        if self.id_column is None:
            return text_column(table)
        at = table.index(self.id_column, "id_column")
        rows = [[*row[:at], *row[at + 1 :]] for row in table.rows]
        return text_column(Table(table.path, [*table.columns[:at], *table.columns[at + 1 :]], rows, table.lines))

    def _no_ids(self) -> ValueError:
        return ValueError(
            f"id_column={self.id_column!r}: {self.path} is read as one text a line and has no columns; leave it "
            "out, or write JSON lines"
        )

    def _checked(self, value: Any, number: int, name: str) -> str:
        if not isinstance(value, str):
            raise ValueError(f"{self.path}:{number}: {name} is {value!r:.40}; it must be text")
        return self._sound(value, number)

    def _sound(self, text: str, number: int) -> str:
        if not text.isascii() and (fault := text_fault(text)):
            raise ValueError(f"{self.path}:{number}: the text {fault}")
        return text

    def _key(self, value: Any, number: int) -> str | int:
        if isinstance(value, bool) or not isinstance(value, str | int) or not str(value).strip():
            raise ValueError(
                f"{self.path}:{number}: {self.id_column} is {value!r:.40}; give every text an id, a text or a whole "
                "number"
            )
        if isinstance(value, str) and (fault := text_fault(value)):
            raise ValueError(f"{self.path}:{number}: {self.id_column} {fault}")
        return value


@lru_cache(maxsize=1024)
def _layout(file: TextFile, size: int, changed: int) -> _Layout:
    """Look at the beginning of a file, once as long as the file stays the same."""
    path = file.path
    with path.open("rb") as opened:
        start = opened.read(4)
    if start == _PARQUET or format_of(path) in ("parquet", "pq"):
        return _Layout("parquet")
    # Small files, and tables whose rows may go over several lines.
    if size <= SMALL or kind_of(path) not in ("txt", "json", ""):
        return _Layout("whole")
    packed = path.name.lower().endswith(".gz") or start[:2] == b"\x1f\x8b"
    head = _head(path, packed)
    # UTF-16, what is packed twice, an old Macintosh, or one array in a line: the other reader knows them.
    if head.startswith((*_WIDE, b"\x1f\x8b")) or b"\n" not in head:
        return _Layout("whole")
    text = decoded(head[: head.rindex(b"\n")], path)
    layout = _json_layout(file, text) if kind_of(path) == "json" else _text_layout(file, text)
    return layout._replace(packed=packed)


def _head(path: Path, packed: bool) -> bytes:
    """Return the beginning of a file, with more than its first line."""
    try:
        with _opened(path, packed) as opened:
            head: bytes = opened.read(SMALL)
            while b"\n" not in head and len(head) < _LONG and (more := opened.read(SMALL)):
                head += more + opened.read(SMALL)
            return head
    except _BROKEN_GZIP as error:
        raise _no_gzip(path, error) from None


def _json_layout(file: TextFile, text: str) -> _Layout:
    first = text.lstrip(" \t\r\n").split("\n", 1)[0]
    try:
        value = json.loads(first)
    except (ValueError, RecursionError):
        return _Layout("whole")  # an array, or objects of several lines
    if isinstance(value, str) and file.column is None:
        if file.id_column is not None:
            raise file._no_ids()
        return _Layout("lines")
    if not isinstance(value, dict):
        return _Layout("whole")
    table: Table | None = Table(file.path, list(value), [list(value.values())], [1])
    if file.column is None:
        table = try_table(file.path, text)
    if table is None:
        return _Layout("whole")
    column = file._text_column(table) if file.column is None else table.columns[table.index(file.column, "column")]
    key = "" if file.id_column is None else table.columns[table.index(file.id_column, "id_column")]
    return _Layout("lines", column=column, id_column=key)


def _text_layout(file: TextFile, text: str) -> _Layout:
    try:
        found = try_table(file.path, text, texts=file.column is None)
    except ValueError:
        return _Layout("whole")
    if found is not None:
        return _Layout("whole")
    if file.column is not None:
        raise ValueError(f"column={file.column!r}: {file.path} is read as one text a line and has no columns")
    if file.id_column is not None:
        raise file._no_ids()
    return _Layout("lines")


def _is_text(kind: Any) -> bool:
    """Say whether pyarrow's values of a type are texts; those of an extension type never are."""
    return _of_kind(kind, *_WORDS)


def is_id(kind: Any) -> bool:
    """Say whether pyarrow's values of a type can be ids, whole numbers or texts."""
    return _of_kind(kind, "integer", *_WORDS)


def _of_kind(kind: Any, *wanted: str) -> bool:
    from pyarrow import types

    # Of a dictionary, as for categories of pandas, the values count. Old versions have no views.
    of_values = kind.value_type if types.is_dictionary(kind) else kind
    checks = [getattr(types, f"is_{name}", None) for name in wanted]
    return any(check(of_values) for check in checks if check is not None)


def _opened(path: Path, packed: bool) -> Any:
    return gzip.open(path) if packed else path.open("rb")


def _no_gzip(path: Path, error: BaseException) -> ValueError:
    return ValueError(f"{path}: not a whole gzip file ({error}); fetch it again")


def _no_parquet(path: Path, error: BaseException) -> ValueError:
    reason = str(error).split("\n")[0].rstrip(".")  # of pyarrow, whose messages go over several lines
    return ValueError(f"{path}: not a whole Parquet file ({reason}); fetch it again")


def opened_parquet(path: Path) -> Any:
    """Open a Parquet file, or say what is missing."""
    parquet = parquet_library()
    try:
        return parquet.ParquetFile(path)
    except (OSError, ValueError) as error:
        raise _no_parquet(path, error) from None


def parquet_library() -> Any:
    """Import pyarrow's Parquet, or say which extra has it."""
    try:
        import pyarrow.parquet as parquet
    except ImportError as error:
        raise ImportError(
            f"Parquet files need pyarrow ({error}); install it with pip install 'st-plugins[scale]'"
        ) from error
    return parquet
