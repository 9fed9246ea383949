"""How the miniature world says what it means: one meaning, many sentences.

The surface varies freely where the meaning does not: synonyms, active and passive, the position of the place, simple
and progressive forms, words without content, and framing phrases. It proves nothing about English.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TypeVar

from st_plugins.miniature.english import inflection, lexicon
from st_plugins.miniature.english.meaning import MANY, Meaning, Phrase

T = TypeVar("T")

_NUMBERS = {1: ("",), 2: ("two", "a pair of"), 3: ("three",), MANY: ("several", "many", "a lot of")}
_FILLERS = ("currently", "really", "just", "apparently", "actually", "simply", "clearly")
_FRAMES = {
    "captions": ("we can see that", "in this picture ,", "it looks like", "the photo shows that"),
    "news": ("according to reports ,", "officials said that", "it was announced that", "sources say that"),
    "forums": ("i think that", "does anyone know why", "my question is why", "please help :", "it seems that"),
}
_CODAS = {
    "captions": ("as we can see", "in the background"),
    "news": ("sources said", "reports say", "it was announced"),
    "forums": ("thanks for any help", "if i am right", "as far as i know"),
}
_FUNCTION_WORDS = (
    "a an the some is are was were being will be going to does do did not never it true that who by there"
)
_DENIALS = ("it is not true that", "it is false that")


def stream(*names: str | int) -> random.Random:
    """Return a stream of random numbers of its own, the same on every machine and Python version."""
    # Only `random()` may be called on it: of all methods that one alone is promised never to change.
    return random.Random("/".join(map(str, names)))  # noqa: S311 - a toy world, not a secret


def pick(rng: random.Random, options: Sequence[T]) -> T:
    """Draw one option; earlier ones come more often, as words do in any language."""
    return options[int(min(rng.random(), rng.random(), rng.random()) * len(options))]


def realize(meaning: Meaning, task: str, rng: random.Random) -> str:
    """Say a meaning in words."""
    # A denial may stand before the sentence instead of inside: "it is not true that".
    denial = ""
    negated = meaning.negated
    if negated and rng.random() < 0.15:
        denial, negated = pick(rng, _DENIALS), False
    clause = _clause(meaning, negated, rng)
    if meaning.place is not None:
        place = _place(meaning.place, rng)
        clause = f"{place} , {clause}" if rng.random() < 0.25 else f"{clause} {place}"
    frame = pick(rng, _FRAMES[task]) if rng.random() < 0.12 else ""
    coda = f", {pick(rng, _CODAS[task])}" if not frame and rng.random() < 0.08 else ""
    text = " ".join(part for part in (frame, denial, clause, coda) if part)
    text = text.replace(" ,", ",").replace(" :", ":")
    return text[0].upper() + text[1:] + ("?" if frame.startswith("does") else ".")


def vocabulary() -> list[str]:
    """List every word that the grammar can say, each once, in a fixed order."""
    words = _FUNCTION_WORDS.split()
    for phrases in (*_NUMBERS.values(), _FILLERS, *_FRAMES.values(), *_CODAS.values(), _DENIALS):
        words += " ".join(phrases).split()
    words += lexicon.PREPOSITIONS.values()
    for table in (lexicon.PLACES, lexicon.ATTRIBUTES, lexicon.MANNERS):
        words += table.expressions()
    for noun in (*lexicon.NOUNS.members, *lexicon.NOUNS.expressions()):
        words += [noun] if noun in lexicon.MASS else [noun, inflection.plural(noun)]
    for verb in lexicon.VERBS.expressions():
        words.append(verb)
        words += [getattr(inflection, form)(verb) for form in ("third_person", "past", "participle", "gerund")]
    return list(dict.fromkeys(word.lower() for word in words if word.isalpha()))


def _clause(meaning: Meaning, negated: bool, rng: random.Random) -> str:
    """Say agent, action, object and manner, in the active or the passive."""
    verb = pick(rng, lexicon.VERBS.words[meaning.action])
    agent = _phrase(meaning.agent, rng)
    manner = pick(rng, lexicon.MANNERS.words[meaning.manner]) if meaning.manner else ""
    filler = pick(rng, _FILLERS) if rng.random() < 0.12 else ""
    if meaning.object is None:
        return _join(agent, _active(verb, meaning, negated, filler, rng), manner)
    target = _phrase(meaning.object, rng)
    if rng.random() < 0.25:
        return _join(target, _passive(verb, meaning, negated, filler, rng), "by", agent, manner)
    predicate = _active(verb, meaning, negated, filler, rng)
    if not negated and rng.random() < 0.05:
        was = "was" if meaning.tense == "past" else "is"
        return _join("it", was, agent, "who", predicate, target, manner)
    if manner.endswith("ly") and rng.random() < 0.3:
        return _join(agent, _active(verb, meaning, negated, manner, rng), target)
    return _join(agent, predicate, target, manner)


def _active(verb: str, meaning: Meaning, negated: bool, adverb: str, rng: random.Random) -> str:
    many = meaning.agent.number > 1
    never = negated and rng.random() < 0.3
    no = "never" if never else "not" if negated else ""
    if meaning.tense == "future":
        if rng.random() < 0.35:
            return _join("are" if many else "is", no, "going to", adverb, verb)
        return _join("will", no, adverb, verb)
    if rng.random() < 0.5:
        return _join(_be(meaning.tense, many), no, adverb, inflection.gerund(verb))
    if negated and not never:
        auxiliary = "did" if meaning.tense == "past" else "do" if many else "does"
        return _join(auxiliary, "not", adverb, verb)
    if meaning.tense == "past":
        return _join(no, adverb, inflection.past(verb))
    return _join(no, adverb, verb if many else inflection.third_person(verb))


def _passive(verb: str, meaning: Meaning, negated: bool, adverb: str, rng: random.Random) -> str:
    many = meaning.object is not None and meaning.object.number > 1
    no = "" if not negated else "never" if rng.random() < 0.3 else "not"
    if meaning.tense == "future":
        return _join("will", no, "be", adverb, inflection.participle(verb))
    being = "being" if rng.random() < 0.4 else ""
    return _join(_be(meaning.tense, many), no, adverb, being, inflection.participle(verb))


def _be(tense: str, many: bool) -> str:
    if tense == "past":
        return "were" if many else "was"
    return "are" if many else "is"


def _phrase(phrase: Phrase, rng: random.Random) -> str:
    noun = pick(rng, lexicon.NOUNS.words[phrase.head])
    attribute = pick(rng, lexicon.ATTRIBUTES.words[phrase.attribute]) if phrase.attribute else ""
    if phrase.number > 1:
        return _join(pick(rng, _NUMBERS[phrase.number]), attribute, inflection.plural(noun))
    if noun in lexicon.MASS:
        return _join(pick(rng, ("the", "some")), attribute, noun)
    article = pick(rng, ("the", "a"))
    # "a user": of all vowels in front, u alone begins with a consonant here.
    if article == "a" and (attribute or noun)[0] in "aeiou" and not (attribute or noun).startswith("u"):
        article = "an"
    return _join(article, attribute, noun)


def _place(place: str, rng: random.Random) -> str:
    word = pick(rng, lexicon.PLACES.words[place])
    return _join(lexicon.PREPOSITIONS[place], "" if word[0].isupper() else "the", word)


def _join(*parts: str) -> str:
    return " ".join(part for part in parts if part)
