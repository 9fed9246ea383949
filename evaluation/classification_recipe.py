"""Recipes of the classification study: what is trained, on what, and what the paper reports for it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from evaluation.toml_file import recipe_tables
from st_plugins.core.reading.tables import read_table

__all__ = ["Run", "Study", "Text", "read_labelled", "read_study"]

Text = str | list[str]


@dataclass(frozen=True)
class Run:
    """One row of the table.

    Args:
        name: Row name, also the file name of its results.
        pooling: ``"mean"``, ``"cls"`` or ``"span"``.
        weight: λ, what sharp span weights are worth.
        seeds: Seeds instead of the study's.
        paper: What the paper reports for the row: ``{encoder = "...", value = 59.1}``.
    """

    name: str
    pooling: str
    weight: float = 0.0
    seeds: tuple[int, ...] = ()
    paper: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Study:
    """A recipe.

    Args:
        title: Heading of the table.
        model: Folder below ``--models``.
        train: Labelled texts, a file below ``--data``.
        dev: Those that choose the epoch.
        test: Those that are reported.
        columns: Names of the text columns; two make pairs, encoded as one text.
        labels: The classes, as the files write them.
        runs: The rows.
        max_length: Texts are cut to this many tokens.
        strip_full_stop: Whether a full stop at the end of a text is removed, as the published code does.
        epochs: Passes over the training texts.
        batch_size: Texts a step.
        learning_rate: Peak of the learning rate.
        warmup: Share of the steps in which it rises; it falls linearly afterwards.
        adam: β₁, β₂ and ε of AdamW.
        weight_decay: Of AdamW.
        fp16: Whether to train in mixed precision, on a GPU.
        seeds: One training for each.
        explained: Number of test texts whose explanations are measured by deletion.
        pictures: Number of right and of wrong answers that are drawn.
        pictured: Name of the run they are of, with its first seed; empty for the first run with spans.
        notes: Text below the table.
    """

    title: str
    model: str
    train: str
    dev: str
    test: str
    columns: list[str]
    labels: list[str]
    runs: list[Run]
    max_length: int = 64
    strip_full_stop: bool = False
    epochs: int = 3
    batch_size: int = 32
    learning_rate: float = 1e-4
    warmup: float = 0.1
    adam: tuple[float, float, float] = (0.9, 0.999, 1e-8)
    weight_decay: float = 0.0
    fp16: bool = False
    seeds: tuple[int, ...] = (0, 1, 2)
    explained: int = 100
    pictures: int = 5
    pictured: str = ""
    notes: str = ""


def read_study(path: Path) -> Study:
    """Read and check a recipe.

    Args:
        path: The TOML file.

    Returns:
        The study.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is not TOML, a key is missing or unknown, or a value is not allowed.
    """
    with recipe_tables(path) as raw:
        runs = [Run(**row) for row in raw.pop("run")]
        study = Study(runs=runs, **raw)
    if len(study.columns) not in (1, 2):
        raise ValueError(f"{path}: columns={study.columns} must name one column, or two for pairs")
    for run in runs:
        if run.pooling not in ("mean", "cls", "span"):
            raise ValueError(f"{path}: run {run.name!r}: pooling={run.pooling!r} must be mean, cls or span")
        if run.weight and run.pooling != "span":
            raise ValueError(f"{path}: run {run.name!r}: weight={run.weight} needs pooling='span'")
    names = [run.name for run in runs]
    if len(set(names)) != len(names):
        raise ValueError(f"{path}: two runs have one name")
    if study.pictured and not any(run.name == study.pictured and run.pooling == "span" for run in runs):
        raise ValueError(f"{path}: pictured={study.pictured!r} must be a run with pooling='span'")
    return study


def read_labelled(study: Study, path: Path) -> tuple[list[Text], list[int]]:
    """Read texts (or pairs) and the numbers of their classes.

    Args:
        study: The study.
        path: A table with the columns of the study and ``label``.

    Returns:
        Texts and classes.

    Raises:
        ValueError: A label is not among the study's.
    """
    table = read_table(path)
    columns = [table.texts(name) for name in study.columns]
    if study.strip_full_stop:
        columns = [[text.removesuffix(".").rstrip() or text for text in column] for column in columns]
    texts: list[Text] = [row[0] if len(row) == 1 else list(row) for row in zip(*columns, strict=True)]
    found = table.texts("label")
    unknown = sorted(set(found) - set(study.labels))
    if unknown:
        raise ValueError(f"{path}: labels {unknown} are not among labels={study.labels} of the recipe")
    return texts, [study.labels.index(label) for label in found]
