"""What several commands of ``st-plugins`` make of their options: the evaluator and the model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from st_plugins.cli.options import Dtype, refuse_unused

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

    from st_plugins.evaluation.result import SuiteResult
    from st_plugins.evaluation.suite import STSSuiteEvaluator

__all__ = ["MEASURING", "check_model", "evaluated", "load_model", "pair_evaluator", "refuse_unused_measuring"]

MEASURING = ("similarity", "prompt", "prompt_name", "routes", "confidence", "bootstrap_samples")


def pair_evaluator(
    *,
    data: Path | None,
    tasks: str,
    pairs: Path | None,
    columns: tuple[str, str, str],
    split: str,
    texts: Path | None = None,
    column: str | None = None,
    **settings: Any,
) -> STSSuiteEvaluator:
    """Build the evaluator from the options that several commands share."""
    from st_plugins.data.own import read_pairs, read_texts
    from st_plugins.evaluation.suite import STSSuiteEvaluator

    return STSSuiteEvaluator(
        tasks=tasks if pairs is None else [read_pairs(pairs, *columns)],
        data=data,
        split=split,
        floor_texts=None if texts is None else read_texts(texts, column),
        **settings,
    )


def check_model(name: str) -> None:
    """Say that a model folder is missing before anything is read or loaded; hub ids are left to the loading."""
    folder = Path(name).expanduser()
    if not folder.exists() and (name.startswith((".", "/", "~")) or "\\" in name or name.count("/") > 1):
        raise FileNotFoundError(f"model folder {name!r} does not exist")


def refuse_unused_measuring(
    context: typer.Context, *, pairs: Path | None, data: Path | None = None, always: bool = True
) -> None:
    """Refuse options of the measuring that go with other options than those given."""
    if pairs is None and data is None and not always:
        measuring = (name for name in MEASURING if not name.startswith("prompt"))  # the texts are encoded with it too
        options = ("tasks", "split", "first", "second", "score", "seed", *measuring)
        refuse_unused(context, "without scored pairs (--pairs or --data)", *options)
    elif pairs is not None:
        refuse_unused(context, "beside --pairs", "tasks", "split", "data")
    else:
        refuse_unused(context, "without --pairs", "first", "second", "score")


def load_model(name: str, dtype: Dtype | None, device: str | None, max_seq_length: int | None) -> SentenceTransformer:
    """Load a model with the precision and the length that the options ask for."""
    model = _loaded(name, device)
    _adjust(model, dtype, max_seq_length)
    return model


def evaluated(
    evaluator: STSSuiteEvaluator, name: str, dtype: Dtype | None, device: str | None, max_seq_length: int | None
) -> SuiteResult:
    """Load and evaluate a model; its own length and precision are recorded beside those asked for."""
    from st_plugins.evaluation.measuring.record import dtype_of, length_of

    model = _loaded(name, device)
    own = {"max_seq_length": length_of(model), "dtype": dtype_of(model)}
    _adjust(model, dtype, max_seq_length)
    return evaluator.evaluate(model, model_name=name, own=own)


def _loaded(name: str, device: str | None) -> SentenceTransformer:
    from st_plugins.io import load_sentence_transformer

    return load_sentence_transformer(name, device)


def _adjust(model: SentenceTransformer, dtype: Dtype | None, max_seq_length: int | None) -> None:
    import torch

    from st_plugins.core.host import check_length, set_length

    if dtype is not None:
        model.to(getattr(torch, dtype.value))
    if max_seq_length is not None:
        set_length(model, max_seq_length)
    check_length(model)
