"""``st-plugins demo``: runs the examples and prints what they found."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import typer

from st_plugins.cli.options import SeedOption
from st_plugins.report.terminal import say, terminal


def demo(
    output: Annotated[Path, typer.Option(help="Folder for the reports.")] = Path("st-plugins-demo"),
    seed: SeedOption = 0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the reports of an earlier demo.")] = False,
) -> None:
    """Evaluate, whiten, explain, teach and match in a miniature world, offline, in about four minutes."""
    from st_plugins.evaluation.pages.tables import pipelines_table

    names = ("01_evaluate_and_whiten", "02_explain", "03_virt", "04_re2")  # no names for an import statement
    evaluating, explaining, teaching, matching = (_example(name) for name in names)
    console = terminal()
    # Before minutes of work; the reports of the first part are looked at when it starts.
    explaining.page_target(output, name="--output", overwrite=overwrite)
    say(evaluating.BANNER, "yellow")
    _say_step(
        "1/4 Evaluate and whiten: an encoder beside random token vectors",
        "each row is one way to make embeddings; does it stand above what shared words alone would have?",
    )
    results = evaluating.run(output, seed=seed, overwrite=overwrite)
    title = "Miniature world: Spearman x 100, convention 'all', 95 % intervals"
    console.print(pipelines_table(title, results).to_terminal())
    say(evaluating.conclusion(results))
    _say_step(
        "2/4 Explain: which words an embedding is made of",
        "an opinion, coloured by what its embedding is read from; are the words that decide it the dark ones?",
    )
    found = explaining.run(output, seed=seed, overwrite=overwrite)
    console.print(found.example.to_terminal())
    say(found.summary())
    _say_step(
        "3/4 Teach: a bi-encoder learns from a cross-encoder (VIRT)",
        "a fast model learns from a slow one; how much of the slow one's accuracy does it keep?",
    )
    learned = teaching.run(seed=seed)
    say(learned.summary())
    _say_step(
        "4/4 Match: pairs judged without a transformer (RE2)",
        "the same pairs judged without a transformer, and what the texts find in each other",
    )
    matched = matching.run(seed=seed)
    console.print(matched.example.to_terminal())
    say(matched.summary(learned.cross_encoder, learned.siamese))
    say("")
    say(f"reports: {output}/*/report.html, {output}/explanation.html")


def _example(name: str) -> Any:
    return import_module(f"st_plugins.examples.{name}")


def _say_step(title: str, look: str) -> None:
    say("")
    say(title, "bold")
    say(f"What to look at: {look}", "dim")
