"""Span attention in Triton."""

from __future__ import annotations

from torch import Tensor


def obstacle(tensor: Tensor) -> str:
    """Say why not."""
    return "no Triton here"
