"""``st-plugins evaluate``: argument parsing only; the command calls public functions."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from st_plugins.cli.measuring import Loading, Measuring, Scored, check_model
from st_plugins.cli.options import ColumnOption, ModelArgument, SeedOption, grouped, refuse_unused
from st_plugins.report.terminal import say, terminal


@grouped
def evaluate(
    context: typer.Context,
    model: ModelArgument,
    *,
    scored: Scored,
    output: Annotated[Path | None, typer.Option(help="Folder for result.json, .csv, .md and report.html.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the report of an earlier run.")] = False,
    texts: Annotated[Path | None, typer.Option(help="Unlabelled texts to whiten the floor on.")] = None,
    column: ColumnOption = None,
    floor: Annotated[bool, typer.Option("--floor/--no-floor", help="Score random token vectors too.")] = True,
    measuring: Measuring,
    confidence: Annotated[float, typer.Option(help="Coverage of the intervals.")] = 0.95,
    bootstrap_samples: Annotated[int, typer.Option(help="Resamples behind each interval.", min=0)] = 1000,
    seed: SeedOption = 0,
    loading: Loading,
) -> None:
    """Score a model on the STS tasks, or on your own pairs, with intervals and the floor.

    [bold]Examples[/bold]

      st-plugins evaluate ./my-model --data ./data --output results/my-model

      st-plugins evaluate ./my-model --tasks zh --data ./data

      st-plugins evaluate ./my-model --pairs pairs.csv --first question --second answer --score rating
    """
    # Imported here, as in every command: `--help` must not wait for torch and the host.
    from st_plugins.cli.console import print_result
    from st_plugins.evaluation.report import report_targets, write_reports

    scored.refuse_unused(context)
    if texts is None:
        refuse_unused(context, "without --texts", "column")
    if not floor:
        refuse_unused(context, "with --no-floor", "texts", "column")
    if not bootstrap_samples:
        refuse_unused(context, "without resamples", "confidence")
    if output is None:
        refuse_unused(context, "without --output", "overwrite")
    # The cheap checks stand before the loading: nobody should wait minutes for a refusal.
    check_model(model)
    targets = []
    if output is not None:
        read = (model, scored.pairs, texts, scored.data)
        targets = report_targets(output, name="--output", overwrite=overwrite, inputs=read)
    evaluator = scored.evaluator(
        texts,
        column,
        floor=floor,
        confidence=confidence,
        bootstrap_samples=bootstrap_samples,
        seed=seed,
        batch_size=loading.batch_size,
        **vars(measuring),
    )
    result = loading.evaluate(evaluator, model)
    written = write_reports(result, targets) if targets else []
    print_result(terminal(), result)
    if written:
        say("wrote " + ", ".join(map(str, written)))
