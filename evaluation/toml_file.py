"""Reading of recipes, with errors that name the file."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = ["recipe_tables"]


@contextmanager
def recipe_tables(path: Path) -> Iterator[dict[str, Any]]:
    """Read a recipe for a block that makes dataclasses of its tables.

    Args:
        path: The TOML file.

    Yields:
        Its tables.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is not TOML, or a key is missing or unknown in the block.
    """
    if not path.is_file():
        raise FileNotFoundError(f"recipe {str(path)!r} does not exist")
    try:
        yield tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, TypeError, KeyError) as error:
        raise ValueError(f"{path}: {error}") from None
