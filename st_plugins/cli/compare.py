"""``st-plugins compare``: argument parsing only; the command calls public functions."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Annotated

import typer

from st_plugins.cli.measuring import Loading, Measuring, Scored, check_model
from st_plugins.cli.options import SeedOption, grouped, refuse_unused
from st_plugins.report.terminal import say, terminal


@grouped
def compare(
    context: typer.Context,
    a: Annotated[str, typer.Argument(help="A model, or a result folder of 'evaluate'.")],
    b: Annotated[str, typer.Argument(help="Another one.")],
    *,
    scored: Scored,
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

    [bold]Examples[/bold]

      st-plugins compare results/before results/after

      st-plugins compare ./model-a ./model-b --tasks stsb,sickr --data ./data
    """
    from st_plugins.cli.console import print_warnings, verdict
    from st_plugins.core.writing.atomic import file_target
    from st_plugins.evaluation.comparison import compare as compare_results
    from st_plugins.evaluation.pages.tables import comparison_table
    from st_plugins.evaluation.result import SuiteResult

    target = None
    if output is None:
        refuse_unused(context, "without --output", "overwrite")
    else:
        read = [a, b, scored.pairs, scored.data, Path(a, "result.json"), Path(b, "result.json")]
        # An old file is replaced only if it has a key that none but our comparisons have.
        target = file_target(output, name="--output", overwrite=overwrite, inputs=read, mark=b'"fit_distances": ')
    # A file or folder that `evaluate` wrote is read; everything else is taken for a model.
    stored = {
        name: SuiteResult.read(name)
        for name in (a, b)
        if Path(name).suffix == ".json" or Path(name, "result.json").is_file()
    }
    missing = [name for name in (a, b) if name not in stored]
    if missing:
        scored.refuse_unused(context)
        for name in missing:
            check_model(name)
        evaluator = scored.evaluator(
            floor=False,
            confidence=confidence,
            # Single scores are printed without intervals; the comparison draws resamples of its own.
            bootstrap_samples=0,
            seed=seed,
            batch_size=loading.batch_size,
            **vars(measuring),
        )
    else:  # what a stored result was measured with is in it
        options = [field.name for group in (Scored, Measuring, Loading) for field in fields(group)]
        refuse_unused(context, "beside two stored results", *options)
    results = [stored[name] if name in stored else loading.evaluate(evaluator, name) for name in (a, b)]
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
