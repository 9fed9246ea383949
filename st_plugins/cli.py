"""``st-plugins``: argument parsing only; each command calls public functions of the package."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from st_plugins import cli_re2
from st_plugins.cli_demo import demo
from st_plugins.cli_explain import explain
from st_plugins.cli_options import (
    BatchOption,
    ColumnOption,
    DataOption,
    DeviceOption,
    Dtype,
    DtypeOption,
    LengthOption,
    ModelArgument,
    PairsOption,
    ScoreOption,
    SeedOption,
    SplitOption,
    TasksOption,
    Text1Option,
    Text2Option,
)
from st_plugins.cli_train import app as train_app

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

    from st_plugins.evaluators import STSSuiteEvaluator

__all__ = ["app", "main"]

app = typer.Typer(
    name="st-plugins",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="Tell the truth about a sentence-embedding model, and improve it.",
)
app.add_typer(train_app, name="train")
train_app.command("re2")(cli_re2.train)
app.command()(explain)
app.command()(cli_re2.predict)
_state = {"debug": False}


@app.callback()
def _options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the whole traceback of an error.")] = False,
) -> None:
    _state["debug"] = debug


@app.command()
def evaluate(
    model: ModelArgument,
    data: DataOption = None,
    tasks: TasksOption = "en",
    pairs: PairsOption = None,
    text1: Text1Option = "sentence1",
    text2: Text2Option = "sentence2",
    score: ScoreOption = "score",
    split: SplitOption = "test",
    output: Annotated[Path | None, typer.Option(help="Folder for result.json, .csv, .md and report.html.")] = None,
    texts: Annotated[Path | None, typer.Option(help="Unlabelled texts to whiten the floor on.")] = None,
    column: ColumnOption = None,
    floor: Annotated[bool, typer.Option("--floor/--no-floor", help="Score random token vectors too.")] = True,
    similarity: Annotated[str, typer.Option(help="cosine, dot, euclidean or manhattan.")] = "cosine",
    confidence: Annotated[float, typer.Option(help="Coverage of the intervals.")] = 0.95,
    bootstrap_samples: Annotated[int, typer.Option(help="Resamples behind each interval.", min=0)] = 1000,
    seed: SeedOption = 0,
    dtype: DtypeOption = Dtype.float32,
    device: DeviceOption = None,
    batch_size: BatchOption = 32,
    max_seq_length: LengthOption = None,
) -> None:
    """Score a model on the STS tasks, or on your own pairs, with intervals and the floor.

    [bold]Examples[/bold]

      st-plugins evaluate ./my-model --data ./data --output results/my-model

      st-plugins evaluate ./my-model --tasks zh --data ./data

      st-plugins evaluate ./my-model --pairs pairs.csv --text1 question --text2 answer --score rating
    """
    from st_plugins.console import print_result

    evaluator = _evaluator(
        data=data,
        tasks=tasks,
        pairs=pairs,
        columns=(text1, text2, score),
        split=split,
        texts=texts,
        column=column,
        floor=floor,
        similarity=similarity,
        confidence=confidence,
        bootstrap_samples=bootstrap_samples,
        seed=seed,
        batch_size=batch_size,
    )
    loaded = _load(model, dtype, device, max_seq_length)
    result = evaluator.evaluate(loaded, model_name=model)
    print_result(_console(), result)
    if output is not None:
        from st_plugins.evaluators import write_reports

        _say("wrote " + ", ".join(str(path) for path in write_reports(result, output)))


@app.command()
def compare(
    a: Annotated[str, typer.Argument(help="A model, or a result folder of 'evaluate'.")],
    b: Annotated[str, typer.Argument(help="Another one.")],
    data: DataOption = None,
    tasks: TasksOption = "en",
    pairs: PairsOption = None,
    text1: Text1Option = "sentence1",
    text2: Text2Option = "sentence2",
    score: ScoreOption = "score",
    split: SplitOption = "test",
    output: Annotated[Path | None, typer.Option(help="JSON file to write the comparison to.")] = None,
    confidence: Annotated[float, typer.Option(help="Coverage of the intervals.")] = 0.95,
    bootstrap_samples: Annotated[int, typer.Option(help="Resamples.", min=1)] = 1000,
    seed: SeedOption = 0,
    dtype: DtypeOption = Dtype.float32,
    device: DeviceOption = None,
    batch_size: BatchOption = 32,
    max_seq_length: LengthOption = None,
) -> None:
    """Say whether A is better than B, worse, or not separable, by paired bootstrap on the same pairs.

    [bold]Examples[/bold]

      st-plugins compare results/before results/after

      st-plugins compare ./model-a ./model-b --tasks stsb,sickr --data ./data
    """
    from st_plugins.atomic import write_text
    from st_plugins.console import comparison_table
    from st_plugins.evaluators import SuiteResult
    from st_plugins.evaluators import compare as compare_results

    results: list[SuiteResult] = []
    evaluator = None
    for name in (a, b):
        if Path(name).suffix == ".json" or (Path(name) / "result.json").is_file():
            results.append(SuiteResult.read(name))
            continue
        evaluator = evaluator or _evaluator(
            data=data,
            tasks=tasks,
            pairs=pairs,
            columns=(text1, text2, score),
            split=split,
            floor=False,
            bootstrap_samples=0,
            seed=seed,
            batch_size=batch_size,
        )
        results.append(evaluator.evaluate(_load(name, dtype, device, max_seq_length), model_name=name))
    comparison = compare_results(
        results[0], results[1], confidence=confidence, bootstrap_samples=bootstrap_samples, seed=seed
    )
    _console().print(comparison_table(comparison, {task.name: task.title for task in results[0].tasks}))
    for name, distances in comparison.fit_distances.items():
        listed = ", ".join(f"{key.removeprefix('fit_').replace('_', ' ')} {v:.3g}" for key, v in distances.items())
        _say(f"{name}: the whitening's fit texts lie this far from the evaluated texts: {listed}")
    if output is not None:
        write_text(output, comparison.to_json())
        _say(f"wrote {output}")


@app.command()
def whiten(
    model: ModelArgument,
    texts: Annotated[Path, typer.Option(help="Unlabelled texts: one a line, or a folder of such files.")],
    output: Annotated[Path, typer.Option(help="Folder for the new model.")],
    column: ColumnOption = None,
    output_dimension: Annotated[
        int | None, typer.Option(help="Dimensions to keep (default: 256, or all of a smaller model).")
    ] = None,
    keep_plugin: Annotated[
        bool, typer.Option("--keep-plugin", help="Keep the Whitening module instead of folding it into stock Dense.")
    ] = False,
    shrinkage: Annotated[str, typer.Option(help="0 to 1, or 'ledoit-wolf'.")] = "0",
    normalize: Annotated[bool, typer.Option("--normalize", help="Scale the whitened vectors to length 1.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing output folder.")] = False,
    data: DataOption = None,
    tasks: TasksOption = "stsb",
    pairs: PairsOption = None,
    text1: Text1Option = "sentence1",
    text2: Text2Option = "sentence2",
    score: ScoreOption = "score",
    split: SplitOption = "dev",
    seed: SeedOption = 0,
    dtype: DtypeOption = Dtype.float32,
    device: DeviceOption = None,
    batch_size: BatchOption = 32,
    max_seq_length: LengthOption = None,
) -> None:
    """Whiten a model on unlabelled texts and write a plain sentence-transformers model, smaller and more isotropic.

    With scored pairs at hand (--pairs, or --data for STS-B dev) it also measures before and after, and says so when
    whitening hurts, as it can when the model was already trained with cosine on the same kind of text.

    [bold]Examples[/bold]

      st-plugins whiten ./my-model --texts corpus.txt --output-dimension 256 --output ./my-model-256

      st-plugins whiten ./my-model --texts corpus.txt --output ./white --pairs heldout.tsv
    """
    from st_plugins import adapt, folding
    from st_plugins.atomic import atomic_folder
    from st_plugins.data.own import read_texts

    if output.exists() and not overwrite and (not output.is_dir() or any(output.iterdir())):
        raise FileExistsError(
            f"--output {str(output)!r} exists and is not empty; choose another folder or --overwrite"
        )
    loaded = _load(model, dtype, device, max_seq_length)
    sentences = read_texts(texts, column)
    evaluator = None
    if pairs is not None or data is not None:
        evaluator = _evaluator(
            data=data,
            tasks=tasks,
            pairs=pairs,
            columns=(text1, text2, score),
            split=split,
            texts=texts,
            column=column,
            seed=seed,
            batch_size=batch_size,
        )
    # An encoder that ends in a LayerNorm has rank d - 1, so "all there is" is the default for small models, not d.
    kept = 256 if output_dimension is None and (loaded.get_embedding_dimension() or 0) > 256 else output_dimension
    whitened = adapt.whiten(
        loaded,
        sentences,
        kept,
        shrinkage=_shrinkage(shrinkage),
        normalize=normalize,
        batch_size=batch_size,
        source=texts.name,
    )
    if evaluator is not None:
        from st_plugins.console import print_before_after
        from st_plugins.evaluators import compare as compare_results

        after, before = evaluator.evaluate(whitened, "after whitening"), evaluator.evaluate(loaded, "before")
        print_before_after(_console(), before, after, compare_results(after, before, seed=seed))
    else:
        _say("no scored pairs given (--pairs or --data): whether whitening helps here was not measured")
    result = whitened if keep_plugin else folding.fold(whitened)
    with atomic_folder(output, overwrite=overwrite) as folder:
        result.save(str(folder))
    how = "load it with st_plugins.load" if keep_plugin else "plain SentenceTransformer loads it"
    _say(f"wrote {output}: {result.get_embedding_dimension()} dimensions, whitened on {len(sentences):,} texts; {how}")


@app.command()
def geometry(
    model: ModelArgument,
    texts: Annotated[Path, typer.Option(help="Texts: one a line, or a folder of such files.")],
    column: ColumnOption = None,
    output: Annotated[Path | None, typer.Option(help="JSON file to write the numbers to.")] = None,
    seed: SeedOption = 0,
    dtype: DtypeOption = Dtype.float32,
    device: DeviceOption = None,
    batch_size: BatchOption = 32,
    max_seq_length: LengthOption = None,
) -> None:
    """Describe the space a model embeds your texts in: isotropy, uniformity, dimensions in use.

    [bold]Example[/bold]

      st-plugins geometry ./my-model --texts corpus.txt
    """
    import json

    from st_plugins.atomic import write_text
    from st_plugins.console import geometry_table
    from st_plugins.data.own import read_texts
    from st_plugins.evaluators.encoding import distinct, encode_longest_first
    from st_plugins.geometry import geometry as describe

    loaded = _load(model, dtype, device, max_seq_length)
    sentences, _ = distinct([read_texts(texts, column)])
    embeddings = encode_longest_first(
        loaded, sentences, [len(text) for text in sentences], batch_size=batch_size, show_progress_bar=True
    )
    numbers = describe(embeddings, seed=seed)
    _console().print(geometry_table(f"{model} on {len(sentences):,} distinct texts", numbers))
    if output is not None:
        write_text(output, json.dumps(numbers, indent=1, sort_keys=True) + "\n")
        _say(f"wrote {output}")


app.command()(demo)


def _evaluator(
    *,
    data: Path | None,
    tasks: str,
    pairs: Path | None,
    columns: tuple[str, str, str],
    split: str,
    texts: Path | None = None,
    column: str | None = None,
    **settings: Any,
) -> STSSuiteEvaluator:
    """Build the evaluator from the options that several commands share."""
    from st_plugins.data.own import read_pairs, read_texts
    from st_plugins.evaluators import STSSuiteEvaluator

    return STSSuiteEvaluator(
        tasks=tasks if pairs is None else [read_pairs(pairs, *columns)],
        data=data,
        split=split,
        floor_texts=None if texts is None else read_texts(texts, column),
        **settings,
    )


def _load(name: str, dtype: Dtype, device: str | None, max_seq_length: int | None) -> SentenceTransformer:
    import torch

    from st_plugins.io import load

    model = load(name, device=device)
    if dtype is not Dtype.float32:
        model = model.to(getattr(torch, dtype.value))
    if max_seq_length is not None:
        try:
            model.max_seq_length = max_seq_length
        except AttributeError:
            raise ValueError(
                f"a {type(model[0]).__name__} has no length limit that could be set; leave out --max-seq-length"
            ) from None
    return model


def _shrinkage(text: str) -> float | str:
    if text == "ledoit-wolf":
        return text
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"--shrinkage {text!r} is neither a number from 0 to 1 nor 'ledoit-wolf'") from None


def _console() -> Console:
    # Piped output has no width of its own; tables should not be squeezed into 80 columns then.
    return Console(width=None if sys.stdout.isatty() else 160)


def _say(text: str) -> None:
    _console().print(text, soft_wrap=True, highlight=False)


def main() -> None:
    """Run the command line: one clear line and a non-zero exit code on failure."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    try:
        app()  # wrong usage and Ctrl-C are typer's own business: it exits with 2 and 130
    except Exception as problem:
        if _state["debug"]:
            raise
        Console(stderr=True, soft_wrap=True, highlight=False).print(f"[red]error:[/red] {_one_line(problem)}")
        sys.exit(1)


def _one_line(problem: Exception) -> str:
    from rich.markup import escape

    text = " ".join(str(problem).split()) or type(problem).__name__
    known = isinstance(problem, ValueError | TypeError | OSError | ImportError)
    return escape(text if known else f"{type(problem).__name__}: {text} (--debug shows where)")
