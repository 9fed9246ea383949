"""What happens in the miniature world: events drawn by topic, and small changes to them.

The habits below are invented, and nothing learned from them proves anything about English.
"""

from __future__ import annotations

import functools
import random
import zlib
from dataclasses import replace

from st_plugins.miniature.english import lexicon
from st_plugins.miniature.english.grammar import pick
from st_plugins.miniature.english.lexicon import (
    ANTONYMS,
    ATTRIBUTES,
    ATTRIBUTES_OF,
    MANNERS,
    NOUNS,
    PLACES,
    TOPICS,
    VERBS,
)
from st_plugins.miniature.english.meaning import MANY, Meaning, Phrase


def draw_event(topic: str, rng: random.Random) -> Meaning:
    """Draw an event; agents have favourite actions, and actions favourite objects, places and manners."""
    rules = TOPICS[topic]
    agent = _phrase(rules.agents, rng)
    action = pick(rng, _favorites(agent.head, tuple(rules.actions)))
    kinds = rules.actions[action]
    places = _favorites(action, _members(PLACES, rules.places))
    manners = _favorites(action, _members(MANNERS, tuple(MANNERS.members)))
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
def _favorites(concept: str, options: tuple[str, ...]) -> tuple[str, ...]:
    """Order options by how much a concept likes them."""
    # Synonyms share a concept's likings and its siblings do not: words are known by the company they keep.
    return tuple(sorted(options, key=lambda option: zlib.crc32(f"{concept} {option}".encode())))


def _phrase(kinds: tuple[str, ...], rng: random.Random, action: str = "") -> Phrase:
    kind = pick(rng, kinds)
    # Now and then only the kind is named, from which entailment can be told.
    head = kind if rng.random() < 0.08 else pick(rng, _favorites(action, NOUNS.members[kind]))
    number = 1 if head in lexicon.MASS or rng.random() < 0.65 else pick(rng, (2, MANY, 3))
    return Phrase(head, number, _attribute(head, rng) if rng.random() < 0.35 else None)


def _attribute(head: str, rng: random.Random) -> str | None:
    kind = NOUNS.kinds[head]
    if kind not in ATTRIBUTES_OF:
        return None
    return pick(rng, _favorites(head, _members(ATTRIBUTES, ATTRIBUTES_OF[kind])))


def edit_event(meaning: Meaning, topic: str, rng: random.Random) -> Meaning:
    """Try to change one thing about an event: a phrase, the action, place, manner, tense or negation."""
    # A change that does not apply to the event leaves it as it is.
    edits = (_edit_agent, _edit_object, _edit_action, _edit_place, _edit_manner, _edit_clause)
    return edits[int(rng.random() * len(edits))](meaning, topic, rng)


def _edit_agent(meaning: Meaning, topic: str, rng: random.Random) -> Meaning:
    return replace(meaning, agent=_edited_phrase(meaning.agent, TOPICS[topic].agents, rng))


def _edit_object(meaning: Meaning, topic: str, rng: random.Random) -> Meaning:
    kinds = TOPICS[topic].actions[meaning.action]
    if meaning.object is None:
        return meaning
    # Who does it to whom may be turned round where both can act: the same words, another meaning.
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
