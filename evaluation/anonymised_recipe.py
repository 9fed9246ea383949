"""Recipes of the study of anonymised pairs, and readable pairs turned into such."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from evaluation.toml_file import recipe_tables
from st_plugins.matching import AnonymisedPairs

__all__ = ["Row", "Source", "Study", "as_integers", "read_study", "words_of"]

Source = tuple[list[str], list[str], list[str]]
"""First texts, second texts, labels."""

KINDS, STARTS = ("tf-idf", "siamese", "label-token"), ("random", "ranks")


@dataclass(frozen=True)
class Row:
    """One row of the table.

    Args:
        name: Its name.
        kind: ``"tf-idf"`` (cosine of TF-IDF vectors), ``"siamese"`` (cosine of sentence vectors, trained with CoSENT
            on the labelled pairs) or ``"label-token"`` (`LabelTokenModel`).
        start: ``"random"`` weights, or ``"ranks"`` for `initialise_by_rank`.
        unlabelled: Whether a label-token model sees the test pairs without their labels.
        learning_rate: Peak; linear warm-up over a tenth of the steps, then linear decay.
        base: Row that it is compared with, beside the first.
        seeds: Seeds; empty for the recipe's.
    """

    name: str
    kind: str
    start: str = "random"
    unlabelled: bool = False
    learning_rate: float = 1e-4
    base: str = ""
    seeds: tuple[int, ...] = ()


@dataclass(frozen=True)
class Study:
    """A recipe.

    Args:
        title: What the table is called.
        train: Labelled pairs below ``--data``; columns label (0 or 1), sentence1, sentence2.
        dev: Pairs to choose settings on.
        test: Pairs that are reported.
        model: Folder below ``--models``: shape of the encoder, and the pretrained weights for ``start = "ranks"``.
        layers: How many of its lower layers are used; 0 for all.
        frequencies: Files of readable texts below ``--data``, in which its words are counted.
        minimum_frequency: How often an integer must occur to be known.
        max_length: Longest input of a pair, in tokens.
        batch_size: Pairs a batch.
        steps: Batches of every training.
        seeds: Seeds of weights, order, masks and dropout.
        shuffle_seed: Seed of the integers.
        rows: The rows, the first the one that all are compared with.
        notes: What a reader has to know.
    """

    title: str
    train: str
    dev: str
    test: str
    model: str
    frequencies: list[str]
    steps: int
    rows: list[Row]
    layers: int = 0
    minimum_frequency: int = 1
    max_length: int = 64
    batch_size: int = 32
    seeds: tuple[int, ...] = (0, 1, 2)
    shuffle_seed: int = 0
    notes: str = ""


def read_study(path: Path) -> Study:
    """Read and check a recipe.

    Args:
        path: The TOML file.

    Returns:
        The study.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is not TOML, a key is missing or unknown, or a value is not allowed.
    """
    with recipe_tables(path) as raw:
        study = Study(rows=[Row(**row) for row in raw.pop("row")], **raw)
    names = [row.name for row in study.rows]
    if len(set(names)) != len(names):
        raise ValueError(f"{path}: two rows have one name")
    for row in study.rows:
        for key, value, allowed in (
            ("kind", row.kind, KINDS),
            ("start", row.start, STARTS),
            ("base", row.base, ("", *names)),
        ):
            if value not in allowed:
                raise ValueError(f"{path}: row {row.name!r}: {key}={value!r} must be one of {', '.join(allowed)}")
    return study


def as_integers(sets: dict[str, Source], seed: int) -> dict[str, AnonymisedPairs]:
    """Replace words by integers, the same ones in all sets: the position of each in a shuffled list of all words.

    Args:
        sets: Texts and labels of each set.
        seed: Seed of the shuffling.

    Returns:
        The pairs of each set.

    Example:
        >>> found = as_integers({"toy": (["A dog!"], ["a cat"], ["1"])}, seed=0)["toy"]
        >>> len(set(found.first[0].split()) | set(found.second[0].split())), found.labels
        (4, ['1'])
    """
    words = sorted({word for *sides, _ in sets.values() for side in sides for text in side for word in words_of(text)})
    places = np.random.default_rng(seed).permutation(len(words)).tolist()
    integer = {word: str(place) for word, place in zip(words, places, strict=True)}

    def coded(texts: list[str]) -> list[str]:
        return [" ".join(integer[word] for word in words_of(text)) for text in texts]

    return {name: AnonymisedPairs(coded(a), coded(b), labels) for name, (a, b, labels) in sets.items()}


def words_of(text: str) -> list[str]:
    """Return the words and punctuation marks of a text, in lower case.

    Args:
        text: The text.

    Returns:
        The words.

    Example:
        >>> words_of("A dog!")
        ['a', 'dog', '!']
    """
    return re.findall(r"\w+|[^\w\s]", text.lower())
