"""``$…$`` and ``$$…$$`` as MathML, which browsers draw themselves: no script, no font, nothing fetched."""

from __future__ import annotations

import html
import re
from typing import Any

from latex2mathml.converter import convert
from mkdocs.exceptions import PluginError

MATHS = re.compile(r'<(span|div) class="arithmatex">\\(?P<open>[(\[])(?P<tex>.*?)\\[)\]]</\1>', flags=re.DOTALL)


def on_page_content(content: str, page: Any, **_: Any) -> str:
    """Replace what the extension arithmatex has found in the text."""

    def drawn(found: re.Match[str]) -> str:
        tex = html.unescape(found["tex"]).strip()
        try:
            return str(convert(tex, display="inline" if found["open"] == "(" else "block"))
        except Exception as problem:
            raise PluginError(f"{page.file.src_uri}: no equation: {tex} ({problem!r})") from problem

    return MATHS.sub(drawn, content)
