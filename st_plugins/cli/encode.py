"""``st-plugins encode``: argument parsing only; the command calls public functions."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from st_plugins.cli.measuring import Loading, check_model
from st_plugins.cli.options import (
    ColumnOption,
    ModelArgument,
    OverwriteOption,
    PromptNameOption,
    PromptOption,
    RouteOption,
    grouped,
)
from st_plugins.cli.running import Running, TextsOption, left_out
from st_plugins.report.terminal import say, terminal


@grouped
def encode(
    context: typer.Context,
    model: ModelArgument,
    *,
    texts: TextsOption,
    output: Annotated[Path, typer.Option(help="Folder for the embeddings.")],
    column: ColumnOption = None,
    id_column: Annotated[
        str | None,
        typer.Option(help="Column of the ids (default: numbers from 0).", show_default=False),
    ] = None,
    precision: Annotated[
        str | None,
        typer.Option(help="float32, float16, int8, int4, int2 or binary (default: as the model says, or float32)."),
    ] = None,
    prompt: PromptOption = None,
    prompt_name: PromptNameOption = None,
    route: RouteOption = None,
    block_size: Annotated[int, typer.Option(help="Texts of a file that is written.", min=1)] = 16384,
    overwrite: OverwriteOption = False,
    running: Running,
    loading: Loading,
) -> None:
    """Write the embeddings of any number of texts as Parquet files, ready for an index.

    Killed and run again it goes on behind the blocks that are finished, and gives the same bytes. manifest.json names
    the model, the settings, all files with their checksums, and what could not be read.

    [bold]Examples[/bold]

      st-plugins encode ./my-model --texts 'corpus/*.parquet' --column body --output ./vectors

      st-plugins encode ./my-model --texts corpus.jsonl --id-column id --output ./vectors --engine ray --address auto
    """
    from st_plugins.cli.console import print_warnings
    from st_plugins.core.host import check_prompt
    from st_plugins.core.quantization import Quantization, check_precision
    from st_plugins.core.writing.atomic import folder_target
    from st_plugins.evaluation.measuring.ways import way_of_texts
    from st_plugins.scale.embeddings import encode as encoded

    running.refuse_unused(context)
    check_model(model)
    check_prompt(prompt, prompt_name)
    if precision is not None:
        check_precision(precision)
    if not overwrite:  # otherwise all of what is there is looked at, once, before the work
        folder_target(output, name="--output", inputs=(model, texts))
    given = running.texts(texts, column, id_column, block_size)
    loaded = loading.load(model)
    way, warning = way_of_texts(loaded, column or "", route, prompt, prompt_name)
    stored: str | Quantization = precision or "float32"
    if (Path(model).expanduser() / "quantization.json").is_file():
        own = Quantization.load(Path(model).expanduser())
        stored = own if precision in (None, own.precision) else stored
    found = encoded(
        loaded,
        given,
        output,
        engine=running.made(),
        precision=stored,
        prompt=way.prompt,
        route=way.route,
        batch_size=loading.batch_size,
        overwrite=overwrite,
    )
    print_warnings(terminal(), ([warning] if warning else []) + left_out(given))
    say(
        f"wrote {output}: {len(found):,} vectors of {found.dimension} x {found.precision} in {len(found.files)} "
        "files; st_plugins.scale.Embeddings reads them"
    )
