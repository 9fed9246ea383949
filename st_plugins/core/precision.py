"""Half precision is for layers, not for sums and exponentials."""

from __future__ import annotations

import torch
from torch import Tensor


def precise(tensor: Tensor) -> Tensor:
    """Return a tensor in float32 at least: float64 stays what it is."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
