"""Labels of classes: what is none, what is another spelling of one, and how often each occurs."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

from st_plugins.core.reading.labels import check_labels, class_counts, class_labels
from st_plugins.core.reading.tables import Table


def labeled(*labels: Any) -> Table:
    return Table(Path("x.jsonl"), ["label"], [[label] for label in labels], list(range(1, len(labels) + 1)))


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        (["yes", "no", "yes"], ["yes", "no", "yes"]),
        ([0, 1, "1"], ["0", "1", "1"]),
        ([0.0, 1.0], ["0.0", "1.0"]),
        ([True, False], ["True", "False"]),
        ([-1, 1, 1], ["-1", "1", "1"]),
        ([-2, -1, 0, 1, 2], ["-2", "-1", "0", "1", "2"]),
        (["none", "some"], ["none", "some"]),
        (["9007199254740993", "9007199254740992"], ["9007199254740993", "9007199254740992"]),
    ],
)
def test_names_are_as_they_are_spelled(labels: list[Any], names: list[str]) -> None:
    assert class_labels(labeled(*labels), "label") == names


MARKS = [
    "-",
    "",
    " ",
    None,
    float("nan"),
    "NaN",
    "null",
    "?",
    "N/A",
    "–",
    "—",
    "\u200b",
    "NaT",
    "(null)",
    "#REF!",
    "\\N",
]


@pytest.mark.parametrize("mark", [*MARKS, "undefined", "."])
def test_marks_for_a_missing_label_are_no_class(mark: Any) -> None:
    with pytest.raises(ValueError, match=r"^x\.jsonl:2: label is .* names no class; remove the 2 rows"):
        class_labels(labeled("yes", mark, "no", mark), "label")


def test_none_is_no_class_beside_the_name_none() -> None:
    with pytest.raises(ValueError, match=r"^x\.jsonl:2: label is empty, which names no class; remove this row"):
        class_labels(labeled("None", None, "some"), "label")


@pytest.mark.parametrize("mark", [-1, "-1", -1.0, "-1.0"])
def test_minus_one_beside_positions_is_no_class(mark: Any) -> None:
    with pytest.raises(ValueError, match=r"^x\.jsonl:3: label is '-1(\.0)?', which marks rows without a label"):
        class_labels(labeled(0, 2, mark, 1), "label")
    with pytest.raises(ValueError, match=r"^x\.jsonl:1: label is '-1(\.0)?', which marks"):
        class_labels(labeled(mark, mark), "label")


def test_minus_one_beside_0_and_1_is_said(caplog: pytest.LogCaptureFixture) -> None:
    assert class_labels(labeled(0, -1, 1), "label") == ["0", "-1", "1"]
    assert "x.jsonl:2: label is '-1': it often marks rows without a label" in caplog.text


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (1, 1.0),
        ("1", "1.0"),
        ("0", "00"),
        (1, True),
        ("1", "true"),
        (True, "true"),
        ("yes", "Yes"),
        ("yes", "yes "),
        ("Yes ", "yes"),
        ("in part", "in  part"),
        ("naïve", "nai\u0308ve"),
        ("1", "\uff11"),
        ("yes", "yes\u200b"),
        ("yes", "\ufeffyes"),
        ("e-mail", "e\u2010mail"),
        ("-2", "\u22122"),
    ],
)
def test_two_spellings_of_one_class_are_refused(one: Any, other: Any) -> None:
    with pytest.raises(ValueError, match=r"^x\.jsonl:3: label is ") as caught:
        class_labels(labeled(one, "0.5", other), "label")
    assert f"label is {str(other)!r}, but {str(one)!r} on line 1: two spellings" in str(caught.value)


@pytest.mark.parametrize("label", [["yes"], {"name": "yes"}])
def test_a_row_has_one_label(label: Any) -> None:
    with pytest.raises(ValueError, match=r"^x\.jsonl:2: label is .*yes.*, and not one label; give each row one"):
        class_labels(labeled("no", label), "label")


def test_the_name_none_is_a_class_but_not_without_a_word(caplog: pytest.LogCaptureFixture) -> None:
    assert class_labels(labeled("some", "None"), "label") == ["some", "None"]
    assert "x.jsonl:2: label is 'None': here it is a class" in caplog.text
    caplog.clear()
    class_labels(labeled("some", "none"), "label")
    assert not caplog.text


def test_names_beside_numbers_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^x\.jsonl:3: label is 'yes', but '0' on line 1: names and numbers"):
        class_labels(labeled(0, 1, "yes"), "label")
    with pytest.raises(ValueError, match=r"^x\.jsonl:2: label is '2', but 'yes' on line 1: names and numbers"):
        class_labels(labeled("yes", 2, "no"), "label")


def test_rows_of_a_list_are_named_too() -> None:
    def error(row: int, what: str) -> ValueError:
        return ValueError(f"row {row} of train: {what}")

    with pytest.raises(ValueError, match="row 1 of train: label is 'Yes', but 'yes' in row 0"):
        check_labels(["yes", "Yes"], error)


def test_classes_and_their_counts_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="st_plugins"):
        class_labels(labeled("b", "a", "b"), "label")
    assert "label: 2 classes: 'a' 1, 'b' 2" in caplog.text
    assert class_counts(map(str, range(23))).endswith(", and 3 more")


def test_a_column_of_scores_is_noticed(caplog: pytest.LogCaptureFixture) -> None:
    class_labels(labeled(*(row / 7 for row in range(30))), "label")
    assert "30 classes in 30 rows; is it a score?" in caplog.text


def test_missing_column() -> None:
    with pytest.raises(ValueError, match=r"no column 'gold'; there are label; name the right one with --label="):
        class_labels(labeled("a"), "gold", "--label")


@pytest.mark.parametrize("mark", [-100, "-100", -9, -99, "−1"])
def test_other_marks_beside_positions_are_no_class(mark: Any) -> None:
    with pytest.raises(ValueError, match=r"^x\.jsonl:3: .* marks rows without a label"):
        class_labels(labeled(0, 2, mark, 1), "label")


@pytest.mark.parametrize("name", ["unk", "Unknown", "missing"])
def test_what_may_be_a_mark_or_a_class_is_said(name: str, caplog: pytest.LogCaptureFixture) -> None:
    assert class_labels(labeled("some", name), "label") == ["some", name]
    assert f"x.jsonl:2: label is {name!r}: it often marks rows without a label" in caplog.text


@pytest.mark.parametrize(("one", "other"), [("not_entailment", "not-entailment"), ("yes", "yes\u200b"), ("−1", "-1")])
def test_what_looks_alike_is_one_class(one: str, other: str) -> None:
    with pytest.raises(ValueError, match="two spellings of one class"):
        class_labels(labeled(one, other, one), "label")
