"""``st-plugins match``: argument parsing only; the command calls public functions."""

from __future__ import annotations

import sys
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer

from st_plugins.cli.options import DeviceOption, FirstOption, OverwriteOption, SecondOption
from st_plugins.report.terminal import say


class Backend(str, Enum):
    """What computes."""

    torch = "torch"
    onnx = "onnx"


def match(
    model: Annotated[Path, typer.Argument(help="A folder that 'train re2' wrote.")],
    pairs: Annotated[Path, typer.Argument(help="Pairs (TSV, CSV, JSONL).")],
    output: Annotated[Path, typer.Option(help="Table to write: .tsv, .csv or .jsonl, also with .gz.")],
    first: FirstOption = "sentence1",
    second: SecondOption = "sentence2",
    batch_size: Annotated[int, typer.Option(help="Pairs in a batch.", min=1)] = 64,
    device: DeviceOption = None,
    backend: Annotated[Backend, typer.Option(help="onnx computes by onnxruntime, faster on a CPU.")] = Backend.torch,
    overwrite: OverwriteOption = False,
) -> None:
    """Classify or score pairs with a trained RE2, and write them with what it says.

    The table keeps its columns and gets "predicted", the score or the class, and for classes also their
    probabilities.

    [bold]Examples[/bold]

      st-plugins match ./matcher pairs.tsv --output scored.tsv

      st-plugins match ./matcher pairs.tsv --backend onnx --output scored.tsv
    """
    from st_plugins.core.reading.tables import read_table
    from st_plugins.core.texts import text_fault
    from st_plugins.core.writing.rows import table_target, write_table
    from st_plugins.methods.re2.matcher import RE2Matcher

    target = table_target(output, name="--output", overwrite=overwrite, inputs=(model, pairs), column="predicted")
    table = read_table(pairs)
    texts = list(zip(table.texts(first, "--first"), table.texts(second, "--second"), strict=True))
    for number, row in enumerate(table.rows):  # all columns are written again, after the work
        if fault := next(filter(None, map(text_fault, map(str, row))), ""):
            raise table.error(number, f"a field {fault}")
    matcher = RE2Matcher.load(model, device, backend.value)
    columns = ["predicted", *(f"probability of {label}" for label in matcher.labels or [])]
    # What is predicted stands in columns of its own; two of one name could not be told apart.
    for column in columns:
        if column in table.columns:
            raise ValueError(f"{pairs}:1: there is a column {column!r} already; rename it")
    scores = matcher.predict(texts, batch_size=batch_size, apply_softmax=True, show_progress_bar=sys.stderr.isatty())
    rows: list[list[Any]] = []
    for row, found in zip(table.rows, scores, strict=True):
        if matcher.labels is None:
            rows.append([*row, float(found)])
        else:
            rows.append([*row, matcher.labels[int(found.argmax())], *map(float, found)])
    write_table(target, [*table.columns, *columns], rows)
    say(f"wrote {output}: {len(rows):,} pairs")
