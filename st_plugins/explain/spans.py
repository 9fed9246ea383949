"""A text as an explanation sees it: its tokens, and its spans that have a vector of their own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from typing_extensions import Self

Kind = Literal["text", "special", "prompt", "rest", "reference"]
Unit = Literal["span", "token"]
NOWHERE = ("rest", "reference")  # kinds of spans without a place in the text


@dataclass(frozen=True)
class Token:
    """One token of a text.

    Args:
        text: The characters it covers; for a special token its name.
        piece: The tokenizer's own writing of it, such as ``"##ing"``.
        start: Its first character in the text, None if it covers none or the tokenizer does not say.
        end: The character after its last.
        kind: ``"text"``, ``"special"`` (added by the tokenizer) or ``"prompt"``.

    Example:
        >>> from st_plugins.miniature import untrained_encoder
        >>> from st_plugins.explain import explain_pair
        >>> found = explain_pair(untrained_encoder(), "A happy dog sleeps.", "The cat is asleep.")
        >>> token = found.first.tokens[1]
        >>> token.text, token.start, token.end
        ('A', 0, 1)
    """

    text: str
    piece: str
    start: int | None
    end: int | None
    kind: Kind


@dataclass(frozen=True)
class Span:
    """Some tokens in a row that have one vector in an embedding, or the rest of all spans, or the reference.

    Args:
        text: The characters from its first token to its last.
        start: Its first character in the text, None if unknown.
        end: The character after its last.
        first: Position of its first token, -1 for the rest and the reference.
        last: Position of its last token (inclusive), -1 for the rest and the reference.
        weight: What the pooling multiplies its vector by; through the layers the share that its vector has of the
            embedding in the direction of the embedding.
        kind: ``"text"``, or ``"special"``, ``"prompt"`` for such a token, ``"rest"`` or ``"reference"``.

    Example:
        >>> from st_plugins.miniature import untrained_encoder
        >>> from st_plugins.explain import explain_pair
        >>> found = explain_pair(untrained_encoder(), "A happy dog sleeps.", "The cat is asleep.")
        >>> span = found.first.spans[1]
        >>> span.text, span.first, span.last
        ('A', 1, 1)
    """

    text: str
    start: int | None
    end: int | None
    first: int
    last: int
    weight: float
    kind: Kind


@dataclass(frozen=True)
class Side:
    """A text as an explanation sees it.

    Args:
        text: The text.
        tokens: Its n tokens, special ones included.
        spans: The S spans in text order; the rest, or the reference, if there is one, is the last.
        rest: How the rest is spread over the tokens, n numbers that sum to 1; None without a rest.
        total: Number of all spans, those in the rest included.
        unread: Characters at the end that the model cut off.

    Example:
        >>> from st_plugins.miniature import untrained_encoder
        >>> from st_plugins.explain import explain_pair
        >>> found = explain_pair(untrained_encoder(), "A happy dog sleeps.", "The cat is asleep.")
        >>> found.first.total == len(found.first.tokens), found.first.unread
        (True, 0)
    """

    text: str
    tokens: tuple[Token, ...]
    spans: tuple[Span, ...]
    rest: tuple[float, ...] | None
    total: int
    unread: int

    def spread(self) -> NDArray[np.float64]:
        """Return ``(S, n)``: the share of each token in each span, evenly; rows sum to 1, a reference's to 0."""
        table = np.zeros((len(self.spans), len(self.tokens)))
        for row, span in zip(table, self.spans, strict=True):
            # The rest is everywhere a little; a span lies on its tokens evenly, as nothing says which of them counts.
            if span.kind == "rest" and self.rest is not None:
                row[:] = self.rest
            elif span.kind != "reference":
                row[span.first : span.last + 1] = 1 / (span.last + 1 - span.first)
        return table

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> Self:
        """Return what ``dataclasses.asdict`` took apart, also after JSON.

        Args:
            stored: Its fields.

        Returns:
            The side.
        """
        made: dict[str, Any] = {
            "tokens": tuple(Token(**token) for token in stored["tokens"]),
            "spans": tuple(Span(**span) for span in stored["spans"]),
            "rest": None if stored["rest"] is None else tuple(stored["rest"]),
        }
        return cls(**{**stored, **made})
