"""Temporary neighbors of what is being written, and what killed runs left of them.

A neighbor is known by a file in it, which a running process keeps locked: one with that file and without a lock was
left by a run that was killed.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

try:
    import fcntl
except ImportError:  # Windows: what killed runs leave stays there
    fcntl = None  # type: ignore[assignment]


OLD = ".st-plugins-old"  # in a neighbor: what was in the target's place before
_LIVE = ".st-plugins-unfinished"


def lock(file: BinaryIO) -> bool | None:
    """Lock an open file until it is closed or the process ends, however it ends."""
    # The system lets go of it however the process ends, which no file with a process's number would tell.
    if fcntl is None:
        return None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


@contextlib.contextmanager
def neighbor(parent: Path, name: str) -> Iterator[Path]:
    """Make a folder for unfinished work, known as such and as living, and remove it in the end."""
    made = Path(tempfile.mkdtemp(dir=parent, prefix=_prefix(name), suffix=".tmp"))
    try:
        with (made / _LIVE).open("xb") as live:
            lock(live)
            live.write(os.fsencode(name))  # after the lock: without its content the file does not count
            live.flush()
            yield made
    finally:
        restore(made / OLD, parent / name)
        _remove(made)


def clear(parent: Path, name: str) -> None:
    """Remove what killed runs left, and put back what they had moved away."""
    prefix = _prefix(name)
    for made in [one for one in parent.iterdir() if one.name.startswith(prefix) and one.suffix == ".tmp"]:
        # Only what is surely a neighbor of ours: made for this very name, and by no process that is still at work.
        live = made / _LIVE
        if made.is_symlink() or live.is_symlink() or not live.is_file():
            continue
        with contextlib.suppress(OSError), live.open("rb") as opened:
            if opened.read() == os.fsencode(name) and lock(opened):
                restore(made / OLD, parent / name)
                _remove(made)


def restore(old: Path, path: Path) -> None:
    """Give something its place back that was moved away, unless that is taken."""
    if os.path.lexists(old) and not os.path.lexists(path):
        old.rename(path)


def _remove(made: Path) -> None:
    """Delete a neighbor: last what it is known by, in case of a kill in between."""
    with contextlib.suppress(OSError):
        for path in made.iterdir():
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            elif path.name != _LIVE:
                path.unlink(missing_ok=True)
    shutil.rmtree(made, ignore_errors=True)


def _prefix(name: str) -> str:
    # Shortened, for a name may be as long as the file system allows.
    return f".{os.fsencode(name)[:60].decode('utf-8', 'ignore')}."
