"""Know again what this library wrote: a list of a folder's files with their checksums, kept in the folder."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import json
import os
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from st_plugins.core.files import LIBRARY

MARK = ".st-plugins.json"
_UNFINISHED = f"{MARK}.tmp"


def mark(folder: Path, known: Mapping[str, str] | None = None, **about: Any) -> None:
    """Write the list of the files that are in a folder now, as its last file; known checksums are not computed."""
    found = sorted(_entries(folder).items())
    files = {name: (known or {}).get(name) or checksum(path) for name, path in found if path.is_file()}
    folders = [name for name, path in found if path.is_dir()]
    content = {"library": LIBRARY, "about": about, "folders": folders, "files": files}
    # The mark comes last and in one step: a folder without it was not finished, and is nobody's to delete.
    unfinished = folder / _UNFINISHED
    unfinished.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    unfinished.replace(folder / MARK)


def about(folder: Path) -> dict[str, Any] | None:
    """Return what `mark` was told of a folder, or None if it has no mark."""
    found = _read(folder)
    return None if found is None else dict(found["about"])


def intact(folder: Path) -> bool:
    """Say whether every file that `mark` listed is there as it was; other files do not matter."""
    found = _read(folder)
    return found is not None and all(_same(folder / name, digest) for name, digest in found["files"].items())


def foreign(folder: Path, changed: bool = False) -> str | None:
    """Return the name of something in a folder that this library did not write, or None."""
    # What is missing is not foreign: that someone deleted a file is no reason to keep the others.
    found = _read(folder)
    files: Mapping[str, str] = {} if found is None else found["files"]
    folders: Sequence[str] = [] if found is None else found["folders"]
    for name, path in sorted(_entries(folder).items()):
        if path.is_symlink() or (path.is_dir() and name not in folders):
            return name
        if not path.is_dir() and not (name in files and (changed or _same(path, files[name]))):
            return name
    return MARK if found is None and os.path.lexists(folder / MARK) else None


def remove(folder: Path) -> None:
    """Delete the files that `mark` listed, and the folder with its folders where nothing else is in them."""
    found = _read(folder) or {"files": {}, "folders": []}
    listed = [*found["files"], _UNFINISHED] + ([MARK] if "library" in found else [])
    for path in [folder / name for name in listed]:
        if path.parent.resolve().is_relative_to(folder.resolve()):  # not through a link that took a folder's place
            path.unlink(missing_ok=True)
    for name in (*sorted(found["folders"], reverse=True), "."):
        with contextlib.suppress(OSError):
            (folder / name).rmdir()


def contains(file: Path, mark: bytes) -> bool:
    """Say whether a file, unpacked if its name ends in .gz, contains a mark."""
    rest = b""
    try:
        with gzip.open(file) if file.suffix.lower() == ".gz" else file.open("rb") as opened:
            while block := opened.read(1 << 20):  # of which two may share the mark
                if mark in rest + block:
                    return True
                rest = block[-len(mark) :]
    except (gzip.BadGzipFile, EOFError, zlib.error):
        pass
    return False


def _entries(folder: Path) -> dict[str, Path]:
    """Return all that is in a folder and below it, but the mark, by relative name; links are not followed."""
    found = {}
    for root, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = Path(root, name)
            found[path.relative_to(folder).as_posix()] = path
    for name in (MARK, _UNFINISHED):
        found.pop(name, None)
    return found


def _read(folder: Path) -> dict[str, Any] | None:
    # A mark is a file like others, which anyone may have written: its names must not lead out of the folder.
    file = folder / MARK
    try:
        found = json.loads(file.read_text(encoding="utf-8")) if _is_plain(file) else {}
        kinds = {"library": str, "about": dict, "folders": list, "files": dict}
        whole = all(isinstance(found[name], kind) for name, kind in kinds.items())
        whole = whole and all(_is_inside(name) for name in (*found["folders"], *found["files"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return found if whole and found["library"].startswith("st-plugins ") else None


def _is_inside(name: str) -> bool:
    path = PurePosixPath(name)
    return not path.is_absolute() and ".." not in path.parts


def _is_plain(file: Path) -> bool:
    return file.is_file() and not file.is_symlink()


def _same(file: Path, digest: str) -> bool:
    return _is_plain(file) and checksum(file) == digest


def checksum(file: Path) -> str:
    """Return the SHA-256 of a file, which need not fit into memory."""
    digest = hashlib.sha256()
    with file.open("rb") as opened:
        while block := opened.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
