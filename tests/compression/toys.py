"""Encoders of known shape: a stock layer behind the untrained one makes it what is wanted."""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Dense, Normalize

from st_plugins.core.host import rebuild
from st_plugins.miniature import corpus, untrained_encoder

WIDTH = 16
TEXTS = corpus(300)


@cache
def _untrained() -> SentenceTransformer:
    return untrained_encoder(WIDTH)


def encoder(*more: torch.nn.Module) -> SentenceTransformer:
    """The untrained encoder with modules behind it."""
    return rebuild(_untrained(), [*_untrained(), *more])


@cache
def _white() -> tuple[torch.Tensor, torch.Tensor]:
    rows = _untrained().encode(TEXTS).astype(np.float64)
    centered = rows - rows.mean(axis=0)
    _, singular, directions = np.linalg.svd(centered, full_matrices=False)
    singular = singular.clip(singular[0] / 100)  # behind a LayerNorm one direction does not vary
    weight = directions / singular[:, None] * np.sqrt(len(rows)) * np.geomspace(1.3, 0.8, WIDTH)[:, None]
    return torch.tensor(weight), torch.tensor(-weight @ rows.mean(axis=0))


def trained_like(scale: float = 1.0) -> SentenceTransformer:
    """An encoder whose texts lie about the origin on all sides, as those do that were trained to compare texts."""
    weight, bias = _white()
    layer = Dense(WIDTH, WIDTH, activation_function=torch.nn.Identity())
    layer.linear.weight.data[:], layer.linear.bias.data[:] = scale * weight, scale * bias
    return encoder(layer, Normalize())


def raw_like(*, normalized: bool = True) -> SentenceTransformer:
    """An encoder whose texts all lie in one direction, and spread mostly along it, as those of raw encoders do."""
    weight, bias = _white()
    far = torch.zeros(WIDTH)
    far[0] = 1
    layer = Dense(WIDTH, WIDTH, activation_function=torch.nn.Identity())
    stretch = torch.ones(WIDTH, 1)
    stretch[0] = 8
    layer.linear.weight.data[:], layer.linear.bias.data[:] = stretch * weight, stretch[:, 0] * bias + 10 * far
    return encoder(layer, *([Normalize()] if normalized else []))
