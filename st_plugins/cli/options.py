"""Options that several commands of ``st-plugins`` share, and groups of options as one argument of a command."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer


def _device(device: str | None) -> str | None:
    """Look for a device before anything is read or loaded."""
    # No import of torch where no device was asked for.
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


FirstOption = Annotated[str, typer.Option(help="Column of the first text.")]
SecondOption = Annotated[str, typer.Option(help="Column of the second text.")]
ModelArgument = Annotated[str, typer.Argument(help="A model folder or a Hugging Face model id.")]
OutputFolder = Annotated[Path, typer.Option(help="Folder for the new model.")]
OverwriteOption = Annotated[bool, typer.Option("--overwrite", help="Replace the output of an earlier run.")]
ColumnOption = Annotated[
    str | None, typer.Option(help="Column of the texts, when --texts is a table.", show_default=False)
]
DeviceOption = Annotated[
    str | None, typer.Option(help="cpu, cuda, mps, ... (default: the best there is).", callback=_device)
]
PromptOption = Annotated[
    str | None,
    typer.Option(help="Text to put before each text (default: the model's own prompts).", callback=encodable),
]
PromptNameOption = Annotated[str | None, typer.Option(help="The same by its name among the model's prompts.")]
RouteOption = Annotated[
    str | None, typer.Option(help="'query' or 'document': encode the texts as such (default: by the column's name).")
]
# Two special tokens, and one of the text.
LengthOption = Annotated[int | None, typer.Option(help="Cut texts to this many tokens.", min=3)]
SeedOption = Annotated[int, typer.Option(help="Seed of resamples and random vectors.", min=0, max=2**32 - 1)]


def grouped(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the fields of its dataclasses as options; it is called with the dataclasses."""
    # typer knows no groups: it sees one flat command, whose defaults are those of the dataclasses.
    hints = get_type_hints(command, include_extras=True)
    groups: dict[str, Any] = {name: hint for name, hint in hints.items() if dataclasses.is_dataclass(hint)}
    parameters = []
    for one in inspect.signature(command).parameters.values():
        group = groups.get(one.name)
        if group is None:
            parameters.append(one.replace(annotation=hints[one.name], kind=one.KEYWORD_ONLY))
        else:
            types = get_type_hints(group, include_extras=True)
            parameters += [
                inspect.Parameter(field.name, one.KEYWORD_ONLY, default=field.default, annotation=types[field.name])
                for field in dataclasses.fields(group)
            ]

    @functools.wraps(command)
    def called(**values: Any) -> None:
        for name, group in groups.items():
            values[name] = group(**{field.name: values.pop(field.name) for field in dataclasses.fields(group)})
        command(**values)

    # typer reads both.
    called.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    called.__annotations__ = {one.name: one.annotation for one in parameters}
    return called


def refuse_unused(context: typer.Context, why: str, *names: str) -> None:
    """Refuse options that somebody gave and that would have no effect; no command drops one without a word."""
    given = []
    for parameter in context.command.params:
        # What comes from the environment or a default is no wish.
        source = context.get_parameter_source(parameter.name or "") if parameter.name in names else None
        if source is not None and source.name == "COMMANDLINE":
            given.append("/".join([*parameter.opts, *parameter.secondary_opts]))
    if given:
        have, them = ("has", "it") if len(given) == 1 else ("have", "them")
        raise ValueError(f"{', '.join(given)} {have} no effect {why}; leave {them} out")
