"""The text of a file, whatever it is packed and encoded with; what is no text is refused by name."""

from __future__ import annotations

import codecs
import gzip
import re
import zlib
from pathlib import Path

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
    b"version https://git-lfs.github.com/": "a pointer of Git LFS, which 'git lfs pull' replaces by the file",
    b"<!DOCTYPE html": "a web page, maybe the message of a failed download",
    b"<!doctype html": "a web page, maybe the message of a failed download",
}
_WIDE = {codecs.BOM_UTF32_LE: "utf-32", codecs.BOM_UTF32_BE: "utf-32", codecs.BOM_UTF16_LE: "utf-16",
         codecs.BOM_UTF16_BE: "utf-16"}  # fmt: skip


def format_of(path: Path) -> str:
    """Return the file's format by its name."""
    name = path.name.lower().removesuffix(".gz")
    return name.rpartition(".")[2] if "." in name else ""


def kind_of(path: Path) -> str:
    """Return what a file's name says of its content: ``"tsv"``, ``"csv"``, ``"json"``, ``"txt"``, or nothing."""
    parts = path.name.lower().rstrip("~").split(".")[1:]
    return next((_KINDS[part] for part in reversed(parts) if part in _KINDS), "")  # pairs.tsv.bak is a tsv


def regular(path: Path) -> Path:
    """Return the path of a file that can be read whole, and again."""
    # A pipe or a device might be waited for without end.
    if path.is_file():
        return path
    if path.is_dir():
        raise ValueError(f"{str(path)!r} is a folder; name a file in it")
    if path.exists():
        raise ValueError(
            f"{str(path)!r} is a pipe or a device, as <(...) and /dev/stdin are, not a file; write what comes from it "
            "to a file first, and name that"
        )
    raise FileNotFoundError(f"file {str(path)!r} does not exist; check the path")


def read_content(path: Path) -> str:
    """Read a text file, unpacked if it is a gzip file, in UTF-8 or, with a byte order mark, UTF-16 or UTF-32."""
    data = regular(path).read_bytes()
    packed = path.name.lower().endswith(".gz")
    while packed or data.startswith(b"\x1f\x8b"):  # some files are packed twice
        try:
            data, packed = gzip.decompress(data), False
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise ValueError(f"{path}: not a whole gzip file ({error}); fetch it again") from None
    return decoded(data, path)


def decoded(data: bytes, path: Path) -> str:
    """Return bytes from the beginning of a file as text."""
    for magic, what in _FOREIGN.items():
        if data.startswith(magic):
            raise ValueError(f"{path}: is {what}, not text; export it as CSV or JSON lines")
    wide = next((name for mark, name in _WIDE.items() if data.startswith(mark)), "")
    try:
        # A mark inside comes from files that were put one behind another.
        text = data.decode(wide or "utf-8").lstrip("\ufeff").replace("\n\ufeff", "\n")
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
    if "\r" in text:
        text = re.sub("\r+\n", "\n", text)  # written twice by programs that turn \n into \r\n themselves
    return text.rstrip("\r\n")


def read_lines(path: Path) -> list[str]:
    r"""Return the lines of a file, split on ``\n`` only; a ``\r`` before it and empty lines at the end are dropped."""
    # `str.splitlines` would also split on characters that occur inside texts.
    return unified(read_content(path)).split("\n")
