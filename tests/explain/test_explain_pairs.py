"""Many pairs are explained as each is by itself, and each text is looked at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer

from st_plugins.explain import explain_pair, explain_pairs
from st_plugins.explain import pairs as module

Make = Callable[..., SentenceTransformer]
PAIRS = [("a big dog", "the cat is sleeping"), ("the cat is sleeping", "two dogs"), ("a big dog", "a big dog")]


@pytest.mark.parametrize("kind", ["bert", "roberta", "llama"])
@pytest.mark.parametrize("depth", ["output", "input", 1])
def test_many_pairs_are_each_as_alone(make_model: Make, kind: str, depth: Any) -> None:
    model = make_model(kind)
    found = explain_pairs(model, PAIRS, depth=depth)
    for pair, explanation in zip(PAIRS, found, strict=True):
        alone = explain_pair(model, *pair, depth=depth)
        assert (explanation.first.text, explanation.second.text) == pair
        assert explanation.contributions == pytest.approx(alone.contributions, abs=1e-6)
        assert explanation.similarity == pytest.approx(alone.similarity, abs=1e-6)
        assert explanation.alignment.places == alone.alignment.places
        assert explanation.contributions.sum() == pytest.approx(explanation.similarity, abs=1e-3)


@pytest.mark.parametrize("prompt", [None, "the ", ("the ", "a ")])
def test_each_text_is_taken_apart_once(make_model: Make, monkeypatch: pytest.MonkeyPatch, prompt: Any) -> None:
    model, seen = make_model("bert"), []
    take_apart = module.take_apart

    def counted(model: SentenceTransformer, text: Any, limit: int) -> Any:
        seen.append(text.reading.text)
        return take_apart(model, text, limit)

    monkeypatch.setattr(module, "take_apart", counted)
    found = explain_pairs(model, PAIRS, prompt=prompt)
    assert len(seen) == (3 if not isinstance(prompt, tuple) else 2 + 3)
    for pair, explanation in zip(PAIRS, found, strict=True):
        alone = explain_pair(model, *pair, prompt=prompt)
        assert np.allclose(explanation.contributions, alone.contributions, atol=1e-6)


def test_no_pairs_and_bad_ones(make_model: Make) -> None:
    model = make_model("bert")
    assert explain_pairs(model, []) == []
    assert len(explain_pairs(model, iter(PAIRS), batch_size=1)) == 3
    with pytest.raises(TypeError, match=r"pairs\[1\] must be two strings, got str a dog"):
        explain_pairs(model, [PAIRS[0], "a dog"])
    with pytest.raises(TypeError, match=r"pairs\[0\]\[1\] must be a string, got a NoneType"):
        explain_pairs(model, [("a dog", None)])
    with pytest.raises(TypeError, match="got one string; see explain_pair"):
        explain_pairs(model, "a dog")
    with pytest.raises(ValueError, match=r"pairs\[1\]\[0\].*at least one word"):
        explain_pairs(model, [PAIRS[0], (" ", "a dog")])
    with pytest.raises(ValueError, match=r"second.*at least one word"):
        explain_pair(model, "a dog", "")
    with pytest.raises(ValueError, match="batch_size must be a whole number of at least 1"):
        explain_pairs(model, PAIRS, batch_size=0)
