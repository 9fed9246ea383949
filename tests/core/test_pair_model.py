"""Labelled pairs, metrics and tables against counts by hand."""

from __future__ import annotations

import itertools
import logging
import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, IterableDataset, Value

from st_plugins.core.labeled import LabeledPairs, check_classes, check_occurring
from st_plugins.core.pair_metrics import METRICS, Accuracy, check_metric, measure, measure_accuracy
from st_plugins.core.reading.tables import read_table
from st_plugins.core.writing.rows import table_target, write_table

NLI = ["contradiction", "neutral", "entailment"]


def oracle_f1(found: list[int], gold: list[int], label: int) -> float:
    hits = sum(a == b == label for a, b in zip(found, gold, strict=True))
    if not hits:
        return 0.0
    precision = hits / sum(a == label for a in found)
    recall = hits / sum(b == label for b in gold)
    return 2 * precision * recall / (precision + recall)


def oracle_ranking(metric: str, scores: list[float], gold: list[int], queries: list[str]) -> float:
    """The worst value over all orders that the scores allow, found by trying all of them."""
    values = []
    for query in dict.fromkeys(queries):
        rows = [row for row, name in enumerate(queries) if name == query]
        worst = math.inf
        for order in itertools.permutations(rows):
            if any(scores[a] < scores[b] for a, b in itertools.pairwise(order)):
                continue
            ranks = [place for place, row in enumerate(order, start=1) if gold[row]]
            if metric == "mrr" and ranks:
                worst = min(worst, 1 / min(ranks))
            if metric == "map" and ranks:
                worst = min(worst, sum((k + 1) / rank for k, rank in enumerate(ranks)) / len(ranks))
        if worst < math.inf:
            values.append(worst)
    return sum(values) / len(values) if values else 0.0


def oracle_spearman(x: list[float], y: list[float]) -> float:
    def ranks(values: list[float]) -> list[float]:
        return [sum(other < v for other in values) + (sum(other == v for other in values) + 1) / 2 for v in values]

    a, b = ranks(x), ranks(y)
    mean = (len(x) + 1) / 2
    covariance = sum((p - mean) * (q - mean) for p, q in zip(a, b, strict=True))
    spread = math.sqrt(sum((p - mean) ** 2 for p in a) * sum((q - mean) ** 2 for q in b))
    return covariance / spread if spread else 0.0


@pytest.mark.parametrize("seed", range(6))
def test_metrics_of_scores_are_their_definitions(seed: int) -> None:
    draw = random.Random(seed)  # noqa: S311
    count = 14
    scores = [draw.randrange(-2, 3) / 2 for _ in range(count)]  # ties on purpose
    gold = [draw.randrange(2) for _ in range(count)]
    queries = [f"q{draw.randrange(4)}" for _ in range(count)]
    logits = [[score] for score in scores]
    found = [int(score > 0) for score in scores]
    right = sum(a == b for a, b in zip(found, gold, strict=True)) / count
    assert measure("accuracy", logits, gold) == pytest.approx(right)
    assert measure("f1", logits, gold) == pytest.approx(oracle_f1(found, gold, 1))
    assert measure("spearman", logits, gold) == pytest.approx(oracle_spearman(scores, [float(g) for g in gold]))
    for metric in ("map", "mrr"):
        assert measure(metric, logits, gold, queries) == pytest.approx(oracle_ranking(metric, scores, gold, queries))


@pytest.mark.parametrize("classes", [2, 3])
def test_metrics_of_classes_are_their_definitions(classes: int) -> None:
    draw = random.Random(classes)  # noqa: S311
    logits = [[draw.random() for _ in range(classes)] for _ in range(20)]
    gold = [draw.randrange(classes) for _ in range(20)]
    found = [max(range(classes), key=row.__getitem__) for row in logits]
    assert measure("accuracy", logits, gold) == sum(a == b for a, b in zip(found, gold, strict=True)) / 20
    each = [oracle_f1(found, gold, label) for label in range(classes)]
    assert measure("f1", logits, gold) == pytest.approx(each[1] if classes == 2 else sum(each) / 3)


def test_metrics_of_nothing_to_measure() -> None:
    assert measure("spearman", [[1.0], [1.0]], [0, 1]) == measure("spearman", [[1.0], [2.0]], [1, 1]) == 0.0
    assert measure("map", [[1.0], [2.0]], [0, 0], ["a", "b"]) == measure("f1", [[-1.0]], [0]) == 0.0
    # A model that cannot tell documents apart gains nothing from their order.
    assert measure("mrr", [[0.0]] * 4, [1, 0, 0, 0], ["q"] * 4) == 0.25


def test_the_interval_of_an_accuracy_is_the_textbooks() -> None:
    # Wilson's interval, by its equation: the shares p with |value - p| = z √(p (1 - p) / n).
    for right, count in ((0, 7), (7, 7), (30, 41), (712, 1000)):
        logits = [[0.0, 1.0]] * right + [[1.0, 0.0]] * (count - right)
        found = measure_accuracy(logits, [1] * count)
        assert found.value == right / count and found.majority == 1.0
        for end in (found.low, found.high):
            off = abs(abs(found.value - end) - 1.959964 * math.sqrt(end * (1 - end) / count))
            assert off < 1e-9
        assert found.low <= found.value <= found.high
    scores = measure_accuracy([[2.0], [-1.0], [0.5], [-3.0]], [0.9, 0.0, 0.4, 0.2])
    assert (scores.value, scores.majority) == (0.75, 0.75)
    assert str(Accuracy(0.712, 0.6889, 0.734, 0.55)) == "71.2 [68.9, 73.4]; majority class 55.0"


def test_metrics_by_name() -> None:
    assert check_metric(None, 1) == "spearman" and check_metric(None, 3) == "accuracy"
    assert [check_metric(metric, 1) for metric in METRICS] == list(METRICS)
    with pytest.raises(ValueError, match=r"metric must be 'accuracy', 'f1', .* or None, got 'auc'"):
        check_metric("auc", 2)
    with pytest.raises(ValueError, match="metric='map' needs a score, but the model has 2 classes; choose 'accuracy'"):
        check_metric("map", 2)


def test_labels_by_name_by_position_and_by_dataset() -> None:
    rows: list[Any] = [("a", "b", 2), ["c", "", 0], ("e", "f", np.int64(1)), ("", "h", 2.0)]
    pairs = LabeledPairs.read(rows, NLI)
    assert (pairs.first, pairs.second) == (["a", "c", "e", ""], ["b", "", "f", "h"])
    assert pairs.labels == [2, 0, 1, 2] and len(pairs) == 4
    assert LabeledPairs.read([("a", "b", "entailment"), ("c", "d", "contradiction")], NLI).labels == [2, 0]
    assert LabeledPairs.read(pairs, NLI) is pairs
    columns = {"premise": ["a", "c"], "label": [0, 2], "hypothesis": ["b", "d"]}
    assert LabeledPairs.read(Dataset.from_dict(columns), NLI).labels == [0, 2]
    # The dataset's own names count, not its numbers.
    features = {"premise": Value("string"), "hypothesis": Value("string"), "label": ClassLabel(names=NLI[::-1])}
    pairs = LabeledPairs.read(Dataset.from_dict(columns, features=Features(features)), NLI)
    assert pairs.labels == [2, 0] and pairs.second == ["b", "d"]
    # Numbers that are names.
    assert LabeledPairs.read([("a", "b", 1), ("a", "b", "2"), ("a", "b", True)], ["1", "2"]).labels == [0, 1, 0]
    scores = LabeledPairs.read([("a", "b", 1), ("a", "b", "0.25"), ("a", "b", False)], None).labels
    assert scores == [1.0, 0.25, 0.0] and all(isinstance(score, float) for score in scores)


@pytest.mark.parametrize("label", ["foo", "", 0.5, math.nan, 10**400])
def test_what_is_no_class_is_none_called_none_either(label: Any) -> None:
    with pytest.raises(
        ValueError, match=r"row 1 of train has the label .*, which is none of the classes 'None', 'Some'"
    ):
        LabeledPairs.read([("a", "b", "None"), ("a", "b", label)], ["None", "Some"])


def test_data_that_is_read_once() -> None:
    rows = [{"premise": "a", "hypothesis": "b", "label": 0}, {"premise": "c", "hypothesis": "d", "label": 2}]
    names = Features(premise=Value("string"), hypothesis=Value("string"), label=ClassLabel(names=NLI[::-1]))
    stream = Dataset.from_list(rows, features=names).to_iterable_dataset()
    assert LabeledPairs.read(stream, NLI).labels == [2, 0]
    unknown = IterableDataset.from_generator(lambda: iter(rows))
    assert unknown.column_names is None
    for data in (unknown, rows, iter(rows), ((row["premise"], row["hypothesis"], row["label"]) for row in rows)):
        pairs = LabeledPairs.read(data, NLI)
        assert (pairs.first, pairs.second, pairs.labels) == (["a", "c"], ["b", "d"], [0, 2])
    used = iter(rows)
    LabeledPairs.read(used, NLI)
    with pytest.raises(ValueError, match=r"train has no rows; give at least one .* and a generator only once"):
        LabeledPairs.read(used, NLI)
    with pytest.raises(ValueError, match="train has no rows"):
        LabeledPairs.read(IterableDataset.from_generator(lambda: iter([])), NLI)
    with pytest.raises(ValueError, match="row 1 of train must have the columns premise, hypothesis, label, got"):
        LabeledPairs.read([rows[0], {"premise": "a"}], NLI)
    with pytest.raises(ValueError, match="two columns of texts besides 'label', but it has 3"):
        LabeledPairs.read([row | {"id": 1} for row in rows], NLI)


def test_names_of_classes() -> None:
    check_classes(["0", "1"])
    for labels, message in (
        (["yes", "-"], r"labels\[1\] is '-', which names no class; leave it out, or give the class another name"),
        (["", "yes"], r"labels\[0\] is empty"),
        (["1", "0", "1.0"], r"labels\[2\] is '1.0', but '1' in labels\[0\]: two spellings of one class; leave it out"),
        (["yes", "Yes "], r"labels\[1\] is 'Yes ', but 'yes' in labels\[0\]"),
        (["1", "other"], "names and numbers of classes are mixed"),
        (["0", "1", "2", "-1"], r"labels\[3\] is '-1', which marks rows without a label"),
        (["yes"], r"at least two different names, or None for a score; got \['yes'\]"),
        ("yes", "at least two different names"),
    ):
        with pytest.raises(ValueError, match=message):
            check_classes(labels)


def test_classes_are_counted_and_missed(caplog: pytest.LogCaptureFixture) -> None:
    train = LabeledPairs(["a"] * 3, ["b"] * 3, [0, 1, 1])
    with caplog.at_level(logging.INFO):
        check_occurring(train, LabeledPairs(["a"], ["b"], [1]), ["no", "yes"])
    assert "train: 2 classes: 'no' 1, 'yes' 2" in caplog.text and "dev: 1 class: 'yes' 1" in caplog.text
    (warning,) = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert warning.startswith("dev has no pair of the classes 'no': ")
    with pytest.raises(ValueError, match="train has no pair of the classes 'maybe'; give some"):
        check_occurring(train, None, ["no", "yes", "maybe"])


@pytest.mark.parametrize(
    ("data", "classes", "message"),
    [
        ([], NLI, "train has no rows; give at least one"),
        (
            [("a", "b", "1"), ("a", "b", 0)],
            list("12345"),
            r"row 1 .* the label 0, .*0 is the name of no class, and no",
        ),
        ([("a", "b", 6)], list("12345"), "row 0 of train has the label 6"),
        ([("a", "b", "1"), ("a", "b", 2)], ["0", "1"], "row 1 of train has the label 2"),
        (
            [("a", "b", "neutral"), ("a", "b", 0)],
            NLI,
            "row 1 of train has the label 0, a position, but row 0 of train has 'neutral', a name; write names",
        ),
        ([("a", "b", 0), ("a", "b", "neutral")], NLI, "row 1 of train has the label 'neutral', a name, but row 0"),
        ([("a", "b", True)], ["yes", "no"], "row 0 of train has the label True, which is none of"),
        ([("a", "b", "Neutral ")], NLI, r"label 'Neutral ', .* \(is 'neutral' meant\?\)"),
        ([("a", "b", "1.0")], ["0", "1"], "the label '1.0'"),
        ([("a", "b", None)], ["None", "Some"], "the label None"),
        ([("a", "b", "")], NLI, "the label ''"),
        ([("a", "b", 0.5)], NLI, r"the label 0.5, .*\(is it a score\? then build the model without labels\)"),
        ([("a", "b", "maybe")], NLI, r"row 0 of train has the label 'maybe', which is none of the classes 'contra"),
        ([("a", "b", 0), ("a", "b", 3)], NLI, "row 1 of train has the label 3, which is none of"),
        ([("a", "b", -1)], NLI, "the label -1"),
        ([("a", "b", 0.5)], NLI, "the label 0.5"),
        ([("a", "b", math.nan)], NLI, "row 0 of train has the label nan"),
        ([("a", "b", math.nan)], None, "row 0 of train: score nan is not a finite number; remove the row"),
        ([("a", "b", "good")], None, "score 'good' is not a finite number; remove the row, or name the classes"),
        ([("a", "b", None)], None, "score None is not a finite number"),
        ([("a", "b", 4)], None, "has the score 4; scores must lie from 0 to 1: divide them by the highest"),
        ([("a", "b", 0), ("", " \t", 0)], NLI, "row 1 of train is an empty pair, both texts are blank; remove it"),
        ([("a", "b")], NLI, r"row 0 of train must be \(text, text, label\), got \('a', 'b'\)"),
        ([("a", 3, 0)], NLI, r"row 0 of train must be \(text, text, label\), got \('a', 3, 0\)"),
        (["abc"], NLI, r"row 0 of train must be \(text, text, label\), got 'abc'"),
        ("abc", NLI, r"train must be rows \(text, text, label\) or a datasets.Dataset, got str"),
        (3, NLI, "or a datasets.Dataset, got int"),
        (
            Dataset.from_dict({"text": ["a"], "label": [0]}),
            NLI,
            r"two columns of texts besides 'label', but it has 1 ",
        ),
        (Dataset.from_dict({"label": [0]}), NLI, r"but it has 0 \(none\); use select_columns"),
        (
            Dataset.from_dict({"a": ["a"], "b": ["b"], "gold": [0]}),
            NLI,
            "its columns are a, b, gold; use rename_column",
        ),
        (Dataset.from_dict({"a": ["a"], "b": ["b"], "label": [0], "score": [0]}), NLI, "must have one column named"),
        (DatasetDict({"test": Dataset.from_dict({"a": ["a"]})}), NLI, "train has the splits test; give one of them"),
    ],
)
def test_data_that_does_not_suit(data: Any, classes: list[str] | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LabeledPairs.read(data, classes)


def test_a_share_is_put_aside_by_first_texts() -> None:
    pairs = LabeledPairs([f"q{row % 10}" for row in range(40)], [str(row) for row in range(40)], list(range(40)))
    kept, aside = pairs.split(0.3, seed=1)
    assert len(kept) == 28 and len(aside) == 12 and not set(kept.first) & set(aside.first)
    assert sorted([*kept.labels, *aside.labels]) == list(range(40))
    for part in (kept, aside):
        assert [int(text) for text in part.second] == part.labels
        assert [f"q{row % 10}" for row in part.labels] == part.first
    assert pairs.split(0.3, seed=1) == (kept, aside) != pairs.split(0.3, seed=2)
    assert {len(pairs.split(share, 0)[1]) for share in (0.01, 0.99)} == {4, 36}
    for share in (0.0, 1.0, -1.0, math.nan):
        with pytest.raises(ValueError, match=r"as a share of the training data must lie above 0 and below 1"):
            pairs.split(share, 0)
    with pytest.raises(ValueError, match="all its pairs have the same first text; give dev itself"):
        LabeledPairs(["a", "a"], ["b", "c"], [0, 1]).split(0.5, 0)


@pytest.mark.parametrize("name", ["out.tsv", "out.csv", "out.jsonl", "out.tsv.gz", "out.jsonl.gz"])
def test_tables_read_back(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    rows = [['say "a", b', "ü\u2028x", 0.1], ["", " c", 1e-7]]
    write_table(path, ["left", "right", "score"], rows)
    with pytest.raises(FileExistsError, match=r"path '.*out.*' exists; choose another file or overwrite"):
        write_table(path, ["left"], [["lost"]])
    write_table(table_target(path, overwrite=True, column="right"), ["left", "right", "score"], rows)
    with pytest.raises(FileExistsError, match="st-plugins did not write"):
        table_target(path, overwrite=True, column="predicted")
    table = read_table(path)
    assert table.columns == ["left", "right", "score"] and table.scores("score") == [0.1, 1e-7]
    assert [row[:2] for row in table.rows] == [row[:2] for row in rows]
    assert sorted(file.name for file in tmp_path.iterdir()) == [name]
    assert (path.read_bytes()[:2] == b"\x1f\x8b") == name.endswith(".gz")


def test_tables_that_cannot_be_written(tmp_path: Path) -> None:
    path = tmp_path / "out.tsv"
    for text in ("a\tb", "a\nb", "a\rb"):
        with pytest.raises(ValueError, match=r"row 1 holds a tab or line break in '.*', which .tsv cannot say; write"):
            write_table(path, ["text"], [[text]])
    assert not list(tmp_path.iterdir())
    write_table(tmp_path / "out.csv", ["text"], [["a\tb\nc"]])
    assert read_table(tmp_path / "out.csv").rows == [["a\tb\nc"]]
    (tmp_path / "folder.tsv").mkdir()
    with pytest.raises(FileExistsError, match="is a folder"):
        table_target(tmp_path / "folder.tsv", overwrite=True)
    with pytest.raises(ValueError, match=r"path '.*out.txt' is none of .tsv, .csv, .jsonl"):
        table_target(tmp_path / "out.txt")
