"""The shell commands of README and docs: they exist, with every option, argument and file they name."""

from __future__ import annotations

import enum
import re
import shlex
from typing import Any, get_args, get_type_hints

import pytest
import typer
from markdown_pages import PAGES, ROOT, Block, blocks

from st_plugins.cli import app

PROGRAM: Any = typer.main.get_command(app.app)
LANGUAGES = ("bash", "console", "sh", "shell")
SHELL = [block for page, text in PAGES.items() for language in LANGUAGES for block in blocks(page, text, language)]
EXTRAS = set(
    re.findall(
        r"^([\w-]+) = \[",
        (ROOT / "pyproject.toml").read_text("utf-8").partition("optional-dependencies]")[2].partition("\n[")[0],
        re.MULTILINE,
    )
)
TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))


def calls(body: str) -> list[list[str]]:
    """Return the words of each command of a block; lines that end with a backslash go on."""
    lines = re.sub(r"\\\n", " ", body).split("\n")
    found = [shlex.split(line.removeprefix("$ "), comments=True) for line in lines]
    return [words for words in found if words]


def problem(words: list[str]) -> str | None:
    """Return what is wrong with a command, as far as it can be told without its files."""
    while re.fullmatch(r"[A-Z_]+=.*", words[0]):
        words = words[1:]
    if words[0] == "make":
        wrong = [word for word in words[1:] if "=" not in word and word not in TARGETS]
        return f"no target {wrong}" if wrong else None
    if "pip" in words[:3] and "install" in words:
        named = {extra for word in words for extra in re.sub(r".*\[(.*)\].*|.*", r"\1", word).split(",") if extra}
        return f"no extra {named - EXTRAS}" if named - EXTRAS else None
    missing = [word for word in words if re.match(r"(?:evaluation|examples|tests|docs)/\S+\.\w+$", word)]
    missing = [word for word in missing if not (ROOT / word).exists()]
    if missing:
        return f"no file {missing}"
    return of_ours(words[1:]) if words[0] == "st-plugins" else None


def of_ours(words: list[str]) -> str | None:
    """Return what is wrong with the words after ``st-plugins``."""
    command, context = PROGRAM, typer.Context(PROGRAM, info_name="st-plugins")
    words = [word for word in words if word != "--debug"]
    while hasattr(command, "commands") and words and words[0] in command.commands:
        command, words = command.commands[words[0]], words[1:]
        context = typer.Context(command, parent=context, info_name=command.name)
    if hasattr(command, "commands"):
        return None if words[:1] in (["--help"], ["--version"]) else f"no command {words[:1]}"
    if "--help" in words:
        return None
    try:
        given, rest, _ = command.make_parser(context).parse_args(args=list(words))
    except Exception as error:  # of click, or of the one that typer brings
        return str(error) or type(error).__name__
    absent = [one.opts[0] for one in command.params if one.required and given.get(one.name) in (None, ())]
    for name, hint in get_type_hints(command.callback).items():
        choices = [kind for kind in (hint, *get_args(hint)) if isinstance(kind, enum.EnumMeta)]
        if choices and isinstance(given.get(name), str) and given[name] not in {one.value for one in choices[0]}:
            return f"{name} cannot be {given[name]}"
    if rest or absent:
        return f"too much: {rest}" if rest else f"missing: {absent}"
    return None


@pytest.mark.parametrize("block", SHELL, ids=lambda block: f"{block}-{block.language}")
def test_the_commands_of_a_block_exist(block: Block) -> None:
    wrong = {" ".join(words): problem(words) for words in calls(block.body)}
    assert not {command: what for command, what in wrong.items() if what is not None}


@pytest.mark.parametrize(
    "line",
    [
        "st-plugins evaluat ./m",
        "st-plugins evaluate ./m --nonsense 1",
        "st-plugins compress ./m --texts t.txt",
        "st-plugins geometry ./m too --texts t.txt much",
        "st-plugins train consert ./m --texts t.txt --output o --epochs",
        "st-plugins whiten ./m --texts t.txt --output ./o --dtype float7",
        "make nonsense",
        'pip install "st-plugins[nonsense]"',
        "python -m evaluation run evaluation/studies/nonsense/recipes/a.toml --models M",
    ],
)
def test_a_wrong_command_is_seen(line: str) -> None:
    assert problem(calls(line)[0])


def test_a_right_command_is_not() -> None:
    line = "HF_HUB_OFFLINE=1 st-plugins compress ./m \\\n  --texts 'c/*.parquet' --bytes 96 --output ./o  # a comment"
    assert problem(calls(line)[0]) is None
