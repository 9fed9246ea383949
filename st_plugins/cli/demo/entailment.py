"""What the last two steps learn and are judged on: does a sentence follow from another one?

The sentences are of the miniature world, where that is known of every pair.
"""

from __future__ import annotations

from dataclasses import dataclass

from st_plugins import miniature

Pair = tuple[str, str, int]

LABELS = ["does not follow", "follows"]
_MOST_WORDS = 9
_UNLABELED = 0.4


@dataclass(frozen=True)
class Entailment:
    """Pairs of short sentences, half of them entailments; no pair is in two of the lists."""

    train: list[Pair]
    unlabeled: list[tuple[str, str]]  # whose labels nobody sees
    dev: list[Pair]  # by which the best weights are chosen
    test: list[Pair]  # these are only judged


def entailment(drawn: int = 30000, dev: int = 400, test: int = 800, seed: int = 0) -> Entailment:
    """Draw pairs, of which about a quarter is short enough and evenly divided."""
    found = {(first, second): label for first, second, label in miniature.nli_pairs(drawn, seed)}
    short = [
        (first, second, int(label == "entailment"))
        for (first, second), label in found.items()
        if max(len(first.split()), len(second.split())) <= _MOST_WORDS
    ]
    sides = ([pair for pair in short if pair[2]], [pair for pair in short if not pair[2]])
    pairs = [pair for both in zip(*sides, strict=False) for pair in both]
    rest = pairs[dev + test :]
    labeled = len(rest) - 2 * int(_UNLABELED * len(rest) / 2)
    unlabeled = [pair[:2] for pair in rest[labeled:]]
    return Entailment(rest[:labeled], unlabeled, pairs[:dev], pairs[dev : dev + test])
