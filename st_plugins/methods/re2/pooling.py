"""One vector for a text: the largest value of each feature."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["masked_max"]


def masked_max(x: Tensor, mask: Tensor | None = None) -> Tensor:
    """Return the largest value of each feature over the tokens of a text.

    Args:
        x: ``(B, n, d)``, n at least 1.
        mask: ``(B, n)`` bool, which of it are tokens; None if all are.

    Returns:
        ``(B, d)``; zeros for a text without tokens.

    Example:
        >>> x = torch.tensor([[[-1.0, -5.0], [-2.0, -4.0], [9.0, 9.0]]])
        >>> masked_max(x, torch.tensor([[True, True, False]])).tolist()
        [[-1.0, -4.0]]
        >>> masked_max(x, torch.tensor([[False, False, False]])).tolist()
        [[0.0, 0.0]]

    Reference:
        Yang et al. (ACL 2019), P19-1465, section 2. The authors' PyTorch code gives -inf for a text
        without tokens.
    """
    if mask is None:
        return x.amax(dim=1)
    largest = x.masked_fill(~mask[..., None], torch.finfo(x.dtype).min).amax(dim=1)
    return largest.masked_fill(~mask.any(dim=1, keepdim=True), 0.0)
