"""One pass over texts that are elsewhere, to the statistics of their embeddings."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer
from torch import nn
from tqdm.auto import tqdm

from st_plugins.core.appending import opened, opened_head, width_of
from st_plugins.core.model_card import texts_in_words
from st_plugins.core.texts import checksum
from st_plugins.scale.embeddings import Embeddings
from st_plugins.scale.encode_batches import SUMMARY, VECTOR, Encode
from st_plugins.scale.engines import Engine, Local, Ray, causes, check_engine_unused, engine_of, ray_library
from st_plugins.scale.inner.work import SumUp, Worker, items_of
from st_plugins.scale.summary import Summary
from st_plugins.scale.texts import is_dataset, is_source, source

_FAULT = "fault"  # a column beside a summary


def summarize(
    model: SentenceTransformer,
    texts: Any,
    summary: Summary | None = None,
    *,
    engine: str | Engine = "local",
    prompt: str | None = None,
    route: str | None = None,
    batch_size: int = 32,
    description: str = "Encoding",
    show_progress_bar: bool | None = None,
) -> Summary:
    r"""Return the statistics of the embeddings of texts that need not fit into memory.

    What comes out is the same for any engine and any number of workers: blocks have the same texts whoever reads them,
    and are added up in their order. (A packed file is summed up first by several local processes; then sums agree to
    1e-12.) Of a Ray Dataset, Ray makes the blocks; other blocks give
    embeddings that differ by float32's rounding.

    Args:
        model: The model.
        texts: `Texts`, a path or paths, or a Ray Dataset with a column ``text``, or with one column only.
        summary: A summary that says what to keep; None: ``Summary`` of the model's dimension, without a sample.
        engine: ``"local"``, ``"ray"``, or a `Local` or `Ray`; a Ray Dataset is always Ray's.
        prompt: What goes before the texts; None is the model's default prompt, if it has one.
        route: Whose texts these are in a model with routes.
        batch_size: Texts that the model encodes at a time.
        description: What the progress bar says.
        show_progress_bar: Whether to show a progress bar; None shows one on a terminal.

    Returns:
        The statistics.

    Raises:
        ValueError: A file cannot be read, or an embedding is NaN or infinite.

    Example:
        >>> import pathlib, tempfile
        >>> from st_plugins.miniature import corpus, untrained_encoder
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = pathlib.Path(folder, "corpus.txt")
        ...     _ = path.write_text("\n".join(corpus(500)))
        ...     found = summarize(untrained_encoder(16), path)
        >>> found.count, found.moments.second().shape
        (500, (16, 16))
    """
    options: dict[str, Any] = {"prompt": prompt, "route": route, "batch_size": batch_size}
    if summary is None:
        summary = Summary(width_of(model))
    given = source(texts)
    runner = engine_of(engine)
    if is_dataset(given):
        if runner != Local() and not isinstance(runner, Ray):
            raise ValueError(f"engine={engine!r}, but a Ray Dataset is always encoded by Ray; leave it out")
        rows = _of_texts(given, Encode(model, text_column(given), summary=summary, vectors=False, **options), runner)
        return _added(rows, summary, None, description, show_progress_bar)
    with runner.session():
        scan = given.scan()
        worker = Worker(Encode(model, **options), given, SumUp(summary))
        found = _in_order(runner.run(worker, items_of(scan)))
        total = _added(found, summary, scan.texts, description, show_progress_bar)
    if total.count != scan.texts:
        raise RuntimeError(f"{total.count} texts came back, but there are {scan.texts}")
    return total


def _in_order(rows: Iterable[dict[str, Any]]) -> Iterator[bytes]:
    """Yield what was found, in the order of the blocks, so that sums are rounded alike whoever is done first."""
    waiting: dict[int, dict[str, Any]] = {}
    following = 0
    for row in rows:
        waiting[row["number"]] = row
        while following in waiting:
            one = waiting.pop(following)
            following += one["blocks"]
            yield one["found"]


def _added(
    found: Iterable[bytes], summary: Summary, texts: int | None, description: str, shown: bool | None
) -> Summary:
    """Add up summaries under a progress bar."""
    hidden, total = not sys.stderr.isatty() if shown is None else not shown, summary.empty()
    with tqdm(total=texts, desc=description, unit="texts", disable=hidden) as bar:
        for one in found:
            part = Summary.from_bytes(one)
            total.merge(part)
            bar.update(part.count)
    return total


def _of_texts(dataset: Any, encode: Encode, engine: Engine) -> Iterator[bytes]:
    """Yield the summaries of a Ray Dataset's batches."""
    ray = ray_library()
    ray.data.DataContext.get_current().enable_progress_bars = False  # the caller shows one
    resources = ray.cluster_resources()
    gpus, cores = int(resources.get("GPU", 0)), int(resources.get("CPU", 1))
    if cores < 2 and not gpus:
        raise ValueError(
            "a Ray cluster with one core cannot read a dataset and encode it at the same time, and would wait without "
            "end; give it two cores, or give the files instead of the dataset"
        )
    given = engine if isinstance(engine, Ray) else Ray()
    device = encode.model.device
    encode.model.to("cpu")
    try:
        mapped = dataset.map_batches(
            _Given,
            fn_constructor_args=(ray.put(encode),),
            batch_size=4096,
            compute=ray.data.ActorPoolStrategy(min_size=1, max_size=given.workers or gpus or cores // given.cpus or 1),
            num_cpus=given.cpus,
            num_gpus=1 if gpus else 0,
        )
        with causes():
            yield from (row[SUMMARY] for row in mapped.iter_rows())
    finally:
        encode.model.to(device)


def summarize_vectors(vectors: Any, sample: int = 0, *, seed: int = 0, column: str = VECTOR) -> Summary:
    """Return the statistics of embeddings that are there already and need not fit into memory.

    Args:
        vectors: `Embeddings`, the path of the folder that `encode` wrote, or a Ray Dataset.
        sample: How many embeddings to keep.
        seed: Of the sample.
        column: Column of a Ray Dataset that has them.

    Returns:
        The statistics.

    Raises:
        TypeError: ``vectors`` is something else.
        ValueError: There is none, or one is NaN or infinite.

    Example:
        >>> import pathlib, tempfile
        >>> from st_plugins.miniature import corpus, untrained_encoder
        >>> from st_plugins.scale import encode
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = pathlib.Path(folder, "corpus.txt")
        ...     _ = path.write_text(chr(10).join(corpus(500)))
        ...     _ = encode(untrained_encoder(16), path, pathlib.Path(folder, "out"))
        ...     found = summarize_vectors(pathlib.Path(folder, "out"), sample=100)
        >>> found.count, found.sample().shape
        (500, (100, 16))
    """
    if is_dataset(vectors):
        return _of_dataset(vectors, sample, seed, column)
    if not isinstance(vectors, Embeddings | str | Path):
        raise TypeError(
            f"vectors is a {type(vectors).__name__}; give Embeddings, the folder that encode wrote, or a Ray Dataset"
        )
    found = vectors if isinstance(vectors, Embeddings) else Embeddings(vectors)
    total = Summary(found.dimension, sample=sample, seed=seed)
    for _, rows in found:
        total.add(rows)
    return total


def _of_dataset(dataset: Any, sample: int, seed: int, column: str) -> Summary:
    ray_library().data.DataContext.get_current().enable_progress_bars = False
    from st_plugins.scale.aggregate import MomentsAggregate  # a class of Ray's

    moments, total = MomentsAggregate(column, sample=sample, seed=seed), b""

    def summed(block: Any) -> dict[str, Any]:
        found, fault = b"", ""
        try:
            found = moments.aggregate_block(block)
        except ValueError as error:  # told, not raised: Ray drops the cause of its own report on the way here
            fault = str(error)
        return {SUMMARY: np.array([found], dtype=object), _FAULT: np.array([fault])}

    # Mapped and merged here, not aggregated by Ray, whose aggregators lose what they have when a machine is lost.
    with causes():
        for row in dataset.map_batches(summed, batch_format="pyarrow", batch_size=16384).iter_rows():
            if row[_FAULT]:
                raise ValueError(row[_FAULT])
            total = moments.combine(total, row[SUMMARY])
    return Summary.from_bytes(moments.finalize(total))


def opened_anywhere(
    model: SentenceTransformer,
    texts: Any,
    least: int,
    what: str,
    prompt: str | None,
    route: str | None,
    engine: str | Engine,
) -> tuple[list[str] | None, SentenceTransformer, list[nn.Module], int]:
    """Open a model to fit behind, as `opened` does; of texts that are not in memory nothing is known yet: None."""
    if is_source(texts):
        return None, *opened_head(model, prompt, route)
    check_engine_unused(engine)
    return opened(model, texts, least, what, prompt, route)


def settled(texts: Any) -> Any:
    """Return texts that are elsewhere as what reads them, so that they are looked through once."""
    return source(texts) if is_source(texts) else texts


def described(texts: Any, here: list[str] | None, name: str) -> str:
    """Say on which texts something was fitted, for the card of a model."""
    if here is not None:
        return texts_in_words(len(here), name, checksum(here))
    if is_dataset(texts):
        return f"a Ray Dataset{f', {name}' if name else ''}"
    more = f" and {len(texts.files) - 1} more" if len(texts.files) > 1 else ""
    return texts_in_words(len(texts), name or f"{texts.files[0].name}{more}", texts.scan().checksum)


def first_vectors(
    model: SentenceTransformer, texts: Any, count: int, *, prompt: str | None, route: str | None, batch_size: int
) -> NDArray[np.float32]:
    """Return the embeddings of the first texts, which decide what the others are asked."""
    given = source(texts)
    if is_dataset(given):
        column = text_column(given)
        first = [row[column] for row in given.take(count)]
    else:
        first = list(itertools.islice(given, count))
    return Encode(model, prompt=prompt, route=route, batch_size=batch_size).embed(first)


class _Given:
    """`Encode` in an actor, which gets it from the object store instead of loading it."""

    def __init__(self, reference: Any) -> None:
        import ray
        import torch

        self.encode: Encode = ray.get(reference)
        if torch.cuda.is_available():
            self.encode.model.to("cuda")

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        return self.encode(batch)


def text_column(dataset: Any) -> str:
    """Return the column of a Ray Dataset that holds its texts."""
    schema = dataset.schema()
    names = [] if schema is None else list(schema.names)
    if "text" in names or len(names) == 1:
        return "text" if "text" in names else str(names[0])
    raise ValueError(
        f"the dataset has the columns {', '.join(names) or 'none'}; rename the one with the texts to 'text', or "
        "select it alone: dataset.select_columns(['NAME'])"
    )
