"""Explain a search: which words of a query found each text, exactly, and which words correspond."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer
from torch import Tensor

from st_plugins.core.host import check_encoder, evaluating
from st_plugins.core.texts import check_texts
from st_plugins.explain.align import Units, linked, units_of
from st_plugins.explain.hit import Hit
from st_plugins.explain.inner.about import about
from st_plugins.explain.inner.seen import Seen, look
from st_plugins.explain.inner.take_apart import check_apart, take_apart
from st_plugins.explain.inner.units import By, check_count, gather
from st_plugins.explain.query_explanation import QueryExplanation
from st_plugins.explain.spans import Span

Array = NDArray[np.float64]
Prompts = tuple[str | None, str | None]

_EPS = 1e-12  # of the host's cosine
_SPANS = 512  # of a text that get a vector of their own
_DOCUMENTS = ("document", "passage", "corpus")  # names of prompts, in the order in which the host looks for them


def explain_query(
    model: SentenceTransformer,
    query: str,
    texts: Iterable[str],
    top_k: int = 10,
    *,
    by: By | None = None,
    prompt: str | tuple[str | None, str | None] | None = None,
    batch_size: int = 32,
    show_progress_bar: bool = False,
) -> QueryExplanation:
    """Rank texts for a query, and say which words of the query decided about each of the first ones.

    With u_s the parts of the query's embedding u (see :func:`~st_plugins.explain.explain_pair`), v that of a text and
    m the mean of v / |v| over all N texts::

        r(s, v) = ⟨u_s, v⟩ / (|u| |v|)         sums over s to the score of the text
        r(s)    = ⟨u_s, m⟩ / |u|               sums over s to the mean score of all texts

    (without the division for dot products). What a word gives to every text decides nothing: what counts is
    r(s, v) - r(s), which sums to what the score is above the mean. Beside that stands which words correspond, as
    :func:`~st_plugins.explain.align` reads it from the layers.

    The query is encoded once, and so is each text; if there are more than ``top_k`` texts, those that are shown are
    looked at once more.

    Args:
        model: A model that begins with a Transformer, a StaticEmbedding or TokenEmbeddings; as it was afterwards.
            Where its pooling or its similarity is no sum over words, there are scores and counterparts, and no
            contributions.
        query: The query.
        texts: Texts to rank, N strings.
        top_k: How many to explain; all if there are fewer.
        by: What to gather by: ``"word"`` (None is the same), ``"token"`` or ``"sentence"``.
        prompt: Goes before all texts, or one for the query and one for the texts. None takes what ``encode_query``
            and ``encode_document`` do, ``""`` takes none.
        batch_size: Texts in a batch.
        show_progress_bar: Whether to show progress.

    Returns:
        The texts found, in order of their score; equal ones in their own order.

    Raises:
        ValueError: There is no text, or nothing to explain in one; the model has no token vectors, or gives NaN; or
            ``top_k`` or ``batch_size`` is below 1.
        TypeError: ``texts`` are no strings, or ``model`` is no SentenceTransformer.

    Example:
        >>> from st_plugins.miniature import untrained_encoder
        >>> model = untrained_encoder()
        >>> texts = ["A cat eats.", "A happy dog sleeps.", "The train is late."]
        >>> found = explain_query(model, "The dog sleeps.", texts, top_k=2)
        >>> first, score = found.hits[0], model.similarity(*model.encode(["The dog sleeps.", texts[1]]))
        >>> first.text, bool(abs(first.contributions.sum() - float(score)) < 1e-5)
        ('A happy dog sleeps.', True)
        >>> apart = sum(word.difference for word in found.difference(1, 2))
        >>> bool(abs(apart - (found.hits[0].score - found.hits[1].score)) < 1e-5)
        True
    """
    check_encoder(model)
    by = "word" if by is None else by
    if by not in ("word", "token", "sentence"):
        raise ValueError(f"by={by!r} must be 'word', 'token' or 'sentence'")
    check_count(top_k, "top_k")
    check_count(batch_size, "batch_size")
    if not isinstance(query, str):
        raise TypeError(f"query must be a string, got {type(query).__name__}; explain one query at a time")
    texts = check_texts(texts, "texts")
    rows: dict[str, int] = {}  # equal texts are encoded once, so that they have equal scores
    for row, text in enumerate(texts):
        if not text.strip():
            raise ValueError(f"texts[{row}] {text!r} is empty, there is nothing to explain; leave it out")
        rows.setdefault(text, row)
    if not rows:
        raise ValueError("texts is empty; give at least one text to rank")
    prompts = _prompts(model, prompt)
    asked = _ask(model, query, prompts[0], by)
    distinct = list(rows)
    places = {text: place for place, text in enumerate(distinct)}
    own = np.array([places[text] for text in texts])
    embeddings = None
    if len(texts) > top_k:
        with evaluating(model):
            embeddings = model.encode(
                distinct,
                prompt=prompts[1],
                batch_size=batch_size,
                show_progress_bar=show_progress_bar,
                convert_to_tensor=True,
            )
        best = _best(_scores(model, asked, embeddings, rows)[own], top_k)
        distinct = list(dict.fromkeys(texts[row] for row in best))
    names = [f"texts[{rows[text]}]" for text in distinct]
    looked = look(
        model,
        distinct,
        prompts[1],
        layers=True,
        batch_size=batch_size,
        show_progress_bar=show_progress_bar,
        names=names,
    )
    found = {distinct[place]: _found(model, asked, seen) for place, seen in looked}
    if embeddings is None:
        embeddings = torch.stack([found[text].embedding for text in distinct])
    scores = _scores(model, asked, embeddings, rows)[own]
    given = None if asked.table is None else _directions(asked.function, embeddings.cpu()) @ asked.table.T
    hits = [
        Hit(
            rank,
            row,
            texts[row],
            float(scores[row]),
            linked((query, texts[row]), asked.units, found[texts[row]].units, by),
            None if given is None else given[own[row]],
            *found[texts[row]][2:],
        )
        for rank, row in enumerate(_best(scores, top_k), 1)
    ]
    return QueryExplanation(
        query=query,
        words=asked.words,
        hits=tuple(hits),
        count=len(texts),
        mean_score=float(scores.mean()),
        average=None if given is None else given[own].mean(0),
        similarity_function=asked.function,
        by=by,
        exact=asked.exact,
        reason=asked.reason,
        unread=asked.seen.reading.unread,
        about=about(model, prompts),
    )


@dataclass(frozen=True)
class _Asked:
    """The query, taken apart once for all texts."""

    seen: Seen
    by: By
    function: str  # the similarity
    units: Units
    words: tuple[Span, ...]
    table: Array | None = None  # (words, k), of which the products with a text's direction are the contributions
    exact: bool = False
    reason: str = ""  # why there are no contributions


class _Found(NamedTuple):
    """The little that is kept of a text that was looked at."""

    embedding: Tensor
    units: Units
    words: tuple[Span, ...] | None
    contributions: Array | None
    unread: int


def _ask(model: SentenceTransformer, query: str, prompt: str | None, by: By) -> _Asked:
    seen = next(look(model, [query], prompt, layers=True, names=["query"]))[1]
    units, function = units_of(seen, by), str(model.similarity_fn_name)
    _check_finite(seen.embedding, "the query", query)
    try:
        if function not in ("cosine", "dot"):
            raise ValueError(f"the similarity function {function!r} is no sum over words")
        check_apart(model)
        parts = take_apart(model, seen, _SPANS)
    except ValueError as error:
        # Scores and counterparts are worth having by themselves.
        return _Asked(seen, by, function, units, tuple(units[0]), reason=str(error))
    words, shares = gather(parts.side, by)
    table = shares @ parts.vectors.numpy() / _norm(function, parts.vectors)
    return _Asked(seen, by, function, units, words, table, parts.exact)


def _found(model: SentenceTransformer, asked: _Asked, seen: Seen) -> _Found:
    units, reading = units_of(seen, asked.by), seen.reading
    if asked.table is None:
        return _Found(seen.embedding, units, None, None, reading.unread)
    parts = take_apart(model, seen, _SPANS)
    words, shares = gather(parts.side, asked.by)
    # The sum over all words of the query: the contributions of the text's own.
    contributions = shares @ (parts.vectors.numpy() @ asked.table.sum(0)) / _norm(asked.function, parts.vectors)
    return _Found(seen.embedding, units, words, contributions, reading.unread)


def _scores(model: SentenceTransformer, asked: _Asked, embeddings: Tensor, rows: dict[str, int]) -> Array:
    """Return the model's own similarity of the query to each distinct text."""
    for embedding, (text, row) in zip(embeddings, rows.items(), strict=True):
        _check_finite(embedding, f"texts[{row}]", text)
    found: Tensor = model.similarity(asked.seen.embedding.float()[None], embeddings.float().cpu())[0]
    return np.asarray(found.double().numpy())


def _check_finite(embedding: Tensor, name: str, text: str) -> None:
    if not bool(embedding.isfinite().all()):
        raise ValueError(
            f"the model gave NaN or infinity for {name} {text[:80]!r}; try float32, or check the model's weights"
        )


def _best(scores: Array, count: int) -> list[int]:
    """Return the rows with the highest scores; equal ones in their own order."""
    return [int(row) for row in np.argsort(-scores, kind="stable")[:count]]


def _norm(function: str, parts: Tensor) -> float:
    """Return what a cosine divides the sum of parts by."""
    return max(float(parts.sum(0).norm()), _EPS) if function == "cosine" else 1.0


def _directions(function: str, embeddings: Tensor) -> Array:
    """Return embeddings in float64, of unit length for a cosine."""
    vectors = embeddings.double()
    return np.asarray((torch.nn.functional.normalize(vectors) if function == "cosine" else vectors).numpy())


def _prompts(model: SentenceTransformer, prompt: str | tuple[str | None, str | None] | None) -> Prompts:
    """Return what goes before the query and before the texts, as the host's encode_query and encode_document do."""
    given = prompt if isinstance(prompt, tuple) else (prompt, prompt)
    if len(given) != 2:
        raise ValueError(f"prompt={prompt!r} must be one prompt, or two: that of the query and that of the texts")
    names = ("query",), _DOCUMENTS
    query, document = (
        next((model.prompts[name] for name in known if name in model.prompts), None) if own is None else own
        for own, known in zip(given, names, strict=True)
    )
    return query, document
