"""Read the user's own pairs and texts."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np

from st_plugins.core.reading.content import format_of, kind_of, read_content, unified
from st_plugins.core.reading.tables import Table, read_table, try_table
from st_plugins.data.pairs import Pairs

logger = logging.getLogger(__name__)

_TEXT_NAMES = ("text", "texts", "sentence", "sentences", "content")
_DATA = (".parquet", ".arrow", ".xlsx", ".xls", ".zip", ".gz", ".bz2", ".xz", ".zst", ".xml", ".html", ".pdf", ".docx")


def read_pairs(
    path: str | Path,
    first: str = "sentence1",
    second: str = "sentence2",
    score: str = "score",
    name: str | None = None,
) -> Pairs:
    r"""Read scored pairs from a table with named columns.

    Args:
        path: A table: fields between tabs, commas or semicolons, or JSON (an array of objects, or one a line); packed
            with gzip or not. What it is, is seen by its content, whatever its name.
        first: Column of the first text.
        second: Column of the second text.
        score: Column of the gold score, on any scale.
        name: Short name of the pairs; the file's name by default.

    Returns:
        The pairs. An empty text is allowed, since it can be encoded, and counted in ``warnings``.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is broken; the message names the line, or the columns there are.

    Example:
        >>> import pathlib, tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = pathlib.Path(folder, "mine.tsv")
        ...     _ = path.write_text('sentence1\tsentence2\tscore\na 5" nail\ta nail\t3.5\n')
        ...     pairs = read_pairs(path)
        >>> pairs.name, pairs.first, pairs.scores.tolist()
        ('mine', ['a 5" nail'], [3.5])
    """
    path = Path(path).expanduser()
    table = read_table(path)
    texts = table.texts(first, "first"), table.texts(second, "second")
    scores = table.scores(score, "score")
    name = name or path.name.split(".")[0]
    empty = sum(not text.strip() for text in [*texts[0], *texts[1]])
    warnings = (f"{name}: {empty:,} of the {2 * len(scores):,} texts are empty",) if empty else ()
    return Pairs(name, *texts, np.asarray(scores), source=str(path), warnings=warnings, columns=(first, second))


def read_texts(path: str | Path, column: str | None = None) -> list[str]:
    r"""Read unlabelled texts.

    Args:
        path: A text file (one text a line), a table (fields between tabs, commas or semicolons), or JSON (an array, or
            one value a line; of texts, or of objects); packed with gzip or not. What it is, is seen by its content,
            whatever its name. Or a folder, whose ``*.txt`` and ``*.txt.gz`` files are read in the order of their
            names.
        column: Column of a table that holds the texts; to be left out for text files, and where only one holds text.

    Returns:
        The texts in order, blank ones left out (their number is logged).

    Raises:
        FileNotFoundError: There is no such file or folder.
        ValueError: There is no text, the file is broken, or ``column`` is missing or out of place.

    Example:
        >>> import pathlib, tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = pathlib.Path(folder, "corpus.txt")
        ...     _ = path.write_text("a dog sleeps\n\na cat eats\n")
        ...     read_texts(path)
        ['a dog sleeps', 'a cat eats']
    """
    path = Path(path).expanduser()
    files = [path]
    if path.is_dir():
        inside = sorted(file for file in path.iterdir() if not file.name.startswith("."))
        files = [file for file in inside if file.is_file() and format_of(file) == "txt"]
        if not files:
            raise ValueError(
                f"folder {str(path)!r} has no *.txt or *.txt.gz file; it has {_named(inside) or 'nothing'}: name a "
                "file instead"
            )
        _say_skipped(path, [file for file in inside if file not in files])
    lines = [line for file in files for line in texts_of(file, column)]
    texts = [line for line in lines if line.strip()]
    if len(texts) < len(lines):
        logger.info("%s: %d blank lines skipped, %d texts kept", path, len(lines) - len(texts), len(texts))
    if not texts:
        raise ValueError(f"{path}: there is no text in it")
    return texts


def texts_of(path: Path, column: str | None) -> list[str]:
    """Return the texts of one file, blank ones too."""
    return texts_in(read_content(path), path, column)


def texts_in(content: str, path: Path, column: str | None) -> list[str]:
    """Return the texts in what was read of a file, blank ones too."""
    table = try_table(path, content, texts=column is None) if content.strip() else None
    if table is None:
        if column is not None:
            raise ValueError(f"column={column!r}: {path} is read as one text a line and has no columns")
        lines = unified(content).split("\n")
        # A text file has no header; but many a table of one column is named .txt.
        if lines[0].strip().casefold() in _TEXT_NAMES and len(lines) > 1:
            logger.warning("%s:1: %r is taken for a text; if it is a header, name the file .csv", path, lines[0])
        if returns := sum("\r" in line for line in lines):
            logger.warning("%s: %d texts hold a carriage return; if it ends a line, write \\n there", path, returns)
        return lines
    return table.texts(text_column(table) if column is None else column, "column")


def text_column(table: Table) -> str:
    """Return the only column that can hold the texts."""
    if table.columns == ["text"] or (len(table.columns) == 1 and table.columns[0].strip().casefold() in _TEXT_NAMES):
        return table.columns[0]
    # In a delimited file every field is text, scores too: only JSON says which columns hold texts.
    words = [
        name
        for at, name in enumerate(table.columns)
        if kind_of(table.path) not in ("tsv", "csv") and all(isinstance(row[at], str) for row in table.rows)
    ]
    plain = [name for name in words if name.strip().casefold() in _TEXT_NAMES]
    if len(words) == 1 and plain:
        logger.info("%s: the texts are those of column %r", table.path, plain[0])
        return plain[0]
    raise ValueError(f"{table.path}: say which column holds the texts with column=; there are {table.names}")


def _say_skipped(folder: Path, skipped: list[Path]) -> None:
    """Say what of a folder is not read, aloud where it may hold texts."""
    texts = [path for path in skipped if path.is_dir() or kind_of(path) or path.suffix.lower() in _DATA]
    if texts:
        logger.warning(
            "%s: only *.txt and *.txt.gz are read of a folder; skipped: %s. Name such a file itself to read it.",
            folder,
            _named(texts),
        )


def _named(paths: list[Path]) -> str:
    more = f" and {len(paths) - 10} more" if len(paths) > 10 else ""
    return ", ".join(path.name + ("/" if path.is_dir() else "") for path in paths[:10]) + more
