"""``st-plugins``: the commands put together, and what they have in common: exit codes and one-line errors."""

from __future__ import annotations

import logging
import os
import re
import sys
from collections.abc import Sequence
from typing import Annotated, Any

import typer
from rich.text import Text

from st_plugins import __version__
from st_plugins.cli.adapt import adapt
from st_plugins.cli.compare import compare
from st_plugins.cli.compress import compress
from st_plugins.cli.demo.command import demo
from st_plugins.cli.encode import encode
from st_plugins.cli.evaluate import evaluate
from st_plugins.cli.explain import explain
from st_plugins.cli.export import export
from st_plugins.cli.geometry import geometry
from st_plugins.cli.match import match
from st_plugins.cli.plan import plan
from st_plugins.cli.train_consert import consert
from st_plugins.cli.train_re2 import re2
from st_plugins.cli.unexpected import report
from st_plugins.cli.verify import verify
from st_plugins.cli.whiten import whiten
from st_plugins.report.terminal import say, shown, survive_encoding, terminal

app = typer.Typer(
    name="st-plugins",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Tell the truth about a sentence-embedding model, and improve it.",
)
for command in (evaluate, compare, adapt, compress, whiten, encode, geometry, explain):
    app.command()(command)
train = typer.Typer(no_args_is_help=True, rich_markup_mode="rich", help="Adapt a model to your texts.")
app.add_typer(train, name="train")
for command in (consert, re2):
    train.command()(command)
for command in (plan, match, export, verify, demo):
    app.command()(command)

# Asked for after the command has failed, when its context is gone.
_state = {"debug": False}
_EXPECTED = (ValueError, TypeError, OSError, ImportError)  # with a sentence that names the remedy
_UsageError: Any = typer.BadParameter.__base__  # click's; typer may bring a click of its own


def _version(asked: bool) -> None:
    if asked:
        say(f"st-plugins {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the whole traceback of an error.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    _state["debug"] = debug


def main() -> None:
    """Run the command line: a clear line on standard error and exit code 1 on failure, 2 on wrong usage."""
    # Without it tokenizers warn about every process that is started after the first text.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    survive_encoding((sys.stdout, sys.stderr))
    # Warnings of the library are lines on standard error, so that standard output stays the result.
    handler = logging.StreamHandler()
    handler.setFormatter(_Formatter("%(levelname)s: %(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    _state["debug"] = False
    try:
        sys.exit(app(standalone_mode=False))  # an int after --help, --version and Ctrl-C (130), else None
    except _UsageError as problem:
        _exit_for_usage(problem)
    except typer.Abort:
        _fail("aborted", 1)
    except Exception as problem:
        if _state["debug"]:
            raise
        if isinstance(problem, _EXPECTED):
            _fail(_one_line(problem), 1)
        first, *others = report(problem, sys.argv[1:])
        _fail(first, 1, others)


class _Formatter(logging.Formatter):
    """Log lines quote file names and texts, and name arguments, as errors do."""

    def format(self, record: logging.LogRecord) -> str:
        return shown(_with_options(super().format(record), sys.argv[1:]), lines=True)


def _exit_for_usage(problem: Any) -> None:
    context = problem.ctx
    if (not problem.format_message() and context is not None) or type(problem).__name__ == "NoArgsIsHelpError":
        terminal().print(context.get_help(), soft_wrap=True)
        sys.exit(problem.exit_code)
    where = "st-plugins" if context is None else context.command_path
    _fail(f"{problem.format_message().rstrip('.')} ({where} --help says what there is)", problem.exit_code)


def _fail(text: str, code: int, more: Sequence[str] = ()) -> None:
    say(Text.assemble(("error:", "red"), " ", shown(text)), stderr=True)
    for line in more:
        say(line, stderr=True)
    sys.exit(code)


def _one_line(problem: Exception) -> str:
    return _with_options(" ".join(str(problem).split()) or type(problem).__name__, sys.argv[1:])


def _with_options(text: str, words: Sequence[str]) -> str:
    """Let a message of the library, which names its arguments, name the options of the command that ran.

    An option is its argument with dashes: ``batch_size=0`` becomes ``--batch-size=0``. Names that are words of
    English too count only before an equals sign, or where the message says what they must be.
    """
    # From the words themselves: where parsing failed there is no context that knows the command.
    command: Any = typer.main.get_command(app)
    for word in words:
        command = getattr(command, "commands", {}).get(word, command)
    for parameter in command.params:
        option = parameter.opts[0]
        if option == "--" + parameter.name.replace("_", "-"):
            end = r"\b" if "_" in parameter.name else r"(?==| must be\b)"
            text = re.sub(rf"(?<![\w.-]){parameter.name}{end}", option, text)
    return text
