"""Read the STS tasks: from a local folder, or from the Hugging Face hub."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from st_plugins.core.reading.tables import read_table, to_score
from st_plugins.data.pairs import Pairs
from st_plugins.data.tasks import Split, Task, resolve_tasks

DATA_VARIABLE = "ST_PLUGINS_DATA"
"""Environment variable that names the data folder."""


def load_task(task: str | Task, data: str | Path | None = None, split: str = "test") -> Pairs:
    r"""Read one task.

    Without a data folder (argument or environment variable ``ST_PLUGINS_DATA``) the task comes from the Hugging Face
    hub through ``datasets``. Counts that differ from the published ones, and scores outside the scale, become
    sentences in ``warnings``.

    Args:
        task: The task or its name.
        data: Folder with ``sts/sts12_test.tsv.gz`` and so on: UTF-8, one header row, fields split on tabs, no
            quoting, gzip or plain.
        split: ``"train"``, ``"dev"`` or ``"test"``.

    Returns:
        The pairs.

    Raises:
        ValueError: The task or split is unknown, or the file is broken; the message names file and line.
        FileNotFoundError: The folder or file is missing, or there is no folder and the hub cannot be used.

    Example:
        >>> import gzip, tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder, "sts", "stsb_test.tsv.gz")
        ...     path.parent.mkdir()
        ...     _ = path.write_bytes(gzip.compress(b"source\tscore\tsentence1\tsentence2\nx\t4.5\ta dog\ta puppy\n"))
        ...     pairs = load_task("stsb", folder)
        >>> pairs.scores.tolist(), len(pairs.warnings) > 0  # it says that the other pairs are missing
        ([4.5], True)
    """
    found = resolve_tasks(task)
    if len(found) != 1:
        raise ValueError(f"task={task!r} names {len(found)} tasks; use load_tasks for several")
    wanted = found[0].split(split)
    folder = data or os.environ.get(DATA_VARIABLE)
    return _read_local(found[0], wanted, Path(folder).expanduser()) if folder else _read_from_hub(found[0], split)


def load_tasks(
    tasks: str | Task | Iterable[str | Task], data: str | Path | None = None, split: str = "test"
) -> list[Pairs]:
    r"""Read several tasks.

    Args:
        tasks: What :func:`st_plugins.data.resolve_tasks` takes: ``"en"``, ``"zh"``, ``"sts12,stsb"``, a list.
        data: See :func:`load_task`.
        split: See :func:`load_task`.

    Returns:
        One entry a task.

    Example:
        >>> import gzip, tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder, "sts", "stsb_test.tsv.gz")
        ...     path.parent.mkdir()
        ...     _ = path.write_bytes(gzip.compress(b"source\tscore\tsentence1\tsentence2\nx\t4.5\ta dog\ta puppy\n"))
        ...     [len(pairs.scores) for pairs in load_tasks("stsb", folder)]
        [1]
    """
    return [load_task(task, data, split) for task in resolve_tasks(tasks)]


def pairs_of(tasks: str | Iterable[str | Task | Pairs], data: str | Path | None, split: str) -> list[Pairs]:
    """Read what is named and keep what is given as pairs."""
    pairs: list[Pairs] = []
    for task in [tasks] if isinstance(tasks, str) else tasks:
        pairs += [task] if isinstance(task, Pairs) else load_tasks(task, data, split)
    if not pairs:
        raise ValueError(f"tasks={tasks!r} names no task; give 'en', 'zh', task names or Pairs")
    names = [task.name for task in pairs]
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise ValueError(f"tasks: the name {sorted(twice)[0]!r} occurs twice; every task needs its own")
    return pairs


def _read_local(task: Task, split: Split, folder: Path) -> Pairs:
    if not folder.is_dir():
        raise FileNotFoundError(
            f"data folder {str(folder)!r} does not exist; correct --data (data=) or the variable {DATA_VARIABLE}"
        )
    paths = [_existing(task, folder / file) for file in (split.file, *split.more)]
    names = task.columns
    first: list[str] = []
    second: list[str] = []
    subsets: list[str] = []
    scores: list[float] = []
    for table in map(read_table, paths):
        first += table.texts(names.first)
        second += table.texts(names.second)
        subsets += table.texts(names.subset) if names.subset else []
        scores += table.scores(names.score)
        for row, fields in enumerate(table.rows):
            # Of the published tasks none has an empty field: the file is broken, or not what it says.
            if "" in fields:
                raise table.error(row, f"{table.columns[fields.index('')]} is empty; no field may be")
    # Other counts than published are no error: people cut and repair these files; but a report has to say it.
    warnings = _check(task, split, scores, Counter(subsets))
    source = ", ".join(map(str, paths))
    columns = (names.first, names.second)
    return Pairs(task.name, first, second, np.asarray(scores), subsets, task.title, source, warnings, columns)


def _existing(task: Task, path: Path) -> Path:
    found = path if path.is_file() else path.with_suffix("")
    if not found.is_file():
        raise FileNotFoundError(
            f"{path} (or the same without .gz) does not exist; put the {task.title} pairs there, "
            f"or name another folder with --data (data=) or the variable {DATA_VARIABLE}"
        )
    return found


def _read_from_hub(task: Task, split_name: str) -> Pairs:
    try:
        first, second, scores = _download(task, split_name)
    except (ConnectionError, ImportError) as error:
        raise FileNotFoundError(
            f"no data for {task.title}: {error}; name a local folder with --data (data=) or the variable "
            f"{DATA_VARIABLE}, or go online with the extra 'train' installed (pip install 'st-plugins[train]')"
        ) from error
    warnings = _check(task, task.split(split_name), scores, Counter())
    if task.hub.note:
        warnings = (*warnings, f"{task.title}: {task.hub.note}")
    if task.columns.subset:
        what = "the hub copy does not name sub-datasets, so 'mean' and 'wmean' equal 'all'"
        warnings = (*warnings, f"{task.title}: {what}")
    source = f"{task.hub.dataset}@{task.hub.revision or 'main'}"
    return Pairs(task.name, first, second, np.asarray(scores), [], task.title, source, warnings)


def _download(task: Task, split: str) -> tuple[list[str], list[str], list[float]]:
    """Download (or take from the cache) one split of a task: first texts, second texts and scores."""
    hub = task.hub
    if split not in hub.splits:
        raise ValueError(f"split={split!r}: hub dataset {hub.dataset!r} has the splits {', '.join(hub.splits)}")
    try:
        # It is optional, and slow to import: only here, and only when needed.
        from datasets import load_dataset
    except ImportError as error:
        raise ImportError(f"the package 'datasets' cannot be imported ({error})") from error
    try:
        rows = load_dataset(hub.dataset, hub.config, split=hub.splits[split], revision=hub.revision)
    except Exception as error:  # what the client raises when offline depends on its release
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise ConnectionError(f"the hub did not give {hub.dataset!r} ({reason})") from error
    columns = hub.columns
    for name in (columns.first, columns.second, columns.score):
        if name not in rows.column_names:
            raise ValueError(f"hub dataset {hub.dataset!r}: no column {name!r}; there are {list(rows.column_names)}")
    scores = []
    for number, value in enumerate(rows[columns.score]):
        try:
            scores.append(to_score(value))
        except ValueError as error:
            raise ValueError(f"hub dataset {hub.dataset!r}, row {number}: {error}") from None
    return list(rows[columns.first]), list(rows[columns.second]), scores


def _check(task: Task, split: Split, scores: list[float], subsets: Counter[str]) -> tuple[str, ...]:
    """Return what differs from the published data, one sentence each."""
    warnings = []
    if len(scores) != split.rows:
        warnings.append(f"{task.title}: {len(scores):,} pairs, but the published number is {split.rows:,}")
    if subsets and subsets != Counter(split.subsets):
        names = dict.fromkeys([*split.subsets, *subsets])
        parts = [f"{name} {subsets[name]:,} (published: {split.subsets.get(name, 0):,})" for name in names]
        warnings.append(f"{task.title}: the sub-datasets differ from the published ones: {', '.join(parts)}")
    low, high = task.scale
    outside = sum(not low <= score <= high for score in scores)
    if outside:
        warnings.append(f"{task.title}: {outside:,} scores lie outside the scale {low:g} to {high:g}")
    return tuple(warnings)
