"""From texts to logits with RE2: what depends on one text first, and once for each; then the pairs, like with like."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from sentence_transformers.util import batch_to_device
from torch import Tensor

from st_plugins.matching.inputs import padded
from st_plugins.matching.re2 import RE2

__all__ = ["EncodedText", "encode_texts", "score_pairs", "token_vectors"]


class EncodedText(NamedTuple):
    """What RE2 computes of a text without the other one.

    Args:
        vectors: Token vectors, ``(n, width)``.
        encoding: What the first encoder makes of them, ``(n, hidden)``.
    """

    vectors: Tensor
    encoding: Tensor


def token_vectors(source: Any, features: Any, device: torch.device) -> list[Tensor]:
    """Compute the token vectors of a batch; gradients and dropout are as the caller has set them.

    Args:
        source: What gives the vectors.
        features: What its ``tokenize`` gave.
        device: Where to compute.

    Returns:
        For each text ``(n, width)``, without padding and special tokens.
    """
    vectors, mask = source(batch_to_device(dict(features), device))
    return list(vectors[mask].split(mask.sum(dim=1).tolist()))


def encode_texts(source: Any, network: RE2, texts: Sequence[str], batch_size: int) -> list[EncodedText]:
    """Compute what depends on one text only, longest texts first.

    Args:
        source: What gives the token vectors.
        network: The network.
        texts: The texts.
        batch_size: Texts at a time.

    Returns:
        One entry a text, where the network is; views of the tensors of batches.
    """
    device = next(network.parameters()).device
    order = sorted(range(len(texts)), key=lambda row: len(texts[row]), reverse=True)
    found: dict[int, EncodedText] = {}
    for begin in range(0, len(order), batch_size):
        rows = order[begin : begin + batch_size]
        features = source.tokenize([texts[row] for row in rows], network.config.max_length)
        vectors = token_vectors(source, features, device)
        encodings = network.first_encoding(*padded(vectors, device))
        for row, own, encoding in zip(rows, vectors, encodings, strict=True):
            found[row] = EncodedText(own, encoding[: len(own)])
    return [found[row] for row in range(len(texts))]


def score_pairs(
    network: RE2,
    first: Sequence[EncodedText],
    second: Sequence[EncodedText],
    batch_size: int,
    maps: list[tuple[Tensor, Tensor]] | None = None,
    numbers: Sequence[int] | None = None,
) -> Tensor:
    """Compute the logits of pairs, in batches of like length.

    Args:
        network: The network.
        first: First texts; one may go with all second ones.
        second: Second texts.
        batch_size: Pairs at a time.
        maps: A list that gets the alignment maps of each batch.
        numbers: What the pairs are called in an error; None for their positions.

    Returns:
        ``(len(second), num_labels)``.

    Raises:
        ValueError: A logit is NaN or infinite.
    """
    device = next(network.parameters()).device
    one = len(first) == 1
    lengths = [len(text.vectors) for text in second]
    if not one:
        lengths = [length + len(text.vectors) for length, text in zip(lengths, first, strict=True)]
    order = sorted(range(len(second)), key=lengths.__getitem__)
    logits = torch.zeros(len(second), network.num_labels, device=device)
    for begin in range(0, len(order), batch_size):
        rows = order[begin : begin + batch_size]
        x, x_mask, x_encoded = _padded(first if one else [first[row] for row in rows], device)
        y, y_mask, y_encoded = _padded([second[row] for row in rows], device)
        found = network(x, x_mask, y, y_mask, maps, x_encoded, y_encoded)
        finite = found.isfinite().all(dim=1)
        if not finite.all():
            bad = sorted(
                row if numbers is None else numbers[row]
                for row, is_finite in zip(rows, finite.tolist(), strict=True)
                if not is_finite
            )
            raise ValueError(
                f"the logits of pairs {bad[:8]} are NaN or infinite; check the weights and the source's vectors, or "
                "try float32"
            )
        logits[rows] = found.to(logits.dtype)
    return logits


def _padded(texts: Sequence[EncodedText], device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    vectors, mask = padded([text.vectors for text in texts], device)
    return vectors, mask, padded([text.encoding for text in texts], device)[0]
