"""``st-plugins compare``: argument parsing only; the command calls public functions."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from st_plugins.cli.measuring import Loading, Measuring, Scored, check_model
from st_plugins.cli.options import SeedOption, grouped, refuse_unused
from st_plugins.cli.other_tasks import OtherTasks
from st_plugins.report.terminal import say, terminal

if TYPE_CHECKING:
    from st_plugins.evaluation.result import SuiteResult
    from st_plugins.evaluation.task_result import TasksResult

_MEASURED = [field.name for group in (Scored, OtherTasks, Measuring, Loading) for field in fields(group)]


@grouped
def compare(
    context: typer.Context,
    a: Annotated[str, typer.Argument(help="A model, a result folder of 'evaluate', or results of the leaderboard.")],
    b: Annotated[str, typer.Argument(help="Another one.")],
    *,
    scored: Scored,
    others: OtherTasks,
    output: Annotated[Path | None, typer.Option(help="JSON file to write the comparison to.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the comparison of an earlier run.")] = False,
    confidence: Annotated[float, typer.Option(help="Coverage of the intervals.")] = 0.95,
    bootstrap_samples: Annotated[int, typer.Option(help="Resamples.", min=1)] = 1000,
    measuring: Measuring,
    seed: SeedOption = 0,
    loading: Loading,
) -> None:
    """Say which of A and B is better and by how much, or that they are not separable, by paired bootstrap.

    Each model is measured as it is used: with its own length, similarity, prompts and routes. An option that changes
    them holds for the models evaluated here; a stored result that was measured with another one is refused.
    Beside results of the public leaderboard (MTEB) scores are laid side by side, without a test.

    [bold]Examples[/bold]

      st-plugins compare results/before results/after

      st-plugins compare ./model-a ./model-b --tasks stsb,sickr --data ./data

      st-plugins compare results/mine leaderboard/their-model
    """
    from st_plugins.cli.console import print_warnings, verdict
    from st_plugins.core.writing.atomic import file_target
    from st_plugins.evaluation.comparison import compare as compare_results
    from st_plugins.evaluation.leaderboard import is_leaderboard, leaderboard_table
    from st_plugins.evaluation.pages.tables import comparison_table
    from st_plugins.evaluation.task_result import TasksResult, read_result

    if any(map(is_leaderboard, (a, b))):
        options = ("output", "overwrite", "confidence", "bootstrap_samples", "seed")
        refuse_unused(context, "beside results of the leaderboard", *_MEASURED, *options)
        terminal().print(leaderboard_table(_scores(a), _scores(b), (a, b)).to_terminal())
        return
    target = None
    if output is None:
        refuse_unused(context, "without --output", "overwrite")
    else:
        read = [a, b, scored.pairs, scored.data, *others.inputs, Path(a, "result.json"), Path(b, "result.json")]
        # An old file is replaced only if it has a key that none but our comparisons have.
        target = file_target(output, name="--output", overwrite=overwrite, inputs=read, mark=b'"fit_distances": ')
    # A file or folder that `evaluate` wrote is read; everything else is taken for a model.
    stored = {
        name: read_result(name)
        for name in (a, b)
        if Path(name).suffix == ".json" or Path(name, "result.json").is_file()
    }
    missing = [name for name in (a, b) if name not in stored]
    if missing:
        others.refuse_unused(context)
        if not others.given:
            scored.refuse_unused(context)
        for name, result in stored.items():
            if isinstance(result, TasksResult) != others.given:
                if not Path(missing[0]).exists():
                    raise ValueError(
                        f"{missing[0]!r} is neither a stored result nor the folder of a model; if it is a model on "
                        f"the hub, name the data that {name!r} was measured on, too"
                    )
                kind = "on other tasks than STS" if isinstance(result, TasksResult) else "on STS"
                raise ValueError(f"{name!r} was measured {kind}; name the same data for {missing[0]!r}")
        for name in missing:
            check_model(name)
        settings: dict[str, Any] = {
            "confidence": confidence,
            # Single scores are printed without intervals; the comparison draws resamples of its own.
            "bootstrap_samples": 0,
            "seed": seed,
            "batch_size": loading.batch_size,
            **vars(measuring),
        }
        evaluate: Callable[[str], SuiteResult | TasksResult]
        if others.given:
            evaluate = functools.partial(loading.evaluate_all, others.evaluators(scored, **settings))
        else:
            evaluate = functools.partial(loading.evaluate, scored.evaluator(floor=False, **settings))
    else:  # what a stored result was measured with is in it
        refuse_unused(context, "beside two stored results", *_MEASURED)
    results = [stored[name] if name in stored else evaluate(name) for name in (a, b)]
    comparison = compare_results(
        results[0], results[1], confidence=confidence, bootstrap_samples=bootstrap_samples, seed=seed
    )
    if target is not None:
        target.write_text(comparison.to_json())
    titles = {task.name: task.title for task in results[0].tasks}
    terminal().print(comparison_table(comparison, titles).to_terminal())
    say(verdict(comparison))
    warnings = [text for result in results for text in result.warnings]
    print_warnings(terminal(), [*warnings, *comparison.notes])
    for name, distances in comparison.fit_distances.items():
        listed = ", ".join(f"{key.removeprefix('fit_').replace('_', ' ')} {v:.3g}" for key, v in distances.items())
        say(f"{name}: the whitening's fit texts lie this far from the evaluated texts: {listed}")
    if output is not None:
        say(f"wrote {output}")


def _scores(name: str) -> dict[str, dict[str, float]]:
    """Return what is to be laid beside results of the leaderboard."""
    from st_plugins.evaluation.leaderboard import is_leaderboard, leaderboard_scores, read_leaderboard
    from st_plugins.evaluation.task_result import read_result

    if is_leaderboard(name):
        return read_leaderboard(name)
    if not (Path(name).suffix == ".json" or Path(name, "result.json").is_file()):
        raise ValueError(
            f"{name!r} is no stored result; beside results of the leaderboard give one, which 'st-plugins evaluate' "
            "writes with --output"
        )
    return leaderboard_scores(read_result(name))
