"""Mutilated copies of texts: what a good space recognizes, and a distorted one does not."""

from __future__ import annotations

from collections.abc import Sequence

import torch

TEXTS = 500  # of each group
_LEAST = 4  # words of a text of which half can be left out


def mutilated(texts: Sequence[str], generator: torch.Generator) -> tuple[list[str], list[str]]:
    """Return two copies of each text, with a random half of its words each; texts of few words are left out."""
    split = [(text.split(), " ") for text in texts]
    # Where words are not set apart, as in Chinese, letters stand for them; scripts that have capitals set them apart.
    split = [
        (words, gap) if len(words) >= _LEAST or text.lower() != text.upper() else ([*"".join(words)], "")
        for text, (words, gap) in zip(texts, split, strict=True)
    ]
    chosen = [(words, gap) for words, gap in split if len(words) >= _LEAST][:TEXTS]
    first, second = ([_half(words, gap, generator) for words, gap in chosen] for _ in range(2))
    return first, second


def _half(words: list[str], gap: str, generator: torch.Generator) -> str:
    kept = torch.randperm(len(words), generator=generator)[: (len(words) + 1) // 2].sort().values
    return gap.join(words[place] for place in kept.tolist())
