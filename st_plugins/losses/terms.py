"""Losses of several named terms."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from typing_extensions import Self

__all__ = ["Terms", "with_term"]

_ADDED = "added"


class Terms(dict[str, Tensor]):
    """The named terms of a loss, which can be weighted and added as if they were their sum.

    A trainer logs each term and trains on their sum. Losses that wrap others (``MatryoshkaLoss``,
    ``AdaptiveLayerLoss``) compute with numbers; with this they weigh and add the terms one by one, and the names stay.
    A plain number that is added becomes a term of its own, ``added``.

    Example:
        >>> import torch
        >>> terms = Terms(task=torch.tensor(1.0), penalty=torch.tensor(2.0))
        >>> 0.0 + 0.5 * terms + terms / 2
        {'task': tensor(1.), 'penalty': tensor(2.)}
        >>> terms + torch.tensor(3.0)
        {'task': tensor(1.), 'penalty': tensor(2.), 'added': tensor(3.)}
    """

    def __mul__(self, factor: Any) -> Self:
        return type(self)({name: value * factor for name, value in self.items()})

    __rmul__ = __mul__

    def __truediv__(self, divisor: Any) -> Self:
        return type(self)({name: value / divisor for name, value in self.items()})

    def __add__(self, other: Any) -> Self:
        if not isinstance(other, Mapping):
            if not isinstance(other, Tensor) and other == 0:  # where sums begin
                return self
            other = {_ADDED: other}
        total = type(self)(self)
        for name, value in other.items():
            total[name] = total[name] + value if name in total else value
        return total

    __radd__ = __add__


def with_term(loss: nn.Module, value: Any, name: str, term: Tensor) -> Terms:
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
        raise ValueError(f"{kind} has a term {name!r} already; do not add it twice")
    return Terms({**value, name: term})
