"""Cards of the page of a pair: its sentences, and where sum and alignment differ."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from st_plugins.explain.alignment import Alignment
from st_plugins.explain.gathered import Gathered
from st_plugins.explain.inner.drawing import gathered_matrix
from st_plugins.explain.inner.units import inside
from st_plugins.explain.spans import NOWHERE, Span
from st_plugins.report.page import escape, section

APART = ("special", *NOWHERE)  # what is no word
PAGE_WORDS = 40
_SENTENCE_PAIRS = _LISTED = 5
_LABEL = 24  # characters

MEANING = {
    "interaction": (
        "The interaction is what two {unit}s have in common beyond what each adds by itself, to whatever it meets. "
        "It sums to zero in every row and column; with what the {unit}s add by themselves it is the contribution."
    ),
    "contribution": (
        "A contribution holds what each {unit} adds by itself, to whatever it meets, beside what the two have in "
        "common: the largest are no alignment."
    ),
}

# What sum and alignment differ in: at the output, and through the layers.
_PARTED = (
    "where the similarity is read from they point to different things",
    "what they add to the embeddings through the layers points to different things",
)
_MET = (
    "The last layer has given them a part of the meaning in common",
    "What they add to the embeddings through the layers has a part of the meaning in common",
)


def by_sentence(words: Gathered, sentences: Gathered, alignment: Alignment | None) -> str:
    """Return the sentences of two long texts that meet, each pair with its words to open, as a card."""
    rows_named, columns_named = _labeled(sentences.first), _labeled(sentences.second)
    matrix = gathered_matrix(
        rows_named, columns_named, sentences.interaction, PAGE_WORDS, "Interaction, sentence by sentence"
    )
    opened = ""
    for row, column in _largest(sentences)[:_SENTENCE_PAIRS]:
        one, other = sentences.first[row], sentences.second[column]
        rows, columns = inside(words.first, one), inside(words.second, other)
        inner = gathered_matrix(
            [words.first[k] for k in rows],
            [words.second[k] for k in columns],
            words.interaction[np.ix_(rows, columns)],
            PAGE_WORDS,
            "Interaction, word by word",
        )
        named = escape(f"{sentences.interaction[row, column]:+.4f}  {one.text} ‖ {other.text}")
        linked = "" if alignment is None else alignment.within(one, other).strips()
        opened += f"<details><summary>{named}</summary>{linked}{inner.to_html()}</details>"
    note = f"{MEANING['interaction'].format(unit='sentence')} Open a pair for its words."
    return section("Sentence by sentence", f'<p class="note">{escape(note)}</p>{opened}{matrix.to_html()}')


def differences(found: Gathered, alignment: Alignment, through: bool) -> str:
    """Return which counterparts have nothing in common in the sum, and which pairs that have are none, as a card."""
    places = [{(unit.first, unit.last): k for k, unit in enumerate(units)} for units in found[:2]]
    linked: dict[tuple[int, int], str] = {}
    for one, other, *_ in alignment.links:
        # A pooling may leave words out that the layers have, those of a prompt for example.
        row, column = places[0].get((one.first, one.last)), places[1].get((other.first, other.last))
        if row is not None and column is not None:
            linked[row, column] = _pair(one, other)
    below = [named for place, named in linked.items() if found.interaction[place] < 0]
    above = [_pair(found.first[i], found.second[j]) for i, j in _largest(found)[:_LISTED] if (i, j) not in linked]
    lines = []
    if below:
        lines.append(
            f"Counterparts that have less than nothing in common in the sum: {_listed(below)}. They correspond in the "
            f"middle layers; {_PARTED[through]}."
        )
    if above:
        lines.append(
            f"Among the pairs with most in common in the sum, and no counterparts: {_listed(above)}. "
            f"{_MET[through]}; the middle layers know better counterparts, or none."
        )
    if not lines:
        return ""
    lines.append("The alignment says what corresponds, the sum what the similarity is made of: two questions.")
    return section("Where the two views differ", "".join(f"<p>{escape(line)}</p>" for line in lines))


def _largest(found: Gathered) -> list[tuple[int, int]]:
    """Return the places of the pairs with most in common, those with something, in order."""
    table: NDArray[np.float64] = found.interaction.copy()
    table[[unit.kind in APART for unit in found.first]] = 0
    table[:, [unit.kind in APART for unit in found.second]] = 0
    order = np.argsort(-table, axis=None, kind="stable")[: (table > 0).sum()]
    return [(int(row), int(column)) for row, column in zip(*np.unravel_index(order, table.shape), strict=True)]


def _labeled(sentences: Sequence[Span]) -> list[Span]:
    """Return sentences with a number and their first words for their text, as there is room at a matrix for."""
    found, number = [], 0
    for sentence in sentences:
        if sentence.kind not in APART:
            number += 1
            text = sentence.text if len(sentence.text) <= _LABEL else f"{sentence.text[:_LABEL].rstrip()} …"
            sentence = replace(sentence, text=f"{number}. {text}")
        found.append(sentence)
    return found


def _pair(one: Span, other: Span) -> str:
    return f"{one.text} ‖ {other.text}"


def _listed(pairs: Sequence[str]) -> str:
    return ", ".join(pairs[:_LISTED]) + (", …" if len(pairs) > _LISTED else "")
