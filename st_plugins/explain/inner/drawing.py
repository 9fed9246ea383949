"""What the pictures of one text and of two have in common."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from st_plugins.explain.spans import Span, Token
from st_plugins.report.matrices import Piece, legend_html, matrix_html
from st_plugins.report.page import escape


def pieces(text: str, tokens: Sequence[Token | Span], values: Sequence[float] | NDArray[np.float64]) -> list[Piece]:
    """Lay numbers of tokens over their text, so that the text can be read as it was written."""
    found: list[Piece] = []
    reached = after = 0
    for token, value in zip(tokens, values, strict=True):
        if token.start is not None and token.start > reached:
            found.append(Piece(text[reached : token.start]))
        elif found and (token.start is None or found[-1].added):
            found.append(Piece(" "))
        found.append(Piece(token.text, float(value), token.kind != "text"))
        if token.end is not None:
            reached, after = max(reached, token.end), len(found)
    if after and reached < len(text):
        found.insert(after, Piece(text[reached:]))
    return found


def shown(span: Span) -> str:
    """Return the characters of a span, and what it is if it is no text."""
    return span.text if span.kind == "text" else f"{span.text} ({span.kind})"


def place(span: Span) -> str:
    """Return where in its text a span stands."""
    return "" if span.start is None else f"{span.start} - {span.end}"


def about_html(about: Mapping[str, str]) -> str:
    """Return the model, the date and the settings as a list of HTML."""
    rows = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in about.items())
    return f"<dl>{rows}</dl>" if rows else ""


class Matrix(NamedTuple):
    """Numbers of words; gathered ones have no shade, because their sums would outshine the others."""

    rows: list[str]
    columns: list[str]
    values: NDArray[np.float64]
    shades: NDArray[np.float64]
    title: str
    scale: float

    def to_html(self) -> str:
        """Return the matrix with its legend as HTML."""
        note = f'<p class="note">Numbers are × {self.scale:,g}.</p>' if self.scale != 1 else ""
        single = self.shades != 0
        top = float(np.abs(self.values[single]).max()) if single.any() else 1.0
        return matrix_html(**self._asdict()) + legend_html(top, bool(self.shades.min(initial=0.0) < 0)) + note


def gathered_matrix(
    first: Sequence[Span], second: Sequence[Span], table: NDArray[np.float64], most: int, title: str
) -> Matrix:
    """Return the words that count most, in text order, and the others as one more."""
    units, labels, single = (first, second), [], []
    for axis in (0, 1):
        # By what they have at all: the sums of an interaction are zero.
        values, own = np.abs(table).sum(1 - axis), units[axis]
        kept = np.array([k for k, unit in enumerate(own) if unit.kind not in ("rest", "reference")], dtype=int)
        # "1 more" would be no shorter than the token itself.
        if len(kept) > most + 1:
            kept = kept[np.sort(np.argsort(-values[kept], kind="stable")[:most])]
        names = [own[k].text for k in kept]
        left = np.setdiff1d(np.arange(len(own)), kept)
        chosen = np.take(table, kept, axis)
        if len(left):
            chosen = np.concatenate([chosen, np.take(table, left, axis).sum(axis, keepdims=True)], axis)
            names.append(shown(own[left[0]]) if len(left) == 1 else f"{len(left)} more")
        table = chosen
        labels.append(names)
        single.append(len(kept))
    top = float(np.abs(table[: single[0], : single[1]]).max(initial=0.0))
    shades = np.zeros_like(table)
    shades[: single[0], : single[1]] = table[: single[0], : single[1]] / (top or 1.0)
    return Matrix(labels[0], labels[1], table, shades, title, _scale(top))


def _scale(top: float) -> float:
    """The power of ten that gives the largest number two digits before the point."""
    return 10.0 ** (math.floor(-math.log10(top)) + 2) if top > 0 else 1.0
