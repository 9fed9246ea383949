"""Docstrings as this package writes them, for a reader who expects Markdown and Google's names of sections."""

from __future__ import annotations

import re
from typing import Any

import griffe

ROLE = re.compile(r":(?:func|class|meth|mod|data):`~?([\w.]+)`")
SECTIONS = {"Example:": "Examples:", "Reads / Writes:": "Reads and writes:"}


class Docstrings(griffe.Extension):
    """Rewrites each docstring before its sections are read."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rename sections, and write literal blocks and roles the way Markdown knows them."""
        if obj.docstring is None:
            return
        sections = SECTIONS
        if obj.is_class and any(str(base) == "NamedTuple" for base in getattr(obj, "bases", ())):
            sections = {**SECTIONS, "Args:": "Attributes:"}  # griffe knows no constructor of theirs
        lines = [sections.get(line, line) for line in obj.docstring.value.split("\n")]
        text = re.sub(r"::(?=\n\n +)", ":", "\n".join(lines))
        obj.docstring.value = ROLE.sub(r"`\1`", text)
