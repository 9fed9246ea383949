"""``st-plugins geometry``: argument parsing only; the command calls public functions."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from st_plugins.cli.measuring import Loading, check_model
from st_plugins.cli.options import (
    ColumnOption,
    ModelArgument,
    PromptNameOption,
    PromptOption,
    RouteOption,
    SeedOption,
    grouped,
    refuse_unused,
)
from st_plugins.report.terminal import say, terminal


@grouped
def geometry(
    context: typer.Context,
    model: ModelArgument,
    *,
    texts: Annotated[Path, typer.Option(help="Texts: one a line, or a folder of such files.")],
    column: ColumnOption = None,
    output: Annotated[Path | None, typer.Option(help="JSON file to write the numbers to.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the numbers of an earlier run.")] = False,
    prompt: PromptOption = None,
    prompt_name: PromptNameOption = None,
    route: RouteOption = None,
    seed: SeedOption = 0,
    loading: Loading,
) -> None:
    """Describe the space a model embeds your texts in: isotropy, uniformity, dimensions in use.

    [bold]Example[/bold]

      st-plugins geometry ./my-model --texts corpus.txt
    """
    import json

    from st_plugins.cli.console import print_warnings
    from st_plugins.core.encoding import encode_longest_first
    from st_plugins.core.host import check_prompt
    from st_plugins.core.writing.atomic import file_target
    from st_plugins.data.own import read_texts
    from st_plugins.evaluation.measuring.encoding import distinct
    from st_plugins.evaluation.measuring.ways import way_of_texts
    from st_plugins.evaluation.pages.tables import geometry_table
    from st_plugins.geometry.embeddings import describe

    check_model(model)
    check_prompt(prompt, prompt_name)
    target = None
    if output is None:
        refuse_unused(context, "without --output", "overwrite")
    else:
        read = (model, texts)
        # With the line break, as evaluations have the same numbers further in:
        mark = b'\n "isoscore": '
        target = file_target(output, name="--output", overwrite=overwrite, inputs=read, mark=mark)
    sentences, _ = distinct([read_texts(texts, column)])
    loaded = loading.load(model)
    way, warning = way_of_texts(loaded, column or "", route, prompt, prompt_name)
    embeddings = encode_longest_first(
        loaded,
        sentences,
        # Characters are near enough to tokens to put texts of like length into a batch.
        [len(text) for text in sentences],
        batch_size=loading.batch_size,
        show_progress_bar=sys.stderr.isatty(),
        arguments=way.arguments,
    )
    numbers = describe(embeddings, seed=seed)
    if target is not None:
        target.write_text(json.dumps(numbers, indent=1, sort_keys=True) + "\n")
    terminal().print(geometry_table(f"{model} on {len(sentences):,} distinct texts", numbers).to_terminal())
    print_warnings(terminal(), [warning] if warning else [])
    if output is not None:
        say(f"wrote {output}")
