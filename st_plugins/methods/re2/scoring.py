"""From texts to logits with RE2: what depends on one text first, and once for each; then the pairs, like with like."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from sentence_transformers.util import batch_to_device
from torch import Tensor

from st_plugins.core.encoding import longest_first, padded, unpadded
from st_plugins.core.nonfinite import NonFiniteRowsError
from st_plugins.methods.re2.config import RE2Config
from st_plugins.methods.re2.network import RE2

__all__ = ["EncodedText", "encode_texts", "saying_cut", "score_pairs", "token_vectors"]

logger = logging.getLogger(__name__)


class EncodedText(NamedTuple):
    """What RE2 computes of a text without the other one."""

    vectors: Tensor
    encoding: Tensor


def token_vectors(source: Any, features: Any, device: torch.device) -> list[Tensor]:
    """Compute the token vectors of a batch; gradients and dropout are as the caller has set them."""
    return unpadded(*source(batch_to_device(dict(features), device)))


def encode_texts(
    source: Any, network: RE2, texts: Sequence[str], batch_size: int, read: dict[str, int] | None = None
) -> list[EncodedText]:
    """Compute what depends on one text only, longest texts first."""
    device = next(network.parameters()).device
    found: dict[int, EncodedText] = {}
    for rows in longest_first([len(text) for text in texts], batch_size):
        features = source.tokenize([texts[row] for row in rows], network.config.max_length)
        vectors = token_vectors(source, features, device)
        encodings = network.first_encoding(*padded(vectors, device))
        for row, own, encoding in zip(rows, vectors, encodings, strict=True):
            found[row] = EncodedText(own, encoding[: len(own)])
    if read is not None:
        read |= {texts[row]: len(encoded.vectors) for row, encoded in found.items()}
    return [found[row] for row in range(len(texts))]


@contextmanager
def saying_cut(source: Any, config: RE2Config) -> Iterator[dict[str, int]]:
    """Warn once, at the end of a block, of texts that have more tokens than are read."""
    read: dict[str, int] = {}
    yield read
    most = config.max_length
    if most is None:
        return
    cut = sum(count >= most and len(source.pieces(text)) > most for text, count in read.items())
    if cut:
        logger.warning(
            "%d of %d texts have more than %d tokens, of which the first %d are read (max_length, --max-seq-length).",
            *(cut, len(read), most, most),
        )


def score_pairs(
    network: RE2,
    first: Sequence[EncodedText],
    second: Sequence[EncodedText],
    batch_size: int,
    maps: list[tuple[Tensor, Tensor]] | None = None,
    numbers: Sequence[int] | None = None,
) -> Tensor:
    """Compute the logits of pairs, in batches of like length."""
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
            raise NonFiniteRowsError(
                f"the logits of pairs {bad[:8]} are NaN or infinite; check the weights and the source's vectors, or "
                "try float32",
                bad,
            )
        logits[rows] = found.to(logits.dtype)
    return logits


def _padded(texts: Sequence[EncodedText], device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    vectors, mask = padded([text.vectors for text in texts], device)
    return vectors, mask, padded([text.encoding for text in texts], device)[0]
