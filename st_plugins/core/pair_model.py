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
    """Turn logits into scores.

    Args:
        logits: ``(N, num_labels)``.
        activation_fn: Applied to them; None for a sigmoid with one label, and for nothing with several.
        apply_softmax: Whether to give probabilities, with several labels.

    Returns:
        ``(N, num_labels)``, or ``(N,)`` with one label.

    Example:
        >>> activated(torch.zeros(2, 1), None, False), activated(torch.zeros(1, 2), None, True)
        (tensor([0.5000, 0.5000]), tensor([[0.5000, 0.5000]]))
    """
    num_labels = logits.shape[1]
    if activation_fn is None:
        activation_fn = torch.sigmoid if num_labels == 1 else nn.Identity()
    scores = activation_fn(logits)
    if num_labels == 1:
        return scores.squeeze(-1)
    return scores.softmax(dim=1) if apply_softmax else scores


def converted(scores: Tensor, convert_to_numpy: bool, convert_to_tensor: bool) -> Any:
    """Return scores in the form asked for.

    Args:
        scores: One row a pair.
        convert_to_numpy: Whether to return an array; a list of tensors otherwise.
        convert_to_tensor: Whether to return one tensor, whatever ``convert_to_numpy`` says.

    Returns:
        The same numbers.

    Example:
        >>> converted(torch.zeros(2), False, False)
        [tensor(0.), tensor(0.)]
    """
    if convert_to_tensor:
        return scores
    return scores.float().cpu().numpy() if convert_to_numpy else list(scores)


def ranking(
    scores: Tensor, documents: Sequence[Any], top_k: int | None, return_documents: bool
) -> list[dict[str, Any]]:
    """Return documents by score.

    Args:
        scores: ``(N,)``.
        documents: The N documents.
        top_k: Most documents returned; None for all.
        return_documents: Whether to return the documents too.

    Returns:
        Best first, equal ones in their order, ``corpus_id`` (position in ``documents``), ``score``, and ``text`` if
        asked for.

    Raises:
        ValueError: ``top_k`` is below 1.

    Example:
        >>> ranking(torch.tensor([0.25, 0.5]), ["a dog", "a cat"], 1, True)
        [{'corpus_id': 1, 'score': 0.5, 'text': 'a cat'}]
    """
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k must be at least 1, or None for all, got {top_k}")
    order = scores.argsort(descending=True, stable=True)[:top_k].tolist()
    return [
        {"corpus_id": row, "score": float(scores[row])} | ({"text": documents[row]} if return_documents else {})
        for row in order
    ]


def check_ranks(num_labels: int) -> None:
    """Raise a ValueError if a model has no score to rank by.

    Args:
        num_labels: Number of its outputs.

    Raises:
        ValueError: It has classes.
    """
    if num_labels != 1:
        raise ValueError(f"rank needs a score, num_labels=1, but there are {num_labels} classes; use predict")


def check_batch_size(batch_size: int) -> int:
    """Return a batch size, or raise a ValueError.

    Args:
        batch_size: At least 1.

    Returns:
        The same.

    Raises:
        ValueError: It is below 1.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    return batch_size


def shows_progress(asked: bool | None, logger: logging.Logger) -> bool:
    """Return whether to show a progress bar.

    Args:
        asked: What the caller wants; None shows it where logging is at the level INFO.
        logger: The caller's.

    Returns:
        Whether to show it.
    """
    return logger.getEffectiveLevel() in (logging.INFO, logging.DEBUG) if asked is None else asked
