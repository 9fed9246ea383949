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
    "FirstOption",
    "LengthOption",
    "ModelArgument",
    "PairsOption",
    "PromptNameOption",
    "PromptOption",
    "RouteOption",
    "RoutesOption",
    "ScoreOption",
    "SecondOption",
    "SeedOption",
    "SimilarityOption",
    "SplitOption",
    "TasksOption",
    "encodable",
    "refuse_unused",
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
FirstOption = Annotated[str, typer.Option(help="Column of the first text in --pairs.")]
SecondOption = Annotated[str, typer.Option(help="Column of the second text in --pairs.")]
ScoreOption = Annotated[str, typer.Option(help="Column of the gold score in --pairs.")]
ColumnOption = Annotated[
    str | None, typer.Option(help="Column of the texts, when --texts is a table.", show_default=False)
]
SplitOption = Annotated[str, typer.Option(help="Split of the tasks.")]
DtypeOption = Annotated[Dtype | None, typer.Option(help="Precision of the weights (default: the model's own).")]


def _device(device: str | None) -> str | None:
    """Look for a device before anything is read or loaded."""
    if device is not None:
        from st_plugins.core.devices import check_present

        check_present(device)
    return device


def encodable(parameter: typer.CallbackParam, text: str | None) -> str | None:
    """Refuse a text that no tokenizer takes before anything is read or loaded."""
    if text is not None:
        from st_plugins.core.texts import text_fault

        if fault := text_fault(text):
            raise ValueError(f"{parameter.opts[0]} {fault}")
    return text


DeviceOption = Annotated[
    str | None, typer.Option(help="cpu, cuda, mps, ... (default: the best there is).", callback=_device)
]
BatchOption = Annotated[int, typer.Option(help="Sentences per batch.", min=1)]
SimilarityOption = Annotated[
    str | None, typer.Option(help="cosine, dot, euclidean or manhattan (default: the model's own).")
]
PromptOption = Annotated[
    str | None,
    typer.Option(help="Text to put before each text (default: the model's own prompts).", callback=encodable),
]
PromptNameOption = Annotated[str | None, typer.Option(help="The same by its name among the model's prompts.")]
RoutesOption = Annotated[
    str | None,
    typer.Option(
        help="'query,document': encode the first texts as queries and the second as documents; 'default': neither "
        "(default: by the names of the columns)."
    ),
]
RouteOption = Annotated[
    str | None, typer.Option(help="'query' or 'document': encode the texts as such (default: by the column's name).")
]
LengthOption = Annotated[int | None, typer.Option(help="Cut texts to this many tokens.", min=3)]
SeedOption = Annotated[int, typer.Option(help="Seed of resamples and random vectors.", min=0, max=2**32 - 1)]


def refuse_unused(context: typer.Context, why: str, *names: str) -> None:
    """Refuse options that somebody gave and that would have no effect; no command drops one without a word.

    Args:
        context: The running command's.
        why: What makes them useless, such as ``"beside --pairs"``.
        *names: The parameters; those that the command does not have are passed over.

    Raises:
        ValueError: One of them stands on the command line. What comes from the environment or a default is no wish.
    """
    given = []
    for parameter in context.command.params:
        source = context.get_parameter_source(parameter.name or "") if parameter.name in names else None
        if source is not None and source.name == "COMMANDLINE":
            given.append("/".join([*parameter.opts, *parameter.secondary_opts]))
    if given:
        have, them = ("has", "it") if len(given) == 1 else ("have", "them")
        raise ValueError(f"{', '.join(given)} {have} no effect {why}; leave {them} out")
