"""What a sentence of the miniature world means, and how alike two meanings are.

These scores are exact for the toy world and prove nothing about English: they are a definition, not a judgement.
"""

from __future__ import annotations

from dataclasses import dataclass

from st_plugins.miniature.english.lexicon import ANTONYMS, ATTRIBUTES, MANNERS, NOUNS, PLACES, VERBS, Concepts

MANY = 99
"""The number that words like *several* express."""

_AKIN, _KIND_OF, _OPPOSITE = 0.4, 0.7, 0.2
_NEGATION, _TENSE, _NUMBER = 0.5, 0.9, 0.85
_CORE, _PLACE, _ATTRIBUTE, _MANNER = 3.0, 1.5, 1.0, 0.75  # weights of the roles


@dataclass(frozen=True)
class Phrase:
    """A noun concept with a number and at most one attribute."""

    head: str
    number: int = 1
    attribute: str | None = None


@dataclass(frozen=True)
class Meaning:
    """One event: who does what to whom, where and how; ``None`` where the sentence does not say."""

    agent: Phrase
    action: str
    object: Phrase | None = None
    place: str | None = None
    manner: str | None = None
    tense: str = "present"
    negated: bool = False


def concept_similarity(table: Concepts, first: str | None, second: str | None) -> float:
    """Say how alike two concepts of one part of speech are."""
    if first is None or second is None:
        return 0.0
    if first == second:
        return 1.0
    if ANTONYMS.get(first) == second:
        return _OPPOSITE
    if table.kinds[first] != table.kinds[second]:
        return 0.0
    return _KIND_OF if table.kinds[first] in (first, second) else _AKIN


def gold_score(first: Meaning, second: Meaning) -> float:
    """Score the similarity of two meanings as an annotator of semantic textual similarity would, from 0 to 5."""
    agents = _phrase_similarity(first.agent, second.agent)
    objects = _phrase_similarity(first.object, second.object)
    roles = [
        (_CORE, first.agent, second.agent, agents),
        (_CORE, first.action, second.action, concept_similarity(VERBS, first.action, second.action)),
        (_CORE, first.object, second.object, objects),
        (_PLACE, first.place, second.place, concept_similarity(PLACES, first.place, second.place)),
        (_MANNER, first.manner, second.manner, concept_similarity(MANNERS, first.manner, second.manner)),
    ]
    for one, other, nouns in ((first.agent, second.agent, agents), (first.object, second.object, objects)):
        attributes = (one.attribute if one else None, other.attribute if other else None)
        # Attributes count as far as their nouns agree.
        roles.append((_ATTRIBUTE, *attributes, nouns * concept_similarity(ATTRIBUTES, *attributes)))
    weighted = total = 0.0
    for weight, left, right, similarity in roles:
        # A role that only one of them fills counts half: silence is not disagreement.
        filled = (left is not None) + (right is not None)
        weighted += weight * similarity
        total += weight * filled / 2
    score = 5 * weighted / total
    score *= _NEGATION if first.negated != second.negated else 1.0
    score *= _TENSE if first.tense != second.tense else 1.0
    return round(score, 2)


def nli_label(premise: Meaning, hypothesis: Meaning) -> str:
    """Derive the inference label of two meanings."""
    # Both are taken to be about one event, as in SNLI and MultiNLI: opposites and other numbers contradict.
    forward, backward = _implies(premise, hypothesis), _implies(hypothesis, premise)
    if premise.negated and hypothesis.negated:  # who denies the general denies the special
        return "entailment" if backward else "neutral"
    if premise.negated or hypothesis.negated:
        # What is stated must imply what is denied.
        return "contradiction" if (backward if premise.negated else forward) else "neutral"
    if forward:
        return "entailment"
    return "contradiction" if _incompatible(premise, hypothesis) else "neutral"


def _phrase_similarity(first: Phrase | None, second: Phrase | None) -> float:
    if first is None or second is None:
        return 0.0
    heads = concept_similarity(NOUNS, first.head, second.head)
    return heads * (_NUMBER if first.number != second.number else 1.0)


def _implies(special: Meaning, general: Meaning) -> bool:
    """Whether the event of ``special``, taken as a statement, makes the event of ``general`` true."""
    return (
        special.tense == general.tense
        and special.action == general.action
        and _phrase_implies(special.agent, general.agent)
        and (general.object is None or _phrase_implies(special.object, general.object))
        and general.place in (None, special.place)
        and general.manner in (None, special.manner)
    )


def _phrase_implies(special: Phrase | None, general: Phrase) -> bool:
    return (
        special is not None
        and general.head in (special.head, NOUNS.kinds[special.head])
        and (general.number == special.number or (general.number == MANY and special.number > 2))
        and general.attribute in (None, special.attribute)
    )


def _incompatible(first: Meaning, second: Meaning) -> bool:
    """Whether two statements differ in opposites or numbers although they may tell of one event."""
    nouns = [(first.agent, second.agent)]
    if first.object and second.object:
        nouns.append((first.object, second.object))
    if (
        first.tense != second.tense
        or (first.place and second.place and first.place != second.place)
        or any(concept_similarity(NOUNS, one.head, other.head) < _KIND_OF for one, other in nouns)
    ):
        return False
    if first.action != second.action:
        return ANTONYMS.get(first.action) == second.action
    attributes = any(one.attribute and ANTONYMS.get(one.attribute) == other.attribute for one, other in nouns)
    manners = first.manner is not None and ANTONYMS.get(first.manner) == second.manner
    numbers = any(one.number != other.number and MANY not in (one.number, other.number) for one, other in nouns)
    return attributes or manners or numbers
