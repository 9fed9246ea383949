"""What is fitted to the embeddings of a finished model: whitening and flows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from sentence_transformers import SentenceTransformer

from st_plugins import fit_flow, whiten

__all__ = ["AFTER", "RANDOM"]

Fit = Callable[[SentenceTransformer, list[str], int], SentenceTransformer]
_QUIET: dict[str, Any] = {"batch_size": 128, "show_progress_bar": False}


def _whitened(dimension: int | None) -> Fit:
    return lambda model, corpus, seed: whiten(model, corpus, dimension, **_QUIET)


def _flow(**options: Any) -> Fit:
    def fitted(model: SentenceTransformer, corpus: list[str], seed: int) -> SentenceTransformer:
        return fit_flow(model, corpus, generator=torch.Generator().manual_seed(seed), **_QUIET, **options)

    return fitted


AFTER: dict[str, Fit] = {
    "whitened": _whitened(None),
    "whitened to 128": _whitened(128),
    "flow": _flow(),
    "flow, code": _flow(preset="code"),
    "flow, published": _flow(preset="published"),
    "flow, affine": _flow(coupling="affine"),
    "flow, learned permutation": _flow(permutation="learned-lu"),
}
"""New model from model, corpus and seed, by the name that a recipe's ``after`` gives it."""

RANDOM = tuple(form for form in AFTER if form.startswith("flow"))
"""Those that depend on the seed."""
