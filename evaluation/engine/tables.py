"""What the pages of all studies are made of: Markdown lines, means over seeds, pictures."""

from __future__ import annotations

import io
import statistics
from collections.abc import Iterable, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from numpy.typing import NDArray


def head(*titles: str) -> list[str]:
    """Return a table's first two lines: of titles, or several in one, ``"row | >seeds"``, > for the right side."""
    cells = " | ".join(titles).split(" | ")
    rule = line("---:" if title.startswith(">") else "---" for title in cells)
    return [line(title.removeprefix(">") for title in cells), rule]


def line(cells: Iterable[str]) -> str:
    """Return one line of a table."""
    return "| " + " | ".join(cells) + " |"


def mean(values: Iterable[float]) -> float:
    """Return the mean."""
    return float(statistics.mean(values))


def section(title: str, text: str, table: Iterable[str]) -> list[str]:
    """Return a section of a page."""
    return [f"## {title}", "", text, "", *table, ""]


def spread(values: Sequence[float], sign: bool = False) -> str:
    """Return mean and standard deviation times 100; one value alone without the latter."""
    shown = f"{100 * statistics.mean(values):{'+' if sign else ''}.2f}"
    return f"{shown} ± {100 * statistics.stdev(values):.2f}" if len(values) > 1 else shown


def bounds(low: float, high: float, sign: str = "") -> str:
    """Return an interval times 100."""
    return f"[{100 * low:{sign}.1f}, {100 * high:{sign}.1f}]"


def paper(reported: dict[str, Any]) -> str:
    """Return what a paper reports for a row, with its encoder."""
    return f"{reported['value']} with {reported['encoder']}" if reported else ""


def heat_map(axes: Any, values: NDArray[np.float64], middle: float, **options: Any) -> Any:
    """Draw numbers on their colours, and nothing where there is none."""
    image = axes.imshow(values, cmap="viridis", **options)
    for row, column in zip(*np.nonzero(~np.isnan(values)), strict=True):
        value = values[row, column]
        axes.text(column, row, f"{value:.1f}", ha="center", va="center", color="white" if value < middle else "black")
    return image


def svg(figure: Any, salt: str) -> str:
    """Return a figure as SVG, and close it."""
    text = io.StringIO()
    # No date and fixed ids: the same results give the same file.
    with plt.rc_context({"svg.hashsalt": salt}):
        figure.savefig(text, format="svg", metadata={"Date": None})
    plt.close(figure)
    return text.getvalue()
