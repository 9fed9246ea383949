"""``st-plugins adapt``: argument parsing only; the command calls public functions."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from st_plugins.cli.measuring import check_model
from st_plugins.cli.options import (
    ColumnOption,
    DeviceOption,
    ModelArgument,
    OutputFolder,
    OverwriteOption,
    PromptNameOption,
    PromptOption,
    grouped,
    refuse_unused,
)
from st_plugins.report.terminal import say, terminal


@grouped
def adapt(
    context: typer.Context,
    model: ModelArgument,
    *,
    texts: Annotated[Path, typer.Option(help="Unlabelled texts: one a line, or a folder of such files.")],
    output: OutputFolder,
    column: ColumnOption = None,
    budget: Annotated[float, typer.Option(help="Seconds for everything, about.")] = 1200.0,
    batches: Annotated[int, typer.Option(help="Batches of each training, at most.")] = 24,
    pairs: Annotated[
        Path | None, typer.Option(help="Your own scored pairs, which then decide.", show_default=False)
    ] = None,
    first: Annotated[str, typer.Option(help="Column of the first text in --pairs.")] = "sentence1",
    second: Annotated[str, typer.Option(help="Column of the second text in --pairs.")] = "sentence2",
    score: Annotated[str, typer.Option(help="Column of the gold score in --pairs.")] = "score",
    learning_rate: Annotated[float, typer.Option(help="Its highest value.")] = 3e-5,
    batch_size: Annotated[int, typer.Option(help="Texts in a batch.")] = 64,
    max_seq_length: Annotated[int, typer.Option(help="Tokens of a text that are trained on, at most.")] = 64,
    prompt: PromptOption = None,
    prompt_name: PromptNameOption = None,
    seed: Annotated[int, typer.Option(help="Seed of everything.")] = 0,
    bf16: Annotated[
        bool, typer.Option("--bf16", help="Compute in bfloat16: faster where the processor does, else slower.")
    ] = False,
    device: DeviceOption = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where a killed run stopped.")] = False,
    overwrite: OverwriteOption = False,
) -> None:
    """Adapt a model to your texts, or be told not to.

    Short trainings and maps race on your unlabelled texts; what is better on texts held out is written, otherwise the
    model as it was, with the reason. adaptation.html in the folder shows what was tried.

    [bold]Examples[/bold]

      st-plugins adapt ./my-model --texts corpus.txt --output ./adapted

      st-plugins adapt ./my-model --texts corpus.txt --pairs scored.tsv --output ./adapted

      st-plugins adapt ./my-model --texts corpus.txt --output ./adapted --resume
    """
    from st_plugins.adaptation.adapt import adapt as adapted
    from st_plugins.adaptation.adapt import check_settings
    from st_plugins.adaptation.adapted import tried_table
    from st_plugins.adaptation.race.labeled import check_pairs
    from st_plugins.cli.console import print_warnings
    from st_plugins.core.host import check_prompt
    from st_plugins.core.writing.atomic import folder_target
    from st_plugins.data.own import read_pairs, read_texts
    from st_plugins.evaluation.measuring.ways import way_of_texts
    from st_plugins.io import load_sentence_transformer

    if pairs is None:
        refuse_unused(context, "without --pairs", "first", "second", "score")
    check_settings(budget, batches, learning_rate, batch_size, max_seq_length, seed, bf16, resume, output)
    check_model(model)
    check_prompt(prompt, prompt_name)
    folder_target(output, name="--output", overwrite=overwrite, inputs=(model, texts, pairs))
    sentences = read_texts(texts, column)
    labeled = None if pairs is None else read_pairs(pairs, first, second, score)
    check_pairs(labeled)
    loaded = load_sentence_transformer(model, device)
    way, warning = way_of_texts(loaded, column or "", None, prompt, prompt_name)
    found = adapted(
        loaded,
        sentences,
        output,
        budget=budget,
        batches=batches,
        pairs=labeled,
        learning_rate=learning_rate,
        batch_size=batch_size,
        max_seq_length=max_seq_length,
        prompt=way.prompt,
        seed=seed,
        bf16=bf16,
        source=texts.name,
        resume=resume,
        overwrite=overwrite,
    )
    if found.tried:
        terminal().print(tried_table(found).to_terminal())
    print_warnings(terminal(), [warning] if warning else [])
    say(found.summary())
    say(f"wrote {output}: {'the adapted' if found.changed else 'the unchanged'} model, adaptation.html beside it")
