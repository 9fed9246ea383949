"""The documents nearest to queries: exact, and the same whatever parts a corpus is searched in, and in which order."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from st_plugins.core.rows import non_finite_rows
from st_plugins.evaluation.measuring.space import Spread

Vectors = NDArray[np.float32]
Exact = NDArray[np.float64]
Part = tuple[Sequence[Any] | NDArray[Any], Vectors]

_QUERIES, _DOCUMENTS = 1024, 16384  # of a block of similarities: 64 MB
_AT_ONCE = 2048  # documents whose float64 vectors are held
_COSINE_DECIMALS = 6
_LEAST_NORM = 1e-12  # below it a vector has no direction, as in the host
_UNIT = 2.0**-24  # relative error of a number in float32


@dataclass
class Nearest:
    """The nearest documents of each query among those that were searched, and what else was seen of these."""

    ids: NDArray[np.str_]  # (Q, depth), best first; "" where there are fewer documents
    values: Exact  # (Q, depth); -inf there
    spread: Spread = field(default_factory=Spread)
    count: int = 0
    expected: set[str] = field(default_factory=set)  # ids among these that were met
    sampled: dict[str, Vectors] = field(default_factory=dict)  # vectors of documents that were asked for

    def merge(self, other: Nearest) -> None:
        """Take in what was found in another part of the corpus."""
        self.take(np.arange(len(self.ids)), other.ids, other.values)
        self.spread.merge(other.spread)
        self.count += other.count
        self.expected |= other.expected
        self.sampled |= other.sampled

    def take(self, rows: NDArray[np.intp], ids: NDArray[np.str_], values: Exact) -> None:
        """Keep the best of what some queries have and are given; among equals the smaller id, as text, is first."""
        ids = np.concatenate([self.ids[rows], ids], axis=1)
        values = np.concatenate([self.values[rows], values], axis=1)
        best = np.lexsort((ids, -values), axis=1)[:, : self.ids.shape[1]]
        self.ids = self.ids.astype(np.promote_types(self.ids.dtype, ids.dtype), copy=False)
        self.ids[rows] = np.take_along_axis(ids, best, axis=1)
        self.values[rows] = np.take_along_axis(values, best, axis=1)


class Search:
    """Queries that look for their nearest documents, in a corpus or a part of it."""

    def __init__(
        self,
        queries: Vectors,
        similarity: str,
        depth: int,
        *,
        expected: Iterable[str] = (),
        sampled: Iterable[str] = (),
    ) -> None:
        self.queries, self.similarity, self.depth = queries, similarity, depth
        self.expected, self.sampled = frozenset(expected), frozenset(sampled)

    def empty(self) -> Nearest:
        """Return what is found in a part without documents."""
        shape = (len(self.queries), self.depth)
        return Nearest(np.full(shape, "", dtype="U1"), np.full(shape, -np.inf))

    def among(self, parts: Iterable[Part]) -> Nearest:
        """Return the nearest of all documents of some parts: ids and vectors."""
        found = self.empty()
        for ids, vectors in parts:
            if bad := non_finite_rows(vectors):
                raise ValueError(f"the vector of document {ids[bad[0]]!r} holds NaN or infinity; encode it again")
            for begin in range(0, len(vectors), _DOCUMENTS):
                here = slice(begin, begin + _DOCUMENTS)
                self._add(found, np.array(ids[here]).astype(np.str_), np.ascontiguousarray(vectors[here]))
        return found

    def _add(self, found: Nearest, ids: NDArray[np.str_], documents: Vectors) -> None:
        found.spread.add(documents)
        found.count += len(ids)
        if self.expected or self.sampled:
            named = ids.tolist()
            found.expected |= self.expected.intersection(named)
            wanted = self.sampled.intersection(named)
            found.sampled |= {one: documents[row] for row, one in enumerate(named) if wanted and one in wanted}
        for start in range(0, len(self.queries), _QUERIES):
            queries = self.queries[start : start + _QUERIES]
            worst = found.values[start : start + _QUERIES, -1]
            scores, least = _candidates(self.similarity, queries, documents, worst, self.depth)
            rows, near_ids, near_values = [], [], []
            for row, query in enumerate(queries):
                near = np.flatnonzero(scores[row] >= least[row])
                if not len(near):
                    continue
                values = _exact(self.similarity, query, documents, near)
                best = np.lexsort((ids[near], -values))[: self.depth]
                empty = self.depth - len(best)
                rows.append(start + row)
                near_ids.append(np.pad(ids[near[best]], (0, empty)))
                near_values.append(np.pad(values[best], (0, empty), constant_values=-np.inf))
            if rows:
                found.take(np.array(rows), np.stack(near_ids), np.stack(near_values))


def _exact(similarity: str, query: Vectors, documents: Vectors, rows: NDArray[np.intp]) -> Exact:
    """Return the similarity of some documents in float64; that of a pair has the same bits whatever is beside it."""
    # In a matrix product the shapes decide in which order it is added up; in a sum along a row they do not.
    one = query.astype(np.float64)
    blocks = (rows[begin : begin + _AT_ONCE] for begin in range(0, len(rows), _AT_ONCE))
    return np.concatenate([_row_by_row(similarity, one, documents[block]) for block in blocks])


def _row_by_row(similarity: str, query: Exact, documents: Vectors) -> Exact:
    others = documents.astype(np.float64)
    found: Exact
    if similarity == "euclidean":
        found = -np.sqrt(((others - query) ** 2).sum(axis=1))
    elif similarity == "manhattan":
        found = -np.abs(others - query).sum(axis=1)
    else:
        found = (others * query).sum(axis=1)
    if similarity != "cosine":
        return found
    # What rounding makes of equal cosines, of binary vectors say, is not ranked.
    lengths = _lengths(query[None]) * _lengths(others)
    return np.round(found / lengths, _COSINE_DECIMALS)


def _candidates(
    similarity: str, queries: Vectors, documents: Vectors, worst: Exact, depth: int
) -> tuple[NDArray[np.float32], Exact]:
    """Return similarities in float32, on some scale, and what a document must reach that may be among the nearest."""
    one, two = queries.astype(np.float64), documents.astype(np.float64)
    norms, others = _lengths(one), _lengths(two)
    if similarity == "manhattan":
        scale = float(max(np.abs(one).sum(axis=1).max(), np.abs(two).sum(axis=1).max(), _LEAST_NORM))
        a, b = (torch.from_numpy((side / scale).astype(np.float32)) for side in (one, two))
        scores, least = -torch.cdist(a, b, p=1).numpy(), worst / scale
    elif similarity == "euclidean":
        scale = max(norms.max(), others.max())
        # Minus the squared distance, but for the square of the query, which all its documents have.
        scores = _product(2 * one / scale, two / scale) - ((others / scale) ** 2).astype(np.float32)
        least = (norms / scale) ** 2 - (worst / scale) ** 2
    elif similarity == "dot":
        scores = _product(one / norms[:, None], two / others.max())
        least = worst / norms / others.max()
    else:
        scores, least = _product(one / norms[:, None], two / others[:, None]), worst
    # No vector is longer than 1 now (2 with the factor above), so that this bounds the error of so many products in
    # float32, and for cosine, where a fourth of it does, that of the decimals that are rounded away too.
    margin = 4 * (queries.shape[1] + 8) * _UNIT
    own = torch.from_numpy(scores).topk(min(depth, len(documents)), dim=1).values[:, -1].numpy()
    return scores, np.maximum(own - 2 * margin, least - margin)


def _product(one: Exact, two: Exact) -> NDArray[np.float32]:
    # By numpy: how exact torch's product of float32 is can be set.
    product: NDArray[np.float32] = one.astype(np.float32) @ two.astype(np.float32).T
    return product


def _lengths(rows: Exact) -> Exact:
    lengths: Exact = np.sqrt((rows * rows).sum(axis=1))
    return np.maximum(lengths, _LEAST_NORM)
