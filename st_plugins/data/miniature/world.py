"""Texts of the miniature world: an unlabelled corpus, graded similarity pairs and inference pairs.

Everything here is generated from meanings we wrote ourselves. It shows that the machinery works; it proves nothing
about English, and neither does any number measured on it.

About a quarter of all sentences, chosen by a checksum of their words, is kept for similarity pairs; the corpus and the
inference pairs use only the others. No seed can therefore make training and test sentences overlap.
"""

from __future__ import annotations

import functools
import random
import zlib
from collections.abc import Sequence
from dataclasses import replace

from st_plugins.data.miniature import lexicon
from st_plugins.data.miniature.grammar import pick, realise, stream
from st_plugins.data.miniature.lexicon import ANTONYMS, ATTRIBUTES, ATTRIBUTES_OF, MANNERS, NOUNS, PLACES, TOPICS, VERBS
from st_plugins.data.miniature.meaning import MANY, Meaning, Phrase, gold_score, nli_label
from st_plugins.data.pairs import Pairs

__all__ = ["NLI_LABELS", "corpus", "held_out", "nli_pairs", "sts_pairs", "sts_tasks"]

NLI_LABELS = ("entailment", "neutral", "contradiction")
_BINS = 5


def held_out(text: str) -> bool:
    """Say whether a sentence belongs to the similarity pairs; if so, no corpus contains it.

    Args:
        text: A sentence.

    Returns:
        ``True`` for about one sentence in four.
    """
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
        text = realise(_meaning(topic, rng), TOPICS[topic].task, rng)
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
        quota = size * (index + 1) // len(topics) - size * index // len(topics)
        rows += _graded_rows(topic, quota, stream(seed, "sts", name, topic))
    first, second, scores, subsets = (list(column) for column in zip(*rows, strict=True))
    return Pairs(name, first, second, scores, subsets, title=name.capitalize(), source="miniature world")


def sts_tasks(seed: int = 0, size: int = 600) -> list[Pairs]:
    """Make the three similarity tasks of the world, each with two subsets.

    Args:
        seed: Which pairs.
        size: Pairs in each task.

    Returns:
        Captions (people, animals), news (politics, business) and forums (computers, cooking).

    Example:
        >>> [(task.name, sorted(set(task.subsets))) for task in sts_tasks(size=10)]
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
        premise = _meaning(topic, rng)
        wanted = NLI_LABELS[len(rows) % len(NLI_LABELS)]
        hypothesis = _edited(premise, topic, rng)
        if nli_label(premise, hypothesis) != wanted:
            continue
        texts = [realise(meaning, TOPICS[topic].task, rng) for meaning in (premise, hypothesis)]
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
        first = _meaning(topic, rng)
        second = first
        for _ in range(int(rng.random() * 8)):
            second = _edited(second, topic, rng)
        if rng.random() < 0.1:
            second = _meaning(pick(rng, tuple(TOPICS)), rng)
        score = gold_score(first, second)
        level = min(int(score * _BINS / 5), _BINS - 1)
        if not room[level]:
            continue
        texts = (realise(first, task, rng), realise(second, task, rng))
        if texts[0] == texts[1] or texts in seen or not all(map(held_out, texts)):
            continue
        seen.add(texts)
        room[level] -= 1
        rows.append((*texts, score, topic))
    return rows


def _meaning(topic: str, rng: random.Random) -> Meaning:
    """Draw an event of a topic; agents have favourite actions, and actions favourite objects, places and manners."""
    rules = TOPICS[topic]
    agent = _phrase(rules.agents, rng)
    action = pick(rng, _favourites(agent.head, tuple(rules.actions)))
    kinds = rules.actions[action]
    places = _favourites(action, _members(PLACES, rules.places))
    manners = _favourites(action, _members(MANNERS, tuple(MANNERS.members)))
    return Meaning(
        agent=agent,
        action=action,
        object=_phrase(kinds, rng, action) if kinds else None,
        place=pick(rng, places) if rng.random() < 0.5 else None,
        manner=pick(rng, manners) if rng.random() < 0.2 else None,
        tense=pick(rng, rules.tenses),
        negated=rng.random() < 0.12,
    )


@functools.cache
def _favourites(concept: str, options: tuple[str, ...]) -> tuple[str, ...]:
    """Order options by how much a concept likes them.

    Synonyms share a concept's likings and its siblings do not, so that words are known by the company they keep.
    """
    return tuple(sorted(options, key=lambda option: zlib.crc32(f"{concept} {option}".encode())))


def _phrase(kinds: tuple[str, ...], rng: random.Random, action: str = "") -> Phrase:
    kind = pick(rng, kinds)
    head = kind if rng.random() < 0.08 else pick(rng, _favourites(action, NOUNS.members[kind]))
    number = 1 if head in lexicon.MASS or rng.random() < 0.65 else pick(rng, (2, MANY, 3))
    return Phrase(head, number, _attribute(head, rng) if rng.random() < 0.35 else None)


def _attribute(head: str, rng: random.Random) -> str | None:
    kind = NOUNS.kinds[head]
    if kind not in ATTRIBUTES_OF:
        return None
    return pick(rng, _favourites(head, _members(ATTRIBUTES, ATTRIBUTES_OF[kind])))


def _edited(meaning: Meaning, topic: str, rng: random.Random) -> Meaning:
    """Change one thing about an event."""
    edits = (_edit_agent, _edit_object, _edit_action, _edit_place, _edit_manner, _edit_clause)
    return edits[int(rng.random() * len(edits))](meaning, topic, rng)


def _edit_agent(meaning: Meaning, topic: str, rng: random.Random) -> Meaning:
    return replace(meaning, agent=_edited_phrase(meaning.agent, TOPICS[topic].agents, rng))


def _edit_object(meaning: Meaning, topic: str, rng: random.Random) -> Meaning:
    kinds = TOPICS[topic].actions[meaning.action]
    if meaning.object is None:
        return meaning
    if NOUNS.kinds[meaning.agent.head] in kinds and NOUNS.kinds[meaning.object.head] in TOPICS[topic].agents:
        if rng.random() < 0.5:
            return replace(meaning, agent=meaning.object, object=meaning.agent)
    return replace(meaning, object=_edited_phrase(meaning.object, kinds, rng))


def _edit_action(meaning: Meaning, topic: str, rng: random.Random) -> Meaning:
    actions = TOPICS[topic].actions
    action = pick(rng, tuple(actions))
    draw = rng.random()
    if draw < 0.35:
        action = ANTONYMS.get(meaning.action, action)
    elif draw < 0.7:
        action = pick(rng, VERBS.members[VERBS.kinds[meaning.action]])
    if action not in actions:
        return meaning
    kinds = actions[action]
    if not kinds:
        return replace(meaning, action=action, object=None)
    if meaning.object is None or NOUNS.kinds[meaning.object.head] not in kinds:
        return replace(meaning, action=action, object=_phrase(kinds, rng))
    return replace(meaning, action=action)


def _edit_place(meaning: Meaning, topic: str, rng: random.Random) -> Meaning:
    if meaning.place is not None and rng.random() < 0.4:
        return replace(meaning, place=None)
    return replace(meaning, place=pick(rng, _members(PLACES, TOPICS[topic].places)))


def _edit_manner(meaning: Meaning, topic: str, rng: random.Random) -> Meaning:
    if meaning.manner is None:
        return replace(meaning, manner=pick(rng, _members(MANNERS, tuple(MANNERS.members))))
    return replace(meaning, manner=ANTONYMS.get(meaning.manner) if rng.random() < 0.5 else None)


def _edit_clause(meaning: Meaning, topic: str, rng: random.Random) -> Meaning:
    if rng.random() < 0.6:
        return replace(meaning, negated=not meaning.negated)
    return replace(meaning, tense=pick(rng, TOPICS[topic].tenses))


def _edited_phrase(phrase: Phrase, kinds: tuple[str, ...], rng: random.Random) -> Phrase:
    """Another number, another attribute, the kind instead of the thing, a sibling, or something else altogether."""
    kind = NOUNS.kinds[phrase.head]
    draw = rng.random()
    if draw < 0.2:
        return replace(phrase, number=1 if phrase.head in lexicon.MASS else pick(rng, (1, 2, MANY, 3)))
    if draw < 0.4:
        opposite = ANTONYMS.get(phrase.attribute) if phrase.attribute and rng.random() < 0.4 else None
        return replace(phrase, attribute=opposite or (None if phrase.attribute else _attribute(phrase.head, rng)))
    if draw < 0.85:
        head = kind if draw < 0.55 else pick(rng, NOUNS.members[kind])
        return replace(phrase, head=head, number=1 if head in lexicon.MASS else phrase.number)
    return _phrase(kinds, rng)


def _members(table: lexicon.Concepts, kinds: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(concept for kind in kinds for concept in table.members[kind])


def _check_size(size: int) -> None:
    if size < 1:
        raise ValueError(f"size must be at least 1, got {size}")
