"""Labels of classes: how often each occurs, and which are none or another spelling of one."""

from __future__ import annotations

import logging
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Sequence
from decimal import Decimal, InvalidOperation
from typing import Any

from st_plugins.core.reading.tables import Table
from st_plugins.core.texts import text_fault

logger = logging.getLogger(__name__)

# What SNLI, pandas, SQL and spreadsheets write for a label that is not there; and what may also be a class.
_NO_LABEL = {"", "-", "--", "?", ".", "nan", "nat", "null", "(null)", "nil", "na", "n/a", "#n/a", "<na>", "\\n",
             "#ref!", "#value!", "#div/0!", "#name?", "#num!", "#null!", "undefined"}  # fmt: skip
_MAYBE_NO_LABEL = {"unknown", "unk", "missing", "no label", "unlabelled", "unlabeled"}
_MARKS = (-1, -9, -99, -100, -999, -9999)  # for a missing label among 0, 1, 2; -100 is that of PyTorch
_TRUTH = {"true": Decimal(1), "false": Decimal(0)}
_MINUS = "\N{MINUS SIGN}"
_SHOWN = 20


def class_labels(table: Table, column: str, option: str = "") -> list[str]:
    r"""Return a column of labels as names of classes, and log the classes with their counts."""
    at = table.index(column, option)
    return check_labels(
        [row[at] for row in table.rows], table.error, lambda row: f"on line {table.lines[row]}", column
    )


def check_labels(
    values: Sequence[Any],
    error: Callable[[int, str], ValueError],
    place: Callable[[int], str] = "in row {}".format,
    name: str = "label",
    quiet: bool = False,
) -> list[str]:
    """Return labels as names of classes, and log the classes with their counts."""
    # `error` and `place` turn the index of a row into an exception and into words that say where it is; `quiet` logs
    # nothing, as for labels that are the names of the classes themselves.
    names: list[str] = []
    first: dict[str, int] = {}
    for row, value in enumerate(values):
        if isinstance(value, list | tuple | dict):
            raise error(row, f"{name} is {str(value)[:80]}, and not one label; give each row one")
        names.append("" if value is None else str(value))
        first.setdefault(names[-1], row)
    counts = Counter(names)
    doubtful = []
    spelled: dict[Hashable, str] = {}
    numbers: dict[str, Decimal] = {}
    for label in counts:
        plain = _plain(label)
        if plain in _MAYBE_NO_LABEL:
            doubtful.append(label)
        if plain in _NO_LABEL:
            shown = repr(label) if label.strip() else "empty"
            raise error(first[label], f"{name} is {shown}, which names no class{_often(counts[label])}")
        if fault := text_fault(label):
            raise error(first[label], f"{name} {fault}")
        number = _number(plain)
        other = spelled.setdefault(plain if number is None else number, label)
        if other != label:
            raise error(
                first[label],
                f"{name} is {label!r}, but {other!r} {place(first[other])}: two spellings of one class? Write one of "
                f"them everywhere ({counts[label]:,} and {counts[other]:,} rows)",
            )
        if number is not None and plain not in _TRUTH:
            numbers[label] = number
    doubtful += _check_numbers(numbers, counts, first, error, place, name)
    if quiet:
        return names
    if len(counts) > max(_SHOWN, len(names) // 2):
        logger.warning("%s: %d classes in %d rows; is it a score?", name, len(counts), len(names))
    for label in doubtful:
        where = error(first[label], f"{name} is {label!r}")
        logger.warning("%s: it often marks rows without a label; here it is a class of its own.", where)
    if "None" in counts:  # also what Python writes for nothing
        logger.warning("%s", error(first["None"], f"{name} is 'None': here it is a class, and no missing label."))
    logger.info("%s: %s", name, class_counts(names))
    return names


def class_counts(labels: Iterable[str]) -> str:
    """Return the classes and how often each occurs, as a line for the user."""
    counts = Counter(labels)
    shown = [f"{label!r} {counts[label]:,}" for label in sorted(counts)[:_SHOWN]]
    more = f", and {len(counts) - _SHOWN:,} more" if len(counts) > _SHOWN else ""
    return f"{len(counts):,} class{'es' if len(counts) != 1 else ''}: {', '.join(shown)}{more}"


def _check_numbers(
    numbers: dict[str, Decimal],
    counts: Counter[str],
    first: dict[str, int],
    error: Callable[[int, str], ValueError],
    place: Callable[[int], str],
    name: str,
) -> list[str]:
    """Refuse -1 that marks a missing label, and numbers beside names; return what is to be warned of."""
    names = [label for label in counts if label not in numbers]
    if numbers and names:
        number = next(iter(numbers))
        late, early = (names[0], number) if first[names[0]] > first[number] else (number, names[0])
        raise error(
            first[late],
            f"{name} is {late!r}, but {early!r} {place(first[early])}: names and numbers of classes are mixed; write "
            "names everywhere, or numbers",
        )
    below = [label for label, number in numbers.items() if number < 0]
    others = [number for number in numbers.values() if number >= 0]
    if len(below) != 1 or numbers[below[0]] not in _MARKS or any(number != int(number) for number in others):
        return []
    missing = below[0]
    if numbers[missing] < -1 or not others or len(others) > 2 or (0 in others and max(others) > 1):
        raise error(
            first[missing],
            f"{name} is {missing!r}, which marks rows without a label where the others are 0, 1, 2, ..."
            f"{_often(counts[missing])}",
        )
    return [missing] if 0 in others else []


def _often(count: int) -> str:
    rows = "remove this row" if count == 1 else f"remove the {count:,} rows that have it"
    return f"; {rows}, or give the class another name"


def _plain(label: str) -> str:
    """Return a label without what no two classes differ in alone: case, spaces, invisible characters, dashes."""
    kept = []
    for character in unicodedata.normalize("NFKC", label):
        kind = unicodedata.category(character)
        if kind == "Pd" or character == _MINUS:
            kept.append("-")
        elif character.isspace() or kind not in ("Cc", "Cf"):
            kept.append(character)
    plain = " ".join("".join(kept).split()).casefold()
    return re.sub(r"(?<=\w)[ _-](?=\w)", " ", plain)  # not_entailment, not-entailment


def _number(plain: str) -> Decimal | None:
    if plain in _TRUTH:
        return _TRUTH[plain]
    try:
        number = Decimal(plain)
    except InvalidOperation:
        return None
    return number if number.is_finite() and "_" not in plain else None
