"""Opinions of the miniature world whose deciding words are known. They prove nothing about English.

One span decides each opinion: an adjective with its intensifier or negator. Around it stand words that do not count,
among them spans of the other polarity that a concession or a *but* overrules.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

from st_plugins.miniature.english.grammar import pick, stream

_OPPOSITES = (
    ("good", "bad"),
    ("great", "terrible"),
    ("wonderful", "awful"),
    ("pleasant", "unpleasant"),
    ("interesting", "boring"),
    ("impressive", "disappointing"),
    ("charming", "annoying"),
    ("brilliant", "dreadful"),
    ("reliable", "unreliable"),
    ("delightful", "horrible"),
)
_SUBJECTS = "film service story hotel phone music room camera lesson concert laptop book garden show trip".split()
_STRENGTHS = ("", "very", "really", "extremely", "quite", "rather", "truly")
_NEGATORS = ("not", "never", "hardly", "far from", "anything but", "not at all")
_TEMPLATES = (
    "the {topic} was {span} .",
    "i think that the {topic} was {span} .",
    "the {topic} that we saw in march was {span} .",
    "to be honest , the {topic} is {span} .",
    "the {topic} was {aside} , but the {other} was {span} .",
    "although the {topic} was {aside} , the {other} is {span} .",
    "the {topic} was {span} although the {other} was {aside} .",
    "my friend called the {topic} {aside} , but it was {span} .",
    "we expected something {aside} , but the {topic} was {span} .",
)


@dataclass(frozen=True)
class SentimentSentence:
    """An opinion, its label and the words that decide it: ``text[start:end]``.

    Args:
        text: The sentence.
        label: 1 for a positive opinion, 0 for a negative one.
        start: First character of the deciding span.
        end: One past its last character.
        opposite: A span of the other polarity that fits in its place.

    Example:
        >>> opinion = SentimentSentence("The film was not bad.", 1, 13, 20, "bad")
        >>> opinion.words, opinion.flipped().text, opinion.flipped().label
        (('not', 'bad'), 'The film was bad.', 0)
    """

    text: str
    label: int
    start: int
    end: int
    opposite: str

    @property
    def span(self) -> str:
        """The deciding words as they stand in the text."""
        return self.text[self.start : self.end]

    @property
    def words(self) -> tuple[str, ...]:
        """The deciding words, one by one."""
        return tuple(self.span.split())

    def flipped(self) -> SentimentSentence:
        """Turn the opinion round by exchanging the deciding span alone.

        Returns:
            The same sentence with the opposite span and the other label.
        """
        return replace(
            self,
            text=self.text[: self.start] + self.opposite + self.text[self.end :],
            label=1 - self.label,
            end=self.start + len(self.opposite),
            opposite=self.span,
        )


def sentiment_sentences(size: int = 2000, seed: int = 0) -> list[SentimentSentence]:
    """Write opinions, as many positive as negative, each label with and without negation.

    Args:
        size: How many.
        seed: Which ones.

    Returns:
        Different sentences.

    Raises:
        ValueError: ``size`` is not positive or asks for more sentences than the world holds.

    Example:
        >>> opinions = sentiment_sentences(100)
        >>> sum(opinion.label for opinion in opinions)
        50
    """
    if not 1 <= size <= 100_000:
        raise ValueError(f"size must be from 1 to 100000, got {size}")
    rng = stream(seed, "sentiment")
    sentences: dict[str, SentimentSentence] = {}
    while len(sentences) < size:
        # The label is that of the next place, so that both are equally frequent although repeated sentences fall out.
        opinion = _opinion(len(sentences) % 2, rng)
        sentences.setdefault(opinion.text, opinion)
    return list(sentences.values())


def sentiment_vocabulary() -> list[str]:
    """List every word that an opinion can use."""
    texts = (*_TEMPLATES, *_STRENGTHS, *_NEGATORS, *_SUBJECTS, *(" ".join(pair) for pair in _OPPOSITES))
    return list(dict.fromkeys(word for text in texts for word in text.split() if word.isalpha()))


def _opinion(label: int, rng: random.Random) -> SentimentSentence:
    span, opposite = _span(label, rng), _span(1 - label, rng)
    # An aside has the other polarity twice as often as the same one: looking for any polar word is not enough.
    aside = _span(label if rng.random() < 1 / 3 else 1 - label, rng)
    topic = int(rng.random() * len(_SUBJECTS))
    other = (topic + 1 + int(rng.random() * (len(_SUBJECTS) - 1))) % len(_SUBJECTS)
    template = pick(rng, _TEMPLATES)
    before, after = (
        part.format(topic=_SUBJECTS[topic], other=_SUBJECTS[other], aside=aside).replace(" ,", ",").replace(" .", ".")
        for part in template.split("{span}")
    )
    start = len(before)
    return SentimentSentence(before[0].upper() + before[1:] + span + after, label, start, start + len(span), opposite)


def _span(label: int, rng: random.Random) -> str:
    """Say a polarity: the adjective itself, or a negator before its opposite."""
    negated = rng.random() < 0.4
    # _OPPOSITES holds (positive, negative); label 1 is positive, and a negator turns it round.
    adjective = pick(rng, _OPPOSITES)[label if negated else 1 - label]
    return f"{pick(rng, _NEGATORS if negated else _STRENGTHS)} {adjective}".strip()
