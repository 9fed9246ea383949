"""``st-plugins explain``: argument parsing only; the command calls one public function."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from st_plugins.cli.measuring import Loading, check_model
from st_plugins.cli.options import ColumnOption, DeviceOption, LengthOption, ModelArgument, encodable, refuse_unused
from st_plugins.report.terminal import say, terminal

if TYPE_CHECKING:
    from st_plugins.explain import Explanation, PairExplanation, QueryExplanation


_By = Literal["word", "phrase", "token", "sentence", "span"]


def _depth(value: str) -> str:
    if value not in ("output", "input") and not value.isdecimal():
        raise typer.BadParameter(f"{value!r} must be output, input or the number of a layer")
    return value


def explain(
    context: typer.Context,
    model: ModelArgument,
    first: Annotated[str, typer.Argument(help="A text; with --texts the query.", callback=encodable)],
    second: Annotated[
        str | None, typer.Argument(help="Another text, to explain the similarity of the two.", callback=encodable)
    ] = None,
    texts: Annotated[
        Path | None,
        typer.Option(help="Texts to rank for the query: one a line, or a folder of such files.", show_default=False),
    ] = None,
    column: ColumnOption = None,
    by: Annotated[
        _By | None,
        typer.Option(help="What to list and draw (default: word, or span for SpanPooling).", show_default=False),
    ] = None,
    view: Annotated[
        Literal["interaction", "contribution"],
        typer.Option(help="Of two texts: what pairs of words have in common, or all they add."),
    ] = "interaction",
    depth: Annotated[
        str,
        typer.Option(
            help="Of two texts: where to split their similarity: output (exact), input, or the number of a layer.",
            callback=_depth,
        ),
    ] = "output",
    top: Annotated[int, typer.Option(help="Words, pairs of words, or texts found, to list.", min=1)] = 10,
    faithfulness: Annotated[
        bool, typer.Option("--faithfulness", help="Delete tokens and measure whether those named matter.")
    ] = False,
    prompt: Annotated[
        str | None,
        typer.Option(help="Goes before the texts (default: the model's own prompts).", callback=encodable),
    ] = None,
    html: Annotated[Path | None, typer.Option(help="Page to write.", show_default=False)] = None,
    json: Annotated[
        Path | None, typer.Option(help="JSON file to write; with --texts JSON lines.", show_default=False)
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace files of an earlier run.")] = False,
    device: DeviceOption = None,
    max_seq_length: LengthOption = None,
) -> None:
    """Show which words make two texts similar, or decided a search, or which words one embedding is made of.

    Works with every mean-pooled model, and with SpanPooling, whose spans it shows. The contributions add up to the
    similarity, by word, by token and by sentence. A search (--texts) is ranked and aligned with other poolings, too.

    [bold]Examples[/bold]

      st-plugins explain ./my-model "A man plays the guitar." "Someone makes music."

      st-plugins explain ./my-model "A man plays the guitar." "Someone makes music." --html why.html --faithfulness

      st-plugins explain ./my-model "A man plays the guitar." "Someone makes music." --depth input

      st-plugins explain ./my-model "Who plays the guitar?" --texts corpus.txt --top 10 --html found.html

      st-plugins explain ./my-span-model "A film that is not good at all."
    """
    from st_plugins import explain as explanations
    from st_plugins.core.writing.atomic import file_target
    from st_plugins.data.own import read_texts
    from st_plugins.report.page import GENERATOR

    if texts is None:
        refuse_unused(context, "without --texts", "column")
    else:
        refuse_unused(context, "with --texts", "faithfulness", "view", "depth")
        if second is not None:
            raise ValueError(f"--texts and a second text {second[:80]!r} are both given; leave one out")
        if by in ("span", "phrase"):
            raise ValueError(f"by={by!r} has no effect with --texts; give word, token or sentence")
    if second is None and texts is None:
        refuse_unused(context, "for one text", "view", "depth")
    # A file without our mark is somebody else's, and not replaced.
    targets = {
        name: file_target(path, name=name, overwrite=overwrite, inputs=[model, texts], mark=mark)
        for name, path, mark in (
            ("--html", html, GENERATOR),
            ("--json", json, b'"faithfulness": ' if texts is None else b'"counterparts": '),
        )
        if path is not None
    }
    if len({target.path for target in targets.values()}) < len(targets):
        raise ValueError(f"--html and --json are the same file {str(html)!r}; choose two")
    if html is None and json is None:
        refuse_unused(context, "without --html or --json", "overwrite")
    check_model(model)
    ranked = None if texts is None else read_texts(texts, column)
    loaded = Loading(device=device, max_seq_length=max_seq_length).load(model)
    found: Explanation | PairExplanation | QueryExplanation
    data: Callable[[], str]
    if ranked is not None:
        bar = sys.stderr.isatty()
        found = explanations.explain_query(loaded, first, ranked, top, prompt=prompt, by=by, show_progress_bar=bar)
        data = found.to_json_lines
    elif second is None:
        found = explanations.explain_text(loaded, first, top, prompt=prompt, by=by, faithfulness=faithfulness)
        data = found.to_json
    else:
        found = explanations.explain_pair(
            loaded,
            first,
            second,
            top,
            prompt=prompt,
            by=by,
            view=view,
            faithfulness=faithfulness,
            depth=int(depth) if depth.isdecimal() else depth,  # type: ignore[arg-type]
        )
        data = found.to_json
    for name, target in targets.items():
        target.write_text(found.to_html() if name == "--html" else data())
    terminal().print(found.to_terminal())
    for path in (html, json):
        if path is not None:
            say(f"wrote {path}")
