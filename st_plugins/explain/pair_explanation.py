"""The similarity of two texts as a sum: which spans of one text meet which spans of the other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.text import Text
from typing_extensions import Self

from st_plugins.core.files import JSONText
from st_plugins.explain.alignment import Alignment
from st_plugins.explain.eraser import Faithfulness
from st_plugins.explain.gathered import AlignedPair, Gathered, View, by_phrase
from st_plugins.explain.inner.drawing import Matrix, about_html, gathered_matrix, pieces, shown
from st_plugins.explain.inner.layers import Depth
from st_plugins.explain.inner.pair_page import APART, MEANING, PAGE_WORDS, by_sentence, differences
from st_plugins.explain.inner.units import By, check_by, gather
from st_plugins.explain.spans import NOWHERE, Side, Unit
from st_plugins.report.matrices import STYLE, Piece, legend_html, matrix_terminal, strip_html, strip_terminal
from st_plugins.report.page import escape, page, section
from st_plugins.report.table import Table
from st_plugins.report.terminal import foreign

_TERMINAL_TOKENS = 12
_NOT_LISTED = {"special": "special tokens", "rest": "the rest", "reference": "the reference"}
_LONG = 60  # words of a text that one looks at sentence by sentence first
_NOT_EXACT = (
    "Not exact: an activation follows the pooling. The contributions add up to the similarity, but how its effect is "
    "divided among them is a choice; if every part passed it by itself, the total would be off by {gap:+.4f}."
)
_CONTEXT = (
    "The vector of a token or span has seen the whole text. A contribution says which positions the similarity is "
    "read from; what it would be without them is what the deletion test measures."
)
_THROUGH = (
    "Through the layers: the tokens are taken {depth}, and what each adds is integrated on the way from a reference "
    "text, where {reference!r} stands in the place of the words, to the text ({nodes[0]} and {nodes[1]} nodes). What "
    "the reference adds itself is a row and a column of its own. Contributions miss the similarity by {error:+.1e}."
)


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
        by: What ``top_pairs`` and the pictures show: ``"word"``, ``"phrase"``, ``"token"``, ``"sentence"``, or
            ``"span"``, the spans themselves. A word's contributions are sums over its tokens; the total stays the
            similarity.
        alignment: Which words correspond, a reading of the layers that is no part of the sum.
        view: What ``top_pairs`` and the pictures show first: ``"interaction"`` or ``"contribution"``.
        about: The model, the date and the settings, by name.
        depth: Where the text was taken apart: ``"output"``, ``"input"``, or the number of a layer.
        error: Through the layers: how much the total misses the similarity; None at the output.
        reference: Through the layers: what stood in the place of the words where the integrals begin. What it adds
            itself is the last row and column, in which no token has a share: ``tokens`` leaves them out, and a
            saliency the row (or column) that is its own text's.
        nodes: Through the layers: at how many points of the way the derivatives of each text were taken.

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
    view: View = "interaction"
    about: Mapping[str, str] = field(default_factory=dict)
    depth: Depth = "output"
    error: float | None = None
    reference: str | None = None
    nodes: tuple[int, int] | None = None

    @property
    def main_effects(self) -> NDArray[np.float64]:
        """``(S, T)``: what each span adds by itself, to whatever it meets; the same total as ``contributions``."""
        # With weights α and β that sum to 1, row sums r, column sums c and the total s: β_t r_s + α_s c_t - α_s β_t s.
        # A reference has nothing in common with a word: what it adds, it adds by itself.
        first, second = (
            np.array([one.kind == "reference" for one in side.spans]) for side in (self.first, self.second)
        )
        apart = first[:, None] | second[None, :]
        table = np.where(apart, 0.0, self.contributions)
        one, other = _shares(self.first, table), _shares(self.second, table.T)
        rows, columns = table.sum(1), table.sum(0)
        effects = np.outer(rows, other) + np.outer(one, columns) - np.outer(one, other) * table.sum()
        return np.where(apart, self.contributions, effects)

    @property
    def interaction(self) -> NDArray[np.float64]:
        """``(S, T)``: what two spans have in common beyond that; all rows and all columns sum to zero."""
        return np.asarray(self.contributions - self.main_effects)

    @property
    def tokens(self) -> NDArray[np.float64]:
        """``(n_1, n_2)``: the contributions with each span spread evenly over its tokens; no reference."""
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
        """The ``top_k`` pairs of words (see ``by``) with most in common, or that add most (see ``view``), in order."""
        # Special tokens, the rest and the reference are no pairs of words.
        first, second, contributions, interaction = self.gathered()
        table = interaction if self.view == "interaction" else contributions
        rows, columns = ([k for k, unit in enumerate(units) if unit.kind not in APART] for units in (first, second))
        listed = table[np.ix_(rows, columns)]
        # Stable: equal contributions come in the order of the texts.
        best = np.argsort(-listed, axis=None, kind="stable")[: self.top_k]
        places = [
            (rows[row], columns[column]) for row, column in zip(*np.unravel_index(best, listed.shape), strict=True)
        ]
        return tuple(
            AlignedPair(first[row], second[column], float(contributions[row, column]), float(interaction[row, column]))
            for row, column in places
        )

    def gathered(self, by: By | None = None) -> Gathered:
        """Return the contributions added up to words, phrases, sentences or tokens.

        Args:
            by: To what; None takes the explanation's own ``by``.

        Returns:
            The units of both texts, special tokens and the rest included, their contributions, whose total is the
            similarity, and their interaction, ``(units of the first, units of the second)``.
        """
        by = self.by if by is None else check_by(by, self.unit)
        if by == "phrase":
            return by_phrase(self.gathered("word"), self.alignment)
        (first, table_a), (second, table_b) = gather(self.first, by), gather(self.second, by)
        tables = (np.asarray(table_a @ table @ table_b.T) for table in (self.contributions, self.interaction))
        return Gathered(first, second, *tables)

    @classmethod
    def _stored(cls, stored: dict[str, Any]) -> Self:
        stored["first"], stored["second"] = Side.from_dict(stored["first"]), Side.from_dict(stored["second"])
        stored["contributions"] = np.array(stored["contributions"])
        if stored["faithfulness"] is not None:
            stored["faithfulness"] = Faithfulness.from_dict(stored["faithfulness"])
        if stored["nodes"] is not None:
            stored["nodes"] = tuple(stored["nodes"])
        if stored["alignment"] is not None:
            stored["alignment"] = Alignment._stored(stored["alignment"])
        return cls(**stored)

    def to_terminal(self) -> Group:
        """Return both texts, their alignment and the pairs that count, for ``rich.console.Console().print``."""
        strips, limit = self._strips()
        parts: list[RenderableType] = [foreign(self._summary()), Text()]
        if self.alignment is not None:
            parts += [self.alignment.to_terminal(), Text()]
        parts += [foreign(f"What each {self._drawn} adds:"), Text()]
        parts += [Padding(strip_terminal(strip, limit), (0, 0, 1, 0)) for strip in strips]
        parts += [
            self._table().to_terminal(),
            matrix_terminal(**self._matrix(self.view, _TERMINAL_TOKENS)._asdict()),
            *map(foreign, self._notes()),
        ]
        if self.faithfulness is not None:
            parts += [Text(), self.faithfulness.to_table()]
        return Group(*parts)

    def to_html(self) -> str:
        """Return one self-contained HTML page."""
        strips, limit = self._strips()
        unit, signed = self._drawn, any((piece.value or 0) < 0 for strip in strips for piece in strip)
        drawn = "".join(strip_html(strip, limit) for strip in strips) + legend_html(limit, signed)
        body = [f"<h1>Why {self.similarity:.4f}?</h1>", f'<p class="summary">{escape(self._summary())}</p>']
        words = self.gathered("word")
        long = self.by != "sentence" and max(len(words.first), len(words.second)) > _LONG
        if long:
            # Links are those of words or tokens here: those of its words are what a sentence is opened for.
            body.append(by_sentence(words, self.gathered("sentence"), self.alignment))
        body += [] if self.alignment is None else [self.alignment.card(folded=long)]
        body += [section(f"What each {unit} adds", drawn, folded=long), self._table().to_html()]
        if self.alignment is not None:
            body.append(differences(self.gathered(self.alignment.by), self.alignment, self.nodes is not None))
        views: tuple[View, View] = ("interaction", "contribution")
        for view in views if self.view == views[0] else views[::-1]:
            matrix = self._matrix(view, PAGE_WORDS)
            note = f'<p class="note">{escape(MEANING[view].format(unit=unit))} Rows are the first text.</p>'
            body.append(section(matrix.title, note + matrix.to_html(), folded=view != self.view))
        if self.faithfulness is not None:
            body.append(self.faithfulness.to_html())
        notes = "".join(f"<p>{escape(line)}</p>" for line in self._notes())
        body.append(section("How to read this", notes + about_html(self.about)))
        return page(f"Why {self.similarity:.4f}?", body, STYLE)

    @property
    def _drawn(self) -> By:
        """What strips and matrix show: spans overlap, so theirs are tokens."""
        return "token" if self.by == "span" else self.by

    def _matrix(self, view: View, most: int) -> Matrix:
        """The units that count most in a view, in text order, with special tokens and the others as one more."""
        by = self._drawn
        gathered = self.gathered(by)
        table = gathered.interaction if view == "interaction" else gathered.contributions
        return gathered_matrix(gathered.first, gathered.second, table, most, f"{view.capitalize()}, {by} by {by}")

    def _strips(self) -> tuple[list[list[Piece]], float]:
        """Return both texts with their saliencies, and the number that gets full color in both."""
        shares = self.gathered(self._drawn)
        found = []
        for side, units, values in (
            (self.first, shares.first, shares.contributions.sum(1)),
            (self.second, shares.second, shares.contributions.sum(0)),
        ):
            # The rest and the reference, which have no place in the text, are always the last.
            single = [unit for unit in units if unit.kind not in NOWHERE]
            found.append((side.text, single, values[: len(single)]))
        limit = float(max(np.abs(values).max() for _, _, values in found))
        return [pieces(*one) for one in found], limit

    def _table(self) -> Table:
        rows = [
            [f"{pair.interaction:+.5f}", f"{pair.contribution:+.5f}", shown(pair.first), shown(pair.second)]
            for pair in self.top_pairs
        ]
        texts = ("first text", "second text")
        most = "have most in common" if self.view == "interaction" else "add most"
        return Table(
            f"The pairs of {self.by}s that {most}", ["interaction", "contribution", *texts], rows, words=texts
        )

    def _summary(self) -> str:
        first, second, table, _ = self.gathered()
        total = float(table.sum())
        rows, columns = (np.array([unit.kind in APART for unit in units]) for units in (first, second))
        apart = float(table[rows[:, None] | columns[None, :]].sum())
        kinds = {unit.kind for unit in (*first, *second)}
        named = " or ".join(name for kind, name in _NOT_LISTED.items() if kind in kinds)
        note = f" Pairs with {named} are {apart:+.4f} of it, and not listed." if named else ""
        return (
            f"{self.similarity_function.capitalize()} similarity {self.similarity:.4f}, the sum of {len(first)} × "
            f"{len(second)} contributions of {self.by}s, to within {abs(total - self.similarity):.0e}.{note}"
        )

    def _notes(self) -> list[str]:
        if self.nodes is not None:
            place = "as they enter the model" if self.depth == "input" else f"after layer {self.depth}"
            lines = [_THROUGH.format(error=self.error, reference=self.reference, nodes=self.nodes, depth=place)]
        else:
            lines = [] if self.exact else [_NOT_EXACT.format(gap=self.gap)]
        shown = "interaction" if self.view == "interaction" else "contributions"
        lines += [
            f"Lists and the open matrix show the {shown}.",
            MEANING[self.view].format(unit=self._drawn),
            *([_CONTEXT] if self.nodes is None else []),
        ]
        for name, side in (("first", self.first), ("second", self.second)):
            if side.unread:
                lines.append(f"The model cut off the last {side.unread:,} characters of the {name} text.")
            if side.rest is not None:
                lines.append(
                    f"The {name} text has {side.total:,} {self.unit}s: the {len(side.spans) - 1:,} heaviest are "
                    "shown one by one, the others as one rest, which is exact as a whole."
                )
        return lines


def _shares(side: Side, rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the weights of the spans of a text, which sum to 1; with a reference all that add something are equal."""
    if any(span.kind == "reference" for span in side.spans):
        weights = rows.any(1).astype(np.float64)
    else:
        weights = np.array([span.weight for span in side.spans])
    return np.asarray(weights / (weights.sum() or 1.0))
