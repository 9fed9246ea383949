"""What pages say that stands elsewhere: the commands and their options, and the changes of each version."""

from __future__ import annotations

import enum
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args, get_type_hints

import typer

from st_plugins.cli.app import app

ROOT = Path(__file__).parents[2]


def commands() -> Iterator[tuple[str, Any]]:
    """Yield every command with its whole name; the first is the program itself."""
    program: Any = typer.main.get_command(app)
    yield "st-plugins", program
    for name, command in program.commands.items():
        if not hasattr(command, "commands"):
            yield f"st-plugins {name}", command
        for below, inner in getattr(command, "commands", {}).items():
            yield f"st-plugins {name} {below}", inner


def kind(command: Any, name: str) -> str:
    """Return what a parameter takes: its choices, or the name of its type."""
    hint = get_type_hints(command.callback).get(name, str)
    types = [one for one in (hint, *get_args(hint)) if inspect.isclass(one) and one is not type(None)]
    taken = types[-1] if types else str
    if issubclass(taken, enum.Enum):
        return ", ".join(f"`{one.value}`" for one in taken)
    return {"str": "text", "int": "number", "float": "number", "Path": "path", "bool": ""}[taken.__name__]


def usage(command: Any) -> str:
    """Return a command's help as Markdown: its sentences, and its examples as a block to copy."""
    paragraphs = re.sub(r"\[/?[a-z ]+\]", "", (command.help or "").replace("\b", "")).split("\n\n")
    calls = [one.strip() for one in paragraphs if one.strip().startswith("st-plugins ")]
    said = [" ".join(one.split()) for one in paragraphs if one.strip() not in ("Examples", *calls)]
    lines = ["\n\n".join(said)]
    if calls:
        lines.append("```bash\n" + "\n".join(calls) + "\n```")
    return "\n\n".join(lines)


def options(command: Any) -> str:
    """Return a command's parameters as a table."""
    rows = []
    for one in command.params:
        if one.name == "help" or getattr(one, "hidden", False):
            continue
        names = ", ".join(f"`{name}`" for name in (*one.opts, *one.secondary_opts))
        default = one.default.value if isinstance(one.default, enum.Enum) else one.default
        shown = one.default not in (None, False, (), []) and not callable(one.default)
        last = "required" if one.required else (f"`{default}`" if shown else "")
        text = " ".join((one.help or "").split()).replace("|", r"\|")
        rows.append(f"| {names} | {kind(command, one.name)} | {text} | {last} |")
    return (
        "\n".join(["| option | takes | what it does | default |", "| --- | --- | --- | --- |", *rows]) if rows else ""
    )


def command_line() -> str:
    """Return every command as a section."""
    return "\n\n".join(f"## `{name}`\n\n{usage(command)}\n\n{options(command)}" for name, command in commands())


def changes() -> str:
    """Return the list of changes without its title, its links as from this folder."""
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8").partition("\n")[2]
    return re.sub(r"\]\((?!https?://|#)([^)]+)\)", r"](../\1)", text).replace("](../docs/", "](")


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Fill in what a page leaves to be filled in."""
    for mark, made in (("<!-- commands -->", command_line), ("<!-- changes -->", changes)):
        if mark in markdown:
            markdown = markdown.replace(mark, made())
    return markdown
