"""Draw numbers over tokens: a strip of words and a matrix, for the terminal (rich) and as pieces of HTML.

The pieces of HTML need :data:`STYLE` in their page and no script: hovering shows the numbers, and every cell of a
matrix has its number written in it, so that nothing rests on color alone. Text is escaped.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from rich import box
from rich.style import Style
from rich.table import Table
from rich.text import Text

from st_plugins.report.page import escape
from st_plugins.report.palette import color, hexadecimal, ink
from st_plugins.report.terminal import shown

STYLE = """
.strip { line-height: 2.1; max-width: none; overflow-wrap: anywhere; }
.strip mark { padding: .2em 0; border-radius: 2px; }
.strip mark.added { font-size: .8em; }
.strip mark.minus, .heat td.minus { text-decoration: underline dotted 1px; text-underline-offset: 3px; }
.numbered { line-height: 2; max-width: none; overflow-wrap: anywhere; }
.numbered .linked { border-bottom: 2px solid var(--good); }
.numbered .apart { color: var(--soft); border-bottom: 2px dotted var(--soft); }
.numbered sup { font-size: .65em; font-weight: 700; padding-left: 1px; }
details { margin: .5rem 0; }
.heat { width: auto; font-size: .75rem; }
.heat td { text-align: right; padding: .15rem .25rem; border: 1px solid var(--card); min-width: 2.3rem; }
.heat thead th { writing-mode: vertical-rl; padding: .3rem .15rem; font-weight: 600;
  text-align: end; max-height: 9rem; overflow: hidden; vertical-align: bottom; background: none; border: 0; }
.heat thead td { border: 0; }
.heat tbody th { text-align: right; white-space: nowrap; min-width: 0; max-width: none; border: 0;
  padding: .15rem .4rem; }
.legend { display: flex; align-items: center; gap: .5rem; color: var(--soft); font-size: .85rem; margin: .5rem 0; }
.legend i { display: inline-block; width: 1.1rem; height: .9rem; }
mark, .heat td, .legend i { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
@page { size: landscape; }
@media print { .scroll { overflow: visible; } .heat { font-size: 6pt; } .heat td { min-width: 0; padding: 1px 2px; }
  .numbers { font-size: 8pt; } }
"""


class Piece(NamedTuple):
    """A piece of a text in a strip."""

    text: str
    value: float | None = None  # text between the tokens has none, and no color
    added: bool = False  # special tokens and prompts do not stand in the text itself


def numbered_html(strip: Sequence[Piece]) -> str:
    """Return a text as a paragraph of HTML, with numbers at what corresponds and dotted words at what does not."""
    drawn = ""
    for piece in strip:
        text = escape(piece.text)
        if piece.value is None:
            drawn += text
        elif piece.value:
            drawn += f'<span class="linked">{text}<sup>{piece.value:.0f}</sup></span>'
        else:  # 0: it corresponds to nothing
            drawn += f'<span class="apart" title="no counterpart">{text}</span>'
    return f'<p class="numbered">{drawn}</p>'


def numbered_terminal(strip: Sequence[Piece]) -> Text:
    """Return a text for the terminal, with numbers at what corresponds and dim words at what does not."""
    drawn = Text()
    for piece in strip:
        drawn.append(shown(piece.text), None if piece.value is None else "underline" if piece.value else "dim")
        if piece.value:
            drawn.append(f"[{piece.value:.0f}]", "bold cyan")
    return drawn


def strip_terminal(strip: Sequence[Piece], limit: float | None = None) -> Text:
    """Return a strip for the terminal."""
    # Two strips that are compared share a limit, the number that gets full color.
    scale = limit or _limit([piece.value or 0.0 for piece in strip])
    drawn = Text()
    for piece in strip:
        drawn.append(shown(piece.text), None if piece.value is None else _style(piece.value / scale))
    return drawn


def matrix_terminal(
    rows: Sequence[str],
    columns: Sequence[str],
    values: NDArray[np.float64],
    *,
    shades: NDArray[np.float64] | None = None,
    title: str = "",
    scale: float = 100.0,
) -> Table:
    """Return a matrix for the terminal, with the numbers in it."""
    shades = values / _limit(values) if shades is None else shades
    # No padding: a matrix of a dozen words has to fit into a terminal.
    table = Table(title=title, box=box.SIMPLE, padding=(0, 0), show_edge=False)
    table.add_column("", justify="right", no_wrap=True)
    for label in columns:
        table.add_column(Text(f" {shown(label)}"), justify="right", no_wrap=False)
    for label, row, tints in zip(rows, values, shades, strict=True):
        drawn = (Text(f" {_number(scale * v)}", style=_style(tint)) for v, tint in zip(row, tints, strict=True))
        table.add_row(Text(f"{shown(label)} "), *drawn)
    return table


def strip_html(strip: Sequence[Piece], limit: float | None = None) -> str:
    """Return a strip as a paragraph of HTML; hovering over a token shows its number."""
    scale = limit or _limit([piece.value or 0.0 for piece in strip])
    drawn = ""
    for piece in strip:
        if piece.value is None:
            drawn += escape(piece.text)
            continue
        names = " ".join(name for name, on in (("added", piece.added), ("minus", piece.value < 0)) if on)
        title = escape(f"{piece.text}: {piece.value:.4g}")
        named = f' class="{names}"' if names else ""
        drawn += f'<mark{named} style="{_css(piece.value / scale)}" title="{title}">{escape(piece.text)}</mark>'
    return f'<p class="strip">{drawn}</p>'


def matrix_html(
    rows: Sequence[str],
    columns: Sequence[str],
    values: NDArray[np.float64],
    *,
    title: str,
    shades: NDArray[np.float64] | None = None,
    scale: float = 100.0,
) -> str:
    """Return a matrix as an HTML table with the numbers in it; hovering shows both labels and more digits."""
    shades = values / _limit(values) if shades is None else shades
    head = "".join(f'<th scope="col">{escape(label)}</th>' for label in columns)
    body = ""
    for label, row, tints in zip(rows, values, shades, strict=True):
        body += f'<tr><th scope="row">{escape(label)}</th>'
        for other, value, tint in zip(columns, row, tints, strict=True):
            number = _number(scale * value)
            minus = ' class="minus"' if number.startswith("-") else ""
            hover = escape(f"{label} × {other}: {value:.5f}")
            body += f'<td{minus} style="{_css(tint)}" title="{hover}">{number}</td>'
        body += "</tr>\n"
    return (
        f'<div class="scroll" role="region" tabindex="0" aria-label="{escape(title)}"><table class="heat">'
        f"<thead><tr><td></td>{head}</tr></thead><tbody>\n{body}</tbody></table></div>"
    )


def legend_html(limit: float, signed: bool = True) -> str:
    """Return the scale of colors as HTML."""
    steps = np.linspace(-1.0 if signed else 0.0, 1.0, 9 if signed else 5)
    boxes = "".join(f'<i style="{_css(step)}"></i>' for step in steps)
    low = f"{-limit:.3g}" if signed else "0"
    return f'<p class="legend"><span>{low}</span><span>{boxes}</span><span>{limit:+.3g}</span></p>'


def _limit(values: Sequence[float] | NDArray[np.float64]) -> float:
    numbers = np.abs(np.asarray(values, dtype=np.float64))
    numbers = numbers[np.isfinite(numbers)]
    return float(numbers.max()) if numbers.size and numbers.max() > 0 else 1.0


def _number(value: float) -> str:
    return f"{value:.1f}".replace("-0.0", "0.0")  # no minus where nothing is left of the number


def _style(value: float) -> Style:
    background = color(value)
    return Style(color=hexadecimal(ink(background)), bgcolor=hexadecimal(background), underline=value < 0)


def _css(value: float) -> str:
    background = color(value)
    return f"background:{hexadecimal(background)};color:{hexadecimal(ink(background))}"
