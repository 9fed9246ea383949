"""Write files and folders whole or not at all, and never over what this library did not write.

A target is looked at when a command starts, before anything is computed, and again just before it is written. What
is written lies in a temporary neighbor until one rename makes it the target. A neighbor that a killed run left is
removed by the next run with the same target.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import stat
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from st_plugins.core.writing import marks, neighbors

_MODEL_FILES = ("modules.json", "config.json", "matcher.json")


@dataclass(frozen=True)
class Target:
    """A file or folder to be written, which could be written when it was made: see `folder_target`, `file_target`."""

    path: Path  # links followed
    said: str  # how an error names it: the argument or option, and the path as it was given
    is_folder: bool
    overwrite: bool  # whether something of ours may be replaced
    inputs: tuple[Path, ...]  # what is read and must stay
    mark: bytes  # what a file of ours contains
    changed: bool  # whether a folder of ours may be replaced also when its files were changed, as in a damaged cache
    before: tuple[int, ...] | None  # what was there when the target was looked at

    @contextlib.contextmanager
    def write(self) -> Iterator[Path]:
        """Give a temporary path to write; it becomes the target when the block ends without an exception."""
        missing = [one for one in (self.path.parent, *self.path.parent.parents) if not one.exists()]
        self.path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with neighbors.neighbor(self.path.parent, self.path.name) as beside:
                new = beside / self.path.name
                if self.is_folder:
                    new.mkdir()
                yield new
                self._commit(new, beside / neighbors.OLD)
        except BaseException:
            for folder in missing:  # which were made for it, the innermost first
                with contextlib.suppress(OSError):
                    folder.rmdir()
            raise

    def take(self, finished: Path, known: Mapping[str, str]) -> None:
        """Make a folder beside it, which took long to fill, the target in one step; checksums may be known."""
        with neighbors.neighbor(self.path.parent, self.path.name) as beside:
            self._commit(finished, beside / neighbors.OLD, known)

    def write_text(self, text: str) -> None:
        """Write a file's whole content, as UTF-8."""
        with self.write() as file:
            file.write_bytes(text.encode())

    def _commit(self, new: Path, old: Path, known: Mapping[str, str] | None = None) -> None:
        if self.is_folder:
            marks.mark(new, known)
        # A temporary folder is its owner's alone; the mask can only be read by setting it.
        mask = os.umask(0)
        os.umask(mask)
        usual = (0o777 if self.is_folder else 0o666) & ~mask
        new.chmod(stat.S_IMODE(self.path.stat().st_mode) if self.path.exists() else usual)
        # Both again, just before the rename: the work may have taken hours.
        _check(self)
        if _identity(self.path) != self.before:
            raise FileExistsError(
                f"{self.said} was changed by another process while this one was at work; it is left as it is"
            )
        if self.is_folder:
            self._commit_folder(new, old)
        elif self.before is not None:
            new.replace(self.path)
        else:
            _link(new, self.path, self.said)

    def _commit_folder(self, new: Path, old: Path) -> None:
        try:
            if self.before is not None and any(self.path.iterdir()):
                self.path.rename(old)
                # Another process may have been faster, or the user, between the check and the rename.
                if _identity(old) != self.before or marks.foreign(old, changed=True) is not None:
                    raise FileExistsError(errno.EEXIST, "changed")
            new.rename(self.path)  # fails where something that is not empty has come into being
        except OSError as error:
            neighbors.restore(old, self.path)
            if error.errno in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR):
                raise FileExistsError(
                    f"{self.said} was written by another process while this one was at work; it is left as it is"
                ) from error
            raise


def folder_target(
    path: str | Path,
    *,
    name: str = "output",
    overwrite: bool = False,
    inputs: Iterable[str | Path | None] = (),
    changed: bool = False,
) -> Target:
    """Look whether a folder can be written, before the work that it is for."""
    return _target(path, name, True, overwrite, inputs, b"", changed)


def file_target(
    path: str | Path,
    *,
    name: str = "output",
    overwrite: bool = False,
    inputs: Iterable[str | Path | None] = (),
    mark: bytes = b"",
) -> Target:
    """Look whether a file can be written, before the work that it is for."""
    return _target(path, name, False, overwrite, inputs, mark, False)


@contextlib.contextmanager
def atomic_folder(path: str | Path, *, overwrite: bool = False, changed: bool = False) -> Iterator[Path]:
    """Give a temporary folder to fill; it becomes ``path`` when the block ends without an exception."""
    with folder_target(path, overwrite=overwrite, changed=changed).write() as folder:
        yield folder


@contextlib.contextmanager
def atomic_file(path: str | Path, *, overwrite: bool = True) -> Iterator[Path]:
    """Give the path of a temporary file to write; it becomes ``path`` when the block ends without an exception."""
    with file_target(path, overwrite=overwrite).write() as file:
        yield file


def write_text(path: str | Path, text: str) -> None:
    """Write UTF-8 ``text`` to ``path`` in one step, also over an existing file."""
    file_target(path, overwrite=True).write_text(text)


def _target(
    path: str | Path,
    name: str,
    is_folder: bool,
    overwrite: bool,
    inputs: Iterable[str | Path | None],
    mark: bytes,
    changed: bool,
) -> Target:
    said = f"{name} {str(path)!r}"
    where = _resolved(path)
    there = tuple(one for one in (_resolved(one) for one in inputs if one is not None) if one.exists())
    existing = next(one for one in (where.parent, *where.parents) if os.path.lexists(one))
    try:
        if not existing.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, f"{existing} is a file")
        for part in where.relative_to(existing).parts:
            with contextlib.suppress(FileNotFoundError):
                (existing / part).lstat()  # fails where the name is too long for the file system
        neighbors.clear(existing, where.name)
        with neighbors.neighbor(existing, where.name):
            pass  # what can be made there now can be made there later
    except OSError as error:
        text = f"{said} cannot be written ({error.strerror or error}); choose a place where files can be created"
        raise type(error)(text) from error
    target = Target(where, said, is_folder, overwrite, there, mark, changed, _identity(where))
    _check(target)
    return target


def _check(target: Target) -> None:
    """Raise an error if the target is not to be written."""
    path, said = target.path, target.said
    option = "--overwrite" if said.startswith("--") else "overwrite"
    for one in target.inputs:
        if path == one or (target.is_folder and one.is_relative_to(path)):
            raise ValueError(f"{said} {'is' if path == one else 'holds'} the input {str(one)!r}; choose another one")
        if path.is_relative_to(one) and any((one / file).is_file() for file in _MODEL_FILES):
            raise ValueError(f"{said} lies in the input model {str(one)!r}; choose a place outside of it")
    if not os.path.lexists(path):
        return
    if _is_mounted(path):
        raise FileExistsError(f"{said} is a mount point, which cannot be replaced in one step; choose a place in it")
    if not target.is_folder:
        if not path.is_file() or path.is_symlink():
            kind = "folder" if path.is_dir() else "special file"
            raise FileExistsError(f"{said} is a {kind}; give the path of a file")
        if not target.overwrite:
            raise FileExistsError(f"{said} exists; choose another file or {option}")
        if target.mark and path.stat().st_size and not marks.contains(path, target.mark):
            raise FileExistsError(f"{said} is a file that st-plugins did not write; choose another file, or move it")
        return
    if not path.is_dir():
        raise FileExistsError(f"{said} exists and is a file; choose another one, for a folder")
    if Path.cwd().is_relative_to(path):
        raise FileExistsError(f"{said} is the current folder or one around it; choose a new folder in it")
    if any(path.iterdir()):
        if not target.overwrite:
            raise FileExistsError(f"{said} exists and is not empty; choose another folder or {option}")
        found = marks.foreign(path, target.changed)
        if found is not None:
            raise FileExistsError(
                f"{said} is not replaced: {found!r} in it is no file that st-plugins wrote, or was changed since; "
                "choose another folder, or move it away"
            )


def _link(new: Path, path: Path, said: str) -> None:
    """Give a file its name, and fail if that exists by now."""
    try:
        try:
            os.link(new, path)
        except FileExistsError:
            raise
        except OSError:  # a file system without hard links
            path.open("xb").close()
            new.replace(path)
    except FileExistsError:
        raise FileExistsError(
            f"{said} was written by another process while this one was at work; it is left as it is"
        ) from None


def _resolved(path: str | Path) -> Path:
    with contextlib.suppress(RuntimeError):  # "~name" is the home of nobody: then it is a name like others
        path = Path(path).expanduser()
    return Path(os.path.realpath(path))  # not Path.resolve, which stops at a loop of links


def _identity(path: Path) -> tuple[int, ...] | None:
    """Return numbers that are others once a path was written anew or, being a file, changed."""
    try:
        found = path.lstat()
    except OSError:
        return None
    if path.is_dir():
        return found.st_dev, found.st_ino
    return found.st_dev, found.st_ino, found.st_mtime_ns, found.st_size


def _is_mounted(path: Path) -> bool:
    if path.is_mount():
        return True
    try:  # a folder mounted on another one of the same disk looks like any other
        lines = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:
        return False
    places = (re.sub(r"\\(\d{3})", lambda code: chr(int(code[1], 8)), line.split(" ")[4]) for line in lines)
    return str(path) in places
