"""Pairs of texts whose words are integers, as companies share them when nobody may read them."""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from typing_extensions import Self

from st_plugins.core.reading.content import read_lines
from st_plugins.core.reading.labels import class_counts

logger = logging.getLogger(__name__)

_INTEGER = re.compile("0|[1-9][0-9]*")


def canonical(text: str) -> str:
    """Return a text of integer tokens with one space between them."""
    tokens = text.split()
    if not tokens:
        raise ValueError("the text is empty; every text needs at least one integer token")
    for token in tokens:
        if not _INTEGER.fullmatch(token):
            raise ValueError(_fault(token))
    return " ".join(tokens)


def _fault(token: str) -> str:
    if re.fullmatch("-[0-9]+", token):
        return f"token {token!r} is negative; tokens must be integers from 0 on"
    if re.fullmatch("0[0-9]+", token):
        return f"token {token!r} has leading zeros; write it as {int(token)}, so that one token has one spelling"
    return f"token {token[:40]!r} is not an integer; texts are integers separated by spaces, in a file without header"


@dataclass(frozen=True, eq=False)
class AnonymizedPairs:
    """Pairs of texts of integer tokens, each with a label or without.

    Labelled, unlabelled and test-time pairs are of the same kind and can be added: ``train + test.without_labels()``.

    Args:
        first: First texts, N of them: integers separated by spaces.
        second: Second texts, N of them.
        gold: Label of each pair, one of ``labels``; None where it is not known. Empty for none at all.
        labels: Names of the labels. With two of them the second is the one whose probability is the score.

    Raises:
        ValueError: The columns differ in length, a text is empty or has a token that is no integer, a label is
            unknown, or there are fewer than two classes.
        TypeError: A column is one string, or a text is none.

    Example:
        >>> train = AnonymizedPairs(["12 7", "3 4"], ["7 12 9", "8"], ["1", "0"])
        >>> test = AnonymizedPairs(["5 12"], ["12"])
        >>> both = train + test
        >>> len(both), both.labeled, both.gold
        (3, 2, ['1', '0', None])
    """

    first: list[str]
    second: list[str]
    gold: Sequence[str | None] = ()
    labels: tuple[str, ...] = ("0", "1")

    def __post_init__(self) -> None:
        for name in ("first", "second", "gold", "labels"):
            if isinstance(getattr(self, name), str):
                raise TypeError(f"{name} must be a list, got one string: {getattr(self, name)[:40]!r}")
        for name in ("first", "second", "gold"):
            object.__setattr__(self, name, list(getattr(self, name)))
        labels, gold = tuple(self.labels), list(self.gold) or [None] * len(self.first)
        named = all(isinstance(label, str) and label for label in labels)
        if len(set(labels)) < max(2, len(labels)) or not named:
            raise ValueError(f"labels must be at least two different names, got {labels}")
        lengths = {"first": len(self.first), "second": len(self.second), "gold": len(gold)}
        if len(set(lengths.values())) != 1:
            raise ValueError(f"first, second and gold must be equally long, got {lengths}")
        for name in ("first", "second"):
            texts = []
            for row, text in enumerate(getattr(self, name)):
                if not isinstance(text, str):
                    raise TypeError(f"{name}[{row}] is {str(text)[:40]!r}, a {type(text).__name__}; it must be text")
                try:
                    texts.append(canonical(text))
                except ValueError as error:
                    raise ValueError(f"{name}[{row}]: {error}") from None
            object.__setattr__(self, name, texts)
        for row, label in enumerate(gold):
            if label is not None and label not in labels:
                raise ValueError(f"gold[{row}]: {_unknown(label, labels)}")
        object.__setattr__(self, "gold", gold)
        object.__setattr__(self, "labels", labels)

    def __len__(self) -> int:
        return len(self.first)

    def __add__(self, other: AnonymizedPairs) -> AnonymizedPairs:
        if other.labels != self.labels:
            raise ValueError(f"pairs with the labels {self.labels} and {other.labels} cannot be added")
        first, second = [*self.first, *other.first], [*self.second, *other.second]
        return AnonymizedPairs(first, second, [*self.gold, *other.gold], self.labels)

    @classmethod
    def read(cls, path: str | Path, labels: tuple[str, ...] = ("0", "1")) -> Self:
        r"""Read pairs from a file with one pair a line and no header.

        Args:
            path: A UTF-8 file, with or without ``.gz``: first text, second text and, if the file has labels, the
                label, separated by tabs. An empty label is one that is not known.
            labels: Their names.

        Returns:
            The pairs.

        Raises:
            FileNotFoundError: There is no such file.
            ValueError: The file is empty or broken; the message names the line.

        Example:
            >>> import tempfile
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     path = Path(folder, "train.tsv")
            ...     _ = path.write_text("12 7\t7 12 9\t1\n3 4\t8\t\n")
            ...     pairs = AnonymizedPairs.read(path)
            >>> pairs.first, pairs.gold
            (['12 7', '3 4'], ['1', None])
        """
        path = Path(path).expanduser()
        lines = read_lines(path)
        if lines == [""]:
            raise ValueError(f"{path}: there is no line; write one pair a line")
        columns = lines[0].count("\t") + 1
        if columns not in (2, 3):
            raise ValueError(f"{path}:1: {columns} columns; a line has two texts and maybe a label, separated by tabs")
        sides: tuple[list[str], list[str]] = ([], [])
        gold: list[str | None] = []
        for number, line in enumerate(lines, start=1):
            fields = line.split("\t")
            if len(fields) != columns:
                raise ValueError(f"{path}:{number}: {len(fields)} columns, but line 1 has {columns}")
            for name, side, text in zip(("first", "second"), sides, fields, strict=False):
                try:
                    side.append(canonical(text))
                except ValueError as error:
                    raise ValueError(f"{path}:{number}: {name} text: {error}") from None
            label = fields[2].strip() if columns == 3 else ""
            if label and label not in labels:
                raise ValueError(f"{path}:{number}: {_unknown(label, labels)}")
            gold.append(label or None)
        known = [label for label in gold if label is not None]
        if known:
            logger.info("%s: %s, %d pairs without a label", path, class_counts(known), len(gold) - len(known))
        return cls(*sides, gold, labels)

    @property
    def labeled(self) -> int:
        """Number of pairs whose label is known."""
        return sum(label is not None for label in self.gold)

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """The pairs without their labels."""
        return list(zip(self.first, self.second, strict=True))

    @property
    def frequencies(self) -> dict[str, int]:
        """How often each token occurs, most frequent first, ties in the order of the integers."""
        counts = Counter(token for text in [*self.first, *self.second] for token in text.split())
        return dict(sorted(counts.items(), key=lambda item: (-item[1], int(item[0]))))

    def without_labels(self) -> AnonymizedPairs:
        """Return the pairs with no label known."""
        return AnonymizedPairs(self.first, self.second, labels=self.labels)


def _unknown(label: object, labels: tuple[str, ...]) -> str:
    return f"label {label!r} is unknown; it must be one of {', '.join(map(repr, labels))}, or pass other labels="
