"""Options of the commands whose texts may be too many for memory: where they come from, and what encodes them."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from st_plugins.cli.options import refuse_unused

if TYPE_CHECKING:
    from st_plugins.scale.engines import Engine
    from st_plugins.scale.texts import Texts

TextsOption = Annotated[
    Path,
    typer.Option(
        help="Unlabelled texts: a file (one a line, JSON lines, Parquet or a table), a folder of such files, or a "
        "pattern in quotes ('corpus/*.parquet')."
    ),
]


AddressOption = Annotated[
    str | None, typer.Option(help="Of a running Ray cluster (default: a new one here).", show_default=False)
]


class EngineName(str, Enum):
    """What encodes."""

    local = "local"
    ray = "ray"


class OnError(str, Enum):
    """What a file that cannot be read does."""

    stop = "stop"
    skip = "skip"


@dataclass(frozen=True)
class Running:
    """Where the encoding runs, and what happens to files that cannot be read."""

    engine: Annotated[EngineName, typer.Option(help="This machine, or a Ray cluster.")] = EngineName.local
    address: AddressOption = None
    workers: Annotated[
        int | None,
        typer.Option(help="Processes (default: one a GPU, or for every four cores; with Ray one a core).", min=1),
    ] = None
    on_error: Annotated[OnError, typer.Option(help="Stop at a file that cannot be read, or skip it.")] = OnError.stop

    def refuse_unused(self, context: typer.Context) -> None:
        """Refuse options of Ray where it does not run, and Ray where it is not installed."""
        if self.engine is EngineName.local:
            refuse_unused(context, "with --engine local", "address")
        else:
            from st_plugins.scale.engines import ray_library

            ray_library()

    def made(self) -> Engine:
        """Return the engine."""
        from st_plugins.scale.engines import Local, Ray

        return Local(self.workers) if self.engine is EngineName.local else Ray(self.address, self.workers)

    def texts(self, path: Path, column: str | None, id_column: str | None = None, block_size: int = 16384) -> Texts:
        """Find the files, and read them once."""
        from st_plugins.scale.texts import Texts

        given = Texts(path, column, id_column=id_column, block_size=block_size, on_error=self.on_error.value)
        given.scan()
        return given


def left_out(texts: Texts) -> list[str]:
    """Return what to say of files that could not be read."""
    missing = texts.scan().missing
    if not missing:
        return []
    return [f"{len(missing)} of {len(texts.files)} files could not be read and were left out: {', '.join(missing)}"]
