"""What was found for a query, and which of its words decided."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich import table as rich_table
from rich.console import Group
from rich.text import Text
from typing_extensions import Self

from st_plugins.core.files import JSONText
from st_plugins.explain.hit import ComparedWord, Hit
from st_plugins.explain.inner.drawing import about_html, pieces, shown
from st_plugins.explain.inner.units import By
from st_plugins.explain.spans import Span
from st_plugins.report.matrices import STYLE, legend_html, matrix_html, numbered_html, strip_html
from st_plugins.report.page import escape, page, section
from st_plugins.report.table import Table
from st_plugins.report.terminal import foreign

_DECIDED, _LISTED = 3, 15  # words that are named with a text, and in a table
_ROWS, _OPEN = 40, 10  # texts in the matrix, and cards that are not folded
_SHORT, _LABEL = 200, 24  # characters of a text in a terminal, and beside a matrix
_AVERAGE = (
    "What a word of the query gives to every text decides nothing. Colors and the words that are named show what it "
    "gives above the average text: the mean over all {count:,} texts, also those that are not shown. For one text "
    "that sums to its score less the mean score {mean:.4f}."
)
_ALIGNED = (
    "Equal numbers mark {by}s that correspond, read from the middle layers of the model. That is no part of the sum, "
    "and says nothing about how much the score owes to them."
)
_NOT_EXACT = (
    "Not exact: an activation follows the pooling. The contributions add up to the score, but how its effect is "
    "divided among them is a choice."
)
_CONTEXT = (
    "The vector of a {by} has seen its whole text. A contribution says where the score is read from, not what it "
    "would be without the {by}."
)


@dataclass(frozen=True, eq=False)
class QueryExplanation(JSONText):
    """The texts that were found for a query, and which of its words decided.

    Args:
        query: The query.
        words: Its n words, special tokens included if there are contributions.
        hits: The texts found, best first.
        count: How many texts there were.
        mean_score: Mean score of all of them.
        average: ``(n,)``, float64: what each word of the query adds to ``mean_score``, which is the total; None where
            there are no contributions.
        similarity_function: What the score is, such as ``"cosine"``.
        by: What the words are: ``"word"``, ``"token"`` or ``"sentence"``.
        exact: Whether every contribution is what the model computes; False after an activation, where the totals are
            right, but how they are divided is a choice.
        reason: Why there are no contributions; empty if there are.
        unread: Characters at the end of the query that the model cut off.
        about: Model, date and settings.

    Example:
        >>> from st_plugins.miniature import untrained_encoder
        >>> from st_plugins.explain import explain_query
        >>> found = explain_query(untrained_encoder(), "The dog sleeps.", ["A cat eats.", "A happy dog sleeps."])
        >>> again = QueryExplanation.from_json(found.to_json())
        >>> [hit.text for hit in again.hits], again.decided(1)[0].word.text
        (['A happy dog sleeps.', 'A cat eats.'], 'dog')
    """

    query: str
    words: tuple[Span, ...]
    hits: tuple[Hit, ...]
    count: int
    mean_score: float
    average: NDArray[np.float64] | None
    similarity_function: str
    by: By
    exact: bool
    reason: str
    unread: int
    about: Mapping[str, str]

    def difference(self, first: int = 1, second: int | None = 2) -> tuple[ComparedWord, ...]:
        """Say what separates two texts.

        Args:
            first: Rank of the one.
            second: Rank of the other; None compares with the average of all texts.

        Returns:
            What each word of the query gives to the one and to the other, in the order of the query. The differences
            sum to that of the scores; they are NaN where there are no contributions.

        Raises:
            ValueError: There is no text of such a rank.
        """
        one, other = self._hit(first), None if second is None else self._hit(second)
        nothing = np.full(len(self.words), math.nan)
        values = one.contributions, self.average if other is None else other.contributions
        given, compared = (nothing if value is None else value for value in values)
        return tuple(
            ComparedWord(
                word,
                float(given[place]),
                float(compared[place]),
                one.counterparts(word),
                () if other is None else other.counterparts(word),
            )
            for place, word in enumerate(self.words)
        )

    def decided(self, rank: int = 1) -> tuple[ComparedWord, ...]:
        """Return the words of the query that decided about a text.

        Args:
            rank: The rank of the text.

        Returns:
            The words that give it more than they give to the average text, highest first, without special tokens; if
            there is one text only, all that add to its score. None where there are no contributions.

        Raises:
            ValueError: There is no text of such a rank.
        """
        words = [word for word in self._above(self._hit(rank)) if word.word.kind == "text" and word.difference > 0]
        return tuple(sorted(words, key=lambda word: -word.difference))

    def _hit(self, rank: int) -> Hit:
        if isinstance(rank, bool) or not isinstance(rank, int) or not 1 <= rank <= len(self.hits):
            raise ValueError(f"rank {rank!r} must be a whole number from 1 to {len(self.hits)}, the texts explained")
        return self.hits[rank - 1]

    @classmethod
    def _stored(cls, stored: dict[str, Any]) -> Self:
        stored["words"] = tuple(Span(**word) for word in stored["words"])
        stored["hits"] = tuple(Hit.from_dict(hit) for hit in stored["hits"])
        stored["average"] = None if stored["average"] is None else np.array(stored["average"])
        return cls(**stored)

    def to_json_lines(self) -> str:
        """Return one JSON object a text, best first: its score, the query's words with counterparts, and its own."""
        lines = []
        for hit in self.hits:
            words = [
                {
                    "word": word.word.text,
                    "kind": word.word.kind,
                    "contribution": None if self.average is None else word.contribution,
                    "average": None if self.average is None else word.other,
                    "counterparts": [found.text for found in word.counterparts],
                }
                for word in self.difference(hit.rank, None)
            ]
            own = hit.word_contributions
            parts = [
                {"word": word.text, "kind": word.kind, "contribution": float(value)}
                for word, value in zip(hit.words or (), () if own is None else own, strict=True)
            ]
            line = {"query": self.query, "rank": hit.rank, "row": hit.row, "score": hit.score, "text": hit.text}
            lines.append(
                json.dumps(line | {"words": words, "text_words": parts, "cut_off": hit.unread}, ensure_ascii=False)
            )
        return "".join(f"{line}\n" for line in lines)

    def to_terminal(self) -> Group:
        """Return the texts with what decided, for ``rich.console.Console().print``."""
        drawn = rich_table.Table("rank", "score", "text", self._column, title=foreign(f"Found for: {self.query}"))
        for hit in self.hits:
            text = Text()
            for piece in hit.alignment._numbered()[1]:
                text.append(foreign(piece.text, "bold underline" if piece.value else ""))
            text.truncate(_SHORT, overflow="ellipsis")
            drawn.add_row(str(hit.rank), f"{hit.score:.4f}", text, foreign(self._decided_by(hit)))
        said = [self._summary(), "Underlined words correspond to one of the query.", *self._notes()]
        apart = self._separation()
        return Group(drawn, *([] if apart is None else [apart.to_terminal()]), *map(foreign, said))

    def to_html(self) -> str:
        """Return one self-contained HTML page."""
        title = f"Found for: {self.query}"
        body = [f"<h1>{escape(title)}</h1>", f'<p class="summary">{escape(self._summary())}</p>', self._overview()]
        apart = self._separation()
        body += [] if apart is None else [apart.to_html()]
        limits = self._limits()
        if self.average is not None:
            body.append(section(f"What each {self.by} of the query gives", self._matrix(self.average, limits[0])))
        body += [self._card(hit, limits) for hit in self.hits]
        notes = "".join(f"<p>{escape(line)}</p>" for line in self._notes())
        return page(title, [*body, section("How to read this", notes + about_html(self.about))], STYLE)

    def _overview(self) -> str:
        rows = [[str(hit.rank), f"{hit.score:.4f}", hit.text, self._decided_by(hit)] for hit in self.hits[:_ROWS]]
        more = len(self.hits) - len(rows)
        note = f"{more:,} more stand below." if more else ""
        return Table("Texts", ["rank", "score", "text", self._column], rows, note).to_html()

    def _separation(self) -> Table | None:
        """Return what separates the first text from the next one that differs, largest differences first."""
        one = self.hits[0]
        other = next((hit for hit in self.hits if hit.text != one.text), None)
        if other is None:
            return None
        title = f"What separates rank 1 from rank {other.rank}"
        columns = [f"{self.by} of the query", "counterpart in 1", f"counterpart in {other.rank}"]
        words = list(self.difference(1, other.rank))
        if self.average is None:
            rows = [[shown(word.word), _named(word.counterparts), _named(word.other_counterparts)] for word in words]
            return Table(title, columns, rows, f"Scores {one.score:.4f} and {other.score:.4f}.", words=columns)
        words.sort(key=lambda word: -abs(word.difference))
        listed, left = words[:_LISTED], words[_LISTED:]
        rows = [
            [
                shown(word.word),
                *_signed(word.difference, word.contribution, word.other),
                _named(word.counterparts),
                _named(word.other_counterparts),
            ]
            for word in listed
        ]
        if left:
            sums = sum(word.contribution for word in left), sum(word.other for word in left)
            rows.append([f"{len(left)} more", *_signed(sums[0] - sums[1], *sums), "", ""])
        note = (
            f"What each {self.by} of the query adds to either score; the differences sum to {one.score:.4f} - "
            f"{other.score:.4f} = {one.score - other.score:+.4f}."
        )
        named = [columns[0], "difference", "adds to 1", f"adds to {other.rank}", *columns[1:]]
        return Table(title, named, rows, note, words=columns)

    def _limits(self) -> tuple[float, float]:
        """Return the numbers that get full color: of words of the query above average, and of words of texts."""
        above = [abs(word.difference) for hit in self.hits for word in self._above(hit)]
        own = [float(np.abs(hit.word_contributions).max()) for hit in self.hits if hit.word_contributions is not None]
        return max(above, default=0.0) or 1.0, max(own, default=0.0) or 1.0

    def _above(self, hit: Hit) -> tuple[ComparedWord, ...]:
        words = self.difference(hit.rank, None)
        return tuple(word._replace(other=0.0) for word in words) if self.count == 1 else words

    def _matrix(self, average: NDArray[np.float64], limit: float) -> str:
        """Return what each word of the query gives to the texts: numbers sum to scores, colors are above average."""
        rows, values, above = ["average"], [average], [np.zeros(len(self.words))]
        for hit in self.hits[:_ROWS]:
            rows.append(f"{hit.rank}. {hit.text[:_LABEL]}{'…' if len(hit.text) > _LABEL else ''}")
            values.append(np.array([word.contribution for word in self._above(hit)]))
            above.append(np.array([word.difference for word in self._above(hit)]))
        first = 1 if self.count == 1 else 0  # the average of one text is that text
        numbers, shades = np.array(values[first:]), np.array(above[first:]) / limit
        # The last column is the sum, and has no color.
        numbers, shades = np.c_[numbers, numbers.sum(1)], np.c_[shades, np.zeros(len(shades))]
        names = [*(shown(word) for word in self.words), "score"]
        scale = 100.0 if np.abs(numbers).max() < 100 else 1.0
        title = f"What each {self.by} of the query gives to each text"
        drawn = matrix_html(rows[first:], names, numbers, title=title, shades=shades, scale=scale)
        note = f"Contributions × {scale:g}: a row sums to the score. Colors: above or below the average text."
        return f'<p class="note">{note}</p>{drawn}{legend_html(limit)}'

    def _card(self, hit: Hit, limits: tuple[float, float]) -> str:
        """Return a text with its query: what corresponds, and what adds to the score."""
        named = self._decided_by(hit) or "no word of the query, all give it less than they give on average"
        parts = [f"<p>{escape(f'{self._column.capitalize()}: {named}.')}</p>"]
        parts += map(numbered_html, hit.alignment._numbered())
        if self.average is not None and hit.words is not None and hit.word_contributions is not None:
            above = [word.difference for word in self._above(hit)]
            units = [word for word in self.words if word.kind != "rest"]
            against = "" if self.count == 1 else ", above what it gives to the average text"
            parts += [
                f'<p class="note">What each {self.by} of the query gives{against}:</p>',
                strip_html(pieces(self.query, units, above[: len(units)]), limits[0]),
                f'<p class="note">What each {self.by} of the text adds to {hit.score:.4f}:</p>',
            ]
            own = [word for word in hit.words if word.kind != "rest"]
            parts.append(strip_html(pieces(hit.text, own, hit.word_contributions[: len(own)]), limits[1]))
        if hit.unread:
            parts.append(f'<p class="note">The model cut off the last {hit.unread:,} characters of this text.</p>')
        return section(f"{hit.rank}. {hit.score:.4f}, texts[{hit.row}]", "".join(parts), folded=hit.rank > _OPEN)

    @property
    def _column(self) -> str:
        # Counterparts by themselves decide nothing.
        return "counterparts" if self.average is None else "decided by"

    def _decided_by(self, hit: Hit) -> str:
        """Return the words that decided, with their counterparts; without contributions all that have some."""
        if self.average is None:
            pairs = (f"{link.first.text} → {link.second.text}" for link in hit.alignment.links)
            return ", ".join(pairs) or "none"
        return ", ".join(
            f"{word.word.text} {word.difference:+.3f}"
            + (f" → {_named(word.counterparts)}" if word.counterparts else "")
            for word in self.decided(hit.rank)[:_DECIDED]
        )

    def _summary(self) -> str:
        scores = f"{self.hits[0].score:.4f}" + (f" to {self.hits[-1].score:.4f}" if len(self.hits) > 1 else "")
        return (
            f"{len(self.hits):,} of {self.count:,} texts by {self.similarity_function} similarity, {scores}; the mean "
            f"of all is {self.mean_score:.4f}."
        )

    def _notes(self) -> list[str]:
        lines = [f"There are no contributions: {self.reason}."] if self.reason else [_CONTEXT.format(by=self.by)]
        if not self.reason and self.count > 1:
            lines.insert(0, _AVERAGE.format(count=self.count, mean=self.mean_score))
        lines += [] if self.exact or self.reason else [_NOT_EXACT]
        lines.append(_ALIGNED.format(by=self.by))
        cut = [("query", self.unread), *((f"text of rank {hit.rank}", hit.unread) for hit in self.hits)]
        lines += [f"The model cut off the last {unread:,} characters of the {name}." for name, unread in cut if unread]
        return lines


def _signed(*values: float) -> list[str]:
    return [f"{round(value, 4) + 0.0:+.4f}" for value in values]  # no "-0.0000"


def _named(words: tuple[Span, ...]) -> str:
    return ", ".join(word.text for word in words)
