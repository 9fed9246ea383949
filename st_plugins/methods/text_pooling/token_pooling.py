"""What the trainable poolings over tokens share."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from st_plugins.core.module import StoredModule
from st_plugins.core.tokens import counted_tokens, left_aligned, refuse_non_finite


class TokenPooling(StoredModule):
    """Base of poolings by a small network over the tokens of a text."""

    def __init__(self, embedding_dimension: int, dropout: float, include_prompt: bool) -> None:
        super().__init__()
        self.check_sizes(embedding_dimension=embedding_dimension)
        if not 0.0 <= dropout < 1.0:
            raise ValueError(f"dropout must be in [0, 1), got {dropout}")
        self.embedding_dimension, self.dropout, self.include_prompt = embedding_dimension, dropout, include_prompt

    @staticmethod
    def check_sizes(**sizes: int) -> None:
        """Raise a ValueError that names the first size below 1."""
        for name, size in sizes.items():
            if not isinstance(size, int) or size < 1:
                raise ValueError(f"{name} must be a whole number, at least 1, got {size!r}")

    # The number of tokens of the longest text decides about shapes; the encoder before it is still compiled.
    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def forward(self, features: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        """Pool the token embeddings."""
        # A subclass sees every text from its first token on, as if it had been given alone, on whichever side it was
        # padded. It computes in the type of its weights, or in that of an autocast block.
        tokens, mask = counted_tokens(features, self.embedding_dimension, type(self).__name__, self.include_prompt)
        aligned, lengths = left_aligned(tokens, mask)
        pooled = self.pool(aligned.to(next(self.parameters()).dtype), lengths.clamp(min=1))
        pooled = pooled.masked_fill((lengths == 0)[:, None], 0.0)  # an empty text was given as one zero vector
        refuse_non_finite(pooled, type(self).__name__)
        features["sentence_embedding"] = dropout(pooled, self.dropout, self.training).to(tokens.dtype)
        return features

    @abstractmethod
    def pool(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """Pool texts that begin at the first position."""


def maximum_over_time(values: Tensor, lengths: Tensor) -> Tensor:
    """Return the largest value of each column at the first positions of each row."""
    outside = torch.arange(values.shape[1], device=values.device) >= lengths[:, None]
    return values.masked_fill(outside[:, :, None], torch.finfo(values.dtype).min).amax(dim=1)


def read(network: nn.RNNBase, tokens: Tensor, lengths: Tensor, initial: Tensor | None = None) -> Tensor:
    """Let a recurrent network of torch read texts of different lengths, each to its own end and back from there."""
    # Else the way back began in the padding, and embeddings depended on the batch. Lengths have to be on the CPU.
    packed = pack_padded_sequence(tokens, lengths.cpu(), batch_first=True, enforce_sorted=False)
    states, _ = network(packed, initial)
    return pad_packed_sequence(states, batch_first=True)[0]
