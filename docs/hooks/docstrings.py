"""Docstrings as this package writes them, for a reader who expects Markdown and Google's names of sections."""

from __future__ import annotations

import re
from typing import Any

import griffe

SECTIONS = {"Example:": "Examples:", "Reads / Writes:": "Reads and writes:"}
# griffe knows no constructor of a NamedTuple, whose arguments are its fields.
SECTIONS_OF_TUPLES = {**SECTIONS, "Args:": "Attributes:"}
# Public for the other classes of the house, and of no use to a reader.
FOR_SUBCLASSES = set(
    "apply_head check_columns check_labels check_stored checked embed load_parts load_record map on_model_ready "
    "record widened".split()
)
ROLE = re.compile(r":(?:func|class|meth|mod|data):`~?([\w.]+)`")
LITERAL_BLOCK = re.compile(r"::(?=\n\n +)")
GRID_RULE = re.compile(r" *\+[-+]+\+")
GRID_HEADER = re.compile(r" *\+[=+]+\+")


def rewritten(text: str, sections: dict[str, str]) -> str:
    """Return a docstring with other names of sections, and with Markdown's literal blocks, references and tables."""
    lines = [sections.get(line, line) for line in text.split("\n") if not GRID_RULE.fullmatch(line)]
    lines = [line.replace("+", "|").replace("=", "-") if GRID_HEADER.fullmatch(line) else line for line in lines]
    return ROLE.sub(r"`\1`", LITERAL_BLOCK.sub(":", "\n".join(lines)))


class Docstrings(griffe.Extension):
    """Rewrites docstrings before their sections are read."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rewrite the docstring of an object that has one."""
        if obj.docstring is not None:
            tuples = obj.is_class and any(str(base) == "NamedTuple" for base in getattr(obj, "bases", ()))
            obj.docstring.value = rewritten(obj.docstring.value, SECTIONS_OF_TUPLES if tuples else SECTIONS)

    def on_class_members(self, *, cls: griffe.Class, **_: Any) -> None:
        """Leave out what is for subclasses only."""
        for name in FOR_SUBCLASSES & cls.members.keys():
            del cls.members[name]

    def on_package(self, *, pkg: griffe.Module, **_: Any) -> None:
        """Let a function stand where its module of the same name hides it."""
        waiting = [pkg]
        while waiting:
            module = waiting.pop()
            waiting += [member for member in module.members.values() if isinstance(member, griffe.Module)]
            for name in map(str, module.exports or ()):
                hidden = module.members.get(name)
                if isinstance(hidden, griffe.Module) and name in hidden.members:
                    self._rewrite(hidden)  # griffe will not come to what is no longer in the tree
                    module.members[name] = griffe.Alias(name, hidden.members[name], parent=module)

    def _rewrite(self, within: griffe.Module | griffe.Class) -> None:
        for member in within.members.values():
            if isinstance(member, griffe.Object):
                self.on_object(obj=member)
            if isinstance(member, griffe.Class):
                self.on_class_members(cls=member)
                self._rewrite(member)
