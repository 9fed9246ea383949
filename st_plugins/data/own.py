"""Read the user's own pairs and texts."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np

from st_plugins.data.files import format_of, read_lines, read_table
from st_plugins.data.pairs import Pairs

__all__ = ["read_pairs", "read_texts"]

logger = logging.getLogger(__name__)


def read_pairs(
    path: str | Path,
    text1: str = "sentence1",
    text2: str = "sentence2",
    score: str = "score",
    name: str | None = None,
) -> Pairs:
    r"""Read scored pairs from a table with named columns.

    Args:
        path: A ``.tsv`` (no quoting), ``.csv`` (usual quoting) or ``.jsonl`` (one object a line) file in UTF-8, with
            or without ``.gz``.
        text1: Column of the first text.
        text2: Column of the second text.
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
        >>> pairs.name, pairs.sentences1, pairs.scores.tolist()
        ('mine', ['a 5" nail'], [3.5])
    """
    path = Path(path).expanduser()
    table = read_table(path)
    texts1, texts2 = table.texts(text1, "text1"), table.texts(text2, "text2")
    scores = table.scores(score, "score")
    name = name or path.name.split(".")[0]
    empty = sum(not text.strip() for text in [*texts1, *texts2])
    warnings = (f"{name}: {empty:,} of the {2 * len(scores):,} texts are empty",) if empty else ()
    return Pairs(name, texts1, texts2, np.asarray(scores), source=str(path), warnings=warnings, columns=(text1, text2))


def read_texts(path: str | Path, column: str | None = None) -> list[str]:
    r"""Read unlabelled texts.

    Args:
        path: A text file (one text a line), a ``.tsv``, ``.csv`` or ``.jsonl`` file, each with or without ``.gz``;
            or a folder, whose ``*.txt`` and ``*.txt.gz`` files are read in the order of their names.
        column: Column of a table that holds the texts; to be left out for text files.

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
        files = sorted(file for file in path.iterdir() if file.is_file() and format_of(file) == "txt")
        if not files:
            raise ValueError(f"folder {str(path)!r} has no *.txt or *.txt.gz file")
    lines = [line for file in files for line in _texts_of(file, column)]
    texts = [line for line in lines if line.strip()]
    if len(texts) < len(lines):
        logger.info("%s: %d blank lines skipped, %d texts kept", path, len(lines) - len(texts), len(texts))
    if not texts:
        raise ValueError(f"{path}: there is no text in it")
    return texts


def _texts_of(path: Path, column: str | None) -> list[str]:
    is_table = format_of(path) in ("tsv", "csv", "jsonl")
    if not is_table and column is not None:
        raise ValueError(f"column={column!r}: {path} is read as one text a line and has no columns")
    if not is_table:
        return read_lines(path)
    table = read_table(path)
    if column is None:
        raise ValueError(
            f"{path}: say which column holds the texts with column=; there are {', '.join(table.columns)}"
        )
    return table.texts(column, "column")
