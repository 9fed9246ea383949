"""What RE2 computes of one text: its token vectors and its first encoding."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from sentence_transformers.util import batch_to_device
from torch import Tensor

from st_plugins.core.encoding import longest_first, padded, unpadded
from st_plugins.methods.re2.config import RE2Config
from st_plugins.methods.re2.network import RE2

logger = logging.getLogger(__name__)


class EncodedText(NamedTuple):
    """What RE2 computes of a text without the other one, to be kept for many calls of `RE2Matcher.rank`.

    Args:
        vectors: Token vectors, ``(n, embedding_dimension)``.
        encoding: What the first encoder makes of them, ``(n, hidden_dimension)``.

    Example:
        >>> from st_plugins.matching import LearnedEmbedding, RE2Config, RE2Matcher
        >>> source = LearnedEmbedding.from_texts(["a dog runs"], embedding_dimension=16, minimum_frequency=1)
        >>> matcher = RE2Matcher(source, RE2Config(hidden_dimension=8))
        >>> text = matcher.encode_texts(["a dog"])[0]
        >>> tuple(text.vectors.shape), tuple(text.encoding.shape)
        ((2, 16), (2, 8))
    """

    vectors: Tensor
    encoding: Tensor


def token_vectors(source: Any, features: Any, device: torch.device) -> list[Tensor]:
    """Compute the token vectors of a batch; gradients and dropout are as the caller has set them."""
    return unpadded(*source(batch_to_device(dict(features), device)))


def encode_texts(
    source: Any,
    network: RE2,
    texts: Sequence[str],
    batch_size: int,
    read: dict[str, int] | None = None,
    first_encoding: bool = True,
) -> list[EncodedText]:
    """Compute what depends on one text only; the results are views of the tensors of batches."""
    device = next(network.parameters()).device
    found: dict[int, EncodedText] = {}
    for rows in longest_first([len(text) for text in texts], batch_size):
        features = source.tokenize([texts[row] for row in rows], network.config.max_seq_length)
        vectors = token_vectors(source, features, device)
        # Without it they are of width 0.
        encodings = network.first_encoding(*padded(vectors, device)) if first_encoding else [v[:, :0] for v in vectors]
        for row, own, encoding in zip(rows, vectors, encodings, strict=True):
            found[row] = EncodedText(own, encoding[: len(own)])
    if read is not None:
        read |= {texts[row]: len(encoded.vectors) for row, encoded in found.items()}
    return [found[row] for row in range(len(texts))]


@contextmanager
def saying_cut(source: Any, config: RE2Config) -> Iterator[dict[str, int]]:
    """Warn once, at the end of a block, of texts that have more tokens than are read."""
    read: dict[str, int] = {}  # what is computed in the block puts its texts here, and how many tokens were read
    yield read
    most = config.max_seq_length
    if most is None:
        return
    cut = sum(count >= most and len(source.pieces(text)) > most for text, count in read.items())
    if cut:
        logger.warning(
            "%d of %d texts have more than %d tokens, of which the first %d are read (max_seq_length, "
            "--max-seq-length).",
            *(cut, len(read), most, most),
        )
