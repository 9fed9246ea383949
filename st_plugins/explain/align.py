"""Find out which words of two texts correspond."""

from __future__ import annotations

import dataclasses
import unicodedata
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from sentence_transformers import SentenceTransformer

from st_plugins.core.host import check_encoder
from st_plugins.core.texts import check_strings
from st_plugins.explain.alignment import Alignment, Link, LinkKind
from st_plugins.explain.inner.linking import (
    Array,
    counterparts,
    evidence,
    inside_phrases,
    middle_layers,
    similarities,
)
from st_plugins.explain.inner.seen import Seen, look
from st_plugins.explain.inner.units import By, text_units
from st_plugins.explain.spans import Span


def align(
    model: SentenceTransformer,
    first: str,
    second: str,
    *,
    by: By = "word",
    layers: Sequence[int] | None = None,
    prompt: str | tuple[str, str] | None = None,
) -> Alignment:
    """Say which words of two texts correspond, as a person would draw lines between them.

    With x and y the vectors of two words (means over their tokens) at layer l, c_l the mean over all words of both
    texts (n + m of them, shrunk by (n + m) / (n + m + 4)), and L the layers that are read::

        s(x, y) = 1/L Σ_l cos(x_l - c_l, y_l - c_l)
        p(i, j) = √( softmax_j((e(i, j) - ε) / τ) · softmax_i((e(i, j) - ε) / τ) )       with "none" (0) in both
        e(i, j) = s(i, j) + λ (p(i - 1, j - 1) + p(i + 1, j + 1))                        three rounds, from e = s

    Two words are counterparts if each has its highest e at the other, and e is above ε; otherwise a word has no
    counterpart. A mark of punctuation corresponds to marks only. A word without counterpart between two neighbors
    whose counterparts are neighbors, too, belongs to their phrase. All of it is symmetric.

    This says what corresponds, and not how much of the similarity comes from it: that is what
    :func:`~st_plugins.explain.explain_pair` adds up.

    Args:
        model: A model that begins with a Transformer, a StaticEmbedding or TokenEmbeddings, with any pooling after
            it; as it was afterwards.
        first: First text.
        second: Second text.
        by: What to link: ``"word"``, ``"token"`` or ``"sentence"``.
        layers: Layers to read, 0 for the embedding layer; None takes the middle third, 2 to 4 of 6. A static model
            has one, 0.
        prompt: Goes before the texts, as in ``encode``, or one for each; None takes the model's default prompt.

    Returns:
        The alignment.

    Raises:
        TypeError: ``model`` is no SentenceTransformer.
        ValueError: The model gives no token vectors, has fewer layers, or there is nothing to link in a text.

    Example:
        >>> from st_plugins.miniature import untrained_encoder
        >>> found = align(untrained_encoder(), "A happy dog sleeps.", "The dog sleeps.")
        >>> [(link.first.text, link.second.text) for link in found.links][-2:]
        [('sleeps', 'sleeps'), ('.', '.')]

    Reference:
        Jalili Sabet, Dufter, Yvon & Schütze, "SimAlign: High Quality Word Alignments Without Parallel Training Data
        Using Static and Contextualized Embeddings" (2020), arXiv 2004.08728, for mutual best cosines of one layer.
        Centering, the mean over layers, the choice of none, the support of neighbors, the rule about marks and phrases
        are ours; ε = 0.2, τ = 0.1, λ = 0.15 were chosen on the dev pairs of MultiMWA.
    """
    check_encoder(model)
    check_strings(first=first, second=second)
    if by not in ("word", "token", "sentence"):
        raise ValueError(f"by={by!r} must be 'word', 'token' or 'sentence'")
    prompts = prompt if isinstance(prompt, tuple) else (prompt, prompt)
    one, other = (
        next(look(model, [text], own, layers=True, names=[name]))[1]
        for text, own, name in zip((first, second), prompts, ("first text", "second text"), strict=True)
    )
    texts = one.reading.text, other.reading.text
    found = linked(texts, units_of(one, by, layers), units_of(other, by, layers), by)
    return dataclasses.replace(found, unread=(one.reading.unread, other.reading.unread))


Units = tuple[list[Span], Array, tuple[int, ...]]


def units_of(seen: Seen, by: By, layers: Sequence[int] | None = None) -> Units:
    """Return the words of a text, their vectors ``(layers, n, d)`` in float64, and the layers that were read."""
    if seen.layers is None:
        raise ValueError(
            "the model gives one vector for a text and none for its tokens, so that no words can be linked; use a "
            "model that begins with a Transformer, a StaticEmbedding or TokenEmbeddings"
        )
    chosen = _chosen(layers, len(seen.layers))
    words, members = text_units(seen.reading, by)
    states = seen.layers[chosen].double().cpu()
    if not bool(states.isfinite().all()):
        text = seen.reading
        raise ValueError(
            f"the model gave NaN or infinity for tokens of the {text.name} {text.text[:80]!r}; try float32, or check "
            "the model's weights"
        )
    vectors = torch.stack([states[:, own].mean(1) for own in members], 1)
    return words, vectors.numpy(), tuple(chosen)


def linked(texts: tuple[str, str], first: Units, second: Units, by: By) -> Alignment:
    """Link the words of two texts by their vectors."""
    table = similarities(first[1], second[1])
    # To an encoder a full stop is as good a place as any to keep what the last words say; to a reader it is no word.
    marks, others = (np.array([_is_mark(word.text) for word in words]) for words in (first[0], second[0]))
    usable = np.where(marks[:, None] == others[None, :], table, -1.0)
    links = counterparts(evidence(usable))
    kinds: dict[tuple[int, int], LinkKind] = dict.fromkeys(inside_phrases(links, usable), "phrase")
    kinds |= dict.fromkeys(links, "counterpart")
    found = [Link(first[0][i], second[0][j], float(table[i, j]), kinds[i, j]) for i, j in sorted(kinds)]
    return Alignment(texts, tuple(first[0]), tuple(second[0]), table, tuple(found), by, first[2])


def _is_mark(text: str) -> bool:
    return all(unicodedata.category(char).startswith("P") for char in text)


def _chosen(layers: Sequence[int] | None, count: int) -> list[int]:
    if count == 1 and layers is None:
        return [0]
    if layers is None:
        return middle_layers(count)
    # One number is no list of them, and True is no number.
    given = list(layers) if isinstance(layers, Iterable) else []
    if not given or not all(type(layer) is int and 0 <= layer < count for layer in given):
        raise ValueError(
            f"layers={layers!r} must be a list of whole numbers from 0, the embedding layer, to {count - 1}, such as "
            f"[{count - 1}]"
        )
    return sorted(set(given))
