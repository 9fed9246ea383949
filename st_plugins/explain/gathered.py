"""Contributions added up to words: which of them count in a similarity."""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from st_plugins.explain.spans import Span

View = Literal["interaction", "contribution"]


class AlignedPair(NamedTuple):
    """A span of each text, and what they add to the similarity.

    Args:
        first: Of the first text.
        second: Of the second text.
        contribution: Their entry of the contributions.
        interaction: The part of it that the two have in common beyond what each adds by itself.

    Example:
        >>> from st_plugins.miniature import untrained_encoder
        >>> from st_plugins.explain import explain_pair
        >>> found = explain_pair(untrained_encoder(), "A happy dog sleeps.", "The cat is asleep.")
        >>> found.top_pairs[0].interaction >= found.top_pairs[1].interaction
        True
    """

    first: Span
    second: Span
    contribution: float
    interaction: float


class Gathered(NamedTuple):
    """Contributions of words, sentences or tokens.

    Args:
        first: Those of the first text.
        second: Those of the second text.
        contributions: ``(units of the first, units of the second)``, float64.
        interaction: The part of them that two units have in common, of the same shape.

    Example:
        >>> from st_plugins.miniature import untrained_encoder
        >>> from st_plugins.explain import explain_pair
        >>> found = explain_pair(untrained_encoder(), "A happy dog sleeps.", "The cat is asleep.")
        >>> round(float(found.gathered("sentence").contributions.sum() - found.contributions.sum()), 9) + 0.0
        0.0
    """

    first: tuple[Span, ...]
    second: tuple[Span, ...]
    contributions: NDArray[np.float64]
    interaction: NDArray[np.float64]
