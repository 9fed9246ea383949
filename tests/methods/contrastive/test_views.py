"""Names, options and texts of views."""

from __future__ import annotations

import json
from typing import Any

import pytest

from st_plugins.augment import (
    AdversarialPerturbation,
    EmbeddingDropout,
    FeatureCutoff,
    NoAugmentation,
    TokenCutoff,
    TokenShuffle,
    View,
    flatten_view,
    parse_view,
    view_config,
    view_from_config,
)

VIEWS: tuple[View, ...] = (
    NoAugmentation(),
    TokenShuffle(),
    TokenShuffle("embeddings", include_special_tokens=False),
    TokenShuffle("position_ids"),
    TokenCutoff(),
    TokenCutoff(0.1, include_special_tokens=False),
    FeatureCutoff(),
    FeatureCutoff(0),
    EmbeddingDropout(),
    EmbeddingDropout(1 / 3, include_special_tokens=False),
    AdversarialPerturbation(),
    AdversarialPerturbation(1e-05),
)


@pytest.mark.parametrize("view", VIEWS, ids=str)
def test_config_and_representation_round_trip(view: View) -> None:
    config = json.loads(json.dumps(view.get_config_dict()))
    assert view_from_config(config) == (view,)
    assert eval(repr(view)) == view  # noqa: S307
    assert hash(view_from_config(config)[0]) == hash(view)


@pytest.mark.parametrize("view", VIEWS, ids=str)
def test_text_round_trip(view: View) -> None:
    assert parse_view(str(view)) == (view,)


def test_compositions_round_trip() -> None:
    view = parse_view("feature-cutoff:0.2 + token-shuffle:embeddings:no-include-special-tokens")
    assert view == (FeatureCutoff(0.2), TokenShuffle("embeddings", include_special_tokens=False))
    assert view_from_config(json.loads(json.dumps(view_config(view)))) == view
    assert parse_view("+".join(map(str, view))) == view
    assert flatten_view(list(view)) == view


def test_defaults_are_those_of_the_paper() -> None:
    assert (TokenCutoff().rate, FeatureCutoff().rate, EmbeddingDropout().rate) == (0.15, 0.2, 0.2)
    assert parse_view("adversarial") == (AdversarialPerturbation(norm=1.0),)
    assert TokenCutoff().include_special_tokens and TokenShuffle().include_special_tokens


@pytest.mark.parametrize("rate", [-0.1, 1.0, 1.5, float("nan"), float("inf")])
@pytest.mark.parametrize("view", [TokenCutoff, FeatureCutoff, EmbeddingDropout])
def test_rates_outside_the_range_are_refused(view: Any, rate: float) -> None:
    with pytest.raises(ValueError, match=r"rate must be in \[0, 1\), got"):
        view(rate)


@pytest.mark.parametrize("norm", [-1.0, float("nan"), float("inf")])
def test_bad_norms_are_refused(norm: float) -> None:
    with pytest.raises(ValueError, match="norm must be a finite number of at least 0"):
        AdversarialPerturbation(norm)


def test_wrong_types_are_refused() -> None:
    wrong: Any = "0.2"
    with pytest.raises(TypeError, match=r"rate must be a number, got '0.2'"):
        FeatureCutoff(wrong)
    wrong = True
    with pytest.raises(TypeError, match="rate must be a number, got True"):
        TokenCutoff(wrong)
    wrong = "no"
    with pytest.raises(TypeError, match="include_special_tokens must be True or False, got 'no'"):
        TokenCutoff(0.1, include_special_tokens=wrong)
    with pytest.raises(ValueError, match="kind must be 'auto', 'position_ids' or 'embeddings', got 'words'"):
        TokenShuffle("words")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("mixup", "unknown view 'mixup'; known are none, token-shuffle, token-cutoff, feature-cutoff"),
        ("", "unknown view ''"),
        ("feature-cutoff+", "unknown view ''"),
        ("feature-cutoff:much", "feature-cutoff has no option 'much'; it takes a rate"),
        ("token-cutoff:0.1:keep", "token-cutoff has no option 'keep'; it takes a rate and no-include-special-tokens"),
        ("none:0.1", "none has no option '0.1'; it takes none"),
        ("token-shuffle:rows", "kind must be 'auto'"),
        ("feature-cutoff:0.1:0.2", "gives rate twice"),
        ("feature-cutoff:1.2", r"rate must be in \[0, 1\), got 1.2"),
    ],
)
def test_bad_texts(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_view(text)


def test_bad_configs() -> None:
    with pytest.raises(ValueError, match="unknown view None"):
        view_from_config({"rate": 0.1})
    with pytest.raises(ValueError, match="feature-cutoff has no option 'ratio'"):
        view_from_config([{"view": "feature-cutoff", "ratio": 0.1}])
    with pytest.raises(ValueError, match="a view is empty"):
        view_from_config([])


def test_what_is_no_view() -> None:
    for wrong in ("feature-cutoff", 0.2, None, ["feature-cutoff"]):
        given: Any = wrong
        with pytest.raises(TypeError, match="must be a View or a sequence of them"):
            flatten_view(given)
