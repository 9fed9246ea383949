"""Encode each distinct sentence once, longest first."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Router, Transformer
from sentence_transformers.sentence_transformer.modules import StaticEmbedding
from torch import Tensor
from tqdm.auto import tqdm

from st_plugins.evaluation.floor import token_ids
from st_plugins.evaluation.measuring import Way, length_of

__all__ = ["Encoded", "distinct", "encode_longest_first", "encode_ways", "same_input", "watch_input"]

_BATCHES_A_CALL = 16
_SPECIAL = 8  # more than any tokenizer adds to a text


def distinct(columns: Sequence[Sequence[str]]) -> tuple[list[str], list[NDArray[np.intp]]]:
    """Return the distinct sentences of several columns and, per column, the row of each entry.

    Args:
        columns: Lists of texts.

    Returns:
        The M distinct sentences in order of appearance, and one index array a column.

    Example:
        >>> sentences, (first, second) = distinct([["a", "b"], ["b", "c"]])
        >>> sentences, first.tolist(), second.tolist()
        (['a', 'b', 'c'], [0, 1], [1, 2])
    """
    row: dict[str, int] = {}
    indices = [np.array([row.setdefault(text, len(row)) for text in column], dtype=np.intp) for column in columns]
    return list(row), indices


def encode_longest_first(
    model: SentenceTransformer,
    sentences: Sequence[str],
    lengths: Sequence[int],
    *,
    batch_size: int,
    show_progress_bar: bool,
    description: str = "Encoding",
    arguments: Mapping[str, Any] | None = None,
) -> NDArray[np.float32]:
    """Encode sentences in batches of like length, in evaluation mode; the model's mode is restored.

    The host sorts by characters; token counts, which the caller has at hand, waste less padding. So the host gets a
    few batches of like length at a time: enough that its cost per call does not count. The longest come first, so
    that a batch size that does not fit in memory fails at once.

    Args:
        model: The model.
        sentences: The M sentences.
        lengths: Tokens (or characters) of each.
        batch_size: Sentences a batch.
        show_progress_bar: Whether to show one progress bar.
        description: Its label.
        arguments: More arguments of ``model.encode``: a prompt, a task.

    Returns:
        Embeddings, float32, shape (M, d).

    Raises:
        ValueError: A sentence got an embedding with NaN or infinity.
    """
    order = np.argsort(-np.asarray(lengths), kind="stable")
    was_training = model.training
    embeddings: NDArray[np.float32] | None = None
    try:
        with tqdm(total=len(order), desc=description, unit="texts", disable=not show_progress_bar) as bar:
            for start in range(0, len(order), _BATCHES_A_CALL * batch_size):
                rows = order[start : start + _BATCHES_A_CALL * batch_size]
                batch = model.encode(
                    [sentences[row] for row in rows],
                    batch_size=batch_size,
                    show_progress_bar=False,
                    convert_to_tensor=True,
                    **(arguments or {}),
                )
                vectors = batch.to(device="cpu", dtype=torch.float32).numpy()
                if embeddings is None:
                    embeddings = np.empty((len(order), vectors.shape[1]), dtype=np.float32)
                embeddings[rows] = vectors
                bar.update(len(rows))
    finally:
        model.train(was_training)
    if embeddings is None:
        raise ValueError("sentences is empty; give at least one sentence to encode")
    bad = np.flatnonzero(~np.isfinite(embeddings).all(axis=1))
    if bad.size:
        raise ValueError(
            f"the model gave NaN or infinity for {bad.size} of {len(order)} sentences, the first is row {bad[0]}: "
            f"{sentences[bad[0]][:80]!r}; try dtype float32 or check the model's weights"
        )
    return embeddings


@dataclass(frozen=True)
class Encoded:
    """Embeddings of texts that were encoded in one or several ways.

    Args:
        embeddings: Embeddings, shape (R, d).
        place: For each way the row of each text, -1 where it was not encoded in this way.
    """

    embeddings: NDArray[np.float32]
    place: dict[Way, NDArray[np.intp]]

    def rows(self, sides: tuple[Way, Way], found: tuple[NDArray[np.intp], ...]) -> tuple[NDArray[np.intp], ...]:
        """Return the embeddings' rows of a task's texts.

        Args:
            sides: How the two sides were encoded.
            found: Row of each first, second and further text among the texts.

        Returns:
            The same for the embeddings; further texts go with the first side.
        """
        first, second = (self.place[way] for way in sides)
        return first[found[0]], second[found[1]], first[found[2]]


def encode_ways(
    model: SentenceTransformer,
    sentences: Sequence[str],
    wanted: Sequence[tuple[Way, NDArray[np.intp]]],
    lengths: Sequence[int],
    *,
    tokens: Sequence[Sequence[int]] | None,
    batch_size: int,
    show_progress_bar: bool,
) -> Encoded:
    """Encode each text once in each way in which it is wanted.

    Args:
        model: The model.
        sentences: The M texts.
        wanted: Ways, each with the rows of the texts that are wanted in it.
        lengths: Tokens (or characters) of each text.
        tokens: Token ids of each text, if the model has a tokenizer for text.
        batch_size: Texts a batch.
        show_progress_bar: Whether to show a progress bar for each way.

    Returns:
        The embeddings.
    """
    blocks: list[NDArray[np.float32]] = []
    place: dict[Way, NDArray[np.intp]] = {}
    start = 0
    for way in dict.fromkeys(way for way, _ in wanted):
        rows = np.unique(np.concatenate([rows for other, rows in wanted if other == way]))
        alike = np.arange(len(rows))
        reader = _reader(model, way.route)
        if tokens is not None and reader is not None:
            read: list[Sequence[int]] = [tokens[row] for row in rows]
            if way.prompt or reader is not model[0]:  # a prompt may run together with the text's first letters
                read = list(token_ids(reader, [f"{way.prompt or ''}{sentences[row]}" for row in rows]))
            alike = same_input(reader, read)
        encoded, back = np.unique(alike, return_inverse=True)
        chosen = rows[encoded]
        block = encode_longest_first(
            model,
            [sentences[row] for row in chosen],
            [lengths[row] for row in chosen],
            batch_size=batch_size,
            show_progress_bar=show_progress_bar,
            description=f"Encoding ({way.route})" if way.route else "Encoding",
            arguments=way.arguments,
        )
        blocks.append(block)
        place[way] = np.full(len(sentences), -1, dtype=np.intp)
        place[way][rows] = start + back
        start += len(block)
    return Encoded(blocks[0] if len(blocks) == 1 else np.concatenate(blocks), place)


def _reader(model: SentenceTransformer, route: str | None) -> Transformer | StaticEmbedding | None:
    """Return the module that reads the texts; None where it may see more of a text than its tokens."""
    first: Any = model[0]
    if isinstance(first, Router) and not first.route_mappings:
        modules: Any = first.sub_modules
        name = first.default_route if route is None else route
        first = modules[name][0] if name in modules else None
    return first if isinstance(first, Transformer | StaticEmbedding) else None


def same_input(reader: Transformer | StaticEmbedding, tokens: Sequence[Sequence[int]]) -> NDArray[np.intp]:
    """Return for each text the first one that the model cannot tell from it: "A dog" and "a dog" where case is lost.

    In two batches such texts would get embeddings that differ by rounding. Texts nearly as long as the limit are
    left alone, since what is cut off may differ.

    Args:
        reader: The module that reads the texts.
        tokens: Token ids of each text.

    Returns:
        Row numbers, shape (M,).
    """
    limit = length_of(reader)
    longest = max(map(len, tokens), default=0) + 1 if limit is None else limit - _SPECIAL
    seen: dict[tuple[int, ...], int] = {}
    return np.array(
        [row if len(ids) >= longest else seen.setdefault(tuple(ids), row) for row, ids in enumerate(tokens)],
        dtype=np.intp,
    )


@contextlib.contextmanager
def watch_input(module: torch.nn.Module, see: Callable[[Tensor], object]) -> Iterator[None]:
    """Call ``see`` with every ``sentence_embedding`` that enters ``module`` while the block runs.

    Args:
        module: A module of a SentenceTransformer pipeline.
        see: What to do with the (batch, d) tensor.

    Yields:
        Nothing; the hook is gone after the block, also after an exception.
    """
    handle = module.register_forward_pre_hook(lambda _, inputs: see(inputs[0]["sentence_embedding"]) and None)
    try:
        yield
    finally:
        handle.remove()
