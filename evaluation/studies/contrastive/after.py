"""What is fitted to the embeddings of a finished model: whitening and flows."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from sentence_transformers import SentenceTransformer

from st_plugins import fit_flow, whiten

_QUIET: dict[str, Any] = {"batch_size": 128, "show_progress_bar": False}


def _whitened(model: SentenceTransformer, corpus: list[str], seed: int, dimension: int | None) -> SentenceTransformer:
    return whiten(model, corpus, dimension, **_QUIET)


def _flow(model: SentenceTransformer, corpus: list[str], seed: int, **options: Any) -> SentenceTransformer:
    return fit_flow(model, corpus, generator=torch.Generator().manual_seed(seed), **_QUIET, **options)


AFTER: dict[str, Callable[[SentenceTransformer, list[str], int], SentenceTransformer]] = {
    "whitened": partial(_whitened, dimension=None),
    "whitened to 128": partial(_whitened, dimension=128),
    "flow": _flow,
    "flow, code": partial(_flow, preset="code"),
    "flow, published": partial(_flow, preset="published"),
    "flow, affine": partial(_flow, coupling="affine"),
    "flow, learned permutation": partial(_flow, permutation="learned-lu"),
}
"""New model from model, corpus and seed, by the name that a recipe's ``after`` gives it."""

RANDOM = tuple(form for form in AFTER if form.startswith("flow"))
"""Those that depend on the seed."""
