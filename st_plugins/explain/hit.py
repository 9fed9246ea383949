"""A text that was found, and what the words of a query give to its score."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from typing_extensions import Self

from st_plugins.explain.alignment import Alignment
from st_plugins.explain.spans import Span


class ComparedWord(NamedTuple):
    """What a word of the query gives to the score of one text, and to that of another.

    Args:
        word: The word.
        contribution: What it adds to the score of the text.
        other: What it adds to the score of the other text, or on average.
        counterparts: The words of the text that correspond to it, if any.
        other_counterparts: Those of the other text; none for the average.

    Example:
        >>> from st_plugins.miniature import untrained_encoder
        >>> from st_plugins.explain import explain_query
        >>> texts = ["A happy dog sleeps.", "A cat eats."]
        >>> word = explain_query(untrained_encoder(), "The dog sleeps.", texts).difference(1, 2)[2]
        >>> word.word.text, word.counterparts[-1].text, word.difference > 0
        ('dog', 'dog', True)
    """

    word: Span
    contribution: float
    other: float
    counterparts: tuple[Span, ...]
    other_counterparts: tuple[Span, ...] = ()

    @property
    def difference(self) -> float:
        """What the word gives to the one more than to the other."""
        return self.contribution - self.other


@dataclass(frozen=True, eq=False)
class Hit:
    """A text that was found.

    Args:
        rank: Its rank, from 1.
        row: Its place among all texts, from 0.
        text: The text.
        score: The model's similarity of query and text.
        alignment: Which words of the query, the first text, and of the text, the second, correspond.
        words: The words of the text, special tokens included; None without contributions.
        word_contributions: ``(m,)``, float64: what each of them adds to the score; the total is the score.
        unread: Characters at its end that the model cut off.
        contributions: ``(n,)``, float64: what each word of the query adds to the score; the total is the score. None
            where the model or its similarity is no sum.

    Example:
        >>> from st_plugins.miniature import untrained_encoder
        >>> from st_plugins.explain import explain_query
        >>> hit = explain_query(untrained_encoder(), "The dog sleeps.", ["A cat eats.", "A happy dog sleeps."]).hits[0]
        >>> hit.rank, hit.row, bool(abs(hit.word_contributions.sum() - hit.score) < 1e-5)
        (1, 1, True)
    """

    rank: int
    row: int
    text: str
    score: float
    alignment: Alignment
    contributions: NDArray[np.float64] | None
    words: tuple[Span, ...] | None
    word_contributions: NDArray[np.float64] | None
    unread: int

    def counterparts(self, word: Span) -> tuple[Span, ...]:
        """Return the words of the text that correspond to a word of the query.

        Args:
            word: One of the explanation's ``words``.

        Returns:
            Its counterparts, none or some.
        """
        place = word.first, word.last  # weights differ between sum and alignment
        return tuple(link.second for link in self.alignment.links if (link.first.first, link.first.last) == place)

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> Self:
        """Return what ``dataclasses.asdict`` took apart, also after JSON.

        Args:
            stored: Its fields.

        Returns:
            The text that was found.
        """
        made = {
            "alignment": Alignment._stored(stored["alignment"]),
            "words": None if stored["words"] is None else tuple(Span(**word) for word in stored["words"]),
            "contributions": _array(stored["contributions"]),
            "word_contributions": _array(stored["word_contributions"]),
        }
        return cls(**{**stored, **made})


def _array(stored: Any) -> NDArray[np.float64] | None:
    return None if stored is None else np.array(stored)
