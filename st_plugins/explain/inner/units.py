"""Words and sentences of a text, and how the parts of an embedding add up to them."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Sequence
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from st_plugins.explain.inner.reading import Reading
from st_plugins.explain.spans import NOWHERE, Side, Span, Token

By = Literal["word", "phrase", "token", "sentence", "span"]

# Scripts without spaces: a character is a word, as the tokenizers of the BERT family have it.
_IDEOGRAPHS = ((0x3040, 0x30FF), (0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x3FFFF))
_ENDS, _CLOSING = ".!?…", "\"'”’)]»"
_FULL_ENDS = "。！？‖"  # need no space after them; the last stands between two texts that are read as one


def check_by(by: str | None, unit: str) -> By:
    """Return by what to show an explanation: None is ``"word"``, and ``"span"`` where the model pools spans."""
    if by is None:
        return "span" if unit == "span" else "word"
    if by not in get_args(By) or (by == "span" and unit != "span"):
        raise ValueError(
            f"by={by!r} must be 'word', 'token' or 'sentence', 'phrase' for two texts, or 'span' for a model with "
            "SpanPooling"
        )
    return by  # type: ignore[return-value]


def check_count(value: int, name: str) -> None:
    """Refuse what is no number of things."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}")


def gather(side: Side, by: By) -> tuple[tuple[Span, ...], NDArray[np.float64]]:
    """Return the words (or sentences, or tokens) of a text, and the share of each span in each of them."""
    if by == "span":
        return side.spans, np.eye(len(side.spans))
    # Columns of the table sum to 1, so that sums over units are those over spans. The rest, or the
    # reference, stays what it is, the last.
    spread = side.spread()
    rest = side.spans[-1:] if side.spans[-1].kind in NOWHERE else ()
    single = len(side.spans) - len(rest)
    units, rows = [], []
    weights = np.array([span.weight for span in side.spans])
    for members in _groups(side, by):
        row = np.zeros(len(side.spans))
        row[:single] = spread[:single, members].sum(1)
        # A unit without a share in any span is left out: the pooling does not look at it.
        if row.any():
            rows.append(row)
            units.append(_unit(side, members, float(row @ weights)))
    if rest:
        rows.append(np.eye(len(side.spans))[-1])
    return (*units, *rest), np.array(rows)


def grouped(reading: Reading, by: By) -> tuple[list[Span], NDArray[np.float64]]:
    """Return the words (or sentences, or tokens) of a text and which tokens each has, ``(units, n)``, 1 or 0."""
    groups = list(_groups(reading, by))
    table = np.zeros((len(groups), len(reading.tokens)))
    for row, members in zip(table, groups, strict=True):
        row[members] = 1.0
    return [_unit(reading, members, 0.0) for members in groups], table


def text_units(reading: Reading, by: By) -> tuple[list[Span], list[list[int]]]:
    """Return the words (or sentences, or tokens) that are text, no special token or prompt, and the tokens of each."""
    found = [members for members in _groups(reading, by) if reading.tokens[members[0]].kind == "text"]
    return [_unit(reading, members, 1.0) for members in found], found


def inside(words: Sequence[Span], sentence: Span) -> list[int]:
    """Return the places of the words of a sentence."""
    return [place for place, word in enumerate(words) if sentence.first <= word.first and word.last <= sentence.last]


def unit_numbers(text: str, by: By) -> list[int]:
    """Return the number of the word or the sentence that each character belongs to, -1 for what is between."""
    return _sentences(text) if by == "sentence" else _words(text)


def _words(text: str) -> list[int]:
    # A word is letters, marks and digits in a row, with an apostrophe between letters and a point or comma between
    # digits; an ideograph and a sign are words of their own.
    numbers: list[int] = []
    number, before = -1, ""  # the kind of the character before
    for place, char in enumerate(text):
        kind = _kind(text, place)
        if kind == "mark" and before:
            numbers.append(number)
            continue
        if kind != "space" and not (kind == before == "letter"):
            number += 1
        numbers.append(-1 if kind == "space" else number)
        before = "" if kind == "space" else "letter" if char == "\u200d" else kind
    return numbers


def _kind(text: str, place: int) -> str:
    char = text[place]
    if char.isspace():
        return "space"
    if any(low <= ord(char) <= high for low, high in _IDEOGRAPHS):
        return "sign"
    category = unicodedata.category(char)
    if category[0] == "M" or char == "\u200d":
        return "mark"  # belongs to what it stands on
    if category[0] in "LN" or char == "_":
        return "letter"
    around = text[place - 1 : place] + text[place + 1 : place + 2]
    inside = (char in "'’" and around.isalpha()) or (char in ".," and around.isdecimal())
    return "letter" if inside and len(around) == 2 else "sign"


def _sentences(text: str) -> list[int]:
    # A sentence ends with its mark and a space, or at a line break; abbreviations are not known.
    numbers: list[int] = []
    number, ended, begun = 0, False, False
    for place, char in enumerate(text):
        if char.isspace():
            following = text[place:].lstrip()[:1]
            if begun and (char == "\n" or (ended and not following.islower())):
                number, begun = number + 1, False
            numbers.append(-1 if not begun else number)
            ended = ended and not begun
            continue
        if not begun and char in _CLOSING and numbers and number:  # a quotation mark closes what it follows
            numbers.append(number - 1)
            continue
        numbers.append(number)
        begun = True
        ended = char in _ENDS or (ended and char in _CLOSING)
        if char in _FULL_ENDS:
            number, begun = number + 1, False
    return numbers


def _groups(side: Side | Reading, by: By) -> Iterator[list[int]]:
    """Yield the tokens of each unit; tokens that share one, and the pieces of a prompt, stay together."""
    numbers = unit_numbers(side.text, by) if by != "token" else []
    members: list[int] = []
    reached = -1
    for position, token in enumerate(side.tokens):
        first, last = _ends(token, numbers)
        previous = side.tokens[members[-1]].kind if members else None
        if by == "token" or previous != token.kind or token.kind == "special":
            together = False
        elif token.kind == "prompt":
            together = True
        elif (
            first is None
        ):  # no characters of its own, or a slow tokenizer: the sentence goes on, words cannot be told
            together = by == "sentence"
        else:
            together = first <= reached
        if members and not together:
            yield members
            members = []
        members.append(position)
        reached = max(reached, -1 if last is None else last)
    if members:
        yield members


def _ends(token: Token, numbers: list[int]) -> tuple[int | None, int | None]:
    if token.start is None or token.end is None or not numbers:
        return None, None
    covered = [number for number in numbers[token.start : token.end] if number >= 0]
    return (covered[0], covered[-1]) if covered else (None, None)


def _unit(side: Side | Reading, members: list[int], weight: float) -> Span:
    # The text from the first character to the last, with the spaces between, where the tokenizer says where they are.
    tokens = [side.tokens[member] for member in members]
    starts = [token.start for token in tokens if token.start is not None]
    ends = [token.end for token in tokens if token.end is not None]
    kind = tokens[0].kind
    if len(tokens) == 1:
        text = tokens[0].text
    elif starts and ends:
        text = side.text[min(starts) : max(ends)]
    else:
        text = " ".join(token.text for token in tokens)
    start, end = (min(starts), max(ends)) if starts and ends else (None, None)
    return Span(text, start, end, members[0], members[-1], weight, kind)
