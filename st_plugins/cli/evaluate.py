"""``st-plugins evaluate`` and ``st-plugins compare``: argument parsing only; each calls public functions."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from st_plugins.cli.models import check_model, evaluated, pair_evaluator, refuse_unused_measuring
from st_plugins.cli.options import (
    BatchOption,
    ColumnOption,
    DataOption,
    DeviceOption,
    DtypeOption,
    FirstOption,
    LengthOption,
    ModelArgument,
    PairsOption,
    PromptNameOption,
    PromptOption,
    RoutesOption,
    ScoreOption,
    SecondOption,
    SeedOption,
    SimilarityOption,
    SplitOption,
    TasksOption,
    refuse_unused,
)
from st_plugins.report.terminal import say, terminal

__all__ = ["compare", "evaluate"]

# What a stored result was measured with is in it.
_MEASURED_BEFORE = (
    *("data", "tasks", "pairs", "first", "second", "score", "split", "similarity"),
    *("prompt", "prompt_name", "routes"),
    *("dtype", "device", "batch_size", "max_seq_length"),
)


def evaluate(
    context: typer.Context,
    model: ModelArgument,
    data: DataOption = None,
    tasks: TasksOption = "en",
    pairs: PairsOption = None,
    first: FirstOption = "sentence1",
    second: SecondOption = "sentence2",
    score: ScoreOption = "score",
    split: SplitOption = "test",
    output: Annotated[Path | None, typer.Option(help="Folder for result.json, .csv, .md and report.html.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the report of an earlier run.")] = False,
    texts: Annotated[Path | None, typer.Option(help="Unlabelled texts to whiten the floor on.")] = None,
    column: ColumnOption = None,
    floor: Annotated[bool, typer.Option("--floor/--no-floor", help="Score random token vectors too.")] = True,
    similarity: SimilarityOption = None,
    prompt: PromptOption = None,
    prompt_name: PromptNameOption = None,
    routes: RoutesOption = None,
    confidence: Annotated[float, typer.Option(help="Coverage of the intervals.")] = 0.95,
    bootstrap_samples: Annotated[int, typer.Option(help="Resamples behind each interval.", min=0)] = 1000,
    seed: SeedOption = 0,
    dtype: DtypeOption = None,
    device: DeviceOption = None,
    batch_size: BatchOption = 32,
    max_seq_length: LengthOption = None,
) -> None:
    """Score a model on the STS tasks, or on your own pairs, with intervals and the floor.

    [bold]Examples[/bold]

      st-plugins evaluate ./my-model --data ./data --output results/my-model

      st-plugins evaluate ./my-model --tasks zh --data ./data

      st-plugins evaluate ./my-model --pairs pairs.csv --first question --second answer --score rating
    """
    from st_plugins.cli.console import print_result
    from st_plugins.evaluation.report import report_targets, write_reports

    refuse_unused_measuring(context, pairs=pairs)
    if texts is None:
        refuse_unused(context, "without --texts", "column")
    if not floor:
        refuse_unused(context, "with --no-floor", "texts", "column")
    if not bootstrap_samples:
        refuse_unused(context, "without resamples", "confidence")
    if output is None:
        refuse_unused(context, "without --output", "overwrite")
    check_model(model)
    targets = []
    if output is not None:
        read = (model, pairs, texts, data)
        targets = report_targets(output, name="--output", overwrite=overwrite, inputs=read)
    evaluator = pair_evaluator(
        data=data,
        tasks=tasks,
        pairs=pairs,
        columns=(first, second, score),
        split=split,
        texts=texts,
        column=column,
        floor=floor,
        similarity=similarity,
        prompt=prompt,
        prompt_name=prompt_name,
        routes=routes,
        confidence=confidence,
        bootstrap_samples=bootstrap_samples,
        seed=seed,
        batch_size=batch_size,
    )
    result = evaluated(evaluator, model, dtype, device, max_seq_length)
    written = write_reports(result, targets) if targets else []
    print_result(terminal(), result)
    if written:
        say("wrote " + ", ".join(map(str, written)))


def compare(
    context: typer.Context,
    a: Annotated[str, typer.Argument(help="A model, or a result folder of 'evaluate'.")],
    b: Annotated[str, typer.Argument(help="Another one.")],
    data: DataOption = None,
    tasks: TasksOption = "en",
    pairs: PairsOption = None,
    first: FirstOption = "sentence1",
    second: SecondOption = "sentence2",
    score: ScoreOption = "score",
    split: SplitOption = "test",
    output: Annotated[Path | None, typer.Option(help="JSON file to write the comparison to.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the comparison of an earlier run.")] = False,
    confidence: Annotated[float, typer.Option(help="Coverage of the intervals.")] = 0.95,
    bootstrap_samples: Annotated[int, typer.Option(help="Resamples.", min=1)] = 1000,
    similarity: SimilarityOption = None,
    prompt: PromptOption = None,
    prompt_name: PromptNameOption = None,
    routes: RoutesOption = None,
    seed: SeedOption = 0,
    dtype: DtypeOption = None,
    device: DeviceOption = None,
    batch_size: BatchOption = 32,
    max_seq_length: LengthOption = None,
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
        read = [a, b, pairs, data, Path(a, "result.json"), Path(b, "result.json")]
        target = file_target(output, name="--output", overwrite=overwrite, inputs=read, mark=b'"fit_distances": ')
    stored = [
        SuiteResult.read(name) if Path(name).suffix == ".json" or (Path(name) / "result.json").is_file() else None
        for name in (a, b)
    ]
    if any(result is None for result in stored):
        refuse_unused_measuring(context, pairs=pairs)
        for name, result in zip((a, b), stored, strict=True):
            if result is None:
                check_model(name)
        evaluator = pair_evaluator(
            data=data,
            tasks=tasks,
            pairs=pairs,
            columns=(first, second, score),
            split=split,
            floor=False,
            confidence=confidence,
            bootstrap_samples=0,
            similarity=similarity,
            prompt=prompt,
            prompt_name=prompt_name,
            routes=routes,
            seed=seed,
            batch_size=batch_size,
        )
    else:
        refuse_unused(context, "beside two stored results", *_MEASURED_BEFORE)
    results = [
        evaluated(evaluator, name, dtype, device, max_seq_length) if result is None else result
        for name, result in zip((a, b), stored, strict=True)
    ]
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
