"""``st-plugins plan``: argument parsing only; the command calls public functions."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from st_plugins.cli.measuring import Loading, check_model
from st_plugins.cli.options import ModelArgument, PromptOption, RouteOption, grouped, refuse_unused
from st_plugins.cli.running import EngineName
from st_plugins.report.terminal import say, terminal


@grouped
def plan(
    context: typer.Context,
    model: ModelArgument,
    *,
    texts: Annotated[int, typer.Option(help="How many texts are to be encoded.", min=1)],
    length: Annotated[
        int | None, typer.Option(help="Tokens of a text (default: 32, or as --sample has them).", min=1)
    ] = None,
    sample: Annotated[
        Path | None, typer.Option(help="A file or folder of texts such as yours: better than a length.")
    ] = None,
    column: Annotated[str | None, typer.Option(help="Column of the texts in --sample.", show_default=False)] = None,
    engine: Annotated[EngineName, typer.Option(help="This machine, or a Ray cluster.")] = EngineName.local,
    machines: Annotated[int, typer.Option(help="Machines like this one, with --engine ray.", min=1)] = 1,
    workers: Annotated[
        int | None, typer.Option(help="Workers on all of them (default: what the engine takes).", min=1)
    ] = None,
    cores: Annotated[int | None, typer.Option(help="Cores of a machine (default: as here).", min=1)] = None,
    gpus: Annotated[int | None, typer.Option(help="GPUs of a machine (default: as here).", min=0)] = None,
    precision: Annotated[str, typer.Option(help="float32, float16, int8, int4, int2 or binary.")] = "float32",
    block_size: Annotated[int, typer.Option(help="Texts of a block.", min=1)] = 16384,
    seconds: Annotated[float, typer.Option(help="About how long to measure.")] = 60,
    output: Annotated[Path | None, typer.Option(help="JSON file to write the plan to.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier plan.")] = False,
    prompt: PromptOption = None,
    route: RouteOption = None,
    loading: Loading,
) -> None:
    """Say beforehand what encoding very many texts takes: time, memory, disk and network.

    For a minute, texts are read, encoded and written as a run does it, by one worker and by one a core; what so many
    texts take on so many workers and machines is worked out from that.

    [bold]Examples[/bold]

      st-plugins plan ./my-model --texts 100000000 --length 20

      st-plugins plan ./my-model --texts 1000000000 --sample corpus.jsonl --column body --engine ray --machines 16
    """
    import json

    from st_plugins.core.host import check_prompt
    from st_plugins.core.writing.atomic import file_target
    from st_plugins.scale.engines import Local, Ray
    from st_plugins.scale.inner.wanted import check_wanted
    from st_plugins.scale.planning import plan as planned
    from st_plugins.scale.planning import plan_table
    from st_plugins.scale.texts import Texts

    check_model(model)
    check_prompt(prompt)
    if sample is None:
        refuse_unused(context, "without --sample", "column")
    runner = Ray(workers=workers) if engine is EngineName.ray else Local(workers=workers)
    check_wanted(texts, length, sample, machines, cores, gpus, runner, precision, block_size, seconds)
    own = None if sample is None else Texts(sample, column)
    target = None
    if output is None:
        refuse_unused(context, "without --output", "overwrite")
    else:
        mark = b'"encode_seconds": '
        target = file_target(output, name="--output", overwrite=overwrite, inputs=(model, sample), mark=mark)
    found = planned(
        loading.load(model),
        texts,
        length=length,
        sample=own,
        machines=machines,
        cores=cores,
        gpus=gpus,
        engine=runner,
        precision=precision,
        prompt=prompt,
        route=route,
        batch_size=loading.batch_size,
        block_size=block_size,
        seconds=seconds,
    )
    if target is not None:
        target.write_text(json.dumps(found.to_dict(), indent=1) + "\n")
    terminal().print(plan_table(found).to_terminal())
    if output is not None:
        say(f"wrote {output}")
