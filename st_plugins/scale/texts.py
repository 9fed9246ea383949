"""Texts in files, many and large ones, in blocks that are the same whoever reads them."""

from __future__ import annotations

import copy
import glob
import hashlib
import itertools
import logging
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from st_plugins.core.numbers import check_count
from st_plugins.scale.inner.finding import files_of
from st_plugins.scale.inner.ids import Ids
from st_plugins.scale.inner.reading import SMALL, Place, Row, TextFile

logger = logging.getLogger(__name__)

ON_ERROR = ("stop", "skip")
_ENDINGS = (".txt", ".jsonl", ".ndjson", ".parquet", ".pq", ".csv", ".tsv")
_MARK = 8  # bytes of a block's checksum


class Block(NamedTuple):
    """Some texts of one file, one behind another: what is encoded, written and summed up at a time.

    Args:
        number: Of the block, over all files.
        first_row: Number of the first text, over all files.
        texts: The texts.
        ids: Their ids; None where no column has any.

    Example:
        >>> Block(1, 2, ["a bird"], None).texts
        ['a bird']
    """

    number: int
    first_row: int
    texts: list[str]
    ids: list[str | int] | None


@dataclass(frozen=True)
class Segment:
    """Blocks that one reader reads one behind another."""

    file: int
    start: Place
    number: int
    first_row: int
    rows: tuple[int, ...]  # texts of each block
    small: bool = False  # whether reading the file again costs next to nothing

    def numbered(self) -> Iterator[tuple[int, int]]:
        """Yield the number of each block, and how many texts it has."""
        return enumerate(self.rows, start=self.number)


@dataclass
class Scan:
    """What a first reading of `Texts` found.

    Args:
        segments: What one reader each reads: blocks one behind another.
        texts: Number of texts.
        characters: Of all texts together.
        missing: Files that could not be read, and why.
        numbered: Whether all ids are whole numbers.
        checksum: SHA-256 of texts and ids.
        marks: Eight bytes of every block, by which a file that was changed meanwhile is found out.

    Example:
        >>> Scan(texts=3).blocks
        0
    """

    segments: list[Segment] = field(default_factory=list)
    texts: int = 0
    characters: int = 0
    missing: dict[str, str] = field(default_factory=dict)
    numbered: bool = True
    checksum: str = ""
    marks: bytes = b""

    @property
    def blocks(self) -> int:
        """Number of blocks."""
        return sum(len(segment.rows) for segment in self.segments)


class Texts:
    r"""Texts in files, read block by block, for all that takes texts and would not hold so many in memory.

    ``whiten``, ``compress``, ``encode`` and the commands take it where they take a list, and a path, a pattern
    (``"corpus/*.parquet"``) or a list of paths stands for it. Files are Parquet, JSON lines, one text a line (each
    with or without gzip), or other tables, which are read whole; a folder stands for such files in it, of one kind.
    Blank texts are left out, unless they have ids. A pattern leaves out what `encode` writes, whole or unfinished.

    The division into blocks depends on the files and ``block_size`` alone. So a block has the same texts, and gives
    the same embeddings, whichever process or machine encodes it. Before the first text is used all files are read
    once (`scan`): a damaged file, a missing column or an id that occurs twice is known before anything is computed.

    Args:
        paths: A path, a pattern with ``*``, ``?`` or ``**``, or several of them.
        column: Column of the texts; to be left out for text files, and where only one column holds text.
        id_column: Column of the ids, texts or whole numbers; None numbers the texts from 0.
        block_size: Texts of a block.
        on_error: What a file that cannot be read does: ``"stop"``, or ``"skip"``, which leaves it out with a warning.

    Raises:
        FileNotFoundError: There is no such file, or none that fits the pattern.
        ValueError: A setting is out of its range, or a folder has no texts.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = Path(folder, "one.txt").write_text("a dog\na cat\n\na bird\n")
        ...     _ = Path(folder, "two.txt").write_text("a fish\n")
        ...     texts = Texts(folder, block_size=2)
        ...     len(texts), [(block.first_row, block.texts) for block in texts.blocks()]
        (4, [(0, ['a dog', 'a cat']), (2, ['a bird']), (3, ['a fish'])])
    """

    def __init__(
        self,
        paths: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
        column: str | None = None,
        *,
        id_column: str | None = None,
        block_size: int = 16384,
        on_error: str = "stop",
    ) -> None:
        check_count("block_size", block_size)
        if on_error not in ON_ERROR:
            raise ValueError(f"on_error={on_error!r} must be 'stop' or 'skip'")
        self.column, self.id_column, self.block_size, self.on_error = column, id_column, block_size, on_error
        for name, value in (("column", column), ("id_column", id_column)):
            if value is not None and (not isinstance(value, str) or not value):
                raise ValueError(f"{name}={value!r} must be the name of a column, or None")
        if column is not None and column == id_column:
            raise ValueError(f"id_column={id_column!r} is the column of the texts; name another one, or leave it out")
        self.files = files_of(paths, lenient=on_error == "skip")
        self._scan: Scan | None = None

    def __len__(self) -> int:
        """Return the number of texts."""
        return self.scan().texts

    def __iter__(self) -> Iterator[str]:
        """Yield the texts."""
        for block in self.blocks():
            yield from block.texts

    def __repr__(self) -> str:
        """Name the files."""
        more = f" and {len(self.files) - 1} more" if len(self.files) > 1 else ""
        return f"Texts({str(self.files[0])!r}{more})"

    def blocks(self) -> Iterator[Block]:
        """Yield all blocks, in the order of the files."""
        scan = self.scan()
        if len(scan.marks) != _MARK * scan.blocks:
            raise ValueError(
                f"{self!r} was made for workers, which are told what to read; take the one it was made of"
            )
        for segment in scan.segments:
            yield from self.read(segment)

    def read(self, segment: Segment, wanted: frozenset[int] | None = None) -> Iterator[Block]:
        """Yield the blocks of a segment, only those with wanted numbers if these are given."""
        rows = self._file(segment.file).rows(segment.start)
        number, first = segment.number, segment.first_row
        last = max(wanted, default=-1) if wanted is not None else None
        marks = self.scan().marks
        for size in segment.rows:
            if last is not None and number > last:
                return
            _, texts, found = _taken(rows, size)
            if wanted is None or number in wanted:
                if _mark(self._content(texts, found)) != marks[_MARK * number : _MARK * (number + 1)]:
                    raise ValueError(
                        f"{self.files[segment.file]} has other texts than a moment ago; do not change it meanwhile, "
                        "and run it again"
                    )
                yield Block(number, first, texts, None if self.id_column is None else self._ids(found))
            number, first = number + 1, first + size

    def scan(self) -> Scan:
        """Read all files once: count, find the blocks, and refuse what cannot be used.

        Returns:
            What was found; files that were left out are in ``missing``.

        Raises:
            ValueError: A file cannot be read and ``on_error`` is ``"stop"``, an id occurs twice, or there is no text.
        """
        if self._scan is None:
            self._scan = self._scanned()
        return self._scan

    def _for_workers(self) -> Texts:
        """Return a copy that only reads segments, without the list of them, some megabytes for 10⁹ texts."""
        found, own = copy.copy(self), self.scan()
        found._scan = Scan(numbered=own.numbered, texts=own.texts, marks=own.marks)
        return found

    def _scanned(self) -> Scan:
        scan, digest, ids = Scan(), hashlib.sha256(), Ids()
        for number, path in enumerate(self.files):
            before = len(ids)
            try:
                found = self._scan_file(number, scan, ids)
            except (OSError, ValueError) as error:
                if self.on_error == "stop":
                    raise
                ids.keep(before)
                scan.missing[str(path)] = str(error)
                logger.warning("%s is left out: %s", path, error)
                continue
            digest.update(found)
        if not scan.texts:
            why = f": {next(iter(scan.missing.values()))}" if scan.missing else ""
            raise ValueError(f"{self!r} has no text; every file is empty, blank or left out{why}")
        if self.id_column is not None:
            read = [number for number, path in enumerate(self.files) if str(path) not in scan.missing]
            ids.refuse_twice([self._file(number) for number in read])
            digest.update(b"numbers" if scan.numbered else b"texts")
        scan.checksum = digest.hexdigest()
        return scan

    def _scan_file(self, number: int, scan: Scan, ids: Ids) -> bytes:
        """Add a file to a scan when all of it could be read, and its ids at once; return its checksum."""
        file = self._file(number)
        digest, seekable = hashlib.sha256(), file.seekable
        starts: list[Place] = []
        sizes: list[int] = []
        marks = bytearray()
        characters, numbered = 0, scan.numbered
        rows = file.rows()
        while True:
            start, texts, found = _taken(rows, self.block_size)
            if not texts:
                break
            starts.append(start)
            sizes.append(len(texts))
            content = self._content(texts, found)
            digest.update(content)
            marks += _mark(content)
            characters += sum(map(len, texts))
            if self.id_column is not None:
                numbered = numbered and all(isinstance(one, int) and -(2**63) <= one < 2**63 for one in found)
                ids.add(Ids.keys(found))
        blocks, first_row = len(scan.marks) // _MARK, scan.texts
        if seekable:
            for index, (start, size) in enumerate(zip(starts, sizes, strict=True)):
                scan.segments.append(Segment(number, start, blocks + index, first_row, (size,)))
                first_row += size
        elif sizes:
            small = self.files[number].stat().st_size <= SMALL
            scan.segments.append(Segment(number, Place(), blocks, first_row, tuple(sizes), small))
        scan.texts, scan.characters, scan.numbered = scan.texts + sum(sizes), scan.characters + characters, numbered
        scan.marks += bytes(marks)
        return digest.digest()

    def _content(self, texts: list[str], ids: list[str | int | None]) -> bytes:
        """Return texts and ids as bytes, each behind its length, so that no two lists give the same."""
        words = [text.encode() for text in texts]
        if self.id_column is not None:
            words = [word for text, one in zip(words, ids, strict=True) for word in (text, str(one).encode())]
        return b"".join([part for word in words for part in (len(word).to_bytes(4, "little"), word)])

    def _ids(self, ids: list[str | int | None]) -> list[str | int]:
        # Of one kind in all files: an index has numbers, or texts.
        return [int(one or 0) if self.scan().numbered else str(one) for one in ids]

    def _file(self, number: int) -> TextFile:
        return TextFile(self.files[number], self.column, self.id_column)


def _taken(rows: Iterator[Row], size: int) -> tuple[Place, list[str], list[str | int | None]]:
    """Return where the next rows begin, their texts and their ids."""
    # Two lists: keeping the rows would cost three times as much, for the garbage collector looks at each tuple.
    start = Place()
    texts: list[str] = []
    ids: list[str | int | None] = []
    for row in itertools.islice(rows, size):
        if not texts:
            start = Place(row.offset, row.line)
        texts.append(row.text)
        ids.append(row.id)
    return start, texts, ids


def _mark(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=_MARK).digest()


def is_source(texts: Any) -> bool:
    """Say whether something stands for texts that are elsewhere: `Texts`, a path or paths, or a Ray Dataset."""
    if isinstance(texts, list | tuple):
        return bool(texts) and all(isinstance(one, os.PathLike) for one in texts)
    return isinstance(texts, Texts | os.PathLike) or is_dataset(texts) or _is_path(texts)


def is_dataset(texts: Any) -> bool:
    """Say whether something is a Ray Dataset, without importing Ray."""
    return type(texts).__module__.startswith("ray.data") and hasattr(texts, "map_batches")


def source(texts: Any) -> Any:
    """Return what `is_source` accepts as `Texts`; a Ray Dataset stays what it is."""
    return texts if isinstance(texts, Texts) or is_dataset(texts) else Texts(texts)


def _is_path(texts: Any) -> bool:
    """Say whether a string is the path of something that is there, or meant as one: no text ends like a file."""
    if not isinstance(texts, str) or len(texts) > 4096 or "\n" in texts or not texts.strip():
        return False
    if texts.lower().removesuffix(".gz").endswith(_ENDINGS):  # if it is not there, that is the error
        return True
    try:
        return Path(texts).expanduser().exists() or (glob.has_magic(texts) and bool(glob.glob(texts, recursive=True)))  # noqa: PTH207 - absolute patterns
    except (OSError, ValueError, RuntimeError):
        return False
