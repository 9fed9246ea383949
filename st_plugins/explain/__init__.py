"""Explanations that add up: which spans an embedding is made of, and which spans of two texts make them similar.

:func:`explain_text` and :func:`explain_pair` take the model's own weighted sum apart; :func:`faithfulness` measures by
deletion whether what they name matters. The names are imported on first use, because they need the host.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from st_plugins.explain.eraser import Faithfulness, Ranking, faithfulness, mean_faithfulness
    from st_plugins.explain.pair import AlignedPair, PairExplanation, explain_pair
    from st_plugins.explain.single import Explanation, explain_text
    from st_plugins.explain.spans import Side, Span
    from st_plugins.explain.tokens import Token

_LAZY = {
    "AlignedPair": "pair",
    "Explanation": "single",
    "Faithfulness": "eraser",
    "PairExplanation": "pair",
    "Ranking": "eraser",
    "Side": "spans",
    "Span": "spans",
    "Token": "tokens",
    "explain_text": "single",
    "explain_pair": "pair",
    "faithfulness": "eraser",
    "mean_faithfulness": "eraser",
}

__all__ = [
    "AlignedPair",
    "Explanation",
    "Faithfulness",
    "PairExplanation",
    "Ranking",
    "Side",
    "Span",
    "Token",
    "explain_pair",
    "explain_text",
    "faithfulness",
    "mean_faithfulness",
]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(f"st_plugins.explain.{_LAZY[name]}"), name)
    raise AttributeError(f"module 'st_plugins.explain' has no attribute {name!r}")
