"""Explanations that add up: which spans an embedding is made of, and which spans of two texts make them similar.

:func:`explain_text` and :func:`explain_pair` take the model's own weighted sum apart, and :func:`explain_query` that
of each result of a search; :func:`align` says which words correspond. :func:`faithfulness` measures by deletion
whether what they name matters, and :func:`gradient_saliency` is what it is measured against.
"""

from __future__ import annotations

from st_plugins.explain.align import align
from st_plugins.explain.alignment import Alignment, Link, Phrase
from st_plugins.explain.eraser import Faithfulness, Ranking, faithfulness, mean_faithfulness
from st_plugins.explain.explanation import Explanation, explain_text
from st_plugins.explain.gathered import AlignedPair, Gathered
from st_plugins.explain.gradient import gradient_saliency
from st_plugins.explain.hit import ComparedWord, Hit
from st_plugins.explain.pair import explain_pair
from st_plugins.explain.pair_explanation import PairExplanation
from st_plugins.explain.pairs import explain_pairs
from st_plugins.explain.query import explain_query
from st_plugins.explain.query_explanation import QueryExplanation
from st_plugins.explain.spans import Side, Span, Token

__all__ = [
    "AlignedPair",
    "Alignment",
    "ComparedWord",
    "Explanation",
    "Faithfulness",
    "Gathered",
    "Hit",
    "Link",
    "PairExplanation",
    "Phrase",
    "QueryExplanation",
    "Ranking",
    "Side",
    "Span",
    "Token",
    "align",
    "explain_pair",
    "explain_pairs",
    "explain_query",
    "explain_text",
    "faithfulness",
    "gradient_saliency",
    "mean_faithfulness",
]
