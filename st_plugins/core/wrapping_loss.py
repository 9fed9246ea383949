"""Losses that add a term to another loss."""

from __future__ import annotations

import math
from typing import Any, cast

from torch import nn

from st_plugins.core.loss import GuardedLoss


class WrappingLoss(GuardedLoss):
    """Base of losses around another loss, whose model is theirs."""

    def __init__(self, loss: nn.Module, weight: float) -> None:
        super().__init__()
        if not isinstance(loss, nn.Module) or not isinstance(getattr(loss, "model", None), nn.Module):
            raise TypeError(f"loss must be a loss with its model at loss.model, got {type(loss).__name__}")
        if isinstance(weight, bool) or not isinstance(weight, int | float):
            raise TypeError(f"weight must be a number, got {weight!r}")
        if not 0 <= weight < math.inf:  # so that NaN is refused, too
            raise ValueError(f"weight must be at least 0, got {weight}" + ", not finite" * (weight == math.inf))
        self.loss = loss
        self.weight = weight

    @property
    def model(self) -> nn.Module:
        """The model of the wrapped loss, where a trainer may have put a wrapper around it."""
        return cast("nn.Module", self.loss.model)

    def get_config_dict(self) -> dict[str, Any]:
        """Return name and configuration of the wrapped loss, and the other arguments."""
        inner: dict[str, Any] = getattr(self.loss, "get_config_dict", dict)()
        return {"loss": type(self.loss).__name__, "loss_config": inner, **super().get_config_dict()}

    @property
    def citation(self) -> str:
        """BibTeX entries of the paper and of the wrapped loss, for model cards."""
        return f"{self._paper}{getattr(self.loss, 'citation', '')}"
