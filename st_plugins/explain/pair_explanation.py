"""The similarity of two texts as a sum: which spans of one text meet which spans of the other."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.text import Text
from typing_extensions import Self

from st_plugins.core.files import JSONText
from st_plugins.explain.alignment import Alignment
from st_plugins.explain.eraser import Faithfulness
from st_plugins.explain.inner.drawing import pieces, shown
from st_plugins.explain.inner.units import By, check_by, gather
from st_plugins.explain.spans import Side, Span, Unit
from st_plugins.report.matrices import (
    STYLE,
    Piece,
    legend_html,
    matrix_html,
    matrix_terminal,
    strip_html,
    strip_terminal,
)
from st_plugins.report.page import escape, page, section
from st_plugins.report.table import Table
from st_plugins.report.terminal import foreign

_TERMINAL_TOKENS, _PAGE_TOKENS = 12, 40
_NOT_EXACT = (
    "Not exact: an activation follows the pooling. The contributions add up to the similarity, but how its effect is "
    "divided among them is a choice; if every part passed it by itself, the total would be off by {gap:+.4f}."
)
_CONTEXT = (
    "The vector of a token or span has seen the whole text. A contribution says which positions the similarity is "
    "read from; what it would be without them is what the deletion test measures."
)


class AlignedPair(NamedTuple):
    """A span of each text, and what they add to the similarity.

    Args:
        first: Of the first text.
        second: Of the second text.
        contribution: Their entry of the contributions.

    Example:
        >>> from st_plugins.miniature import untrained_encoder
        >>> from st_plugins.explain import explain_pair
        >>> found = explain_pair(untrained_encoder(), "A happy dog sleeps.", "The cat is asleep.")
        >>> found.top_pairs[0].contribution >= found.top_pairs[1].contribution
        True
    """

    first: Span
    second: Span
    contribution: float


class Gathered(NamedTuple):
    """Contributions of words, sentences or tokens.

    Args:
        first: Those of the first text.
        second: Those of the second text.
        contributions: ``(units of the first, units of the second)``, float64.

    Example:
        >>> from st_plugins.miniature import untrained_encoder
        >>> from st_plugins.explain import explain_pair
        >>> found = explain_pair(untrained_encoder(), "A happy dog sleeps.", "The cat is asleep.")
        >>> round(float(found.gathered("sentence").contributions.sum() - found.contributions.sum()), 9) + 0.0
        0.0
    """

    first: tuple[Span, ...]
    second: tuple[Span, ...]
    contributions: NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class PairExplanation(JSONText):
    """The similarity of two texts as a sum over pairs of spans.

    Args:
        first: The first text with its spans.
        second: The second text with its spans.
        contributions: ``(spans of the first, spans of the second)``, float64; the total is the similarity.
        similarity: What ``model.similarity`` gives.
        similarity_function: ``"cosine"`` or ``"dot"``.
        unit: ``"span"`` (SpanPooling) or ``"token"`` (mean poolings).
        exact: Whether every entry is what the model computes. False after an activation, where the total is still the
            similarity, but how it is divided is a choice (see :class:`~st_plugins.explain.inner.tail.Tail`).
        gap: How much the total would miss the similarity if every span passed the activations by itself; rounding
            where ``exact``.
        top_k: How many pairs ``top_pairs`` has.
        faithfulness: What deletion says, mean of both texts, if asked for.
        by: What ``top_pairs`` and the pictures show: ``"word"``, ``"token"``, ``"sentence"``, or ``"span"``, the spans
            themselves. A word's contributions are sums over its tokens; the total stays the similarity.
        alignment: Which words correspond, a reading of the layers that is no part of the sum.

    Example:
        >>> from st_plugins.miniature import untrained_encoder
        >>> from st_plugins.explain import explain_pair
        >>> found = explain_pair(untrained_encoder(), "A happy dog sleeps.", "The cat is asleep.")
        >>> again = PairExplanation.from_json(found.to_json())
        >>> again.similarity - found.similarity, len(again.top_pairs)
        (0.0, 10)
    """

    first: Side
    second: Side
    contributions: NDArray[np.float64]
    similarity: float
    similarity_function: str
    unit: Unit
    exact: bool
    gap: float
    top_k: int
    faithfulness: Faithfulness | None = None
    by: By = "token"
    alignment: Alignment | None = None

    @property
    def tokens(self) -> NDArray[np.float64]:
        """``(n_1, n_2)``: the contributions with each span spread evenly over its tokens; the same total."""
        return np.asarray(self.first.spread().T @ self.contributions @ self.second.spread())

    @property
    def first_saliency(self) -> NDArray[np.float64]:
        """``(n_1,)``: what each token of the first text adds to the similarity, row sums of ``tokens``."""
        return np.asarray(self.contributions.sum(1) @ self.first.spread())

    @property
    def second_saliency(self) -> NDArray[np.float64]:
        """``(n_2,)``: what each token of the second text adds to the similarity, column sums of ``tokens``."""
        return np.asarray(self.contributions.sum(0) @ self.second.spread())

    @property
    def top_pairs(self) -> tuple[AlignedPair, ...]:
        """The ``top_k`` pairs of words (see ``by``) that add most, in order, without special tokens and the rest."""
        first, second, table = self.gathered()
        rows, columns = (
            [k for k, unit in enumerate(units) if unit.kind not in ("special", "rest")] for units in (first, second)
        )
        listed = table[np.ix_(rows, columns)]
        # Stable: equal contributions come in the order of the texts.
        best = np.argsort(-listed, axis=None, kind="stable")[: self.top_k]
        return tuple(
            AlignedPair(first[rows[row]], second[columns[column]], float(listed[row, column]))
            for row, column in zip(*np.unravel_index(best, listed.shape), strict=True)
        )

    def gathered(self, by: By | None = None) -> Gathered:
        """Return the contributions added up to words, sentences or tokens.

        Args:
            by: To what; None takes the explanation's own ``by``.

        Returns:
            The units of both texts, special tokens and the rest included, and their contributions, ``(units
            of the first, units of the second)``; the total is the similarity.
        """
        by = self.by if by is None else check_by(by, self.unit)
        (first, table_a), (second, table_b) = gather(self.first, by), gather(self.second, by)
        return Gathered(first, second, np.asarray(table_a @ self.contributions @ table_b.T))

    @classmethod
    def _stored(cls, stored: dict[str, Any]) -> Self:
        stored["first"], stored["second"] = Side.from_dict(stored["first"]), Side.from_dict(stored["second"])
        stored["contributions"] = np.array(stored["contributions"])
        if stored["faithfulness"] is not None:
            stored["faithfulness"] = Faithfulness.from_dict(stored["faithfulness"])
        if stored["alignment"] is not None:
            stored["alignment"] = Alignment._stored(stored["alignment"])
        return cls(**stored)

    def to_terminal(self) -> Group:
        """Return heat maps of both texts and the pairs that add most, for ``rich.console.Console().print``."""
        strips, limit = self._strips()
        parts: list[RenderableType] = [foreign(self._summary()), Text()]
        parts += [Padding(strip_terminal(strip, limit), (0, 0, 1, 0)) for strip in strips]
        matrix, unit = _matrix(self, _TERMINAL_TOKENS), self._drawn
        title = f"{unit.capitalize()} by {unit}, × {matrix.scale:,g}"
        parts += [
            self._table(f"The pairs of {self.by}s that add most to {self.similarity:.4f}").to_terminal(),
            matrix_terminal(
                matrix.rows, matrix.columns, matrix.values, shades=matrix.shades, title=title, scale=matrix.scale
            ),
            *map(foreign, self._notes()),
        ]
        if self.faithfulness is not None:
            parts += [Text(), self.faithfulness.to_table()]
        return Group(*parts)

    def to_html(self) -> str:
        """Return one self-contained HTML page."""
        strips, limit = self._strips()
        signed = bool(min(self.first_saliency.min(), self.second_saliency.min()) < 0)
        matrix, unit = _matrix(self, _PAGE_TOKENS), self._drawn
        negative = " Negative ones are brown and underlined." if matrix.values.min() < 0 else ""
        note = f"Contributions × {matrix.scale:,g}: rows are the first text, columns the second.{negative}"
        title = f"Contribution of each pair of {unit}s"
        drawn = matrix_html(
            matrix.rows, matrix.columns, matrix.values, shades=matrix.shades, title=title, scale=matrix.scale
        )
        legend = legend_html(matrix.top, bool(matrix.shades.min() < 0))
        body = [
            f"<h1>Why {self.similarity:.4f}?</h1>",
            f'<p class="summary">{escape(self._summary())}</p>',
            section(
                f"What each {unit} adds",
                "".join(strip_html(strip, limit) for strip in strips) + legend_html(limit, signed),
            ),
            self._table(f"The pairs of {self.by}s that add most").to_html(),
            section(f"{unit.capitalize()} by {unit}", f'<p class="note">{note}</p>{drawn}{legend}'),
        ]
        if self.faithfulness is not None:
            body.append(self.faithfulness.to_html())
        body.append(section("How to read this", "".join(f"<p>{escape(line)}</p>" for line in self._notes())))
        return page(f"Why {self.similarity:.4f}?", body, STYLE)

    @property
    def _drawn(self) -> By:
        """What strips and matrix show: spans overlap, so theirs are tokens."""
        return "token" if self.by == "span" else self.by

    def _strips(self) -> tuple[list[list[Piece]], float]:
        """Return both texts with their saliencies, and the number that gets full color in both."""
        shares = self.gathered(self._drawn)
        found = []
        for side, units, values in (
            (self.first, shares.first, shares.contributions.sum(1)),
            (self.second, shares.second, shares.contributions.sum(0)),
        ):
            # The rest, which has no place in the text, is always the last.
            single = [unit for unit in units if unit.kind != "rest"]
            found.append((side.text, single, values[: len(single)]))
        limit = float(max(np.abs(values).max() for _, _, values in found))
        return [pieces(*one) for one in found], limit

    def _table(self, title: str) -> Table:
        rows = [[f"{pair.contribution:+.5f}", shown(pair.first), shown(pair.second)] for pair in self.top_pairs]
        texts = ("first text", "second text")
        return Table(title, ["contribution", *texts], rows, words=texts)

    def _summary(self) -> str:
        first, second, table = self.gathered()
        total = float(table.sum())
        rows, columns = (np.array([unit.kind == "special" for unit in units]) for units in (first, second))
        apart = float(table[rows[:, None] | columns[None, :]].sum())
        any_special = bool(rows.any() or columns.any())
        note = f" Pairs with special tokens are {apart:+.4f} of it, and not listed." if any_special else ""
        return (
            f"{self.similarity_function.capitalize()} similarity {self.similarity:.4f}, the sum of {len(first)} × "
            f"{len(second)} contributions of {self.by}s, to within {abs(total - self.similarity):.0e}.{note}"
        )

    def _notes(self) -> list[str]:
        lines = [] if self.exact else [_NOT_EXACT.format(gap=self.gap)]
        lines.append(_CONTEXT)
        for name, side in (("first", self.first), ("second", self.second)):
            if side.unread:
                lines.append(f"The model cut off the last {side.unread:,} characters of the {name} text.")
            if side.rest is not None:
                lines.append(
                    f"The {name} text has {side.total:,} {self.unit}s: the {len(side.spans) - 1:,} heaviest are "
                    "shown one by one, the others as one rest, which is exact as a whole."
                )
        return lines


class _Matrix(NamedTuple):
    """Contributions of words; gathered ones have no shade, because their sums would outshine the others."""

    rows: list[str]
    columns: list[str]
    values: NDArray[np.float64]
    shades: NDArray[np.float64]
    top: float
    scale: float


def _matrix(explanation: PairExplanation, most: int) -> _Matrix:
    """Return the contributions of the words (or tokens) that count most, in text order, the others as one more."""
    gathered = explanation.gathered(explanation._drawn)
    units = (gathered.first, gathered.second)
    table, labels, single = gathered.contributions, [], []
    for axis in (0, 1):
        # Columns are chosen when rows are gathered already: their sums are the same.
        values, own = table.sum(1 - axis), units[axis]
        kept = np.array([k for k, unit in enumerate(own) if unit.kind != "rest"])
        # "1 more" would be no shorter than the token itself.
        if len(kept) > most + 1:
            kept = kept[np.sort(np.argsort(-np.abs(values[kept]), kind="stable")[:most])]
        names = [own[k].text for k in kept]
        left = np.setdiff1d(np.arange(len(own)), kept)
        chosen = np.take(table, kept, axis)
        if len(left):
            chosen = np.concatenate([chosen, np.take(table, left, axis).sum(axis, keepdims=True)], axis)
            names.append(f"{len(left)} more")
        table = chosen
        labels.append(names)
        single.append(len(kept))
    top = float(np.abs(table[: single[0], : single[1]]).max())
    shades = np.zeros_like(table)
    shades[: single[0], : single[1]] = table[: single[0], : single[1]] / (top or 1.0)
    return _Matrix(labels[0], labels[1], table, shades, top, _scale(top))


def _scale(top: float) -> float:
    """The power of ten that gives the largest number two digits before the point."""
    return 10.0 ** (math.floor(-math.log10(top)) + 2) if top > 0 else 1.0
