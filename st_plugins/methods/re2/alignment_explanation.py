"""Show what the tokens of two texts find in each other, block by block."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from rich.console import Group, RenderableType
from rich.text import Text
from typing_extensions import Self

from st_plugins.core.files import JSONText
from st_plugins.report.matrices import STYLE, legend_html, matrix_html, matrix_terminal
from st_plugins.report.page import escape, page, section
from st_plugins.report.terminal import foreign

_TERMINAL_TOKENS, _PAGE_TOKENS = 12, 40
_READING = (
    "Each row is a token of one text, and says in per cent how what it finds in the other text is put together. In "
    "the first block a token has seen its neighbours only, in later blocks also what earlier ones found. The maps say "
    "where the network compares, not which comparison decides."
)


@dataclass(frozen=True, eq=False)
class AlignmentMap:
    """The alignment of one block of an RE2 network, which `RE2Matcher.explain` gives.

    Args:
        first_to_second: ``(m, n)``: how much of each token of the second text is in what each token of the first one
            finds; rows sum to 1.
        second_to_first: ``(n, m)``: the same the other way round.

    Example:
        >>> AlignmentMap(np.array([[0.9, 0.1]]), np.array([[1.0], [1.0]])).first_to_second.sum(axis=1).tolist()
        [1.0]
    """

    first_to_second: NDArray[np.float64]
    second_to_first: NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class AlignmentExplanation(JSONText):
    """What the tokens of two texts found in each other, and what came out.

    Args:
        first: The first text.
        second: The second text.
        first_tokens: The m tokens of the first text, as the model has cut it.
        second_tokens: The n tokens of the second text.
        blocks: One map a block, the first block first.
        scores: What the model says: the probability of each class, or ``"score"``.

    Example:
        >>> maps = (AlignmentMap(np.array([[0.9, 0.1]]), np.array([[1.0], [1.0]])),)
        >>> found = AlignmentExplanation("dog", "dog runs", ("dog",), ("dog", "runs"), maps, {"score": 0.75})
        >>> found.summary(), found.counterparts()
        ('score 0.750', [('dog', 'dog', 0.9)])
    """

    first: str
    second: str
    first_tokens: tuple[str, ...]
    second_tokens: tuple[str, ...]
    blocks: tuple[AlignmentMap, ...]
    scores: Mapping[str, float]

    def summary(self) -> str:
        """Return what the model says, the most probable class first."""
        ordered = sorted(self.scores.items(), key=lambda item: -item[1])
        return ", ".join(f"{name} {value:.3f}" for name, value in ordered)

    def counterparts(self, block: int = 0) -> list[tuple[str, str, float]]:
        """Return for each token of the first text the token of the second that it finds most of.

        Args:
            block: Which block, from 0; -1 for the last.

        Returns:
            Token, its counterpart, and the share that this has.
        """
        table = self.blocks[block].first_to_second
        best = table.argmax(axis=1)
        return [
            (token, self.second_tokens[column], float(row[column]))
            for token, column, row in zip(self.first_tokens, best, table, strict=True)
        ]

    @classmethod
    def _stored(cls, stored: dict[str, Any]) -> Self:
        blocks = tuple(
            AlignmentMap(np.array(block["first_to_second"]), np.array(block["second_to_first"]))
            for block in stored["blocks"]
        )
        tokens: dict[str, Any] = {name: tuple(stored[name]) for name in ("first_tokens", "second_tokens")}
        return cls(**{**stored, **tokens, "blocks": blocks})

    def to_terminal(self) -> Group:
        """Return a heat map for each block and direction, for ``rich.console.Console().print``."""
        parts: list[RenderableType] = [foreign(self.summary()), Text()]
        for title, rows, columns, values, shades in self._drawn(_TERMINAL_TOKENS):
            # Not the table's own title, which wraps to the width of the table.
            parts += [
                foreign(title, "italic"),
                matrix_terminal(rows, columns, values, shades=shades),
                Text(),
            ]
        return Group(*parts, Text(_READING))

    def to_html(self) -> str:
        """Return one self-contained HTML page."""
        body = [
            "<h1>What two texts find in each other</h1>",
            f'<p class="summary">{escape(self.summary())}</p>',
            f'<p class="note">First text: {escape(self.first)}<br>Second text: {escape(self.second)}</p>',
        ]
        for title, rows, columns, values, shades in self._drawn(_PAGE_TOKENS):
            drawn = matrix_html(rows, columns, values, shades=shades, title=title)
            body.append(section(title, drawn + legend_html(100.0, signed=False)))
        body.append(section("How to read this", f"<p>{escape(_READING)}</p>"))
        return page("What two texts find in each other", body, STYLE)

    def _drawn(self, most: int) -> list[_Picture]:
        """Return every picture, with the tokens that most attention goes to; see `_gather`."""
        to_a, to_b = (
            np.sum([getattr(block, name).sum(axis=0) for block in self.blocks], axis=0)
            for name in ("second_to_first", "first_to_second")
        )
        a, b = _gather(self.first_tokens, to_a, most), _gather(self.second_tokens, to_b, most)
        drawn = []
        for number, block in enumerate(self.blocks, start=1):
            drawn.append(
                _picture(f"Block {number}: what the first text finds in the second, %", a, b, block.first_to_second)
            )
            drawn.append(
                _picture(f"Block {number}: what the second text finds in the first, %", b, a, block.second_to_first)
            )
        return drawn


class _Picture(NamedTuple):
    title: str
    rows: list[str]
    columns: list[str]
    values: NDArray[np.float64]
    shades: NDArray[np.float64]


class _Gathered(NamedTuple):
    """The tokens of a text that are shown one by one, and which are put into one label, ``(tokens, labels)``."""

    labels: list[str]
    members: NDArray[np.float64]
    single: int


def _gather(tokens: tuple[str, ...], received: NDArray[np.float64], most: int) -> _Gathered:
    """Keep the tokens that receive most, in text order, and put the others into one."""
    kept = np.arange(len(tokens))
    if len(tokens) > most + 1:
        kept = np.sort(np.argsort(-received, kind="stable")[:most])
    members = np.eye(len(tokens))[:, kept]
    labels = [tokens[k] for k in kept]
    if len(kept) < len(tokens):
        members = np.column_stack([members, 1 - members.sum(axis=1)])
        labels.append(f"{len(tokens) - len(kept)} more")
    return _Gathered(labels, members, len(kept))


def _picture(title: str, rows: _Gathered, columns: _Gathered, table: NDArray[np.float64]) -> _Picture:
    """Draw gathered rows as their mean and gathered columns as their sum, so that rows still sum to 1."""
    # Gathered tokens have no color: a sum would outshine the others.
    values = (rows.members / rows.members.sum(axis=0)).T @ table @ columns.members
    shades = np.zeros_like(values)
    shades[: rows.single, : columns.single] = values[: rows.single, : columns.single]
    return _Picture(title, rows.labels, columns.labels, values, shades)
