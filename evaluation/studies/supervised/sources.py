"""What is learned from: labelled pairs and texts, without what is in the reported sets."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evaluation.engine.corpus import draw_texts
from evaluation.engine.study import Record
from st_plugins.core.reading.tables import read_table
from st_plugins.data import Pairs

CLASSES = ("contradiction", "entailment", "neutral")
OVERLAPS = ("sentence", "pair", "keep")
Array = NDArray[np.floating]
_BLOCK = 1024  # texts whose similarities to all others are ranked at once


@dataclass(frozen=True)
class Source:
    """Files of pairs, or of texts without labels."""

    pairs: list[str] = field(default_factory=list)  # columns score or label, sentence1, sentence2
    texts: list[str] = field(default_factory=list)  # as for draw_texts
    # Folders of models below --models, whose mean cosines in groups of texts are learned.
    teachers: list[str] = field(default_factory=list)
    partners: int = 5  # of each text in its group, with teachers
    scale: tuple[float, float] = (0.0, 5.0)  # lowest and highest score
    # What is left out: pairs with a sentence of a reported set, the pairs of reported sets and of dev, or nothing.
    overlap: str = "sentence"
    size: int = 0  # so many are drawn of what is left; 0 for all


class Reported:
    """The sentences and pairs of sets that must not be trained on, ignoring case and punctuation."""

    def __init__(self, tests: Iterable[Pairs], dev: Iterable[Pairs] = ()) -> None:
        self.tests, self.dev = list(tests), list(dev)
        self.sentences = {plain(text) for pairs in self.tests for text in (*pairs.first, *pairs.second)}
        self.pairs = {key for pairs in [*self.tests, *self.dev] for key in map(_pair, pairs.first, pairs.second)}

    def clean(self, first: str, second: str, overlap: str) -> bool:
        """Tell whether a pair may be trained on."""
        if overlap == "keep":
            return True
        apart = _pair(first, second) not in self.pairs
        return apart and (overlap == "pair" or not {plain(first), plain(second)} & self.sentences)


def plain(text: str) -> str:
    """Return the letters and digits of a text."""
    return re.sub(r"[\W_]+", "", text.lower())


def _pair(first: str, second: str) -> frozenset[str]:
    return frozenset((plain(first), plain(second)))


def read_source(
    source: Source, loss: str, reported: Reported, data: Path, vectors: Callable[[str, list[str]], Array]
) -> tuple[dict[str, list[Any]], Record]:
    """Return the columns that a loss learns from, and how many pairs or texts were left out.

    ``vectors`` encodes texts with the model of a name.
    """
    if source.texts:
        texts = draw_texts(source.texts, data)
        kept = [text for text in texts if plain(text) not in reported.sentences]
        counts = {"read": len(texts), "dropped": len(texts) - len(kept)}
        drawn = [kept[place] for place in _drawn(len(kept), source.size)]
        if source.teachers:
            return grouped(drawn, [vectors(name, drawn) for name in source.teachers], source.partners), counts
        return {"text": drawn}, counts
    rows: list[tuple[str, str, Any]] = []
    read = 0
    for file in source.pairs:
        table = read_table(data / file)
        first, second = table.texts("sentence1"), table.texts("sentence2")
        values: list[Any] = table.scores("score") if "score" in table.columns else table.texts("label")
        read += len(values)
        rows += [row for row in zip(first, second, values, strict=True) if reported.clean(*row[:2], source.overlap)]
    counts = {"read": read, "dropped": read - len(rows)}
    rows = [rows[place] for place in _drawn(len(rows), source.size)]
    if loss == "in-batch":
        return _triplets(rows), counts
    columns: dict[str, list[Any]] = {"sentence1": [row[0] for row in rows], "sentence2": [row[1] for row in rows]}
    if loss == "softmax":
        return {**columns, "label": [CLASSES.index(row[2]) for row in rows]}, counts
    low, high = source.scale
    return {**columns, "label": [(float(row[2]) - low) / (high - low) for row in rows]}, counts


def _drawn(count: int, size: int) -> list[int]:
    if not 0 < size < count:
        return list(range(count))
    found: list[int] = np.sort(np.random.default_rng(0).choice(count, size, replace=False)).tolist()
    return found


def grouped(texts: Sequence[str], teachers: Sequence[Array], partners: int) -> dict[str, list[Any]]:
    """Group each text with others, near and far, with the teachers' mean cosines within a group as its label.

    The columns are ``text0`` to ``text<partners>``; the label is a matrix, row after row.
    """
    # The cosine of what stands side by side is the mean of the cosines.
    sides = [vectors / np.linalg.norm(vectors, axis=1, keepdims=True) for vectors in teachers]
    joined = np.concatenate(sides, axis=1) / np.sqrt(len(sides))
    generator = np.random.default_rng(0)
    groups = np.empty((len(texts), 1 + partners), dtype=int)
    groups[:, 0] = np.arange(len(texts))
    for start in range(0, len(texts), _BLOCK):
        similar = joined[start : start + _BLOCK] @ joined.T
        rows = np.arange(len(similar))
        similar[rows, start + rows] = -np.inf  # itself, which is the last of its ranking
        # The logarithm of the rank is uniform: as many of the nearest ten as of the next ninety, and so on.
        ranks = ((len(texts) - 1) ** generator.random((len(rows), partners))).astype(int) - 1
        groups[start + rows, 1:] = np.take_along_axis(np.argsort(-similar, axis=1), ranks, axis=1)
    cosines = [(joined[group] @ joined[group].T).ravel().tolist() for group in groups]
    columns = {f"text{place}": [texts[row] for row in column] for place, column in enumerate(groups.T)}
    return {**columns, "label": cosines}


def _triplets(rows: list[tuple[str, str, Any]]) -> dict[str, list[str]]:
    """Return pairs of one meaning; with classes, each with a contradiction, of the same premise where there is one."""
    alike = [row for row in rows if row[2] in ("entailment", "1")]
    columns = {"anchor": [row[0] for row in alike], "positive": [row[1] for row in alike]}
    against = [row for row in rows if row[2] == "contradiction"]
    if against:
        own = {premise: hypothesis for premise, hypothesis, _ in against}
        columns["negative"] = [own.get(row[0], against[place % len(against)][1]) for place, row in enumerate(alike)]
    return columns
