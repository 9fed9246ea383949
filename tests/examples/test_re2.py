"""The example of fast matching: what it counts, against counts by hand."""

from __future__ import annotations

from importlib import import_module

import numpy as np
import pytest

from st_plugins.examples.pairs import entailment_pairs
from st_plugins.matching import RE2Matcher

example = import_module("st_plugins.examples.04_re2")


def test_counts_are_those_of_the_matcher(monkeypatch: pytest.MonkeyPatch) -> None:
    trained: list[tuple[RE2Matcher, list, list]] = []
    real = RE2Matcher.fit

    def fit(matcher: RE2Matcher, train: list, dev: list, **rest: object) -> object:
        trained.append((matcher, train, dev))
        return real(matcher, train, dev, **rest)  # type: ignore[arg-type]

    monkeypatch.setattr(RE2Matcher, "fit", fit)
    found = example.run(epochs=1, drawn=400, choosing=20, judged=40)
    ((matcher, train, dev),) = trained
    pairs = entailment_pairs(400)
    test = pairs[20:60]
    named = [(first, second, example.LABELS[label]) for first, second, label in pairs]
    assert dev == named[:20] and train == named[60:] and found.pairs == 40
    hits = [int(np.argmax(matcher.predict(pair[:2]))) == pair[2] for pair in test]
    assert found.accuracy == pytest.approx(sum(hits) / 40)
    assert 0 <= found.low < found.accuracy < found.high <= 1
    deviation = (found.accuracy * (1 - found.accuracy) / 40) ** 0.5
    assert found.high - found.low == pytest.approx(2 * 1.96 * deviation, rel=0.3)
    assert found.parameters == sum(weight.numel() for weight in matcher.parameters())
    shown = (found.example.first, found.example.second)
    assert shown in [pair[:2] for pair in test] and len(found.example.blocks) == 2
    assert f"{found.accuracy:.1%}" in found.summary() and "cross-encoder" not in found.summary()
    assert "the cross-encoder: 87.5%, the bi-encoder: 62.5%" in found.summary(0.875, 0.625)


@pytest.mark.slow
def test_the_example_learns_and_is_the_same_every_time() -> None:
    first, second = (example.run() for _ in range(2))
    assert first.low > 0.7 and first.accuracy == second.accuracy
