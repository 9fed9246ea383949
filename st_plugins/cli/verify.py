"""``st-plugins verify``: argument parsing only; the command calls one public function."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from st_plugins.cli.measuring import check_model
from st_plugins.cli.options import ColumnOption, ModelArgument, refuse_unused
from st_plugins.report.terminal import say, terminal


def verify(
    context: typer.Context,
    model: ModelArgument,
    runtime: Annotated[
        str, typer.Option(help="Comma-separated: onnx (the host's backend), server, or files that 'export' wrote.")
    ] = "onnx,server",
    texts: Annotated[
        Path | None, typer.Option(help="Texts: one a line, or a folder of such files (default: a list of odd ones).")
    ] = None,
    column: ColumnOption = None,
    tolerance: Annotated[
        float, typer.Option(help="The largest difference of two numbers that is none.", min=0.0)
    ] = 1e-5,
    batch_size: Annotated[int, typer.Option(help="Sentences per batch.", min=1)] = 8,
) -> None:
    """Compare the vectors of a model in several runtimes with those of PyTorch; exit code 1 if they differ.

    "server" is what embedding servers make of the folder: linear layers right after the pooling, then unit length.
    Files with weights of eight bits must reach a cosine of 0.9 to each text's vector.

    [bold]Examples[/bold]

      st-plugins verify ./my-model

      st-plugins verify ./my-model --runtime my-model.onnx,my-model-int8.onnx,server --texts corpus.txt
    """
    from st_plugins.data.own import read_texts
    from st_plugins.serving import verification

    check_model(model)
    if texts is None:
        refuse_unused(context, "without --texts", "column")
    found = verification.verify(
        model,
        [name.strip() for name in runtime.split(",") if name.strip()],
        None if texts is None else read_texts(texts, column),
        tolerance=tolerance,
        batch_size=batch_size,
    )
    if found.agreements:
        terminal().print(found.to_terminal())
    for name, reason in found.missing.items():
        say(f"{name}: {reason}", "yellow")
    if not found.agrees:
        if not found.agreements:
            raise ValueError("nothing was compared: none of the runtimes could be asked")
        differ = ", ".join(f"{one.first} and {one.second}" for one in found.agreements if not one.agrees)
        raise ValueError(f"the vectors differ: {differ}")
