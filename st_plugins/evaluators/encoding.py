"""Encode each distinct sentence once, longest first."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer
from torch import Tensor
from tqdm.auto import tqdm

__all__ = ["distinct", "encode_longest_first", "watch_input"]

_BATCHES_A_CALL = 16


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
