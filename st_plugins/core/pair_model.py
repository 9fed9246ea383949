"""What comes out of a pair model, in the manners of the host's ``CrossEncoder``."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["Activation", "activated", "check_batch_size", "check_ranks", "converted", "ranking", "shows_progress"]

Activation = Callable[[Tensor], Tensor]


def activated(logits: Tensor, activation_fn: Activation | None, apply_softmax: bool | None) -> Tensor:
    """Turn logits into scores."""
    num_labels = logits.shape[1]
    if activation_fn is None:
        activation_fn = torch.sigmoid if num_labels == 1 else nn.Identity()
    scores = activation_fn(logits)
    if num_labels == 1:
        return scores.squeeze(-1)
    return scores.softmax(dim=1) if apply_softmax else scores


def converted(scores: Tensor, convert_to_numpy: bool, convert_to_tensor: bool) -> Any:
    """Return scores in the form asked for."""
    if convert_to_tensor:
        return scores
    return scores.float().cpu().numpy() if convert_to_numpy else list(scores)


def ranking(
    scores: Tensor, documents: Sequence[Any], top_k: int | None, return_documents: bool
) -> list[dict[str, Any]]:
    """Return documents by score."""
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k must be at least 1, or None for all, got {top_k}")
    order = scores.argsort(descending=True, stable=True)[:top_k].tolist()
    return [
        {"corpus_id": row, "score": float(scores[row])} | ({"text": documents[row]} if return_documents else {})
        for row in order
    ]


def check_ranks(num_labels: int) -> None:
    """Raise a ValueError if a model has no score to rank by."""
    if num_labels != 1:
        raise ValueError(f"rank needs a score, num_labels=1, but there are {num_labels} classes; use predict")


def check_batch_size(batch_size: int) -> int:
    """Return a batch size, or raise a ValueError."""
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    return batch_size


def shows_progress(asked: bool | None, logger: logging.Logger) -> bool:
    """Return whether to show a progress bar."""
    return logger.getEffectiveLevel() in (logging.INFO, logging.DEBUG) if asked is None else asked
