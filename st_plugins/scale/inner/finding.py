"""The files that paths, patterns and folders stand for."""

from __future__ import annotations

import glob
import json
import logging
import os
from collections.abc import Iterable
from pathlib import Path

from st_plugins.core.reading.content import format_of

logger = logging.getLogger(__name__)

_KINDS = ("parquet", "pq", "jsonl", "ndjson", "txt")
_SHOWN = 10
MANIFEST, SETTINGS = "manifest.json", "settings.json"
UNFINISHED = ".unfinished"


def files_of(paths: str | os.PathLike[str] | Iterable[str | os.PathLike[str]], *, lenient: bool) -> list[Path]:
    """Return the files, each once, as absolute paths; if lenient, one missing among several is left to the reader."""
    given = [paths] if isinstance(paths, str | os.PathLike) else paths
    if isinstance(given, bytes) or not isinstance(given, Iterable):
        raise TypeError(f"paths is a {type(paths).__name__}; give a path, a pattern or a list of them")
    given = list(given)
    for one in given:
        if not isinstance(one, str | os.PathLike) or isinstance(os.fspath(one), bytes):
            raise TypeError(f"paths: {one!r:.80} is a {type(one).__name__}; give paths or patterns as strings")
        if not str(one).strip() or "\0" in str(one):
            raise ValueError(f"paths: {str(one)!r} is no path; give that of a file or folder, or a pattern")
    # Strings in a list may be meant as texts; a path alone is not.
    listed = not isinstance(paths, str | os.PathLike) and any(isinstance(one, str) for one in given)
    remedy = "; texts in memory are encoded by model.encode" if listed else ""
    try:
        found = [file for one in given for file in _files(one, lenient and len(given) > 1)]
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{error}{remedy}") from None
    # Absolute, for other processes may work in another folder.
    named = dict.fromkeys(Path(os.path.abspath(file)) for file in found)  # noqa: PTH100 - keeps links
    if not named:
        raise ValueError(f"paths={paths!r} names no file; give a path, a pattern or a list of them")
    once: dict[str, Path] = {}
    for file in named:
        first = once.setdefault(os.path.realpath(file), file)
        if first != file:
            logger.warning("%s is left out: it is a link to the same file as %s.", file, first)
    return list(once.values())


def _files(path: str | os.PathLike[str], lenient: bool) -> list[Path]:
    """Return the files that a path or pattern stands for."""
    given = Path(path).expanduser()
    if given.is_dir():
        return _inside(given)
    if not given.exists() and glob.has_magic(str(given)):
        found = sorted(Path(one) for one in glob.glob(str(given), recursive=True))  # noqa: PTH207 - absolute patterns
        # A link to nothing is kept, as what cannot be read is to be named.
        files = [one for one in found if not one.is_dir()]
        ours = {folder for folder in {one.parent for one in files} if _holds_embeddings(folder)}
        if ours:
            shown = ", ".join(map(str, sorted(ours)[:_SHOWN]))
            logger.warning("%s: not read: what encode wrote into %s.", path, shown)
            files = [one for one in files if one.parent not in ours]
        if not files:
            what = f", only folders such as {str(found[0])!r}" if found else ""
            raise FileNotFoundError(f"no file fits {str(path)!r}{what}; check the pattern")
        return files
    if not given.exists() and not lenient:
        raise FileNotFoundError(f"file {str(path)!r} does not exist; check the path")
    return [given]


def _holds_embeddings(folder: Path) -> bool:
    """Say whether a folder is one that `encode` writes, finished or not: its files hold vectors, not texts."""
    if folder.name.endswith(UNFINISHED) and (folder / SETTINGS).is_file():
        return True
    try:
        told = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(told, dict) and str(told.get("library")).startswith("st-plugins ") and "parts" in told


def _inside(folder: Path) -> list[Path]:
    """Return the files of texts in a folder, which must be of one kind."""
    inside = [file for file in sorted(folder.iterdir()) if not file.name.startswith((".", "_"))]
    kinds = {kind: [file for file in inside if format_of(file) == kind and not file.is_dir()] for kind in _KINDS}
    there = {kind: files for kind, files in kinds.items() if files}
    if not there:
        inner = next((file for file in inside if file.is_dir()), None)
        remedy = "name a file instead" if inner is None else f"give a pattern, as {str(folder / '**' / '*.parquet')!r}"
        raise ValueError(
            f"folder {str(folder)!r} has no *.txt, *.jsonl or *.parquet file; it has {_named(inside)}: {remedy}"
        )
    if len(there) > 1:
        named = ", ".join(f"*.{kind} ({len(files)})" for kind, files in there.items())
        raise ValueError(f"folder {str(folder)!r} has files of several kinds, {named}; give a pattern for one of them")
    found = next(iter(there.values()))
    skipped = [file for file in inside if file not in set(found)]
    if skipped:
        logger.warning("%s: not read: %s. Name such a file itself to read it.", folder, _named(skipped))
    return found


def _named(files: list[Path]) -> str:
    more = f" and {len(files) - _SHOWN} more" if len(files) > _SHOWN else ""
    return (", ".join(file.name + ("/" if file.is_dir() else "") for file in files[:_SHOWN]) or "nothing") + more
