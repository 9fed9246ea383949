"""``st-plugins export``: argument parsing only; the command calls one public function."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from st_plugins.cli.measuring import check_model
from st_plugins.cli.options import LengthOption, ModelArgument, OverwriteOption
from st_plugins.report.terminal import say


def export(
    model: ModelArgument,
    onnx: Annotated[Path, typer.Option(help="ONNX file to write.")],
    int8: Annotated[
        bool, typer.Option("--int8", help="Write weights of eight bits: smaller and faster, and not quite the same.")
    ] = False,
    max_seq_length: LengthOption = None,
    overwrite: OverwriteOption = False,
) -> None:
    """Write a model as one ONNX file: tokenizer, pooling, linear layers and normalization inside.

    Its vectors are compared with the model's own before it is written. Read it with st_plugins.serving.OnnxEncoder,
    which needs no PyTorch, or with any ONNX runtime.

    [bold]Examples[/bold]

      st-plugins export ./my-model --onnx my-model.onnx

      st-plugins export ./my-model --onnx my-model-int8.onnx --int8
    """
    from st_plugins.core.host import set_length
    from st_plugins.core.writing.atomic import file_target
    from st_plugins.io import load_sentence_transformer
    from st_plugins.serving.encoder import SETTINGS
    from st_plugins.serving.export import export_onnx

    check_model(model)
    # Only such names are files to `verify`.
    if onnx.suffix != ".onnx":
        raise ValueError(f"--onnx {str(onnx)!r} must end in .onnx; give 'my-model.onnx' for example")
    file_target(onnx, name="--onnx", overwrite=overwrite, inputs=(model,), mark=SETTINGS.encode())
    loaded = load_sentence_transformer(model, "cpu")
    if max_seq_length is not None:
        set_length(loaded, max_seq_length)
    found = export_onnx(loaded, onnx, int8=int8, overwrite=overwrite)
    distance = (
        f"mean cosine {found.mean_cosine:.4f}, smallest {found.smallest_cosine:.4f}"
        if int8
        else f"largest difference {found.largest_difference:.1e}"
    )
    say(f"wrote {onnx}: {onnx.stat().st_size / 1e6:,.1f} MB; {distance} to torch")
