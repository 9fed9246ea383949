"""What to do after the demo, as commands that run letter by letter where it was started."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Command:
    """A command of the terminal, and what it is for."""

    purpose: str
    words: tuple[str, ...]

    @property
    def text(self) -> str:
        """The command as one types it."""
        return shlex.join(self.words)


def next_steps(model: str, folder: Path, query: str, size: int) -> list[Command]:
    """Return commands on the model and the texts that the demo leaves; ``size`` is that of small vectors in bytes."""
    program, texts, search = program_name(), str(folder / "texts.txt"), str(folder / "search")
    return [
        Command("how good a search is", (program, "evaluate", model, "--retrieval", search, "--output", "my-report")),
        Command(
            "smaller vectors",
            (program, "compress", model, "--texts", texts, "--bytes", str(size), "--output", "my-small"),
        ),
        Command("why a text is found", (program, "explain", model, query, "--texts", texts, "--html", "my-hits.html")),
        Command(
            "a better model for the texts, or none",
            (program, "adapt", model, "--texts", texts, "--budget", "600", "--output", "my-model"),
        ),
        Command("what that gains", (program, "compare", model, "my-model", "--retrieval", search)),
    ]


def program_name() -> str:
    """Return how this program is called here: by its name where the shell finds it, else by its path."""
    found = shutil.which("st-plugins")
    started = Path(sys.argv[0])
    if started.name != "st-plugins" or (found is not None and os.path.realpath(found) == os.path.realpath(started)):
        return "st-plugins"
    return os.path.relpath(started)
