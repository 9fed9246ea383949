"""``st-plugins demo``: argument parsing and printing only; each part is a public function."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from st_plugins.cli.options import SeedOption
from st_plugins.report.terminal import say, terminal

__all__ = ["demo"]

_STEPS = (
    "Evaluate and whiten: an encoder beside random token vectors",
    "Explain: which words an embedding is made of",
    "Teach: a bi-encoder learns from a cross-encoder (VIRT)",
    "Match: pairs judged without a transformer (RE2)",
)


def demo(
    output: Annotated[Path, typer.Option(help="Folder for the reports.")] = Path("st-plugins-demo"),
    seed: SeedOption = 0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the reports of an earlier demo.")] = False,
) -> None:
    """Evaluate, whiten, explain, teach and match in a miniature world, offline, in about four minutes."""
    from st_plugins.cli.console import pipelines_table
    from st_plugins.demo import BANNER, conclusion, run_demo
    from st_plugins.demo_explain import page_target, run_explanation_demo
    from st_plugins.demo_re2 import run_re2_demo
    from st_plugins.demo_virt import run_virt_demo

    console = terminal()
    page_target(output, name="--output", overwrite=overwrite)
    say(BANNER, "yellow")
    _step(1, "each row is one way to make embeddings; does it stand above what shared words alone would have?")
    results = run_demo(output, seed=seed, overwrite=overwrite)
    console.print(pipelines_table("Miniature world: Spearman x 100, convention 'all', 95 % intervals", results))
    say(conclusion(results))
    _step(2, "an opinion, coloured by what its embedding is read from; are the words that decide it the dark ones?")
    found = run_explanation_demo(output, seed=seed, overwrite=overwrite)
    console.print(found.example.to_terminal())
    say(found.summary())
    _step(3, "a fast model learns from a slow one; how much of the slow one's accuracy does it keep?")
    learned = run_virt_demo(seed=seed)
    say(learned.summary())
    _step(4, "the same pairs judged without a transformer, and what the texts find in each other")
    matched = run_re2_demo(seed=seed)
    console.print(matched.example.to_terminal())
    say(matched.summary(beside=learned))
    say("")
    say(f"reports: {output}/*/report.html, {output}/explanation.html")


def _step(number: int, look: str) -> None:
    say("")
    say(f"{number}/{len(_STEPS)} {_STEPS[number - 1]}", "bold")
    say(f"What to look at: {look}", "dim")
