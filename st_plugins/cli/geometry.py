"""``st-plugins geometry``: argument parsing only; the command calls public functions."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

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
from st_plugins.cli.running import Running, TextsOption, left_out
from st_plugins.report.terminal import say, terminal


@grouped
def geometry(
    context: typer.Context,
    model: ModelArgument,
    *,
    texts: TextsOption,
    column: ColumnOption = None,
    output: Annotated[Path | None, typer.Option(help="JSON file to write the numbers to.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the numbers of an earlier run.")] = False,
    prompt: PromptOption = None,
    prompt_name: PromptNameOption = None,
    route: RouteOption = None,
    seed: SeedOption = 0,
    running: Running,
    loading: Loading,
) -> None:
    """Describe the space a model embeds your texts in: isotropy, uniformity, dimensions in use.

    [bold]Example[/bold]

      st-plugins geometry ./my-model --texts corpus.txt
    """
    import json

    from st_plugins.cli.console import print_warnings
    from st_plugins.core.appending import width_of
    from st_plugins.core.host import check_prompt
    from st_plugins.core.writing.atomic import file_target
    from st_plugins.evaluation.measuring.ways import way_of_texts
    from st_plugins.evaluation.pages.tables import geometry_table
    from st_plugins.geometry.embeddings import describe
    from st_plugins.scale.one_pass import summarize
    from st_plugins.scale.summary import Summary

    running.refuse_unused(context)
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
    given = running.texts(texts, column)
    loaded = loading.load(model)
    way, warning = way_of_texts(loaded, column or "", route, prompt, prompt_name)
    summary = Summary(width_of(loaded), sample=5000, seed=seed, keep_texts=False)
    options: dict[str, Any] = {"prompt": way.prompt, "route": way.route, "batch_size": loading.batch_size}
    numbers = describe(summarize(loaded, given, summary, engine=running.made(), **options))
    if target is not None:
        target.write_text(json.dumps(numbers, indent=1, sort_keys=True) + "\n")
    terminal().print(geometry_table(f"{model} on {len(given):,} texts", numbers).to_terminal())
    print_warnings(terminal(), ([warning] if warning else []) + left_out(given))
    if output is not None:
        say(f"wrote {output}")
