"""Losses of several terms: one more beside those that a loss has."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

__all__ = ["with_term"]


def with_term(loss: nn.Module, value: Any, name: str, term: Tensor) -> dict[str, Tensor]:
    """Add a named term to what a loss returned.

    Args:
        loss: The loss; its class names its value where that is a single number.
        value: What it returned: a tensor, or a dictionary of terms.
        name: Name of the new term.
        term: The new term.

    Returns:
        All terms by name.

    Raises:
        TypeError: ``value`` is neither.
        ValueError: There is a term of this name already.

    Example:
        >>> import torch
        >>> with_term(nn.MSELoss(), torch.tensor(2.0), "penalty", torch.tensor(0.5))
        {'MSELoss': tensor(2.), 'penalty': tensor(0.5000)}
    """
    kind = type(loss).__name__
    if isinstance(value, Tensor):
        value = {kind: value}
    if not isinstance(value, dict):
        raise TypeError(
            f"loss must return a tensor or a dictionary of terms, but {kind} returned {type(value).__name__}"
        )
    if name in value:
        raise ValueError(f"{kind} has a term {name!r} already; do not regularise it twice")
    return {**value, name: term}
