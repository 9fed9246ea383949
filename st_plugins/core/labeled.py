"""Labelled pairs of texts from datasets and lists, checked row by row."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from typing_extensions import Self

from st_plugins.core.reading.labels import check_labels, class_counts
from st_plugins.core.reading.tables import to_score
from st_plugins.core.texts import text_fault

logger = logging.getLogger(__name__)

LABEL_COLUMNS = ("label", "labels", "score", "scores")  # as the host's trainers know them


@dataclass(frozen=True)
class LabeledPairs:
    """Pairs of texts with the number each has to get."""

    first: list[str]
    second: list[str]
    labels: list[int] | list[float]

    def __len__(self) -> int:
        return len(self.labels)

    @classmethod
    def read(
        cls,
        data: Any,
        classes: Sequence[str] | None,
        name: str = "train",
        where: Callable[[int], str] | None = None,
    ) -> Self:
        """Check what a caller gave, and turn labels into numbers."""
        # A class is given by its name or, in all rows, by its position. Where the names are themselves numbers, such
        # as "1" to "5", a number means the class of that name and never a position. A dataset's ClassLabel means its
        # name.
        if isinstance(data, cls):
            return data
        place = where or f"row {{}} of {name}".format
        # What can be read only once, such as a generator, is read once, to its end.
        rows = _columns(data, name) if hasattr(data, "column_names") else _listed(data, name)
        if not rows:
            raise ValueError(f"{name} has no rows; give at least one (text, text, label), and a generator only once")
        for number, row in enumerate(rows):
            if not (len(row) == 3 and isinstance(row[0], str) and isinstance(row[1], str)):
                raise ValueError(f"{place(number)} must be (text, text, label), got {str(tuple(row))[:120]}")
            if fault := text_fault(row[0]) or text_fault(row[1]):
                raise ValueError(f"{place(number)} {fault}")
            if not (row[0].strip() or row[1].strip()):
                raise ValueError(f"{place(number)} is an empty pair, both texts are blank; remove it")
        first, second, given = (list(column) for column in zip(*rows, strict=True))
        if classes is None:
            return cls(first, second, [_score(label, place(row)) for row, label in enumerate(given)])
        return cls(first, second, _positions(given, classes, place))

    def split(self, share: float, seed: int) -> tuple[Self, Self]:
        """Put a share of the pairs aside; pairs with the same first text stay together."""
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
        """Return some of the pairs."""
        chosen = list(rows)
        columns: Any = ([column[row] for row in chosen] for column in (self.first, self.second, self.labels))
        return type(self)(*columns)


def check_classes(labels: Sequence[str]) -> None:
    """Raise a ValueError if these are no names of classes."""
    if (
        isinstance(labels, str | int)
        or not all(isinstance(label, str) for label in labels)
        or not 1 < len(labels) == len(set(labels))
    ):
        raise ValueError(f"labels must be at least two different names, or None for a score; got {labels!r}")

    def error(row: int, what: str) -> ValueError:
        return ValueError(f"labels[{row}]{re.split('[;?]', what)[0]}; leave it out, or give the class another name")

    check_labels(labels, error, "in labels[{}]".format, "", quiet=True)


def check_occurring(train: LabeledPairs, dev: LabeledPairs | None, classes: Sequence[str]) -> None:
    """Log how often each class occurs; raise a ValueError if one cannot be learned."""
    for pairs, name in ((train, "train"), (dev, "dev")):
        if pairs is None:
            continue
        logger.info("%s: %s", name, class_counts(classes[position] for position in map(int, pairs.labels)))
        missing = [label for position, label in enumerate(classes) if position not in set(pairs.labels)]
        said = f"{name} has no pair of the classes {', '.join(map(repr, missing))}"
        if missing and pairs is train:
            raise ValueError(f"{said}; give some, or leave the names out of labels")
        if missing:
            logger.warning("%s: how well they are told apart has no influence on the weights chosen.", said)


def read_train_and_dev(
    train: Any, dev: Any, classes: Sequence[str] | None, seed: int
) -> tuple[LabeledPairs, LabeledPairs | None]:
    """Read what a caller gave to train on and to choose the weights on."""
    pairs, judged = LabeledPairs.read(train, classes, "train"), None
    if isinstance(dev, float):
        pairs, judged = pairs.split(dev, seed)
    elif dev is not None:
        judged = LabeledPairs.read(dev, classes, "dev")
    if classes is not None:
        check_occurring(pairs, judged, classes)
    return pairs, judged


def _columns(data: Any, name: str) -> list[Sequence[Any]]:
    """Return the rows of a dataset; numbers of a ClassLabel become names."""
    columns = data.column_names
    if isinstance(columns, dict):
        raise ValueError(f"{name} has the splits {', '.join(columns)}; give one of them, such as {name}['train']")
    features = getattr(data, "features", None) or {}
    if hasattr(data, "__len__"):
        return _of_columns(columns, {column: data[column] for column in columns}, features, name)
    return _of_dicts(list(data), features, name)  # an IterableDataset, which may not know its columns


def _of_dicts(rows: list[Mapping[str, Any]], features: Mapping[str, Any], name: str) -> list[Sequence[Any]]:
    columns = list(rows[0]) if rows else []
    for number, row in enumerate(rows):
        if not isinstance(row, Mapping) or set(row) != set(columns):
            raise ValueError(
                f"row {number} of {name} must have the columns {', '.join(columns)}, got {str(row)[:120]}"
            )
    return _of_columns(columns, {column: [row[column] for row in rows] for column in columns}, features, name)


def _of_columns(
    columns: Sequence[str], values: Mapping[str, Sequence[Any]], features: Mapping[str, Any], name: str
) -> list[Sequence[Any]]:
    if not columns:
        return []
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
    given = list(values[labels[0]])
    names = getattr(features.get(labels[0]), "names", None)
    if names is not None:
        given = [names[label] if isinstance(label, int) and 0 <= label < len(names) else label for label in given]
    return list(zip(values[texts[0]], values[texts[1]], given, strict=True))


def _listed(data: Any, name: str) -> list[Sequence[Any]]:
    if isinstance(data, str | Mapping) or not isinstance(data, Iterable):
        raise ValueError(f"{name} must be rows (text, text, label) or a datasets.Dataset, got {type(data).__name__}")
    rows = list(data)
    if rows and isinstance(rows[0], Mapping):
        return _of_dicts(rows, {}, name)
    for number, row in enumerate(rows):
        if not isinstance(row, list | tuple):
            raise ValueError(f"row {number} of {name} must be (text, text, label), got {str(row)[:120]!r}")
    return rows


def _positions(labels: Sequence[Any], classes: Sequence[str], place: Callable[[int], str]) -> list[int]:
    """Return the positions of classes that are given by name or by position."""
    known = {label: position for position, label in enumerate(classes)}
    numbered = any(_is_number(label) for label in classes)
    found: list[int] = []
    first: dict[str, int] = {}  # the first row that has a name, and the first that has a position
    for row, label in enumerate(labels):
        label = label.item() if hasattr(label, "item") else label
        number = _whole(label)
        spelled = [] if number is None else [str(label), str(number)]  # True is 'True' or '1', and 1.0 is '1'
        named = next((name for name in ([label] if isinstance(label, str) else spelled) if name in known), None)
        if named is not None:
            found.append(known[named])
        elif number is not None and not numbered and not isinstance(label, bool) and 0 <= number < len(known):
            found.append(number)
        else:
            raise ValueError(
                f"{place(row)} has the label {label!r}, which is none of the classes {', '.join(map(repr, known))}"
                f"{_reason(label, number, known, numbered)}; remove the row, or name the class in labels and train on "
                "it"
            )
        kind, other = ("name", "position") if named is not None else ("position", "name")
        if other in first:
            raise ValueError(
                f"{place(row)} has the label {label!r}, a {kind}, but {place(first[other])} has "
                f"{labels[first[other]]!r}, a {other}; write names of classes everywhere, or positions"
            )
        first.setdefault(kind, row)
    return found


def _reason(label: Any, number: int | None, known: Iterable[str], numbered: bool) -> str:
    """Say what may be meant by a label that is no class, if that can be told."""
    if numbered and number is not None:
        return f" ({label!r} is the name of no class, and no position where classes are named by numbers)"
    if isinstance(label, float) and math.isfinite(label) and number is None:
        return " (is it a score? then build the model without labels)"
    alike = [name for name in known if name.casefold().split() == str(label).casefold().split()]
    return f" (is {alike[0]!r} meant?)" if alike else ""


def _whole(label: Any) -> int | None:
    """Return the whole number that a label is, if it is one."""
    if isinstance(label, int) or (isinstance(label, float) and label.is_integer()):
        return int(label)
    return None


def _is_number(name: str) -> bool:
    try:
        return math.isfinite(float(name))
    except ValueError:
        return False


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
