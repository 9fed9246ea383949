"""``st-plugins whiten``: argument parsing only; the command calls public functions."""

from __future__ import annotations

import contextlib
import dataclasses
import shlex
from itertools import islice
from typing import Annotated

import typer

from st_plugins.cli.measuring import FLOOR_TEXTS, HeldOut, Loading, check_model
from st_plugins.cli.options import (
    ColumnOption,
    ModelArgument,
    OutputFolder,
    OverwriteOption,
    PromptNameOption,
    PromptOption,
    RouteOption,
    SeedOption,
    grouped,
)
from st_plugins.cli.running import Running, TextsOption, left_out
from st_plugins.report.terminal import say, terminal


@grouped
def whiten(
    context: typer.Context,
    model: ModelArgument,
    *,
    texts: TextsOption,
    output: OutputFolder,
    column: ColumnOption = None,
    output_dimension: Annotated[
        int | None, typer.Option(help="Dimensions to keep (default: all that the texts span).", min=1)
    ] = None,
    keep_plugin: Annotated[
        bool, typer.Option("--keep-plugin", help="Keep the Whitening module instead of folding it into stock Dense.")
    ] = False,
    prompt: PromptOption = None,
    prompt_name: PromptNameOption = None,
    route: RouteOption = None,
    center: Annotated[bool, typer.Option("--center/--no-center", help="Whether to subtract the mean.")] = True,
    power: Annotated[
        float, typer.Option(help="1 whitens, 0 only rotates, between is soft whitening.", min=0.0, max=1.0)
    ] = 1.0,
    shrinkage: Annotated[str, typer.Option(help="0 to 1, or 'ledoit-wolf'.")] = "0",
    normalize: Annotated[bool, typer.Option("--normalize", help="Scale the whitened vectors to length 1.")] = False,
    overwrite: OverwriteOption = False,
    scored: HeldOut,
    seed: SeedOption = 0,
    running: Running,
    loading: Loading,
) -> None:
    """Whiten a raw encoder on unlabelled texts and write a plain model, smaller and more isotropic.

    With scored pairs at hand (--pairs, or --data for STS-B dev) it also measures before and after, and says so when
    whitening hurts, as it can when the model was already trained with cosine on the same kind of text; st-plugins
    compress is for those.

    [bold]Examples[/bold]

      st-plugins whiten ./my-model --texts corpus.txt --output-dimension 256 --output ./my-model-256

      st-plugins whiten ./my-model --texts corpus.txt --output ./white --pairs heldout.tsv
    """
    from st_plugins import recipes
    from st_plugins.cli.console import print_before_after, print_warnings
    from st_plugins.core.host import check_prompt
    from st_plugins.core.model_card import made_of, write_card
    from st_plugins.core.serving import save_plain
    from st_plugins.core.writing.atomic import folder_target
    from st_plugins.evaluation.comparison import compare as compare_results
    from st_plugins.evaluation.measuring.ways import way_of_texts
    from st_plugins.evaluation.pages.before_after import before_after
    from st_plugins.methods.whitening import fold as folding

    scored.refuse_unused(context)
    running.refuse_unused(context)
    check_model(model)
    check_prompt(prompt, prompt_name)
    kind = _shrinkage(shrinkage)
    target = folder_target(
        output, name="--output", overwrite=overwrite, inputs=(model, texts, scored.pairs, scored.data)
    )
    given = running.texts(texts, column)
    # The pairs are read now, so that an error in them comes before the model is loaded.
    evaluator = None
    if scored.given:
        evaluator = scored.evaluator(
            list(islice(given, FLOOR_TEXTS)),
            seed=seed,
            batch_size=loading.batch_size,
            prompt=prompt,
            prompt_name=prompt_name,
        )
    loaded = loading.load(model)
    way, warning = way_of_texts(loaded, column or "", route, prompt, prompt_name)
    whitened = recipes.whiten(
        loaded,
        given,
        output_dimension,
        center=center,
        power=power,
        shrinkage=kind,
        normalize=normalize,
        prompt=way.prompt,
        route=way.route,
        batch_size=loading.batch_size,
        source=texts.name,
        engine=running.made(),
    )
    # Measured before anything is written, written before anything is printed.
    after, before = (
        (None, None)
        if evaluator is None
        else (evaluator.evaluate(whitened, "after whitening"), evaluator.evaluate(loaded, "before"))
    )
    result = whitened if keep_plugin else folding.fold(whitened)
    comparison = None if after is None or before is None else compare_results(after, before, seed=seed)
    with target.write() as folder:
        otherwise = save_plain(result, folder)
        if after is not None and before is not None and comparison is not None:
            *earlier, made = made_of(result)
            measured = before_after(before, after, comparison, "Whitening")
            write_card(folder, result, [*earlier, dataclasses.replace(made, measured=measured)])
    if after is None or before is None or comparison is None:
        say("no scored pairs given (--pairs or --data): whether whitening helps here was not measured")
    else:
        print_before_after(terminal(), before, after, comparison)
        if comparison.average.verdict == "worse" and (center or power > 0):
            width = result.get_embedding_dimension()
            say(
                "for smaller vectors without what hurts here, rotation without centering or scaling: st-plugins "
                f"compress {shlex.quote(model)} --texts {shlex.quote(str(texts))} --output-dimension {width}"
            )
    warnings = ([warning] if warning else []) + left_out(given)
    if otherwise and not keep_plugin:
        warnings.append(f"embedding servers would give other vectors: {otherwise}")
    print_warnings(terminal(), warnings)
    how = "load it with st_plugins.load" if keep_plugin else "plain SentenceTransformer loads it"
    say(f"wrote {output}: {result.get_embedding_dimension()} dimensions, whitened on {len(given):,} texts; {how}")


def _shrinkage(text: str) -> float | str:
    from st_plugins.methods.whitening.whitening import check_shrinkage

    # A number or a word; the library says which words there are.
    shrinkage: float | str = text
    with contextlib.suppress(ValueError):
        shrinkage = float(text)
    check_shrinkage(shrinkage)
    return shrinkage
