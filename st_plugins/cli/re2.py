"""``st-plugins train re2`` and ``st-plugins match``: argument parsing only; each calls public functions."""

from __future__ import annotations

import sys
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from st_plugins.cli.models import check_model
from st_plugins.cli.options import DeviceOption, LengthOption, SeedOption, refuse_unused
from st_plugins.report.terminal import say

if TYPE_CHECKING:
    from st_plugins.core.labeled import LabeledPairs
    from st_plugins.core.reading.tables import Table
    from st_plugins.methods.re2.config import RE2Config

__all__ = ["match", "train"]


class Configuration(str, Enum):
    """Ours for few pairs, and the data for which one is published."""

    small = "small"
    snli = "snli"
    quora = "quora"
    scitail = "scitail"
    wikiqa = "wikiqa"


_First = Annotated[str, typer.Option(help="Column of the first text.")]
_Second = Annotated[str, typer.Option(help="Column of the second text.")]
_Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the output of an earlier run.")]


def train(
    context: typer.Context,
    train: Annotated[Path, typer.Option(help="Labelled pairs (TSV, CSV, JSONL).")],
    output: Annotated[Path, typer.Option(help="Folder for the new model.")],
    dev: Annotated[
        Path | None,
        typer.Option(help="Pairs to choose the weights on; never those you report on.", show_default=False),
    ] = None,
    dev_share: Annotated[
        float | None, typer.Option(help="Without --dev: put this share of --train aside for it.", show_default=False)
    ] = None,
    config: Annotated[
        Configuration | None,
        typer.Option(
            help="Network and schedule: small, or as published for this data. By default small below 20,000 pairs, "
            "otherwise quora.",
            show_default=False,
        ),
    ] = None,
    vectors: Annotated[
        Path | None,
        typer.Option(help="Word vectors in word2vec or GloVe text format, plain or .gz.", show_default=False),
    ] = None,
    encoder: Annotated[
        str | None,
        typer.Option(help="A model whose token vectors to use; without both, they are learned.", show_default=False),
    ] = None,
    all_words: Annotated[
        bool, typer.Option("--all-words", help="Keep all of --vectors, not only the words of --train and --dev.")
    ] = False,
    embedding_dimension: Annotated[
        int | None,
        typer.Option(help="Width of learned vectors; 300, with --config small 50.", min=1, show_default=False),
    ] = None,
    train_vectors: Annotated[
        bool, typer.Option("--train-vectors", help="Train --vectors or --encoder along; they are frozen otherwise.")
    ] = False,
    first: _First = "sentence1",
    second: _Second = "sentence2",
    label: Annotated[str, typer.Option(help="Column of the class, or with --score of the score.")] = "label",
    score: Annotated[bool, typer.Option("--score", help="Learn a score from 0 to 1 instead of classes.")] = False,
    metric: Annotated[
        str | None,
        typer.Option(help="accuracy or f1; with --score also spearman (its default), map or mrr.", show_default=False),
    ] = None,
    epochs: Annotated[int | None, typer.Option(help="Most passes over the pairs.", min=1, show_default=False)] = None,
    batch_size: Annotated[int | None, typer.Option(help="Pairs in a batch.", min=1, show_default=False)] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Highest learning rate.", show_default=False)] = None,
    patience: Annotated[int, typer.Option(help="Stop after so many epochs without a better one.", min=1)] = 5,
    max_seq_length: LengthOption = None,
    seed: SeedOption = 0,
    device: DeviceOption = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the checkpoints of a killed run.")] = False,
    overwrite: _Overwrite = False,
) -> None:
    """Train RE2 to classify or score pairs of texts: word vectors, convolutions and alignment, fast on a CPU.

    Epochs, batch size and learning rate are those of the configuration unless given.

    [bold]Examples[/bold]

      st-plugins train re2 --train train.tsv --dev dev.tsv --vectors glove.txt.gz --output ./matcher

      st-plugins train re2 --train snli.jsonl --dev-share 0.1 --config snli --output ./matcher

      st-plugins train re2 --train qa.tsv --dev qa-dev.tsv --first question --second answer --score --metric map \
--config wikiqa --encoder ./my-model --output ./reranker
    """
    import dataclasses

    import torch

    from st_plugins.core.reading.tables import read_table
    from st_plugins.core.writing.atomic import folder_target
    from st_plugins.core.writing.checkpoints import CheckpointFolder
    from st_plugins.io import load_sentence_transformer
    from st_plugins.methods.re2.config import RE2Config, RE2Schedule, configuration_for
    from st_plugins.methods.re2.embedding import LearnedEmbedding, TransformerTokens, WordVectors
    from st_plugins.methods.re2.matcher import RE2Matcher

    target = folder_target(output, name="--output", overwrite=overwrite, inputs=(train, dev, vectors, encoder))
    CheckpointFolder(target.path, {}).check(resume=resume, overwrite=overwrite)
    if dev is not None and dev_share is not None:
        raise ValueError("--dev and --dev-share are both given; choose one")
    if vectors is not None and encoder is not None:
        raise ValueError("--vectors and --encoder are both given; choose one")
    if vectors is None:
        refuse_unused(context, "without --vectors", "all_words")
    if vectors is None and encoder is None:
        refuse_unused(context, "without --vectors or --encoder", "train_vectors")
    else:
        refuse_unused(context, "beside --vectors or --encoder", "embedding_dimension")
    if dev is None and dev_share is None:
        refuse_unused(context, "without --dev or --dev-share", "metric", "patience")
    if encoder is not None:
        check_model(encoder)
    columns = (first, second, label)
    rows, labels = _labelled(read_table(train), columns, score)
    judged = None if dev is None else _labelled(read_table(dev), columns, score, labels, "dev")[0]
    chosen = config.value if config is not None else configuration_for(len(rows))
    shape, schedule = RE2Config.named(chosen), RE2Schedule.named(chosen)
    _say_configuration(chosen, shape, batch_size or schedule.batch_size, len(rows), config is None)
    torch.manual_seed(seed)
    if max_seq_length is not None:
        shape = dataclasses.replace(shape, max_seq_length=max_seq_length)
    source: Any
    if vectors is not None:
        words = [text for pairs in (rows, judged) if pairs is not None for text in (*pairs.first, *pairs.second)]
        source = WordVectors.from_file(vectors, None if all_words else words, trainable=train_vectors)
    elif encoder is not None:
        source = TransformerTokens(load_sentence_transformer(encoder, "cpu"), trainable=train_vectors)
    else:
        width = embedding_dimension or (50 if chosen == "small" else 300)
        source = LearnedEmbedding.from_texts([*rows.first, *rows.second], width)
    matcher = RE2Matcher(source, shape, labels)
    found = matcher.fit(
        rows,
        judged if dev_share is None else dev_share,
        metric=metric,
        schedule=schedule,
        epochs=epochs,
        batch_size=batch_size,
        learning_rate=learning_rate,
        patience=patience,
        seed=seed,
        device=device,
        checkpoints=target.path,
        resume=resume,
        overwrite=overwrite,
    )
    with target.write() as folder:
        matcher.save(folder)
    found.remove_checkpoints()
    say(found.summary())
    say(f"wrote {output}: st_plugins.matching.RE2Matcher.load or st-plugins match use it")


def match(
    model: Annotated[Path, typer.Argument(help="A folder that 'train re2' wrote.")],
    pairs: Annotated[Path, typer.Argument(help="Pairs (TSV, CSV, JSONL).")],
    output: Annotated[Path, typer.Option(help="Table to write: .tsv, .csv or .jsonl, also with .gz.")],
    first: _First = "sentence1",
    second: _Second = "sentence2",
    batch_size: Annotated[int, typer.Option(help="Pairs in a batch.", min=1)] = 64,
    device: DeviceOption = None,
    overwrite: _Overwrite = False,
) -> None:
    """Classify or score pairs with a trained RE2, and write them with what it says.

    The table keeps its columns and gets "predicted", the score or the class, and for classes also their
    probabilities.

    [bold]Example[/bold]

      st-plugins match ./matcher pairs.tsv --output scored.tsv
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
    matcher = RE2Matcher.load(model, device)
    columns = ["predicted", *(f"probability of {label}" for label in matcher.labels or [])]
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


def _labelled(
    table: Table, columns: tuple[str, str, str], score: bool, classes: list[str] | None = None, name: str = "train"
) -> tuple[LabeledPairs, list[str] | None]:
    """Return pairs and the names of their classes, which are given for dev; errors have the line in the file."""
    from st_plugins.core.labeled import LabeledPairs
    from st_plugins.core.reading.labels import class_counts, class_labels

    first, second, label = columns
    texts = table.texts(first, "--first"), table.texts(second, "--second")
    labels: list[Any] = table.scores(label, "--label") if score else class_labels(table, label, "--label")
    if not score:
        _check_not_scores(table, label)
        say(f"{table.path}: {class_counts(labels)}")
        classes = classes or sorted(set(labels))
        if len(classes) < 2:
            raise ValueError(
                f"{table.path}: {label} is {classes[0]!r} in all {len(labels):,} rows, but labels must be at least "
                "two different names; add pairs of another class, or name the right column with --label"
            )

    def where(row: int) -> str:
        return f"{table.path}:{table.lines[row]}: row {row} of {name}"

    return LabeledPairs.read(list(zip(*texts, labels, strict=True)), classes, name, where), classes


def _check_not_scores(table: Table, label: str) -> None:
    """Raise a ValueError at the first label that is a fraction, which nobody calls a class."""
    at = table.index(label)
    for number, row in enumerate(table.rows):
        try:
            value = float(row[at])
        except (TypeError, ValueError):
            continue
        if value != round(value):
            raise table.error(number, f"{label} is {row[at]!r}: a score rather than a class? Then add --score")


def _say_configuration(name: str, shape: RE2Config, batch_size: int, pairs: int, by_default: bool) -> None:
    from st_plugins.methods.re2.config import FEW_PAIRS

    few = "fewer than" if name == "small" else "not fewer than"
    reason = (
        f", as there are {pairs:,} training pairs, {few} {FEW_PAIRS:,}; --config takes another" if by_default else ""
    )
    say(f"configuration {name}: {shape.hidden_dimension} wide, {shape.blocks} blocks, batches of {batch_size}{reason}")
