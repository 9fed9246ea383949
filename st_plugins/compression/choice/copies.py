"""Mutilated copies of texts: what a good space recognizes, and a distorted one does not."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from st_plugins.core.words import thinned, words_of

TEXTS = 500  # of each group
_LEAST = 4  # words of a text of which half can be left out


def mutilated(texts: Sequence[str], generator: torch.Generator) -> tuple[list[str], list[str]]:
    """Return two copies of each text, with a random half of its words each; texts of few words are left out."""
    split = [words_of(text, _LEAST) for text in texts]
    chosen = [(words, gap) for words, gap in split if len(words) >= _LEAST][:TEXTS]
    first, second = (
        [thinned(words, gap, (len(words) + 1) // 2, generator) for words, gap in chosen] for _ in range(2)
    )
    return first, second
