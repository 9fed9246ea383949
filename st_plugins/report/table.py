"""The one model of a table, drawn as terminal text, HTML, Markdown or CSV, and numbers as such tables print them."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from rich import table as rich_table
from rich.text import Text

from st_plugins.report.page import escape, section
from st_plugins.report.terminal import foreign, shown

UNDEFINED = "undefined"
_COLORS = {"better": "green", "worse": "red"}


class Cell(NamedTuple):
    """A number with small print, such as its interval, and how it was judged."""

    text: str
    small: str = ""
    verdict: str = ""

    def __str__(self) -> str:
        return " ".join(part for part in self if part)


@dataclass(frozen=True)
class Table:
    """One table; the first cell of a row is its heading."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str | Cell]]
    note: str = ""
    folded: bool = False  # a page may show it closed
    words: Sequence[str] = ()  # columns beside the first that a terminal does not set flush right
    strong: str = ""  # a column that stands out in a terminal
    wide: bool = False  # a terminal has room for small print beside its number

    def to_terminal(self) -> rich_table.Table:
        """Return the table for ``rich.console.Console().print``."""
        # Most columns are narrow: small print is a line below, and cells of several lines need lines between them.
        lines = any(isinstance(cell, Cell) and (cell.small or cell.verdict) for row in self.rows for cell in row)
        title, caption = Text(shown(self.title, lines=True)), foreign(self.note, "table.caption")
        drawn = rich_table.Table(title=title, caption=caption, show_lines=lines)
        for index, column in enumerate(self.columns):
            left = index == 0 or column in self.words
            style = "bold" if column == self.strong else ""
            drawn.add_column(foreign(column), justify="left" if left else "right", style=style)
        for row in self.rows:
            drawn.add_row(*map(foreign if self.wide else _terminal_cell, row))
        return drawn

    def to_html(self) -> str:
        """Return the table as a card of a page."""
        head = "".join(f'<th scope="col">{escape(column)}</th>' for column in self.columns)
        rows = "\n".join(
            f'<tr><th scope="row">{_html_cell(row[0])}</th>'
            + "".join(f"<td>{_html_cell(cell)}</td>" for cell in row[1:])
            + "</tr>"
            for row in self.rows
        )
        kind = "numbers" if all(isinstance(cell, Cell) for cell in self.rows[0][1:]) else "text"
        note = f'<p class="note">{escape(self.note)}</p>' if self.note else ""
        # A region that scrolls must be reachable by keyboard.
        content = (
            f'{note}<div class="scroll" role="region" tabindex="0" aria-label="{escape(self.title)}">'
            f'<table class="{kind}"><thead><tr>{head}</tr></thead><tbody>\n{rows}\n</tbody></table></div>'
        )
        return section(self.title, content, self.folded)

    def to_markdown(self) -> str:
        """Return the table as Markdown, with its heading."""
        lines = [[*map(markdown_text, map(str, row))] for row in (self.columns, *self.rows)]
        lines.insert(1, ["---"] * len(self.columns))
        note = f"{markdown_text(self.note)}\n\n" if self.note else ""
        return f"## {markdown_text(self.title)}\n\n{note}" + "\n".join(f"| {' | '.join(line)} |" for line in lines)

    def to_csv(self) -> str:
        """Return columns and rows as CSV."""
        buffer = io.StringIO()
        csv.writer(buffer, lineterminator="\n").writerows([self.columns, *([*map(str, row)] for row in self.rows)])
        return buffer.getvalue()


def _terminal_cell(cell: str | Cell) -> Text:
    if isinstance(cell, str):
        return foreign(cell)
    if cell.verdict:
        return Text(f"{shown(cell.text)}\n{cell.verdict}", _COLORS.get(cell.verdict, "yellow"))
    return Text.assemble(shown(cell.text), (f"\n{shown(cell.small)}" if cell.small else "", "dim"))


def _html_cell(cell: str | Cell) -> str:
    if isinstance(cell, str):
        return escape(cell)
    small = f"<small>{escape(cell.small)}</small>" if cell.small else ""
    kind = f' class="{cell.verdict}"' if cell.verdict in _COLORS else ""
    return escape(cell.text) + small + (f"<small{kind}>{escape(cell.verdict)}</small>" if cell.verdict else "")


def markdown_text(text: str) -> str:
    """Return text that Markdown shows as it is: no HTML, no emphasis, no link, no broken table row."""
    text = shown(" ".join(text.split())).replace("&", "&amp;").replace("<", "&lt;")
    for mark in "\\`*|":
        text = text.replace(mark, "\\" + mark)
    return text.replace("](", "]\\(")


def percent(value: float, decimals: int = 2, sign: bool = False) -> str:
    """Return a score times 100; ``"undefined"`` for NaN."""
    if math.isnan(value):
        return UNDEFINED
    rounded = round(100 * value, decimals) + 0.0  # + 0.0: no "-0.00"
    return f"{rounded:{'+' if sign else ''}.{decimals}f}"


def number(value: Any) -> str:
    """Return a number, or a list of them, with four significant digits; ``"undefined"`` for NaN."""
    if isinstance(value, bool) or value is None:
        return str(value)
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return UNDEFINED if math.isnan(value) else "infinite" if math.isinf(value) else f"{value:.4g}"
    if isinstance(value, list | tuple):
        listed = ", ".join(number(item) for item in value[:5])
        return f"{listed}, ... ({len(value)} values)" if len(value) > 5 else listed
    return str(value)
