"""The records beside tensors, which `st_plugins.core.files.write_record` wrote: whose they are, and what they say."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from st_plugins.core.loading.files import is_there, read_object

logger = logging.getLogger(__name__)


def read_record(folder: Path, name: str, kind: str, files: Collection[str] = ()) -> dict[str, Any]:
    """Read the record of a folder that ``kind.save`` wrote, where the other files are too."""
    for file in (name, *files):
        if not (folder / file).is_dir() and not is_there(folder / file):
            raise FileNotFoundError(f"{folder} has no {file}; give a folder that {kind}.save wrote")
    record = read_object(folder / name)
    if record.get("type") != kind:
        raise ValueError(f"{folder / name} is of a {record.get('type')!r}, not of {with_article(kind)}")
    return record


@contextmanager
def naming_unknown(values: Collection[str], keys: Collection[str], file: Path, kind: str) -> Iterator[None]:
    """Say which keys are ignored, and name them in the error if the block then finds that the files do not fit."""
    unknown = sorted(set(values) - set(keys))
    if unknown:
        logger.warning("Ignoring %s in %s: written by a newer version?", unknown, file)
    try:
        yield
    except ValueError as error:
        if not unknown:
            raise
        raise ValueError(
            f"{file} has {', '.join(map(repr, unknown))}, which {with_article(kind)} of this version does not know; "
            f"make the model anew, or load it with the version that wrote it ({error})"
        ) from error


@contextmanager
def described(file: Path, kind: str) -> Iterator[None]:
    """Say of errors in a block that they are of what a record describes."""
    try:
        yield
    except (KeyError, TypeError, ValueError) as error:
        said = repr(error) if isinstance(error, KeyError) else error  # of a KeyError, str is the bare key
        raise ValueError(f"{file} does not describe {with_article(kind)}: {said}") from error


def with_article(name: str) -> str:
    """Return a class's name after "a" or "an", as it is spoken: an RE2Matcher is an "ar-ee-two" matcher."""
    spelled = name[:2].isupper()
    return f"{'an' if name[0] in ('AEFHILMNORSX' if spelled else 'AEIOU') else 'a'} {name}"
