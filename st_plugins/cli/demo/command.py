"""``st-plugins demo``: argument parsing only; the steps are taken by `take_tour`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from st_plugins.cli.measuring import check_model
from st_plugins.cli.options import SeedOption


def demo(
    model: Annotated[
        str | None,
        typer.Option(
            help="A model folder or a Hugging Face model id (default: all-MiniLM-L6-v2 from the package of the extra "
            "'demo').",
            show_default=False,
        ),
    ] = None,
    output: Annotated[Path, typer.Option(help="Folder for the pages, the model and the texts.")] = Path(
        "st-plugins-demo"
    ),
    seed: SeedOption = 0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the folder of an earlier demo.")] = False,
) -> None:
    """Evaluate, compress, explain, adapt, teach and match, offline and in about three minutes.

    The first four on a real encoder and real texts, the docstrings of Python's standard library; the last two in a
    miniature world of made-up sentences, where it is known what follows from what.

    [bold]Examples[/bold]

      st-plugins demo

      st-plugins demo --model ./my-model --output my-demo
    """
    from st_plugins.cli.demo.tour import take_tour
    from st_plugins.core.host import check_installed
    from st_plugins.core.writing.atomic import folder_target

    if model is not None:
        check_model(model)
    target = folder_target(output, name="--output", overwrite=overwrite, inputs=[model])
    check_installed()
    take_tour(target, output, model, seed)
