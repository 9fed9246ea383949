"""Write files and folders whole or not at all: a temporary neighbour first, then one rename."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

__all__ = ["atomic_file", "atomic_folder", "write_text"]


def write_text(path: str | Path, text: str) -> None:
    """Write UTF-8 ``text`` to ``path`` in one step.

    A crash or Ctrl-C leaves either the old file or the new one, never a part of it. Parent folders are created.

    Args:
        path: The file to create or replace.
        text: Its whole content.
    """
    with atomic_file(path) as temporary:
        temporary.write_bytes(text.encode())


@contextlib.contextmanager
def atomic_file(path: str | Path) -> Iterator[Path]:
    """Give a temporary file to write to; it becomes ``path`` when the block ends without an exception.

    Args:
        path: The file to create or replace. Parent folders are created.

    Yields:
        The temporary file, next to ``path``.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def atomic_folder(path: str | Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Give a temporary folder to fill; it becomes ``path`` when the block ends without an exception.

    Args:
        path: The folder to create.
        overwrite: Whether an existing, non-empty ``path`` may be replaced.

    Yields:
        The temporary folder, next to ``path``.

    Raises:
        FileExistsError: ``path`` exists, is not empty, and ``overwrite`` is false.
    """
    path = Path(path)
    if path.exists() and (not path.is_dir() or any(path.iterdir())) and not overwrite:
        raise FileExistsError(f"output folder {str(path)!r} exists and is not empty; choose another one")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp"))
    previous = temporary.with_suffix(".old")
    try:
        yield temporary
        temporary.chmod(0o777 & ~_umask())
        if path.exists():
            path.replace(previous)
        temporary.replace(path)
    except BaseException:
        if previous.exists() and not path.exists():
            previous.replace(path)
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    if previous.is_dir():
        shutil.rmtree(previous)
    else:
        previous.unlink(missing_ok=True)


def _umask() -> int:
    """Return the process's file mode mask (mkstemp ignores it)."""
    mask = os.umask(0)
    os.umask(mask)
    return mask
