"""The table of tasks, held against the published counts, and the names a user may write."""

from __future__ import annotations

import subprocess
import sys

import pytest

from st_plugins.data import GROUPS, TASKS, resolve_tasks

PUBLISHED_TEST_ROWS = {
    "sts12": 3108,
    "sts13": 1500,
    "sts14": 3750,
    "sts15": 3000,
    "sts16": 1186,
    "stsb": 1379,
    "sickr": 4927,
    "sickr_all": 9927,
    "atec": 20000,
    "bq": 10000,
    "lcqmc": 12500,
    "pawsx": 2000,
    "stsb_zh": 1361,
    "stsb_mt_zh": 1379,
}


def test_published_test_rows() -> None:
    assert {name: task.splits["test"].rows for name, task in TASKS.items()} == PUBLISHED_TEST_ROWS
    assert sum(PUBLISHED_TEST_ROWS[name] for name in GROUPS["en"]) == 18850


def test_subsets_add_up_to_the_rows() -> None:
    checked = 0
    for task in TASKS.values():
        for split in task.splits.values():
            assert bool(split.subsets) == (task.columns.subset is not None), task.name
            if split.subsets:
                assert sum(split.subsets.values()) == split.rows, task.name
                checked += 1
    assert checked == 6  # the five years and the train part of 2012


def test_every_entry_is_complete_and_consistent() -> None:
    files = [split.file for name, task in TASKS.items() for split in task.splits.values() if name != "sickr_all"]
    assert len(files) == len(set(files)) == 26
    whole = TASKS["sickr_all"].splits["test"]
    parts = TASKS["sickr"].splits
    assert [whole.file, *whole.more] == [parts[name].file for name in ("train", "dev", "test")]
    assert whole.rows == sum(split.rows for split in parts.values())
    assert [TASKS[name].title for name in ("sickr", "sickr_all")] == ["SICK-R test", "SICK-R all"]
    for name, task in TASKS.items():
        assert task.name == name
        assert task.citation and task.license and task.title
        assert task.kind in ("graded", "binary") and task.language in ("en", "zh")
        assert task.scale == (
            (0.0, 1.0) if task.kind == "binary" else (1.0, 5.0) if name.startswith("sickr") else (0.0, 5.0)
        )
        assert set(task.hub.splits) <= set(task.splits)
        assert task.hub.dataset.count("/") == 1
        assert task.hub.revision is None or len(task.hub.revision) == 40


def test_groups_keep_the_published_order() -> None:
    assert GROUPS["en"] == ["sts12", "sts13", "sts14", "sts15", "sts16", "stsb", "sickr"]
    assert [task.name for task in resolve_tasks("zh")] == ["atec", "bq", "lcqmc", "pawsx", "stsb_zh"]
    assert all(TASKS[name].language == group for group, names in GROUPS.items() for name in names)


@pytest.mark.parametrize(
    ("written", "names"),
    [
        ("stsb,sts12", ["stsb", "sts12"]),
        (" STSB , sickr", ["stsb", "sickr"]),
        ("sickr-all,sickr", ["sickr_all", "sickr"]),
        (["sts12", "sts12", TASKS["sickr"]], ["sts12", "sickr"]),
        (["sickr", "en"], ["sickr", "sts12", "sts13", "sts14", "sts15", "sts16", "stsb"]),
        (TASKS["stsb_mt_zh"], ["stsb_mt_zh"]),
    ],
)
def test_names_resolve_in_order_and_once(written: object, names: list[str]) -> None:
    assert [task.name for task in resolve_tasks(written)] == names


@pytest.mark.parametrize("written", ["sts11", "sts12,,stsb", "", ["stsb", "nope"]])
def test_unknown_name_lists_the_allowed_ones(written: object) -> None:
    with pytest.raises(ValueError, match=r"not a known task; use en, zh or names among sts12, sts13, .*stsb_mt_zh"):
        resolve_tasks(written)


def test_no_task_and_no_text_are_refused() -> None:
    with pytest.raises(ValueError, match="names no task"):
        resolve_tasks([])
    with pytest.raises(TypeError, match="item 12"):
        resolve_tasks([12])


def test_unknown_split_lists_the_splits() -> None:
    with pytest.raises(ValueError, match="split='dev': task 'sts12' has the splits train, test"):
        TASKS["sts12"].split("dev")


def test_package_is_light_to_import_and_complete_and_the_command_line_starts_without_it() -> None:
    code = (
        "import sys, st_plugins.cli.app\n"
        "heavy = {'torch', 'datasets', 'numpy', 'st_plugins.miniature', 'st_plugins.data'} & set(sys.modules)\n"
        "import st_plugins.data as data\n"
        "heavy |= {'torch', 'datasets', 'st_plugins.miniature'} & set(sys.modules)\n"
        "missing = [name for name in data.__all__ if getattr(data, name, None) is None]\n"
        "sys.exit(f'{heavy} {missing}' if heavy or missing else 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
