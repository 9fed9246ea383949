"""``$…$`` and ``$$…$$`` as MathML, which browsers draw themselves: no script, no font, nothing fetched."""

from __future__ import annotations

import html
import logging
import re
from typing import Any

from latex2mathml.converter import convert

logger = logging.getLogger("mkdocs.hooks.equations")  # below mkdocs', whose warnings end a strict build
MATHS = re.compile(r'<(span|div) class="arithmatex">\\(?P<open>[(\[])(?P<tex>.*?)\\[)\]]</\1>', flags=re.DOTALL)
# What the converter does not know it passes on as it was: commands, and the columns of an environment.
UNREAD = re.compile(r"\\|&(?!#?\w+;)")


def drawn(tex: str, display: str, page: str) -> str:
    """Return an equation as MathML."""
    try:
        found = str(convert(tex, display=display))
    except Exception as problem:  # of many kinds
        logger.warning("%s: no equation: %s (%r)", page, tex, problem)
        return html.escape(tex)
    if UNREAD.search(found):
        logger.warning("%s: an equation with a command that the converter does not know: %s", page, tex)
    return found


def on_page_content(content: str, page: Any, **_: Any) -> str:
    """Replace what the extension arithmatex has found in the text."""

    def equation(found: re.Match[str]) -> str:
        display = "inline" if found["open"] == "(" else "block"
        return drawn(html.unescape(found["tex"]).strip(), display, page.file.src_uri)

    return MATHS.sub(equation, content)
