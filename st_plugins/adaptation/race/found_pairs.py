"""Pairs that the texts themselves hold: title and body, neighboring sentences, the two halves of a sentence."""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch

from st_plugins.core.words import thinned, words_of

LEAST = 8  # words of a text of which both halves still say something
_KEPT = 0.4  # share of the words that the damaged text of TSDAE keeps, as published
# A full stop ends a sentence where a space and no small letter follow; those of Chinese need no space.
_ENDS = re.compile(r"(?<=[.!?])\s+(?![a-z])|(?<=[。！？])\s*")


def parts_of(text: str) -> list[str]:
    """Return the parts of a text that belong together: title and body, its sentences, or its halves."""
    title, _, body = text.strip().partition("\n")
    if body.strip():
        return [title.strip(), " ".join(body.split())]
    sentences = [part for part in _ENDS.split(text.strip()) if part and len(words_of(part)[0]) > 2]
    if len(sentences) > 1:
        return sentences
    words, gap = words_of(text)
    half = len(words) // 2
    return [gap.join(words[:half]), gap.join(words[half:])] if len(words) >= LEAST else []


def found_pairs(texts: Sequence[str], generator: torch.Generator) -> list[tuple[str, str]]:
    """Return a pair of neighboring parts of each text that has two; of several such pairs one is drawn."""
    found = []
    for text in texts:
        parts = parts_of(text)
        if len(parts) > 1:
            place = int(torch.randint(len(parts) - 1, (), generator=generator))
            found.append((parts[place], parts[place + 1]))
    return found


def damaged(texts: Sequence[str], generator: torch.Generator) -> list[str]:
    """Return texts with three of five words left out."""
    split = [words_of(text) for text in texts]
    return [thinned(words, gap, max(1, round(_KEPT * len(words))), generator) for words, gap in split]
