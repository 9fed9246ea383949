"""Many pairs are explained as each is by itself, and each text is looked at once."""

from __future__ import annotations

import dataclasses
import datetime
import html
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer

from st_plugins.explain import PairExplanation, align, explain_pair, explain_pairs, explain_text
from st_plugins.explain import pairs as module
from st_plugins.explain.inner.drawing import gathered_matrix

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


@pytest.mark.parametrize("depth", ["output", "input"])
def test_phrases_add_up(make_model: Make, depth: Any) -> None:
    model = make_model("bert")
    found = explain_pair(model, "a big dog is sleeping", "the dog was sleeping fast", by="phrase", depth=depth)
    # Two words of the first text with one of the second, and one that stands for itself.
    words, links = found.alignment.first, found.alignment.links
    one = [links[0]._replace(first=word, second=found.alignment.second[1]) for word in words[1:3]]
    found = dataclasses.replace(found, alignment=dataclasses.replace(found.alignment, links=tuple(one)))
    gathered, of_words = found.gathered(), found.gathered("word")
    texts = [unit.text for unit in gathered.first if unit.kind == "text"]
    assert texts == ["a", "big dog", "is", "sleeping"]
    rows = [unit.text for unit in of_words.first]
    expected = sum(of_words.contributions[rows.index(word)] for word in ("big", "dog"))
    place = [unit.text for unit in gathered.first].index("big dog")
    assert gathered.contributions[place] == pytest.approx(expected, abs=1e-12)
    assert gathered.first[place].start == 2 and gathered.first[place].end == 9
    assert gathered.contributions.sum() == pytest.approx(found.similarity, abs=1e-3)
    assert gathered.interaction.sum(0) == pytest.approx(0, abs=1e-12)
    assert "Interaction, phrase by phrase" in PairExplanation.from_json(found.to_json()).to_html()
    with pytest.raises(ValueError, match="explain with by='phrase'"):
        explain_pair(model, *PAIRS[0], by="token").gathered("phrase")
    with pytest.raises(ValueError, match="by='phrase' is for two texts"):
        explain_text(model, "a dog", by="phrase")
    with pytest.raises(ValueError, match="by='phrase' must be"):
        align(model, *PAIRS[0], by="phrase")


@pytest.mark.parametrize("depth", ["input", 1])
def test_a_reference_is_no_word_to_have_something_in_common_with(make_model: Make, depth: Any) -> None:
    found = explain_pair(make_model("bert"), "a big dog runs", "the cat", depth=depth)
    words = found.contributions[:-1, :-1]
    rows, columns = words.any(1) / words.any(1).sum(), words.any(0) / words.any(0).sum()
    for s in range(len(words)):
        for t in range(words.shape[1]):
            effects = columns[t] * words[s].sum() + rows[s] * words[:, t].sum() - rows[s] * columns[t] * words.sum()
            assert found.main_effects[s, t] == pytest.approx(effects, abs=1e-12)
    assert not found.interaction[-1].any() and not found.interaction[:, -1].any()
    assert found.interaction.sum(0) == pytest.approx(0, abs=1e-12)
    assert found.interaction.sum(1) == pytest.approx(0, abs=1e-12)
    matrix = gathered_matrix(*found.gathered()[:2], found.gathered().contributions, 40, "")
    assert matrix.rows[-1] == matrix.columns[-1] == "[PAD] (reference)"


def test_pages_name_model_date_and_settings(make_model: Make, tmp_path: Path) -> None:
    model = make_model("bert")
    model.save(str(tmp_path / "my-model"), create_model_card=False)
    found = explain_pair(SentenceTransformer(str(tmp_path / "my-model"), device="cpu"), *PAIRS[0], prompt="query: ")
    assert found.about["Model"] == "my-model" and found.about["Prompt"] == "'query: '"
    assert found.about["Date"] == datetime.datetime.now().astimezone().date().isoformat()
    page = found.to_html()
    assert all(value in html.unescape(page) for value in found.about.values())


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
