"""What every study is: a recipe's rows, tasks and seeds, how one of them is measured, and the page of the results."""

from __future__ import annotations

import importlib
import re
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

import torch
from sentence_transformers.util import get_device_name
from typing_extensions import Self

from st_plugins.core.files import library_versions

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


STUDIES = Path(__file__).parents[1] / "studies"
Record = dict[str, Any]
Results = dict[tuple[str, str], list[Record]]
"""Records of all seeds by task and row; the task is empty in a study without tasks."""
Page = tuple[list[str], dict[str, str]]
"""The lines of a table's page, and the files beside it by name."""


@dataclass(frozen=True)
class Place:
    """Where a study finds what it needs, and how it is run."""

    models: Path
    data: Path
    cache: Path | None = None  # for what several rows share, outside the repository
    device: str | None = None  # None for the best there is
    dev_only: bool = False
    dry_run: bool = False

    @property
    def on(self) -> str:
        """The device that is computed on."""
        return self.device or str(get_device_name())

    @property
    def machine(self) -> str:
        """What a table calls it."""
        return str(torch.cuda.get_device_name()) if self.on.startswith("cuda") else "CPU"

    @property
    def clock(self) -> Callable[[], float]:
        """On a CPU the clock of the processor, which does not count what else runs beside."""
        return time.perf_counter if self.on.startswith("cuda") else time.process_time


@dataclass(frozen=True)
class Row:
    """One row of a table, which is what a recipe's ``[[row]]`` says."""

    name: str
    # Instead of the study's; by keyword, so that fields of subclasses need no default.
    seeds: tuple[int, ...] = field(default=(), kw_only=True)


AnyRow = TypeVar("AnyRow", bound=Row)


@dataclass(kw_only=True)
class Study(ABC, Generic[AnyRow]):
    """A recipe: its keys are the fields, its ``[[row]]`` tables the rows, with what ``[defaults]`` says of all."""

    row_type: ClassVar[type[Row]] = Row
    # What of the command line makes sense for it.
    options: ClassVar[tuple[str, ...]] = ("dev_only", "dry_run")
    # Whether rows of one task and seed share so much that they have to run in one process.
    keeps_rows_together: ClassVar[bool] = False
    takes_bf16: ClassVar[bool] = False

    title: str
    rows: list[AnyRow]
    seeds: tuple[int, ...] = (0, 1, 2)  # one measurement of each row for each
    notes: str = ""  # text below the table
    bf16: bool = False  # whether passes through encoders are in bfloat16; weights stay float32
    path: Path = field(default=Path(), init=False)
    place: Place = field(default=Place(Path(), Path()), init=False, repr=False)

    @classmethod
    def from_tables(cls, raw: dict[str, Any]) -> Self:
        """Make dataclasses of a recipe's tables."""
        defaults = raw.pop("defaults", {})
        rows: list[Any] = [cls.row_type(**{**defaults, **row}) for row in raw.pop("row")]
        return cls(rows=rows, **raw)

    def check(self) -> None:
        """Refuse values that cannot be meant."""
        names = [row.name for row in self.rows]
        if len(set(names)) != len(names):
            raise ValueError("two rows have one name")
        if self.bf16 and not self.takes_bf16:
            raise ValueError("bf16=true: this study computes in float32; leave it out")

    def passes(self) -> torch.autocast:
        """Compute in the recipe's precision within a ``with`` block."""
        return torch.autocast(torch.device(self.place.on).type, torch.bfloat16, enabled=self.bf16)

    def find(self, name: str) -> AnyRow:
        """Return a row by name."""
        return next(row for row in self.rows if row.name == name)

    @property
    def task_names(self) -> Sequence[str]:
        """The tasks; a study without any has one without a name."""
        return ("",)

    def tasks_of(self, row: AnyRow) -> Sequence[str]:
        """Return the tasks that a row is measured on."""
        return self.task_names

    def seeds_of(self, row: AnyRow) -> Sequence[int]:
        """Return the seeds that a row is measured with."""
        return row.seeds or self.seeds

    def file_name(self, row: str, task: str, seed: int) -> str:
        """Return the name of a record's file, without its ending."""
        return f"{slug(row, task)}-seed{seed}"

    def prepare(self) -> str:
        """Make what several processes would otherwise all make, and say where it is."""
        return ""

    @abstractmethod
    def measure(self, row: AnyRow, task: str, seed: int) -> Record:
        """Train or fit what the row says, and score it."""

    def record(self, row: AnyRow, task: str, seed: int) -> Record:
        """Measure, and add whose numbers they are, when, where and with which versions they were made."""
        begin = time.perf_counter()
        found = {"row": asdict(row), "seed": seed, **({"task": task} if task else {}), **self.measure(row, task, seed)}
        found["seconds"] = time.perf_counter() - begin
        return {**found, "device": self.place.machine, "versions": library_versions()}

    def summary(self, record: Record) -> str:
        """Return what the terminal shows of a new record."""
        return f"{record['seconds']:.0f} s"

    @abstractmethod
    def page(self, results: Results, folder: Path) -> Page:
        """Return the page of what has been measured; the results of other recipes lie beside ``folder``."""


def slug(row: str, task: str) -> str:
    """Return how a row's files begin."""
    # The point stays: rows may differ in a number alone.
    return f"{task}-{re.sub(r'[^a-z0-9.]+', '-', row.lower()).strip('-')}".removeprefix("-")


def check_choice(where: str, key: str, value: object, allowed: Iterable[object]) -> None:
    """Refuse a value that is none of those allowed."""
    allowed = list(allowed)
    if value not in allowed:
        raise ValueError(f"{where} {key}={value!r} must be one of {', '.join(map(str, allowed))}")


def by_row(results: Results) -> dict[str, list[Record]]:
    """Return the records by row, in a study without tasks."""
    return {row: records for (_, row), records in results.items()}


def versions_of(record: Record) -> str:
    """Return the versions that a record was made with, and the kind of machine."""
    return ", ".join(f"{key} {value}" for key, value in record["versions"].items()) + "."


def stamp(record: Record, what: str = "Trained") -> str:
    """Return the line of device and versions."""
    return f"{what} on: {record['device']}. {versions_of(record)}"


def read_study(path: Path) -> Any:
    """Read and check a recipe, as the study that it names; every error names the file."""
    if not path.is_file():
        raise FileNotFoundError(f"recipe {str(path)!r} does not exist")
    try:
        # Dataclasses refuse keys that they do not have, with a TypeError; a missing one is a TypeError or KeyError.
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
        name = raw.pop("study")
        check_choice("recipe:", "study", name, sorted(file.parent.name for file in STUDIES.glob("*/study.py")))
        # Imported when wanted: a study of pairs need not wait for what a study of texts imports.
        study: Study[Any] = importlib.import_module(f"evaluation.studies.{name}.study").Study.from_tables(raw)
        study.check()
    except KeyError as error:
        raise ValueError(f"{path}: there is no {error}") from None
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from None
    study.path = path
    return study
