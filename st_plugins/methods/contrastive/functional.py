"""Augmentations as pure functions of tensors, vectorised over the batch.

Every random choice is made by ranking independent uniform ``keys``: among the tokens (or scalars) that may be chosen,
those with the smallest keys are. Left out, the keys come from torch's default generator of the tensor's device, so
that gradient checkpointing and gradient caching replay them. Given, they make the result reproducible, and
independent of padding: a sentence whose real tokens keep their keys gets the same result, however many pads stand
before or after it.

Counts are ``int(n * rate)`` as in the published code, per sentence, in double precision. What is not chosen keeps its
bits: there is no rescaling by 1 / (1 - rate).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from st_plugins.core.precision import precise


def shuffle_permutation(attention_mask: Tensor, keys: Tensor | None = None) -> Tensor:
    """Draw a random permutation of the real tokens of each sentence."""
    real = attention_mask.bool()
    keys = torch.rand(real.shape, device=real.device) if keys is None else keys
    # Both orders list the real tokens first and then the pads as they stand: one at random, one as they stand.
    at_random = keys.masked_fill(~real, torch.inf).argsort(dim=1, stable=True)
    as_they_stand = (~real).byte().argsort(dim=1, stable=True)
    return torch.empty_like(at_random).scatter_(1, as_they_stand, at_random)


def token_cutoff(embeddings: Tensor, attention_mask: Tensor, rate: float, keys: Tensor | None = None) -> Tensor:
    """Set ``int(n * rate)`` of the n real tokens of each sentence to zero, in all features."""
    real = attention_mask.bool()
    keys = torch.rand(real.shape, device=real.device) if keys is None else keys
    # Sorted twice: the first order names the token of each rank, the second the rank of each token. Pads come last.
    ranks = keys.masked_fill(~real, torch.inf).argsort(dim=1).argsort(dim=1)
    cut = ranks < _share(real.sum(dim=1), rate)[:, None]
    return embeddings.masked_fill(cut[:, :, None], 0.0)


def feature_cutoff(embeddings: Tensor, rate: float, keys: Tensor | None = None) -> Tensor:
    """Set ``int(d * rate)`` of the d features to zero, the same ones for all tokens of a sentence."""
    sentences, _, features = embeddings.shape
    keys = torch.rand(sentences, features, device=embeddings.device) if keys is None else keys
    # Drawn for each sentence, as published. Pads lose the columns too, which neither attention nor pooling sees.
    chosen = keys.topk(int(features * rate), dim=1, largest=False, sorted=False).indices
    cut = torch.zeros_like(keys, dtype=torch.bool).scatter_(1, chosen, True)
    return embeddings.masked_fill(cut[:, None, :], 0.0)


def embedding_dropout(embeddings: Tensor, attention_mask: Tensor, rate: float, keys: Tensor | None = None) -> Tensor:
    """Set exactly ``int(n * d * rate)`` of the n × d numbers of each sentence to zero."""
    sentences, tokens, features = embeddings.shape
    real = attention_mask.bool()
    keys = torch.rand(embeddings.shape, device=embeddings.device) if keys is None else keys
    keys = keys.masked_fill(~real[:, :, None], torch.inf).flatten(1)
    # Sorting all keys would cost more than the rest together. Those below the rate are nearly the smallest ones
    # wanted; what their number is off by, ten standard deviations at most, is made up from the keys nearest the rate.
    dropped = keys < rate
    missing = (_share(real.sum(dim=1) * features, rate) - dropped.sum(dim=1))[:, None]
    deviation = math.sqrt(tokens * features * rate * (1 - rate))
    nearest = min(tokens * features, 16 + int(10 * deviation))
    distance = (keys - rate).abs_().masked_fill_(dropped == (missing > 0), torch.inf)
    candidates = distance.topk(nearest, dim=1, largest=False).indices
    changed = torch.arange(nearest, device=keys.device) < missing.abs()
    dropped.scatter_(1, candidates, dropped.gather(1, candidates) ^ changed)
    return embeddings.masked_fill(dropped.view(sentences, tokens, features), 0.0)


def adversarial_delta(gradient: Tensor, attention_mask: Tensor, norm: float | Tensor = 1.0) -> Tensor:
    """Return the step along the gradient that has the given length at every real token.

    ``delta = norm * g / (‖g‖ + 1e-10)``, token by token, computed in float32.

    Args:
        gradient: ``(batch, tokens, features)``, of a loss with respect to the token embeddings.
        attention_mask: ``(batch, tokens)``; the step is zero where it is.
        norm: Euclidean length of the step, one for all or one for each sentence, ``(batch,)``.

    Returns:
        Like ``gradient``, without a history.

    Example:
        >>> gradient = torch.tensor([[[3.0, 4.0], [0.0, 0.0], [1.0, 1.0]]])
        >>> adversarial_delta(gradient, torch.tensor([[1, 1, 0]]), norm=0.5).tolist()
        [[[0.3..., 0.4...], [0.0, 0.0], [0.0, 0.0]]]
    """
    # In float16 the 1e-10 would be 0, and a token without a gradient would get 0 / 0.
    wide = precise(gradient.detach())
    if isinstance(norm, Tensor):
        norm = norm[:, None, None]
    length: Tensor = torch.linalg.vector_norm(wide, dim=2, keepdim=True)
    delta = norm * wide / (length + 1e-10)
    return delta.masked_fill(~attention_mask.bool()[:, :, None], 0.0).to(gradient.dtype)


def _share(counts: Tensor, rate: float) -> Tensor:
    """Return ``int(count * rate)`` of every count, as Python has it; float32 would round some up."""
    exact = counts.cpu() if counts.device.type == "mps" else counts  # no float64 there
    return (exact.double() * rate).long().to(counts.device)
