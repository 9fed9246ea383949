"""Word vectors in the text formats of word2vec and GloVe, read line by line."""

from __future__ import annotations

import codecs
import gzip
import io
import logging
import re
import zlib
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from st_plugins.core.reading.content import regular

logger = logging.getLogger(__name__)

_GZIP = b"\x1f\x8b"
_ZIP = b"PK\x03\x04"
_BINARY = re.compile("[\x00-\x08\x0e-\x1f]")  # in no word, but in the numbers of a binary file


def read_vectors(
    path: str | Path, words: Collection[str] | None = None, normalize: Callable[[str], str] = str
) -> tuple[list[str], NDArray[np.float32]]:
    r"""Read the vectors of some words; the others are passed over, so that memory is that of what is kept."""
    # A line is a word and its numbers, with single spaces between; the first may give the number of words and of
    # dimensions, as word2vec writes it. Words may contain spaces, as a few of GloVe do. Where several become one by
    # `normalize`, the one that is so already is taken, otherwise the first, in the usual files the most frequent.
    path = Path(path).expanduser()
    if path.is_dir() or not path.exists():
        raise FileNotFoundError(f"there is no vector file {str(path)!r}; give a text file of word2vec or GloVe")
    regular(path)
    wanted = None if words is None else set(words)
    found: dict[str, NDArray[np.float32]] = {}
    exact: set[str] = set()
    with _lines(path) as lines:
        for number, word, values in _rows(lines, path):
            name = normalize(word)
            if (wanted is not None and name not in wanted) or name in exact or (name in found and word != name):
                continue
            if word == name:
                exact.add(name)
            found[name] = _vector(values, f"{path}, line {number}")
    if broken := sum("\ufffd" in word for word in found):
        logger.warning("%s: %d words hold bytes that are not UTF-8; if many, save the file as UTF-8.", path, broken)
    vectors = list(found.values())
    return list(found), np.stack(vectors) if vectors else np.zeros((0, 0), dtype=np.float32)


def _rows(lines: Iterator[str], path: Path) -> Iterator[tuple[int, str, list[str]]]:
    """Yield the number of each line, its word, and its numbers as text."""
    first = next(lines, "")
    if not first.strip():
        raise ValueError(f"{path} is empty; give a text file of word2vec or GloVe")
    count, dimensions = _header(first)
    start = 2
    if count is None:
        dimensions, start = len(first.rstrip().split(" ")) - 1, 1
    seen, number = 0, 0
    for number, line in enumerate(lines if count is not None else _chained(first, lines), start):
        fields = line.rstrip("\r\n \t").rsplit(" ", dimensions)
        if not line.strip():
            continue
        if _BINARY.search(line):
            raise ValueError(
                f"{path}, line {number}: is binary, as word2vec's .bin files are; save it as text, in gensim with "
                "KeyedVectors.load_word2vec_format(path, binary=True).save_word2vec_format(text_path)"
            )
        if dimensions < 1 or len(fields) != dimensions + 1 or not fields[0]:
            raise ValueError(
                f"{path}, line {number}: expected a word and {max(dimensions, 1)} numbers, "
                f"got {line.strip()[:60]!r}; put single spaces between"
            )
        if " " in fields[0] and _is_number(fields[0].rsplit(" ", 1)[1]):
            raise ValueError(
                f"{path}, line {number}: expected {dimensions} numbers, as line 1 says, got more: "
                f"{line.strip()[:60]!r}"
            )
        seen += 1
        yield number, fields[0], fields[1:]
    if count is not None and seen != count:
        raise ValueError(
            f"{path}, line {number}: the first line promises {count} words, but there are {seen}; copy or download "
            "the file again"
        )


def _header(line: str) -> tuple[int | None, int]:
    fields = line.split()
    if len(fields) == 2 and all(field.isdecimal() for field in fields):
        return int(fields[0]), int(fields[1])
    return None, 0


def _chained(first: str, rest: Iterator[str]) -> Iterator[str]:
    yield first
    yield from rest


def _vector(values: list[str], place: str) -> NDArray[np.float32]:
    try:
        with np.errstate(over="ignore"):  # infinity is reported below
            vector = np.array([float(value) for value in values]).astype(np.float32)
    except ValueError as error:
        raise ValueError(f"{place}: {error}; expected numbers after the word") from error
    if not np.isfinite(vector).all():
        raise ValueError(f"{place}: the vector holds NaN or infinity; repair or remove the line")
    return vector


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


@contextmanager
def _lines(path: Path) -> Iterator[Iterator[str]]:
    """Open a file, plain or compressed; bytes that are no UTF-8 are replaced, as some published files need it."""
    with path.open("rb") as raw:
        start = raw.read(8)
        raw.seek(0)
        compressed = start.startswith(_GZIP)
        if start.startswith(_ZIP):
            raise ValueError(f"{path} is a ZIP archive; unpack it, and give the text file in it")
        if start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            raise ValueError(f"{path} is UTF-16; save it as UTF-8")
        stream = gzip.GzipFile(fileobj=raw) if compressed else raw
        try:
            # Only \n ends a line: GloVe has words with other characters that Python takes for line ends.
            yield iter(io.TextIOWrapper(stream, encoding="utf-8-sig", errors="replace", newline="\n"))
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise ValueError(f"{path} is damaged ({error}); copy or download it again") from error
