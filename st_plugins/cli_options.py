"""Options that several commands of ``st-plugins`` share."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

__all__ = [
    "BatchOption",
    "ColumnOption",
    "DataOption",
    "DeviceOption",
    "Dtype",
    "DtypeOption",
    "LengthOption",
    "ModelArgument",
    "PairsOption",
    "ScoreOption",
    "SeedOption",
    "SplitOption",
    "TasksOption",
    "Text1Option",
    "Text2Option",
]


class Dtype(str, Enum):
    """Precision of the model's weights."""

    float32 = "float32"
    float16 = "float16"
    bfloat16 = "bfloat16"


ModelArgument = Annotated[str, typer.Argument(help="A model folder or a Hugging Face model id.")]
DataOption = Annotated[
    Path | None, typer.Option(help="Folder with the STS data.", envvar="ST_PLUGINS_DATA", show_default=False)
]
TasksOption = Annotated[str, typer.Option(help="'en', 'zh', or names such as 'sts12,stsb'.")]
PairsOption = Annotated[
    Path | None, typer.Option(help="Your own scored pairs (TSV, CSV or JSONL) instead of tasks.", show_default=False)
]
Text1Option = Annotated[str, typer.Option(help="Column of the first text in --pairs.")]
Text2Option = Annotated[str, typer.Option(help="Column of the second text in --pairs.")]
ScoreOption = Annotated[str, typer.Option(help="Column of the gold score in --pairs.")]
ColumnOption = Annotated[
    str | None, typer.Option(help="Column of the texts, when --texts is a table.", show_default=False)
]
SplitOption = Annotated[str, typer.Option(help="Split of the tasks.")]
DtypeOption = Annotated[Dtype, typer.Option(help="Precision of the weights.")]
DeviceOption = Annotated[str | None, typer.Option(help="cpu, cuda, mps, ... (default: the best there is).")]
BatchOption = Annotated[int, typer.Option(help="Sentences per batch.", min=1)]
LengthOption = Annotated[int | None, typer.Option(help="Cut texts to this many tokens.", min=3)]
SeedOption = Annotated[int, typer.Option(help="Seed of resamples and random vectors.", min=0)]
