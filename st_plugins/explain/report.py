"""Explanations as terminal pictures and as self-contained HTML pages."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from st_plugins.explain.spans import Side, Span
from st_plugins.explain.tokens import Token
from st_plugins.explain.units import By
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
from st_plugins.report.terminal import foreign

if TYPE_CHECKING:
    from st_plugins.explain.eraser import Faithfulness
    from st_plugins.explain.pair import PairExplanation
    from st_plugins.explain.single import Explanation

__all__ = ["explanation_html", "explanation_terminal", "pair_html", "pair_terminal", "pieces"]

_TERMINAL_TOKENS, _PAGE_TOKENS = 12, 40
_UNIFORM = (
    "This model pools by a mean: the weights depend on positions alone, and say nothing about the words. "
    "explain_pair shows what makes two texts similar."
)
_NOT_EXACT = (
    "Not exact: an activation follows the pooling. The contributions add up to the similarity, but how its effect is "
    "divided among them is a choice; if every part passed it by itself, the total would be off by {gap:+.4f}."
)
_CONTEXT = (
    "The vector of a token or span has seen the whole text. A contribution says which positions the similarity is "
    "read from; what it would be without them is what the deletion test measures."
)


def explanation_terminal(explanation: Explanation) -> Group:
    """Return a heat map of one text for the terminal."""
    table = Table(title=f"Heaviest of {_number_of_units(explanation):,} {explanation.by}s")
    for column in ("weight", explanation.by):
        table.add_column(column, justify="right" if column == "weight" else "left")
    for span in explanation.top:
        table.add_row(f"{span.weight:.4f}", foreign(_shown(span)))
    strip = strip_terminal(pieces(explanation.text, explanation.side.tokens, explanation.saliency), _top(explanation))
    parts: list[RenderableType] = [Padding(strip, (1, 0)), table, Text(_weights_line(explanation))]
    parts += [foreign(line) for line in _notes(explanation.side, explanation.unit)]
    return Group(*parts, *_faithfulness_terminal(explanation.faithfulness))


def explanation_html(explanation: Explanation) -> str:
    """Return the page of one text."""
    side = explanation.side
    strip = strip_html(pieces(side.text, side.tokens, explanation.saliency), _top(explanation))
    legend = legend_html(_top(explanation), signed=False)
    rows = [[_shown(span), _place(span), f"{span.weight:.4f}"] for span in explanation.top]
    body = [
        "<h1>What the embedding is made of</h1>",
        f'<p class="summary">{escape(_weights_line(explanation))}</p>',
        *(f'<p class="note">{escape(line)}</p>' for line in _notes(side, explanation.unit)),
        section("Weight of the tokens", strip + legend),
        section(
            f"Heaviest of {_number_of_units(explanation):,} {explanation.by}s",
            _table([explanation.by, "characters", "weight"], rows),
        ),
        *_faithfulness_html(explanation.faithfulness),
    ]
    return page("What an embedding is made of", body, STYLE)


def pair_terminal(explanation: PairExplanation) -> Group:
    """Return heat maps of two texts for the terminal."""
    strips, limit = _pair_strips(explanation)
    drawn = [Padding(strip_terminal(strip, limit), (0, 0, 1, 0)) for strip in strips]
    table = Table(title=f"The pairs of {explanation.by}s that add most to {explanation.similarity:.4f}")
    table.add_column("contribution", justify="right")
    table.add_column("first text")
    table.add_column("second text")
    for pair in explanation.top_pairs:
        table.add_row(f"{pair.contribution:+.4f}", foreign(_shown(pair.first)), foreign(_shown(pair.second)))
    tokens = _matrix(explanation, _TERMINAL_TOKENS)
    matrix = matrix_terminal(
        tokens.rows,
        tokens.columns,
        tokens.values,
        shades=tokens.shades,
        title=f"{_one(explanation).capitalize()} by {_one(explanation)}, × {tokens.scale:,g}",
        scale=tokens.scale,
    )
    parts: list[RenderableType] = [foreign(_total_line(explanation)), Text(), *drawn, table, matrix]
    for line in _pair_notes(explanation):
        parts.append(foreign(line))
    return Group(*parts, *_faithfulness_terminal(explanation.faithfulness))


def pair_html(explanation: PairExplanation) -> str:
    """Return the page of two texts."""
    strips, limit = _pair_strips(explanation)
    drawn = "".join(strip_html(strip, limit) for strip in strips)
    signed = bool(min(explanation.first_saliency.min(), explanation.second_saliency.min()) < 0)
    rows = [[_shown(pair.first), _shown(pair.second), f"{pair.contribution:+.5f}"] for pair in explanation.top_pairs]
    tokens = _matrix(explanation, _PAGE_TOKENS)
    negative = " Negative ones are brown and underlined." if tokens.values.min() < 0 else ""
    note = f"Contributions × {tokens.scale:,g}: rows are the first text, columns the second.{negative}"
    body = [
        f"<h1>Why {explanation.similarity:.4f}?</h1>",
        f'<p class="summary">{escape(_total_line(explanation))}</p>',
        section(f"What each {_one(explanation)} adds", drawn + legend_html(limit, signed)),
        section(
            f"The pairs of {explanation.by}s that add most",
            _table(["first text", "second text", "contribution"], rows),
        ),
        section(
            f"{_one(explanation).capitalize()} by {_one(explanation)}",
            f'<p class="note">{note}</p>'
            + matrix_html(
                tokens.rows,
                tokens.columns,
                tokens.values,
                shades=tokens.shades,
                title=f"Contribution of each pair of {_one(explanation)}s",
                scale=tokens.scale,
            )
            + legend_html(tokens.top, bool(tokens.shades.min() < 0)),
        ),
        *_faithfulness_html(explanation.faithfulness),
        section("How to read this", "".join(f"<p>{escape(line)}</p>" for line in _pair_notes(explanation))),
    ]
    return page(f"Why {explanation.similarity:.4f}?", body, STYLE)


def pieces(text: str, tokens: Sequence[Token], values: Sequence[float] | NDArray[np.float64]) -> list[Piece]:
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


def _pair_strips(explanation: PairExplanation) -> tuple[list[list[Piece]], float]:
    """Both texts with their saliencies, and the number that gets full colour in both."""
    shown = explanation.gathered(_one(explanation))
    found = []
    for side, units, values in (
        (explanation.first, shown.first, shown.contributions.sum(1)),
        (explanation.second, shown.second, shown.contributions.sum(0)),
    ):
        tokens = [
            Token(unit.text, unit.text, unit.start, unit.end, unit.kind) for unit in units if unit.kind != "rest"
        ]
        found.append((side.text, tokens, values[: len(tokens)]))
    limit = float(max(np.abs(values).max() for _, _, values in found))
    return [pieces(*one) for one in found], limit


def _one(explanation: PairExplanation) -> By:
    """What strips and matrix show: spans overlap, so theirs are tokens."""
    return "token" if explanation.by == "span" else explanation.by


def _top(explanation: Explanation) -> float:
    """The weight that gets full colour: equal weights get half of it."""
    return float(max(explanation.saliency.max(), 2 / len(explanation.saliency)))


def _weights_line(explanation: Explanation) -> str:
    unit, total = explanation.unit, explanation.side.total
    listed = sum(span.weight for span in explanation.top)
    whole = sum(span.weight for span in explanation.gathered())
    return (
        f"{_number_of_units(explanation):,} {explanation.by}s; the {len(explanation.top)} heaviest hold "
        f"{100 * listed / whole:.1f} % of the weight. Sharpness Σα² = {explanation.sharpness:.4f} (1 for a single "
        f"{unit}, {1 / total:.4f} for equal weights)."
    )


def _number_of_units(explanation: Explanation) -> int:
    return explanation.side.total if explanation.by == "span" else len(explanation.gathered())


def _total_line(explanation: PairExplanation) -> str:
    rows, columns = explanation.gathered().contributions.shape
    shown = explanation.gathered()
    total = float(shown.contributions.sum())
    special = [np.array([unit.kind == "special" for unit in units]) for units in (shown.first, shown.second)]
    apart = float(shown.contributions[special[0][:, None] | special[1][None, :]].sum())
    note = f" Pairs with special tokens are {apart:+.4f} of it, and not listed." if any(map(np.any, special)) else ""
    return (
        f"{explanation.similarity_function.capitalize()} similarity {explanation.similarity:.4f}, the sum of {rows} × "
        f"{columns} contributions of {explanation.by}s, to within {abs(total - explanation.similarity):.0e}.{note}"
    )


def _notes(side: Side, unit: str) -> list[str]:
    lines = [_UNIFORM] if unit == "token" else []
    if side.unread:
        lines.append(f"The model cut off the last {side.unread:,} characters of the text.")
    return lines


def _pair_notes(explanation: PairExplanation) -> list[str]:
    lines = [] if explanation.exact else [_NOT_EXACT.format(gap=explanation.gap)]
    lines.append(_CONTEXT)
    for name, side in (("first", explanation.first), ("second", explanation.second)):
        if side.unread:
            lines.append(f"The model cut off the last {side.unread:,} characters of the {name} text.")
        if side.rest is not None:
            lines.append(
                f"The {name} text has {side.total:,} {explanation.unit}s: the {len(side.spans) - 1:,} heaviest are "
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
    shown = explanation.gathered(_one(explanation))
    units = (shown.first, shown.second)
    table, labels, single = shown.contributions, [], []
    for axis in (0, 1):
        values, own = table.sum(1 - axis), units[axis]
        kept = np.array([k for k, unit in enumerate(own) if unit.kind != "rest"])
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


def _shown(span: Span) -> str:
    return span.text if span.kind == "text" else f"{span.text} ({span.kind})"


def _place(span: Span) -> str:
    return "" if span.start is None else f"{span.start} - {span.end}"


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f'<th scope="col">{escape(column)}</th>' for column in columns)
    body = "\n".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return (
        '<div class="scroll"><table class="text"><thead><tr>'
        f"{head}</tr></thead><tbody>\n{body}\n</tbody></table></div>"
    )


def _faithfulness_terminal(found: Faithfulness | None) -> list[RenderableType]:
    return [] if found is None else [Text(), found.to_table()]


def _faithfulness_html(found: Faithfulness | None) -> list[str]:
    if found is None:
        return []
    head = "".join(f'<th scope="col">{escape(column)}</th>' for column in ["tokens", *found.columns()])
    rows = "\n".join(
        f'<tr><th scope="row">{escape(name)}</th>' + "".join(f"<td>{value:+.4f}</td>" for value in row) + "</tr>"
        for name, row in found.rows()
    )
    note = (
        f"The score of the whole text is {found.score:.4f}. “Without” is what it loses when so many of the most "
        "salient tokens are deleted (high is good), “only” what it loses when they alone are left (low is good)."
    )
    return [
        section(
            "Faithfulness by deletion",
            f'<p class="note">{note}</p><div class="scroll" role="region" tabindex="0" aria-label="Faithfulness">'
            f'<table class="numbers"><thead><tr>{head}</tr></thead><tbody>\n{rows}\n</tbody></table></div>',
        )
    ]
