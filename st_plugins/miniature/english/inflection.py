"""Plurals and verb forms of the miniature world's words; right for those, and for few others."""

from __future__ import annotations

_PAST = {
    line.split()[0]: (line.split()[1], line.split()[-1])
    for line in (
        "run ran run,leap leapt,swim swam swum,sleep slept,sit sat,stand stood,lie lay lain,weep wept,sing sang sung,"
        "eat ate eaten,freeze froze frozen,throw threw thrown,catch caught,hold held,drive drove driven,"
        "ride rode ridden,read read,write wrote written,bite bit bitten,leave left,buy bought,sell sold,cut cut,"
        "send sent,shrink shrank shrunk,forecast forecast"
    ).split(",")
}
# Nothing in the spelling tells run, running from help, helping or open, opening: a list does.
_DOUBLING = frozenset("run nap sit swim chop hug grab cut drop scrap stir transmit".split())
_PLURALS = {
    "man": "men",
    "woman": "women",
    "child": "children",
    "person": "people",
    "businessman": "businessmen",
    "lady": "ladies",
    "sheep": "sheep",
}


def plural(noun: str) -> str:
    """Return the plural of a noun."""
    return _PLURALS.get(noun) or _with_s(noun)


def third_person(verb: str) -> str:
    """Return the third person singular of the present."""
    return _with_s(verb)


def past(verb: str) -> str:
    """Return the simple past."""
    return _PAST[verb][0] if verb in _PAST else _with_ed(verb)


def participle(verb: str) -> str:
    """Return the past participle."""
    return _PAST[verb][1] if verb in _PAST else _with_ed(verb)


def gerund(verb: str) -> str:
    """Return the form in -ing."""
    if verb in _DOUBLING:
        return verb + verb[-1] + "ing"
    if verb.endswith("ie"):
        return verb[:-2] + "ying"
    return (verb[:-1] if verb.endswith("e") else verb) + "ing"


def _with_s(word: str) -> str:
    if word.endswith(("s", "x", "ch", "sh", "o")) and word not in ("photo", "video", "piano"):
        return word + "es"
    return word[:-1] + "ies" if word.endswith("y") and word[-2] not in "aeiou" else word + "s"


def _with_ed(verb: str) -> str:
    if verb in _DOUBLING:
        return verb + verb[-1] + "ed"
    if verb.endswith("y") and verb[-2] not in "aeiou":
        return verb[:-1] + "ied"
    return verb + ("d" if verb.endswith("e") else "ed")
