"""``st-plugins evaluate``: argument parsing only; the command calls public functions."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from st_plugins.cli.measuring import Loading, Measuring, Scored, check_model
from st_plugins.cli.options import ColumnOption, ModelArgument, SeedOption, grouped, refuse_unused
from st_plugins.cli.other_tasks import OtherTasks
from st_plugins.report.terminal import say, terminal

if TYPE_CHECKING:
    from st_plugins.core.writing.atomic import Target


@grouped
def evaluate(
    context: typer.Context,
    model: ModelArgument,
    *,
    scored: Scored,
    others: OtherTasks,
    output: Annotated[Path | None, typer.Option(help="Folder for result.json, .csv, .md and report.html.")] = None,
    leaderboard: Annotated[
        Path | None, typer.Option(help="Folder for result files as the public leaderboard (MTEB) has them.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the files of an earlier run.")] = False,
    texts: Annotated[Path | None, typer.Option(help="Unlabelled texts to whiten the floor on.")] = None,
    column: ColumnOption = None,
    floor: Annotated[bool, typer.Option("--floor/--no-floor", help="Score random token vectors too.")] = True,
    measuring: Measuring,
    confidence: Annotated[float, typer.Option(help="Coverage of the intervals.")] = 0.95,
    bootstrap_samples: Annotated[int, typer.Option(help="Resamples behind each interval.", min=0)] = 1000,
    seed: SeedOption = 0,
    loading: Loading,
) -> None:
    """Score a model on STS tasks or your own pairs, with intervals and the floor, or on other tasks with intervals.

    [bold]Examples[/bold]

      st-plugins evaluate ./my-model --data ./data --output results/my-model

      st-plugins evaluate ./my-model --tasks zh --data ./data

      st-plugins evaluate ./my-model --pairs pairs.csv --first question --second answer --score rating

      st-plugins evaluate ./my-model --retrieval ./scifact --leaderboard results/leaderboard

      st-plugins evaluate ./my-model --classification train.csv --classification-test test.csv --clustering all.csv
    """
    # Imported here, as in every command: `--help` must not wait for torch and the host.
    from st_plugins.cli.console import print_result
    from st_plugins.evaluation.leaderboard import leaderboard_name, leaderboard_targets, write_leaderboard
    from st_plugins.evaluation.report import report_targets, write_reports

    others.refuse_unused(context)
    if not others.given:
        scored.refuse_unused(context)
        if texts is None:
            refuse_unused(context, "without --texts", "column")
        if not floor:
            refuse_unused(context, "with --no-floor", "texts", "column")
    if not bootstrap_samples:
        refuse_unused(context, "without resamples", "confidence")
    if output is None and leaderboard is None:
        refuse_unused(context, "without --output or --leaderboard", "overwrite")
    # The cheap checks stand before the loading: nobody should wait minutes for a refusal.
    check_model(model)
    read = (model, scored.pairs, texts, scored.data, *others.inputs)
    targets: list[Target] = []
    if output is not None:
        targets = report_targets(output, name="--output", overwrite=overwrite, inputs=read)
    settings: dict[str, Any] = {
        "confidence": confidence,
        "bootstrap_samples": bootstrap_samples,
        "seed": seed,
        "batch_size": loading.batch_size,
        **vars(measuring),
    }
    if others.given:
        evaluators = others.evaluators(scored, **settings)
        names = [evaluator.task for evaluator in evaluators]
    else:
        suite = scored.evaluator(texts, column, floor=floor, **settings)
        names = [leaderboard_name(one.name, one.title, len(one), scored.split)[0] for one in suite.pairs]
    board: list[Target] = []
    if leaderboard is not None:
        board = leaderboard_targets(names, leaderboard, name="--leaderboard", overwrite=overwrite, inputs=read)
    result = loading.evaluate_all(evaluators, model) if others.given else loading.evaluate(suite, model)
    written = write_reports(result, targets) if targets else []
    written += write_leaderboard(result, board) if board else []
    print_result(terminal(), result)
    if written:
        say("wrote " + ", ".join(map(str, written)))
