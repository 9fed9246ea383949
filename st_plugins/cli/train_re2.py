"""``st-plugins train re2``: argument parsing only; the command calls public functions."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from st_plugins.cli.measuring import check_model
from st_plugins.cli.options import (
    DeviceOption,
    FirstOption,
    LengthOption,
    OutputFolder,
    OverwriteOption,
    SecondOption,
    SeedOption,
    grouped,
    refuse_unused,
)
from st_plugins.report.terminal import say

if TYPE_CHECKING:
    from st_plugins.core.labeled import LabeledPairs
    from st_plugins.core.reading.tables import Table
    from st_plugins.methods.re2.config import RE2Config


class Configuration(str, Enum):
    """Ours for few pairs, and the data for which one is published."""

    small = "small"
    snli = "snli"
    quora = "quora"
    scitail = "scitail"
    wikiqa = "wikiqa"


@dataclass(frozen=True)
class Fitting:
    """What `RE2Matcher.fit` takes as it is."""

    metric: Annotated[
        str | None,
        typer.Option(help="accuracy or f1; with --score also spearman (its default), map or mrr.", show_default=False),
    ] = None
    epochs: Annotated[int | None, typer.Option(help="Most passes over the pairs.", min=1, show_default=False)] = None
    batch_size: Annotated[int | None, typer.Option(help="Pairs in a batch.", min=1, show_default=False)] = None
    learning_rate: Annotated[float | None, typer.Option(help="Highest learning rate.", show_default=False)] = None
    patience: Annotated[int, typer.Option(help="Stop after so many epochs without a better one.", min=1)] = 5
    seed: SeedOption = 0
    device: DeviceOption = None
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the checkpoints of a killed run.")] = False
    overwrite: OverwriteOption = False


@grouped
def re2(
    context: typer.Context,
    *,
    train: Annotated[Path, typer.Option(help="Labelled pairs (TSV, CSV, JSONL).")],
    output: OutputFolder,
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
        typer.Option(help="A model whose token vectors to use; without any, they are learned.", show_default=False),
    ] = None,
    words: Annotated[
        str | None,
        typer.Option(
            help="A model whose word embeddings to use, whitened by the texts of --train, without its layers.",
            show_default=False,
        ),
    ] = None,
    all_words: Annotated[
        bool, typer.Option("--all-words", help="Keep all of --vectors, not only the words of --train and --dev.")
    ] = False,
    embedding_dimension: Annotated[
        int | None,
        typer.Option(
            help="Width of learned vectors, 300, with --config small 50; or directions of --words, 64.",
            min=1,
            show_default=False,
        ),
    ] = None,
    train_vectors: Annotated[
        bool,
        typer.Option("--train-vectors", help="Train --vectors, --words or --encoder along; otherwise frozen."),
    ] = False,
    first: FirstOption = "sentence1",
    second: SecondOption = "sentence2",
    label: Annotated[str, typer.Option(help="Column of the class, or with --score of the score.")] = "label",
    score: Annotated[bool, typer.Option("--score", help="Learn a score from 0 to 1 instead of classes.")] = False,
    fitting: Fitting,
    max_seq_length: LengthOption = None,
    onnx: Annotated[bool, typer.Option("--onnx", help="Also write what match --backend onnx opens.")] = False,
) -> None:
    """Train RE2 to classify or score pairs of texts: word vectors, convolutions and alignment, fast on a CPU.

    Epochs, batch size and learning rate are those of the configuration unless given.

    [bold]Examples[/bold]

      st-plugins train re2 --train train.tsv --dev dev.tsv --vectors glove.txt.gz --output ./matcher

      st-plugins train re2 --train train.tsv --dev dev.tsv --words ./my-model --output ./matcher

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
    from st_plugins.methods.re2.export import check_exporter
    from st_plugins.methods.re2.learned_embedding import LearnedEmbedding
    from st_plugins.methods.re2.matcher import RE2Matcher
    from st_plugins.methods.re2.transformer_tokens import TransformerTokens
    from st_plugins.methods.re2.word_vectors import WordVectors

    target = folder_target(
        output, name="--output", overwrite=fitting.overwrite, inputs=(train, dev, vectors, words, encoder)
    )
    # Looks only, before the pairs are read; `fit` opens the folder.
    CheckpointFolder(target.path, {}).check(resume=fitting.resume, overwrite=fitting.overwrite)
    if dev is not None and dev_share is not None:
        raise ValueError("--dev and --dev-share are both given; choose one")
    sources = {"--vectors": vectors, "--words": words, "--encoder": encoder}
    named = [option for option, value in sources.items() if value is not None]
    if len(named) > 1:
        raise ValueError(f"{' and '.join(named)} are {'both' if len(named) == 2 else 'all'} given; choose one")
    if vectors is None:
        refuse_unused(context, "without --vectors", "all_words")
    if not named:
        refuse_unused(context, "without --vectors, --words or --encoder", "train_vectors")
    elif words is None:
        refuse_unused(context, f"beside {named[0]}", "embedding_dimension")
    if dev is None and dev_share is None:
        refuse_unused(context, "without --dev or --dev-share", "metric", "patience")
    for model in (words, encoder):
        if model is not None:
            check_model(model)
    columns = (first, second, label)
    rows, labels = _labeled(read_table(train), columns, score)
    judged = None if dev is None else _labeled(read_table(dev), columns, score, labels, "dev")[0]
    chosen = config.value if config is not None else configuration_for(len(rows))
    shape, schedule = RE2Config.named(chosen), RE2Schedule.named(chosen)
    _say_configuration(chosen, shape, fitting.batch_size or schedule.batch_size, len(rows), config is None)
    # Vectors and network are drawn here; `fit` seeds the batches again.
    torch.manual_seed(fitting.seed)
    if max_seq_length is not None:
        shape = dataclasses.replace(shape, max_seq_length=max_seq_length)
    source: Any
    if vectors is not None:
        # Files of vectors hold millions of words, and the pairs use few of them.
        texts = [text for pairs in (rows, judged) if pairs is not None for text in (*pairs.first, *pairs.second)]
        source = WordVectors.from_file(vectors, None if all_words else texts, trainable=train_vectors)
    elif words is not None:
        source = WordVectors.from_encoder(
            words, [*rows.first, *rows.second], embedding_dimension or 64, trainable=train_vectors
        )
    elif encoder is not None:
        source = TransformerTokens(load_sentence_transformer(encoder, "cpu"), trainable=train_vectors)
    else:
        width = embedding_dimension or (50 if chosen == "small" else 300)
        source = LearnedEmbedding.from_texts([*rows.first, *rows.second], width)
    if onnx:
        check_exporter()  # before the training
    matcher = RE2Matcher(source, shape, labels)
    found = matcher.fit(
        rows,
        judged if dev_share is None else dev_share,
        schedule=schedule,
        checkpoints=target.path,
        source=train.name,
        **vars(fitting),
    )
    if onnx:
        matcher.set_backend("onnx")
    with target.write() as folder:
        matcher.save(folder)
    found.remove_checkpoints()
    say(found.summary())
    say(f"wrote {output}: st_plugins.matching.RE2Matcher.load or st-plugins match use it")


def _labeled(
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
