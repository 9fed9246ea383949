"""What the command line says of an error that nobody foresaw: everything that a report of it needs."""

from __future__ import annotations

import platform
import shlex
from collections.abc import Sequence
from importlib import metadata
from pathlib import PurePath

_PACKAGES = ("st-plugins", "sentence-transformers", "transformers", "torch")


def report(problem: Exception, words: Sequence[str]) -> list[str]:
    """Return lines to be pasted into an issue: the error, the command, the versions, where to, and what is missing."""
    said = " ".join(str(problem).split())
    versions = [*(f"{name} {_version(name)}" for name in _PACKAGES), f"python {platform.python_version()}"]
    command = shlex.join(["st-plugins", *map(_without_parents, words)])
    return [
        f"{type(problem).__name__}: {said}" if said else type(problem).__name__,
        "This should not happen, and may be a fault of st-plugins. Please report it with the lines below"
        + (f": {url}" if (url := tracker()) else ""),
        f"  command:   {command}",
        f"  versions:  {', '.join(versions)}",
        f"  platform:  {platform.platform()}",
        f"  traceback: {command.replace('st-plugins', 'st-plugins --debug', 1)}",
    ]


def tracker() -> str:
    """Return where issues are filed, as the package's metadata says it."""
    try:
        found = metadata.metadata("st-plugins").get_all("Project-URL") or []
    except metadata.PackageNotFoundError:
        return ""
    return next((url.partition(", ")[2] for url in found if url.startswith("Issues, ")), "")


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed"


def _without_parents(word: str) -> str:
    """Return a word of the command without the folders that a path lies in; texts stay as they are."""
    option, equals, value = word.partition("=") if word.startswith("--") else ("", "", word)
    text = any(char.isspace() for char in value) and not value.startswith(("/", "~", "."))
    kept = value if text else PurePath(value.replace("\\", "/")).name or value
    return f"{option}{equals}{kept}"
