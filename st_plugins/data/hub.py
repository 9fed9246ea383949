"""Read a task from the Hugging Face hub through ``datasets``, which is imported only here and only when needed."""

from __future__ import annotations

from st_plugins.core.reading.tables import to_score
from st_plugins.data.tasks import Task

__all__ = ["read_hub"]


def read_hub(task: Task, split: str) -> tuple[list[str], list[str], list[float]]:
    """Download (or take from the cache) one split of a task."""
    hub = task.hub
    if split not in hub.splits:
        raise ValueError(f"split={split!r}: hub dataset {hub.dataset!r} has the splits {', '.join(hub.splits)}")
    try:
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
