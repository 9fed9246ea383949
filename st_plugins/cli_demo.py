"""``st-plugins demo``: argument parsing and printing only; each part is a public function."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from st_plugins.cli_options import SeedOption
from st_plugins.terminal import say, terminal

__all__ = ["demo"]


def demo(
    output: Annotated[Path, typer.Option(help="Folder for the reports.")] = Path("st-plugins-demo"),
    seed: SeedOption = 0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the reports of an earlier demo.")] = False,
) -> None:
    """Evaluate, whiten, explain, teach and match in a miniature world, offline, in about four minutes."""
    from st_plugins.console import pipelines_table
    from st_plugins.demo import BANNER, conclusion, run_demo
    from st_plugins.demo_explain import page_target, run_explanation_demo
    from st_plugins.demo_re2 import run_re2_demo
    from st_plugins.demo_virt import run_virt_demo

    console = terminal()
    page_target(output, name="--output", overwrite=overwrite)
    results = run_demo(output, seed=seed, overwrite=overwrite)
    console.print(pipelines_table("Miniature world: Spearman x 100, convention 'all', 95 % intervals", results))
    say(conclusion(results))
    found = run_explanation_demo(output, seed=seed, overwrite=overwrite)
    console.print(found.example.to_terminal())
    say(found.summary())
    learned = run_virt_demo(seed=seed)
    say(learned.summary())
    matched = run_re2_demo(seed=seed)
    console.print(matched.example.to_terminal())
    say(matched.summary(beside=learned))
    say(BANNER, "yellow")
    say(f"reports: {output}/*/report.html, {output}/explanation.html")
