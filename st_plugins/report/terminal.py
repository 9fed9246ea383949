r"""The terminal: one console for all commands, and text of others that can neither break nor steer it.

Names of models and files, labels, texts and tokens come from outside. They are printed as they are: nothing in them is
taken for markup, and what a terminal would obey, or what turns a line around, is written out (``\x1b``).
"""

from __future__ import annotations

import os
import sys
import unicodedata
from collections.abc import Iterable
from typing import IO

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

_PIPED_WIDTH = 160  # a pipe has no width of its own, and tables should not be squeezed into 80 columns then
# Bidirectional controls turn the rest of a line around. Joiners stay: Persian and families of emoji need them.
_BIDI = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
_STEERING = ("Cc", "Cs", "Zl", "Zp")  # controls, halves of characters, separators of lines and paragraphs


def shown(text: object, *, lines: bool = False) -> str:
    r"""Return text with everything that a terminal would obey written out."""
    # Controls, halves of surrogate pairs and bidirectional marks; a line break only where no lines are meant.
    plain = str(text)
    if plain.isprintable():
        return plain
    return "".join(_escaped(char) if _steers(char) and not (lines and char == "\n") else char for char in plain)


def foreign(text: object, style: str = "") -> Text:
    """Return text from outside as something rich prints: no markup, no emoji codes, no control characters."""
    return Text(shown(text), style)


def terminal(*, stderr: bool = False) -> Console:
    """Return the console that all commands print to; strings are printed as they are."""
    stream = sys.stderr if stderr else sys.stdout
    width = None if stream is not None and stream.isatty() else _PIPED_WIDTH
    return _Console(stderr=stderr, width=width, markup=False, emoji=False, highlight=False)


def say(text: str | Text, style: str = "", *, stderr: bool = False) -> None:
    """Print a line as it is, however long."""
    line = text if isinstance(text, Text) else foreign(text, style)
    terminal(stderr=stderr).print(line, soft_wrap=True)


def survive_encoding(streams: Iterable[IO[str] | None]) -> None:
    """Let streams write out what their encoding does not have (``LANG=C``), instead of failing after the work."""
    for stream in streams:
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="backslashreplace")


class _Console(Console):
    """A console that text cannot steer, also where somebody forgot :func:`foreign`."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=shown(segment.text, lines=True))

    def on_broken_pipe(self) -> None:
        """Go on without a reader (``| head``): what is still to be done has to be done."""
        self.quiet = True
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


def _steers(char: str) -> bool:
    return char in _BIDI or unicodedata.category(char) in _STEERING


def _escaped(char: str) -> str:
    return char.encode("unicode_escape").decode("ascii")
