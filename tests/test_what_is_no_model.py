"""Everything that takes a model refuses what is none in a sentence, and says where a result keeps its model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from sentence_transformers import SentenceTransformer

import st_plugins
from st_plugins import miniature, scale
from st_plugins.data import Pairs
from st_plugins.evaluation import PairClassificationEvaluator, STSSuiteEvaluator
from st_plugins.explain import (
    align,
    explain_pair,
    explain_pairs,
    explain_query,
    explain_text,
    faithfulness,
    gradient_saliency,
)
from st_plugins.geometry import Probe

TEXTS = miniature.corpus(600)
PAIRS = Pairs("toy", ["a", "b"], ["c", "d"], [0, 1])
TAKERS: dict[str, Callable[[Any], Any]] = {
    "adapt": lambda model: st_plugins.adapt(model, TEXTS, batches=2),
    "align": lambda model: align(model, "a dog", "a cat"),
    "compress": lambda model: st_plugins.compress(model, TEXTS, bytes=8),
    "encode": lambda model: scale.encode(model, TEXTS, "never-written"),
    "explain_pair": lambda model: explain_pair(model, "a dog", "a cat"),
    "explain_pairs": lambda model: explain_pairs(model, [("a dog", "a cat")]),
    "explain_query": lambda model: explain_query(model, "a dog", ["a cat"]),
    "explain_text": lambda model: explain_text(model, "a dog"),
    "faithfulness": lambda model: faithfulness(model, "a dog", [1.0], lambda embedding: 0.0),
    "first_last_avg": st_plugins.first_last_avg,
    "fit_flow": lambda model: st_plugins.fit_flow(model, TEXTS),
    "fold": st_plugins.fold,
    "gradient_saliency": lambda model: gradient_saliency(model, "a dog", lambda embedding: embedding.sum()),
    "pairs": lambda model: PairClassificationEvaluator(PAIRS).evaluate(model),
    "probe": lambda model: Probe(TEXTS[:20]).measure(model),
    "suite": lambda model: STSSuiteEvaluator(miniature.sts_tasks()).evaluate(model),
    "whiten": lambda model: st_plugins.whiten(model, TEXTS),
}


@dataclass
class Found:
    """A result that holds a model, as those of compress and adapt do."""

    model: Any


@pytest.mark.parametrize("taker", TAKERS)
def test_what_is_no_model_is_refused(taker: str, model: SentenceTransformer) -> None:
    with pytest.raises(TypeError, match="model must be a SentenceTransformer, got NoneType; load it first"):
        TAKERS[taker](None)
    with pytest.raises(TypeError, match=r"model must be a SentenceTransformer, got Found; give its \.model"):
        TAKERS[taker](Found(model))
