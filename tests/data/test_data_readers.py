"""Tasks from a folder and from the hub: what is read, what is warned about, and every broken file by file and line."""

from __future__ import annotations

import builtins
import gzip
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from st_plugins.data import DATA_VARIABLE, TASKS, load_task, load_tasks

HEADER = "source\tscore\tsentence1\tsentence2"
ROWS = [
    'FNWN\t4.5\ta 5" nail\t"a nail',
    "OnWN\t0\ta dog ,\u2028 one text\tthe cat",
    "FNWN\t2.25\ta man\ta woman",
]


@pytest.fixture(autouse=True)
def _no_data_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(DATA_VARIABLE, raising=False)


def write(folder: Path, text: str | bytes, file: str = "sts/sts13_test.tsv.gz") -> Path:
    path = folder / file
    path.parent.mkdir(parents=True, exist_ok=True)
    data = text.encode() if isinstance(text, str) else text
    path.write_bytes(gzip.compress(data) if file.endswith(".gz") else data)
    return path


def lines(*rows: str, header: str = HEADER) -> str:
    return "\n".join([header, *rows]) + "\n"


@pytest.mark.parametrize("file", ["sts/sts13_test.tsv.gz", "sts/sts13_test.tsv"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_reads_gzip_and_plain_without_quoting(tmp_path: Path, file: str, end: str) -> None:
    path = write(tmp_path, lines(*ROWS).replace("\n", end), file)
    pairs = load_task("sts13", tmp_path)
    assert pairs.first == ['a 5" nail', "a dog ,\u2028 one text", "a man"]
    assert pairs.second == ['"a nail', "the cat", "a woman"]
    assert pairs.scores.tolist() == [4.5, 0.0, 2.25]
    assert pairs.subsets == ["FNWN", "OnWN", "FNWN"]
    assert (pairs.name, pairs.title, pairs.source) == ("sts13", "STS13", str(path))


def test_all_of_sick_is_its_three_files_in_order(tmp_path: Path) -> None:
    header = "sentence1\tsentence2\tscore"
    for number, part in enumerate(("train", "trial", "test")):
        write(tmp_path, lines(f"text {number}\tother\t{number + 1}", header=header), f"sts/sick_{part}.tsv.gz")
    pairs = load_task("sickr-all", tmp_path)
    assert pairs.first == ["text 0", "text 1", "text 2"] and pairs.scores.tolist() == [1.0, 2.0, 3.0]
    assert (pairs.name, pairs.title) == ("sickr_all", "SICK-R all")
    assert pairs.warnings == ("SICK-R all: 3 pairs, but the published number is 9,927",)
    (tmp_path / "sts" / "sick_trial.tsv.gz").unlink()
    with pytest.raises(FileNotFoundError, match=r"sick_trial\.tsv\.gz"):
        load_task("sickr-all", tmp_path)


def test_wrong_counts_are_warned_about(tmp_path: Path) -> None:
    write(tmp_path, lines(*ROWS))
    rows, subsets = load_task("sts13", tmp_path).warnings
    assert rows == "STS13: 3 pairs, but the published number is 1,500"
    assert "FNWN 2 (published: 189), headlines 0 (published: 750), OnWN 1 (published: 561)" in subsets


def test_right_counts_are_silent(tmp_path: Path) -> None:
    wanted = TASKS["sts13"].splits["test"].subsets
    rows = [f"{name}\t{row % 6}\ta{row}\tb" for name, count in wanted.items() for row in range(count)]
    write(tmp_path, lines(*rows))
    pairs = load_task("sts13", tmp_path)
    assert (len(pairs), pairs.warnings) == (1500, ())


def test_whole_tasks_have_one_subset(tmp_path: Path) -> None:
    write(tmp_path, lines("main-news/MSRpar\t3\ta\tb", "main-captions/images\t1\tc\td"), "sts/stsb_dev.tsv.gz")
    assert load_task("stsb", tmp_path, split="dev").subsets == ["stsb", "stsb"]


def test_binary_task_reads_the_label(tmp_path: Path) -> None:
    write(tmp_path, lines("1\t你好\t您好", "0\t你好\t再见", header="label\tsentence1\tsentence2"), "zh/bq_test.tsv")
    pairs = load_task("bq", tmp_path)
    assert pairs.scores.tolist() == [1.0, 0.0]
    assert pairs.second == ["您好", "再见"]


def test_score_outside_the_scale_is_warned_about(tmp_path: Path) -> None:
    write(tmp_path, lines("x\t5.5\ta\tb", "x\t5\ta\tb", "x\t-1\ta\tb"))
    assert load_task("sts13", tmp_path).warnings[-1] == "STS13: 2 scores lie outside the scale 0 to 5"


def test_variable_names_the_folder_and_the_argument_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "one", lines(ROWS[0]))
    write(tmp_path / "two", lines(*ROWS))
    monkeypatch.setenv(DATA_VARIABLE, str(tmp_path / "one"))
    assert len(load_task("sts13")) == 1
    assert len(load_task("sts13", tmp_path / "two")) == 3


def test_several_tasks_in_order(tmp_path: Path) -> None:
    write(tmp_path, lines(*ROWS))
    write(tmp_path, lines(ROWS[0]), "sts/sts16_test.tsv.gz")
    assert [(pairs.name, len(pairs)) for pairs in load_tasks("sts16,sts13", tmp_path)] == [("sts16", 1), ("sts13", 3)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (lines(ROWS[0], header="source\tgold\tsentence1\tsentence2"), ":1: no column 'score'; there are source, gold"),
        (lines(ROWS[0], header="score\tsentence1\tsentence2\tx"), ":1: no column 'source'"),
        (lines(ROWS[0], header="source\tscore\tsentence1\tsentence1"), ":1: a column name occurs twice"),
        (lines(ROWS[0], "FNWN\t1\tone text only"), ":3: 3 fields, but the header has 4"),
        (lines(ROWS[0], ROWS[1] + "\tmore"), ":3: 5 fields, but the header has 4"),
        (lines(ROWS[0], "", ROWS[1]), ":3: 1 fields"),
        (lines(ROWS[0], "FNWN\thigh\ta\tb"), ":3: score 'high' is not a finite number"),
        (lines("FNWN\tnan\ta\tb"), ":2: score 'nan' is not a finite number"),
        (lines("FNWN\t-inf\ta\tb"), ":2: score '-inf' is not a finite number"),
        (lines("FNWN\t4_5\ta\tb"), ":2: score '4_5' is not a finite number"),
        (lines(ROWS[0], ROWS[1], "FNWN\t1\ta\t"), ":4: sentence2 is empty"),
        (lines("\t1\ta\tb"), ":2: source is empty"),
        (lines(), ": there is no row"),
        ("", ": there is no row"),
        (lines(*ROWS[:2]).encode() + b"FNWN\t1\tcaf\xe9\tb\n", ":4: byte 0xe9 is not UTF-8"),
    ],
)
def test_broken_file_is_named_with_its_line(tmp_path: Path, text: str | bytes, message: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(ValueError) as caught:
        load_task("sts13", tmp_path)
    assert f"{path}{message}" in str(caught.value)


@pytest.mark.parametrize("damage", ["truncated", "not gzip", "flipped"])
def test_corrupt_gzip(tmp_path: Path, damage: str) -> None:
    path = write(tmp_path, lines(*ROWS * 50))
    data = bytearray(path.read_bytes())
    if damage == "truncated":
        data = data[:-20]
    elif damage == "flipped":
        data[len(data) // 2] ^= 0xFF
    else:
        data = bytearray(lines(*ROWS).encode())
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"sts13_test\.tsv\.gz: not a whole gzip file"):
        load_task("sts13", tmp_path)


def test_missing_file_and_folder_name_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"sts13_test\.tsv\.gz .*put the STS13 pairs there.*--data"):
        load_task("sts13", tmp_path)
    with pytest.raises(FileNotFoundError, match=rf"nowhere' does not exist; correct --data .*{DATA_VARIABLE}"):
        load_task("sts13", tmp_path / "nowhere")


def test_one_task_at_a_time_and_known_split(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="names 7 tasks; use load_tasks"):
        load_task("en", tmp_path)
    with pytest.raises(ValueError, match="has the splits test"):
        load_task("sts13", tmp_path, split="train")


class FakeHub:
    """Stands in for the module ``datasets``: remembers how it was called and answers from a dict of columns."""

    def __init__(self, columns: dict[str, list[Any]] | Exception) -> None:
        self.columns = columns
        self.calls: list[tuple[Any, ...]] = []

    def load_dataset(self, dataset: str, config: str | None, *, split: str, revision: str | None) -> FakeRows:
        self.calls.append((dataset, config, split, revision))
        if isinstance(self.columns, Exception):
            raise self.columns
        return FakeRows(self.columns)


class FakeRows(dict[str, list[Any]]):
    @property
    def column_names(self) -> list[str]:
        return list(self)


def use_hub(monkeypatch: pytest.MonkeyPatch, columns: dict[str, list[Any]] | Exception) -> FakeHub:
    hub = FakeHub(columns)
    module = types.ModuleType("datasets")
    module.load_dataset = hub.load_dataset  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "datasets", module)
    return hub


def test_hub_is_asked_for_the_pinned_revision(monkeypatch: pytest.MonkeyPatch) -> None:
    hub = use_hub(monkeypatch, {"sentence1": ["a", "b"], "sentence2": ["c", "d"], "score": [1, 2.5]})
    pairs = load_task("stsb", split="dev")
    revision = TASKS["stsb"].hub.revision
    assert hub.calls == [("mteb/stsbenchmark-sts", None, "validation", revision)]
    assert (pairs.first, pairs.second, pairs.scores.tolist()) == (["a", "b"], ["c", "d"], [1.0, 2.5])
    assert pairs.source == f"mteb/stsbenchmark-sts@{revision}"
    assert pairs.warnings == ("STS-B: 2 pairs, but the published number is 1,500",)


def test_hub_configuration_and_column_names_come_from_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    hub = use_hub(monkeypatch, {"sentence1": ["一"], "sentence2": ["二"], "similarity_score": [3.0]})
    assert load_task("stsb_mt_zh").scores.tolist() == [3.0]
    assert hub.calls == [("PhilipMay/stsb_multi_mt", "zh", "test", None)]


def test_hub_differences_are_warned_about(monkeypatch: pytest.MonkeyPatch) -> None:
    use_hub(monkeypatch, {"sentence1": ["a"], "sentence2": ["b"], "score": [2.0]})
    assert "does not name sub-datasets" in load_task("sts12").warnings[-1]
    assert "all 9,927 SICK pairs" in load_task("sickr").warnings[-1]


def test_hub_with_other_columns_or_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    use_hub(monkeypatch, {"sentence1": ["a"], "sentence2": ["b"], "label": [2.0]})
    with pytest.raises(ValueError, match=r"'mteb/stsbenchmark-sts': no column 'score'; there are \['sentence1'"):
        load_task("stsb")
    use_hub(monkeypatch, {"sentence1": ["a"], "sentence2": ["b"], "score": [None]})
    with pytest.raises(ValueError, match="row 0: score None is not a finite number"):
        load_task("stsb")
    with pytest.raises(ValueError, match=r"split='train': hub dataset 'mteb/sickr-sts' has the splits test"):
        load_task("sickr", split="train")


@pytest.mark.parametrize("missing", [True, False])
def test_no_folder_and_no_hub_is_one_clear_error(monkeypatch: pytest.MonkeyPatch, missing: bool) -> None:
    use_hub(monkeypatch, OSError("offline\nand more lines"))
    if missing:
        real_import = builtins.__import__

        def without_datasets(name: str, *args: Any, **kwargs: Any) -> Any:
            if name == "datasets":
                raise ModuleNotFoundError("No module named 'datasets'")
            return real_import(name, *args, **kwargs)

        monkeypatch.setattr(builtins, "__import__", without_datasets)
    with pytest.raises(FileNotFoundError) as caught:
        load_task("sts12")
    message = str(caught.value)
    assert ("No module named 'datasets'" if missing else "OSError: offline)") in message
    assert "--data" in message and DATA_VARIABLE in message and "'train'" in message and "\n" not in message


@pytest.mark.network
@pytest.mark.enable_socket
def test_the_real_hub() -> None:
    """Run with ``HF_HUB_OFFLINE=0 pytest -m network --force-enable-socket``."""
    pairs = load_task("sts16")
    assert len(pairs) == 1186
    assert len(pairs.warnings) == 1  # no sub-datasets there
