"""Encode each distinct sentence once in each way that it is wanted."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Router, Transformer
from sentence_transformers.sentence_transformer.modules import StaticEmbedding
from torch import Tensor

from st_plugins.core.encoding import encode_longest_first
from st_plugins.evaluation.measuring.floor import token_ids
from st_plugins.evaluation.measuring.record import length_of
from st_plugins.evaluation.measuring.ways import Way

_SPECIAL = 8  # more than any tokenizer adds to a text


def distinct(columns: Sequence[Sequence[str]]) -> tuple[list[str], list[NDArray[np.intp]]]:
    """Return the distinct sentences of several columns and, per column, the row of each entry."""
    row: dict[str, int] = {}
    indices = [np.array([row.setdefault(text, len(row)) for text in column], dtype=np.intp) for column in columns]
    return list(row), indices


@dataclass(frozen=True)
class Encoded:
    """Embeddings of texts that were encoded in one or several ways."""

    embeddings: NDArray[np.float32]
    # For each way the row of each text, -1 where the text was not encoded in this way.
    place: dict[Way, NDArray[np.intp]]

    def rows(self, sides: tuple[Way, Way], found: tuple[NDArray[np.intp], ...]) -> tuple[NDArray[np.intp], ...]:
        """Return the embeddings' rows of a task's texts."""
        # Of further texts (of a target whitening) nobody says which side they are; they go with the first one.
        first, second = (self.place[way] for way in sides)
        return first[found[0]], second[found[1]], first[found[2]]


def encode_ways(
    model: SentenceTransformer,
    sentences: Sequence[str],
    wanted: Sequence[tuple[Way, NDArray[np.intp]]],
    lengths: Sequence[int],
    tokens: Sequence[Sequence[int]] | None,
    batch_size: int,
    show_progress_bar: bool,
) -> Encoded:
    """Encode each text once in each way in which it is wanted."""
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
    # Where mappings decide which sub-module reads, that is not known here.
    if isinstance(first, Router) and not first.route_mappings:
        modules: Any = first.sub_modules
        name = first.default_route if route is None else route
        first = modules[name][0] if name in modules else None
    return first if isinstance(first, Transformer | StaticEmbedding) else None


def same_input(reader: Transformer | StaticEmbedding, tokens: Sequence[Sequence[int]]) -> NDArray[np.intp]:
    """Return for each text the first one that looks the same to the model: "A dog" and "a dog" where case is lost."""
    # In two batches equal inputs would get embeddings that differ by rounding, and rounding would be ranked. Texts
    # nearly as long as the limit are left alone, since what is cut off may differ.
    limit = length_of(reader)
    longest = max(map(len, tokens), default=0) + 1 if limit is None else limit - _SPECIAL
    seen: dict[tuple[int, ...], int] = {}
    return np.array(
        [row if len(ids) >= longest else seen.setdefault(tuple(ids), row) for row, ids in enumerate(tokens)],
        dtype=np.intp,
    )


@contextlib.contextmanager
def watch_input(module: torch.nn.Module, see: Callable[[Tensor], object]) -> Iterator[None]:
    """Call ``see`` with every ``sentence_embedding`` that enters ``module`` while the block runs."""
    handle = module.register_forward_pre_hook(lambda _, inputs: see(inputs[0]["sentence_embedding"]) and None)
    try:
        yield
    finally:
        handle.remove()
