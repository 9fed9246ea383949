"""The words of a text, and copies of it that lack some of them."""

from __future__ import annotations

import torch


def words_of(text: str, least: int = 4) -> tuple[list[str], str]:
    """Return a text's words and what stands between them; letters where words are not set apart, as in Chinese."""
    words = text.split()
    # Scripts that have capitals set words apart: there a text of few words is a short one.
    if len(words) >= least or text.lower() != text.upper():
        return words, " "
    return [*"".join(words)], ""


def thinned(words: list[str], gap: str, kept: int, generator: torch.Generator) -> str:
    """Return a text with so many of its words, drawn at random, in their order."""
    places = torch.randperm(len(words), generator=generator)[:kept].sort().values
    return gap.join(words[place] for place in places.tolist())
