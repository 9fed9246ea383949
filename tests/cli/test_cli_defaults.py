"""A command and the function it calls have the same defaults, wherever both have an argument of one name."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest

import st_plugins
from st_plugins.cli import app as cli
from st_plugins.cli import compare as cli_compare
from st_plugins.cli import evaluate as cli_evaluate
from st_plugins.cli import explain as cli_explain
from st_plugins.cli import geometry as cli_geometry
from st_plugins.cli import plan as cli_plan
from st_plugins.cli import train_consert as cli_consert
from st_plugins.cli import train_re2 as cli_re2
from st_plugins.cli import whiten as cli_whiten
from st_plugins.data import read_labeled_texts, read_retrieval
from st_plugins.evaluation import PairClassificationEvaluator, RetrievalEvaluator, STSSuiteEvaluator, compare
from st_plugins.explain import explain_pair, explain_query, explain_text
from st_plugins.geometry import describe
from st_plugins.matching import RE2Config, RE2Matcher
from st_plugins.scale import plan
from st_plugins.training import train_consert

PAIRS: list[tuple[Callable[..., Any], Callable[..., Any], set[str]]] = [
    # The third is what differs for a reason.
    (cli_whiten.whiten, st_plugins.whiten, {"shrinkage"}),  # text on the command line: "0" or "ledoit-wolf"
    (cli_consert.consert, train_consert, {"views"}),  # text on the command line
    (cli_evaluate.evaluate, STSSuiteEvaluator, set()),
    (cli_evaluate.evaluate, RetrievalEvaluator, set()),
    (cli_evaluate.evaluate, PairClassificationEvaluator, set()),
    (cli_evaluate.evaluate, read_labeled_texts, set()),
    (cli_evaluate.evaluate, read_retrieval, set()),
    (cli_compare.compare, compare, set()),
    (cli_geometry.geometry, describe, set()),
    (cli_plan.plan, plan, set()),
    (cli_explain.explain, explain_text, set()),
    (cli_explain.explain, explain_pair, set()),
    (cli_explain.explain, explain_query, set()),
    (cli_re2.re2, RE2Matcher.fit, set()),
    (cli_re2.re2, RE2Config, set()),
]


def defaults(function: Callable[..., Any]) -> dict[str, Any]:
    parameters = inspect.signature(function).parameters.values()
    return {one.name: one.default for one in parameters if one.default is not inspect.Parameter.empty}


@pytest.mark.parametrize(
    ("command", "function", "apart"), PAIRS, ids=[f"{a.__name__}-{b.__qualname__}" for a, b, _ in PAIRS]
)
def test_defaults_are_equal(command: Callable[..., Any], function: Callable[..., Any], apart: set[str]) -> None:
    ours, theirs = defaults(command), defaults(function)
    shared = ours.keys() & theirs.keys()
    assert {name: ours[name] for name in shared - apart} == {name: theirs[name] for name in shared - apart}
    assert apart <= shared, "what may differ is no argument of both any more"


def test_the_texts_on_the_command_line_mean_the_default() -> None:
    assert cli_whiten._shrinkage(defaults(cli_whiten.whiten)["shrinkage"]) == defaults(st_plugins.whiten)["shrinkage"]
    views = defaults(cli_consert.consert)["views"].split(",")
    assert tuple(views) == defaults(train_consert)["views"]
    assert not defaults(cli_consert.consert)["no_dropout"] and defaults(train_consert)["encoder_dropout"]
    assert cli.app is not None
