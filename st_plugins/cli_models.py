"""What several commands of ``st-plugins`` make of their options: the evaluator and the model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from st_plugins.cli_options import Dtype

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

    from st_plugins.evaluators import STSSuiteEvaluator

__all__ = ["load_model", "pair_evaluator"]


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
    from st_plugins.evaluators import STSSuiteEvaluator

    return STSSuiteEvaluator(
        tasks=tasks if pairs is None else [read_pairs(pairs, *columns)],
        data=data,
        split=split,
        floor_texts=None if texts is None else read_texts(texts, column),
        **settings,
    )


def load_model(name: str, dtype: Dtype, device: str | None, max_seq_length: int | None) -> SentenceTransformer:
    """Load a model with the precision and the length that the options ask for."""
    import torch

    from st_plugins.io import load

    model = load(name, device=device)
    if dtype is not Dtype.float32:
        model = model.to(getattr(torch, dtype.value))
    if max_seq_length is not None:
        try:
            model.max_seq_length = max_seq_length
        except AttributeError:
            raise ValueError(
                f"a {type(model[0]).__name__} has no length limit that could be set; leave out --max-seq-length"
            ) from None
    return model
