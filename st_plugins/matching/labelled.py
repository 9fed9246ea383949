"""Labelled pairs of texts from datasets and lists, checked row by row."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from typing_extensions import Self

from st_plugins.data.files import to_score

__all__ = ["LABEL_COLUMNS", "LabelledPairs"]

LABEL_COLUMNS = ("label", "labels", "score", "scores")  # as the host's trainers know them


@dataclass(frozen=True)
class LabelledPairs:
    """Pairs of texts with the number each has to get.

    Args:
        first: First texts.
        second: Second texts.
        labels: Positions of the classes, or scores from 0 to 1.
    """

    first: list[str]
    second: list[str]
    labels: list[int] | list[float]

    def __len__(self) -> int:
        return len(self.labels)

    @classmethod
    def read(cls, data: Any, classes: Sequence[str] | None, name: str = "train") -> Self:
        """Check what a caller gave, and turn labels into numbers.

        A class may be given by its name or by its position. A number that is itself the name of a class, such as 1
        for ``"1"``, means that class; a ``ClassLabel`` of a dataset means its name.

        Args:
            data: Rows (text, text, label); or a ``datasets.Dataset`` with two columns of texts and one of labels,
                which is named ``label``, ``labels``, ``score`` or ``scores``.
            classes: Names of the classes; None for scores.
            name: Name of the argument, for messages.

        Returns:
            The pairs.

        Raises:
            ValueError: There is no row, a row is no labelled pair, a pair has no text, a class is unknown, or a score
                is no number from 0 to 1.

        Example:
            >>> rows = [("a dog runs", "an animal moves", "yes"), ("a dog runs", "nobody moves", 0)]
            >>> LabelledPairs.read(rows, ["no", "yes"]).labels
            [1, 0]
            >>> LabelledPairs.read([("a dog", "a cat", 4.5)], None)
            Traceback (most recent call last):
            ValueError: row 0 of train has the score 4.5; scores must lie from 0 to 1: divide them by the highest...
        """
        rows = _columns(data, name) if hasattr(data, "column_names") else _listed(data, name)
        if not rows:
            raise ValueError(f"{name} has no rows; give at least one (text, text, label)")
        for number, row in enumerate(rows):
            if not (len(row) == 3 and isinstance(row[0], str) and isinstance(row[1], str)):
                raise ValueError(f"row {number} of {name} must be (text, text, label), got {str(tuple(row))[:120]}")
            if not (row[0].strip() or row[1].strip()):
                raise ValueError(f"row {number} of {name} is an empty pair, both texts are blank; remove it")
        first, second, given = (list(column) for column in zip(*rows, strict=True))
        if classes is None:
            return cls(first, second, [_score(label, f"row {row} of {name}") for row, label in enumerate(given)])
        known = {label: position for position, label in enumerate(classes)}
        return cls(first, second, [_class(label, known, f"row {row} of {name}") for row, label in enumerate(given)])

    def split(self, share: float, seed: int) -> tuple[Self, Self]:
        """Put a share of the pairs aside; pairs with the same first text stay together.

        Args:
            share: Which share of the distinct first texts, above 0 and below 1.
            seed: Which of them.

        Returns:
            The larger part and the one put aside, each with at least one pair.

        Raises:
            ValueError: The share is out of its range, or all pairs have the same first text.

        Example:
            >>> pairs = LabelledPairs(["a", "b", "a", "c"], ["d", "e", "f", "g"], [0, 1, 0, 1])
            >>> kept, aside = pairs.split(0.3, seed=0)
            >>> kept.first, aside.first
            (['a', 'b', 'a'], ['c'])
        """
        if not 0 < share < 1:
            raise ValueError(f"dev={share} as a share of the training data must lie above 0 and below 1")
        distinct = list(dict.fromkeys(self.first))
        if len(distinct) < 2:
            raise ValueError(
                "no share of train can be put aside for dev: all its pairs have the same first text; give dev itself"
            )
        count = min(max(1, round(share * len(distinct))), len(distinct) - 1)
        order = torch.randperm(len(distinct), generator=torch.Generator().manual_seed(seed)).tolist()
        aside = {distinct[position] for position in order[:count]}
        inside = [text in aside for text in self.first]
        kept = [row for row, is_aside in enumerate(inside) if not is_aside]
        return self.take(kept), self.take([row for row, is_aside in enumerate(inside) if is_aside])

    def take(self, rows: Iterable[int]) -> Self:
        """Return some of the pairs.

        Args:
            rows: Their positions.

        Returns:
            These pairs in this order.
        """
        chosen = list(rows)
        columns: Any = ([column[row] for row in chosen] for column in (self.first, self.second, self.labels))
        return type(self)(*columns)


def _columns(data: Any, name: str) -> list[Sequence[Any]]:
    """Return the rows of a dataset; numbers of a ClassLabel become names."""
    columns = data.column_names
    if isinstance(columns, dict):
        raise ValueError(f"{name} has the splits {', '.join(columns)}; give one of them, such as {name}['train']")
    labels = [column for column in columns if column in LABEL_COLUMNS]
    if len(labels) != 1:
        raise ValueError(
            f"{name} must have one column named {', '.join(map(repr, LABEL_COLUMNS))}, but its columns are "
            f"{', '.join(columns)}; use rename_column or remove_columns"
        )
    texts = [column for column in columns if column != labels[0]]
    if len(texts) != 2:
        raise ValueError(
            f"{name} must have two columns of texts besides {labels[0]!r}, but it has {len(texts)} "
            f"({', '.join(texts) or 'none'}); use select_columns"
        )
    given = list(data[labels[0]])
    names = getattr(data.features[labels[0]], "names", None)
    if names is not None:
        given = [names[label] if isinstance(label, int) and 0 <= label < len(names) else label for label in given]
    return list(zip(data[texts[0]], data[texts[1]], given, strict=True))


def _listed(data: Any, name: str) -> list[Sequence[Any]]:
    if isinstance(data, str) or not isinstance(data, Iterable):
        raise ValueError(f"{name} must be rows (text, text, label) or a datasets.Dataset, got {type(data).__name__}")
    rows = list(data)
    for number, row in enumerate(rows):
        if not isinstance(row, list | tuple):
            raise ValueError(f"row {number} of {name} must be (text, text, label), got {str(row)[:120]!r}")
    return rows


def _class(label: Any, known: dict[str, int], place: str) -> int:
    label = label.item() if hasattr(label, "item") else label
    if isinstance(label, int | float) and math.isfinite(label) and label == int(label):
        if str(int(label)) in known:
            return known[str(int(label))]
        if 0 <= label < len(known):
            return int(label)
    if isinstance(label, str) and label in known:
        return known[label]
    raise ValueError(
        f"{place} has the label {label!r}, which is none of the classes {', '.join(map(repr, known))}; remove the "
        "row, or name the class in labels and train on it"
    )


def _score(label: Any, place: str) -> float:
    try:
        score = (
            float(label) if isinstance(label, bool) else to_score(label.item() if hasattr(label, "item") else label)
        )
    except ValueError as error:
        raise ValueError(f"{place}: {error}; remove the row, or name the classes in labels") from None
    if not 0 <= score <= 1:
        raise ValueError(
            f"{place} has the score {score:g}; scores must lie from 0 to 1: divide them by the highest, or name the "
            "classes in labels"
        )
    return score
