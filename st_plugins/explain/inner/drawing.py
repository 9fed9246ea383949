"""What the pictures of one text and of two have in common."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from st_plugins.explain.spans import Span, Token
from st_plugins.report.matrices import Piece


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
