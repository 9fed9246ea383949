"""``st-plugins train re2`` and ``st-plugins predict``: argument parsing only; each calls public functions."""

from __future__ import annotations

import sys
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from st_plugins.cli_options import DeviceOption, LengthOption, SeedOption
from st_plugins.terminal import say

if TYPE_CHECKING:
    from st_plugins.data.files import Table

__all__ = ["predict", "train"]


class Published(str, Enum):
    """Data for which a configuration is published."""

    snli = "snli"
    quora = "quora"
    scitail = "scitail"
    wikiqa = "wikiqa"


_Text1 = Annotated[str, typer.Option(help="Column of the first text.")]
_Text2 = Annotated[str, typer.Option(help="Column of the second text.")]
_Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the output of an earlier run.")]


def train(
    train: Annotated[Path, typer.Option(help="Labelled pairs (TSV, CSV, JSONL).")],
    output: Annotated[Path, typer.Option(help="Folder for the new model.")],
    dev: Annotated[
        Path | None,
        typer.Option(help="Pairs to choose the weights on; never those you report on.", show_default=False),
    ] = None,
    dev_share: Annotated[
        float | None, typer.Option(help="Without --dev: put this share of --train aside for it.", show_default=False)
    ] = None,
    config: Annotated[Published, typer.Option(help="Network and schedule as published for this data.")] = (
        Published.quora
    ),
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
    embedding_dimension: Annotated[int, typer.Option(help="Width of learned vectors.", min=1)] = 300,
    train_vectors: Annotated[
        bool, typer.Option("--train-vectors", help="Train --vectors or --encoder along; they are frozen otherwise.")
    ] = False,
    text1: _Text1 = "sentence1",
    text2: _Text2 = "sentence2",
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
    overwrite: _Overwrite = False,
) -> None:
    """Train RE2 to classify or score pairs of texts: word vectors, convolutions and alignment, fast on a CPU.

    Epochs, batch size and learning rate are the published ones of the configuration unless given.

    [bold]Examples[/bold]

      st-plugins train re2 --train train.tsv --dev dev.tsv --vectors glove.txt.gz --output ./matcher

      st-plugins train re2 --train snli.jsonl --dev-share 0.1 --config snli --output ./matcher

      st-plugins train re2 --train qa.tsv --dev qa-dev.tsv --text1 question --text2 answer --score --metric map \
--config wikiqa --encoder ./my-model --output ./reranker
    """
    import dataclasses

    import torch

    from st_plugins.atomic import folder_target
    from st_plugins.data.files import read_table
    from st_plugins.io import load
    from st_plugins.matching import (
        LearnedEmbedding,
        RE2Config,
        RE2Matcher,
        RE2Schedule,
        TransformerTokens,
        WordVectors,
    )

    target = folder_target(output, name="--output", overwrite=overwrite, inputs=(train, dev, vectors, encoder))
    if dev is not None and dev_share is not None:
        raise ValueError("--dev and --dev-share are both given; choose one")
    if vectors is not None and encoder is not None:
        raise ValueError("--vectors and --encoder are both given; choose one")
    columns = (text1, text2, label)
    rows = _labelled(read_table(train), columns, score)
    judged = None if dev is None else _labelled(read_table(dev), columns, score)
    labels = None if score else sorted({row[2] for row in rows})
    torch.manual_seed(seed)
    shape = RE2Config.named(config.value)
    if max_seq_length is not None:
        shape = dataclasses.replace(shape, max_length=max_seq_length)
    source: Any
    if vectors is not None:
        words = [text for row in [*rows, *(judged or [])] for text in row[:2]]
        source = WordVectors.from_file(vectors, None if all_words else words, trainable=train_vectors)
    elif encoder is not None:
        source = TransformerTokens(load(encoder, device="cpu"), trainable=train_vectors)
    else:
        source = LearnedEmbedding.from_texts([text for row in rows for text in row[:2]], embedding_dimension)
    matcher = RE2Matcher(source, shape, labels)
    found = matcher.fit(
        rows,
        judged if dev_share is None else dev_share,
        metric=metric,
        schedule=RE2Schedule.named(config.value),
        epochs=epochs,
        batch_size=batch_size,
        learning_rate=learning_rate,
        patience=patience,
        seed=seed,
        device=device,
    )
    with target.write() as folder:
        matcher.save(folder)
    say(found.summary())
    say(f"wrote {output}: st_plugins.matching.RE2Matcher.load or st-plugins predict use it")


def predict(
    model: Annotated[Path, typer.Argument(help="A folder that 'train re2' wrote.")],
    pairs: Annotated[Path, typer.Argument(help="Pairs (TSV, CSV, JSONL).")],
    output: Annotated[Path, typer.Option(help="Table to write: .tsv, .csv or .jsonl, also with .gz.")],
    text1: _Text1 = "sentence1",
    text2: _Text2 = "sentence2",
    batch_size: Annotated[int, typer.Option(help="Pairs in a batch.", min=1)] = 64,
    device: DeviceOption = None,
    overwrite: _Overwrite = False,
) -> None:
    """Classify or score pairs with a trained RE2, and write them with what it says.

    The table keeps its columns and gets "predicted", the score or the class, and for classes also their
    probabilities.

    [bold]Example[/bold]

      st-plugins predict ./matcher pairs.tsv --output scored.tsv
    """
    from st_plugins.data.files import read_table
    from st_plugins.data.writing import table_target, write_table
    from st_plugins.matching import RE2Matcher

    target = table_target(output, name="--output", overwrite=overwrite, inputs=(model, pairs), column="predicted")
    matcher = RE2Matcher.load(model, device)
    table = read_table(pairs)
    columns = ["predicted", *(f"probability of {label}" for label in matcher.labels or [])]
    for column in columns:
        if column in table.columns:
            raise ValueError(f"{pairs}:1: there is a column {column!r} already; rename it")
    texts = list(zip(table.texts(text1, "--text1"), table.texts(text2, "--text2"), strict=True))
    scores = matcher.predict(texts, batch_size=batch_size, apply_softmax=True, show_progress_bar=sys.stderr.isatty())
    rows: list[list[Any]] = []
    for row, found in zip(table.rows, scores, strict=True):
        if matcher.labels is None:
            rows.append([*row, float(found)])
        else:
            rows.append([*row, matcher.labels[int(found.argmax())], *map(float, found)])
    write_table(target, [*table.columns, *columns], rows)
    say(f"wrote {output}: {len(rows):,} pairs")


def _labelled(table: Table, columns: tuple[str, str, str], score: bool) -> list[tuple[str, str, Any]]:
    """Return the rows for `RE2Matcher.fit`; errors have the line in the file."""
    text1, text2, label = columns
    labels: list[Any] = table.scores(label, "--label") if score else []
    if not score:
        at = table.index(label, "--label")
        for number, row in enumerate(table.rows):
            if row[at] in (None, ""):
                raise table.error(number, f"{label} is empty; remove the row")
        labels = [str(row[at]) for row in table.rows]
    return list(zip(table.texts(text1, "--text1"), table.texts(text2, "--text2"), labels, strict=True))
