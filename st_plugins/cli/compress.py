"""``st-plugins compress``: argument parsing only; the command calls public functions."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from st_plugins.cli.measuring import Loading, check_model
from st_plugins.cli.options import (
    ColumnOption,
    ModelArgument,
    OutputFolder,
    OverwriteOption,
    PromptNameOption,
    PromptOption,
    RouteOption,
    grouped,
    refuse_unused,
)
from st_plugins.cli.running import Running, TextsOption, left_out
from st_plugins.report.terminal import say, terminal


@grouped
def compress(
    context: typer.Context,
    model: ModelArgument,
    *,
    texts: TextsOption,
    output: OutputFolder,
    column: ColumnOption = None,
    bytes: Annotated[int | None, typer.Option(help="Bytes that a vector may take.", show_default=False)] = None,
    output_dimension: Annotated[int | None, typer.Option(help="Dimensions to keep.", show_default=False)] = None,
    max_loss: Annotated[
        float | None,
        typer.Option(
            help="Points of Spearman that may be lost: the smallest vectors that promise it.", show_default=False
        ),
    ] = None,
    precision: Annotated[
        str | None, typer.Option(help="float32, float16, int8, int4, int2 or binary (default: the best that fits).")
    ] = None,
    method: Annotated[str, typer.Option(help="'auto', 'truncation', 'rotation', 'whitening', ...")] = "auto",
    pairs: Annotated[
        Path | None, typer.Option(help="Your own scored pairs, which then choose.", show_default=False)
    ] = None,
    first: Annotated[str, typer.Option(help="Column of the first text in --pairs.")] = "sentence1",
    second: Annotated[str, typer.Option(help="Column of the second text in --pairs.")] = "sentence2",
    score: Annotated[str, typer.Option(help="Column of the gold score in --pairs.")] = "score",
    retrieval: Annotated[
        Path | None, typer.Option(help="A folder of a retrieval task, which then chooses.", show_default=False)
    ] = None,
    prompt: PromptOption = None,
    prompt_name: PromptNameOption = None,
    route: RouteOption = None,
    overwrite: OverwriteOption = False,
    running: Running,
    loading: Loading,
) -> None:
    """Make a model's vectors smaller, and say beforehand what that costs.

    Of truncation, rotation and fewer bits a number the way is taken that keeps most on your unlabelled texts; the new
    model is plain, the ranges of its bits lie beside it, and compression.html shows what other sizes would cost.

    [bold]Examples[/bold]

      st-plugins compress ./my-model --texts corpus.txt --bytes 96 --output ./my-model-96

      st-plugins compress ./my-model --texts corpus.txt --max-loss 0.5 --output ./smallest

      st-plugins compress ./my-model --texts corpus.txt --output-dimension 128 --output ./my-model-128
    """
    from st_plugins.cli.console import print_warnings
    from st_plugins.compression.choice.wanted import check_wanted
    from st_plugins.compression.compress import compress as compressed
    from st_plugins.compression.compressed import size_table
    from st_plugins.core.host import check_prompt
    from st_plugins.core.serving import served_otherwise
    from st_plugins.core.writing.atomic import folder_target
    from st_plugins.data.own import read_pairs
    from st_plugins.data.retrieval import read_retrieval
    from st_plugins.evaluation.measuring.ways import way_of_texts

    if pairs is None:
        refuse_unused(context, "without --pairs", "first", "second", "score")
    elif retrieval is not None:
        raise ValueError("--pairs and --retrieval are both given, but one of them has to choose; leave one out")
    running.refuse_unused(context)
    check_wanted(output_dimension, bytes, precision, max_loss, method)
    check_model(model)
    check_prompt(prompt, prompt_name)
    target = folder_target(output, name="--output", overwrite=overwrite, inputs=(model, texts, pairs, retrieval))
    given = running.texts(texts, column)
    labeled = None if pairs is None else read_pairs(pairs, first, second, score)
    task = None if retrieval is None else read_retrieval(retrieval)
    loaded = loading.load(model)
    way, warning = way_of_texts(loaded, column or "", route, prompt, prompt_name)
    found = compressed(
        loaded,
        given,
        output_dimension,
        bytes=bytes,
        precision=precision,
        max_loss=max_loss,
        method=method,
        pairs=labeled,
        retrieval=task,
        prompt=way.prompt,
        route=way.route,
        batch_size=loading.batch_size,
        source=texts.name,
        engine=running.made(),
    )
    found.write(target)
    terminal().print(size_table(found).to_terminal())
    otherwise = served_otherwise(found.model)
    warnings = ([warning] if warning else []) + left_out(given)
    if otherwise:
        warnings.append(f"embedding servers would give other vectors: {otherwise}")
    print_warnings(terminal(), warnings)
    say(found.summary())
    how = "" if found.quantization.precision == "float32" else "; Compressed.load(...).encode gives the stored bytes"
    say(f"wrote {output}: {found.chosen.words}; plain SentenceTransformer loads it{how}")
