"""Texts of the miniature world: an unlabelled corpus, graded similarity pairs and inference pairs.

Everything here is generated from meanings we wrote ourselves. It shows that the machinery works; it proves nothing
about English, and neither does any number measured on it.

About a quarter of all sentences, chosen by a checksum of their words, is kept for similarity pairs; the corpus and the
inference pairs use only the others. No seed can therefore make training and test sentences overlap.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Sequence

import numpy as np

from st_plugins.data.pairs import Pairs
from st_plugins.miniature.english.events import draw_event, edit_event
from st_plugins.miniature.english.grammar import pick, realize, stream
from st_plugins.miniature.english.lexicon import TOPICS
from st_plugins.miniature.english.meaning import gold_score, nli_label

NLI_LABELS = ("entailment", "neutral", "contradiction")
_BINS = 5


def held_out(text: str) -> bool:
    """Say whether a sentence belongs to the similarity pairs; if so, no corpus contains it."""
    # A checksum and no draw: whatever the seed, a sentence is on the same side.
    return zlib.crc32(text.lower().encode()) % 4 == 0


def corpus(size: int = 20000, seed: int = 0) -> list[str]:
    """Write unlabelled sentences about all topics of the world.

    Args:
        size: How many.
        seed: Which corpus.

    Returns:
        Different sentences, none of which stands in any similarity pair.

    Raises:
        ValueError: ``size`` is not positive.

    Example:
        >>> sentences = corpus(3)
        >>> len(sentences), sentences == corpus(3)
        (3, True)
    """
    _check_size(size)
    rng = stream(seed, "corpus")
    topics = tuple(TOPICS)
    sentences: dict[str, None] = {}
    while len(sentences) < size:
        topic = topics[int(rng.random() * len(topics))]
        text = realize(draw_event(topic, rng), TOPICS[topic].task, rng)
        if not held_out(text):
            sentences[text] = None
    return list(sentences)


def sts_pairs(
    size: int = 1000, seed: int = 0, name: str = "miniature", topics: Sequence[str] = tuple(TOPICS)
) -> Pairs:
    """Make sentence pairs with a gold similarity from 0 to 5, computed from what they mean.

    Every fifth of the scale gets the same number of pairs, so that scores are graded over the whole range.

    Args:
        size: How many pairs.
        seed: Which pairs.
        name: Name of the task; another name gives other pairs.
        topics: What they are about, each topic a subset of its own; the keys of ``TOPICS``.

    Returns:
        The pairs, subset after subset.

    Raises:
        ValueError: ``size`` is smaller than the number of topics, or a topic is unknown.

    Example:
        >>> pairs = sts_pairs(60)
        >>> len(pairs), sorted(set(pairs.subsets))[:3]
        (60, ['animals', 'business', 'computers'])
    """
    unknown = [topic for topic in topics if topic not in TOPICS]
    if unknown or not topics:
        raise ValueError(f"topics: got {unknown or 'none'}; choose from {list(TOPICS)}")
    if size < len(topics):
        raise ValueError(f"size must be at least one pair for each of the {len(topics)} topics, got {size}")
    rows: list[tuple[str, str, float, str]] = []
    for index, topic in enumerate(topics):
        # Differences of rounded-down totals: they add up to `size`, however many topics there are.
        quota = size * (index + 1) // len(topics) - size * index // len(topics)
        rows += _graded_rows(topic, quota, stream(seed, "sts", name, topic))
    first, second, scores, subsets = zip(*rows, strict=True)
    return Pairs(
        name,
        list(first),
        list(second),
        np.array(scores),
        list(subsets),
        title=name.capitalize(),
        source="miniature world",
    )


def sts_tasks(size: int = 600, seed: int = 0) -> list[Pairs]:
    """Make the three similarity tasks of the world, each with two subsets.

    Args:
        size: Pairs in each task.
        seed: Which pairs.

    Returns:
        Captions (people, animals), news (politics, business) and forums (computers, cooking).

    Example:
        >>> [(task.name, sorted(set(task.subsets))) for task in sts_tasks(10)]
        [('captions', ['animals', 'people']), ('news', ['business', 'politics']), ('forums', ['computers', 'cooking'])]
    """
    tasks = dict.fromkeys(topic.task for topic in TOPICS.values())
    return [
        sts_pairs(size, seed, task, [name for name, topic in TOPICS.items() if topic.task == task]) for task in tasks
    ]


def nli_pairs(size: int = 3000, seed: int = 0) -> list[tuple[str, str, str]]:
    """Make premises and hypotheses whose label follows from their meanings, equally many of each label.

    Args:
        size: How many pairs.
        seed: Which pairs.

    Returns:
        (premise, hypothesis, label) with label ``"entailment"``, ``"neutral"`` or ``"contradiction"``.

    Raises:
        ValueError: ``size`` is not positive.

    Example:
        >>> [label for _, _, label in nli_pairs(3)]
        ['entailment', 'neutral', 'contradiction']
    """
    _check_size(size)
    rng = stream(seed, "nli")
    topics = tuple(TOPICS)
    rows: list[tuple[str, str, str]] = []
    while len(rows) < size:
        topic = topics[int(rng.random() * len(topics))]
        # Events are drawn and changed until a pair has the label that is due, so that all are equally frequent.
        premise = draw_event(topic, rng)
        wanted = NLI_LABELS[len(rows) % len(NLI_LABELS)]
        hypothesis = edit_event(premise, topic, rng)
        if nli_label(premise, hypothesis) != wanted:
            continue
        texts = [realize(meaning, TOPICS[topic].task, rng) for meaning in (premise, hypothesis)]
        if texts[0] != texts[1] and not any(map(held_out, texts)):
            rows.append((texts[0], texts[1], wanted))
    return rows


def _graded_rows(topic: str, quota: int, rng: random.Random) -> list[tuple[str, str, float, str]]:
    """Draw pairs, from light edits to unrelated events, until every fifth of the scale has its share."""
    task = TOPICS[topic].task
    room = [quota * (index + 1) // _BINS - quota * index // _BINS for index in range(_BINS)]
    rows: list[tuple[str, str, float, str]] = []
    seen: set[tuple[str, str]] = set()
    while len(rows) < quota:
        first = draw_event(topic, rng)
        second = first
        for _ in range(int(rng.random() * 8)):
            second = edit_event(second, topic, rng)
        # Edits stay close: pairs that have nothing in common need an event from anywhere.
        if rng.random() < 0.1:
            second = draw_event(pick(rng, tuple(TOPICS)), rng)
        score = gold_score(first, second)
        level = min(int(score * _BINS / 5), _BINS - 1)
        if not room[level]:
            continue
        texts = (realize(first, task, rng), realize(second, task, rng))
        if texts[0] == texts[1] or texts in seen or not all(map(held_out, texts)):
            continue
        seen.add(texts)
        room[level] -= 1
        rows.append((*texts, score, topic))
    return rows


def _check_size(size: int) -> None:
    if size < 1:
        raise ValueError(f"size must be at least 1, got {size}")
