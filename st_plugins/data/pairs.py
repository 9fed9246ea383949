"""The one form in which scored sentence pairs travel through the package."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from st_plugins.core.texts import text_fault


@dataclass(frozen=True, eq=False)
class Pairs:
    """Sentence pairs with a gold score and the sub-dataset each belongs to.

    Args:
        name: Short name, used in metric keys (``sts12``).
        first: First texts, N of them.
        second: Second texts, N of them.
        scores: Gold scores, float64 of shape (N,), on the task's own scale.
        subsets: Sub-dataset of each pair, N of them; empty means one subset named like the task.
        title: Name as printed (``STS12``); defaults to ``name``.
        source: Where the pairs came from: a file, a hub id with revision, or ``"own pairs"``.
        warnings: Sentences for the report, such as a row count that differs from the published one.
        columns: Names of the two columns the texts came from: of "question" and "answer" a model encodes the first as
            a query and the second as a document.

    Raises:
        ValueError: The four columns differ in length, there is no pair, a score is not finite, or a text holds half a
            character (a lone surrogate).

    Example:
        >>> pairs = Pairs("toy", ["a dog", "a cat"], ["the dog", "a piano"], [4.5, 0.2])
        >>> len(pairs), pairs.scores.dtype, pairs.subsets
        (2, dtype('float64'), ['toy', 'toy'])
    """

    name: str
    first: list[str]
    second: list[str]
    scores: NDArray[np.float64]
    subsets: list[str] = field(default_factory=list)
    title: str = ""
    source: str = "own pairs"
    warnings: tuple[str, ...] = ()
    columns: tuple[str, str] = ("sentence1", "sentence2")

    def __post_init__(self) -> None:
        # A string is a sequence of texts, too: of its letters.
        for column in ("first", "second", "scores"):
            if isinstance(getattr(self, column), str | bytes | dict):
                raise TypeError(f"pairs {self.name!r}: {column} must be a list, got {getattr(self, column)!r:.60}")
        object.__setattr__(self, "first", list(self.first))
        object.__setattr__(self, "second", list(self.second))
        object.__setattr__(self, "scores", np.asarray(self.scores, dtype=np.float64))
        object.__setattr__(self, "title", self.title or self.name)
        object.__setattr__(self, "subsets", list(self.subsets) or [self.name] * len(self.first))
        lengths = {
            "first": len(self.first),
            "second": len(self.second),
            "scores": self.scores.size,
            "subsets": len(self.subsets),
        }
        if len(set(lengths.values())) != 1 or self.scores.ndim != 1:
            raise ValueError(f"pairs {self.name!r}: columns must have one length, got {lengths}")
        if not self.first:
            raise ValueError(f"pairs {self.name!r}: there is no pair to score; give at least one")
        bad = np.flatnonzero(~np.isfinite(self.scores))
        if bad.size:
            raise ValueError(f"pairs {self.name!r}: score of pair {bad[0]} is {self.scores[bad[0]]}; remove that row")
        for column in ("first", "second"):
            for row, text in enumerate(getattr(self, column)):
                if not isinstance(text, str):
                    raise TypeError(f"pairs {self.name!r}: {column}[{row}] is {text!r}; every text must be a str")
                if fault := text_fault(text):
                    raise ValueError(f"pairs {self.name!r}: {column}[{row}] {fault}")

    def __len__(self) -> int:
        return len(self.first)

    @property
    def checksum(self) -> str:
        """SHA-256 over texts, scores and subsets, so that two results can prove they saw the same pairs."""
        # Not over names or places: a copied file holds the same pairs.
        digest = hashlib.sha256()
        for row in zip(self.subsets, map(repr, self.scores.tolist()), self.first, self.second, strict=True):
            digest.update(json.dumps(row).encode() + b"\n")
        return digest.hexdigest()
