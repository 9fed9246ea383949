"""An experiment: span pooling whose weights are made of words, not of vectors that have read the whole sentence."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import layer_norm

from st_plugins.methods.self_explaining.span_attention import span_attention
from st_plugins.modules import SpanPooling


class WordScoredSpanPooling(SpanPooling):
    """Sum the contextual span vectors with weights made of the span's first and last word embedding alone."""

    # Such a weight cannot tell where in which sentence the span stands. The word embeddings are frozen.

    def __init__(self, words: Tensor) -> None:
        super().__init__(words.shape[1])
        # As wide as contextual vectors: word embeddings are small, and scores of small numbers hardly move.
        self.words = nn.Embedding.from_pretrained(layer_norm(words, words.shape[1:]))
        self.scoring = nn.ModuleDict(dict(SpanPooling(words.shape[1]).named_children()))

    def forward(self, features: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        """Pool the token embeddings, as `SpanPooling` does, with other weights."""
        mask, scoring = self.span_mask(features), self.scoring
        score: Tensor = scoring["score"].weight[0]  # type: ignore[index]
        tokens, words = features["token_embeddings"], self.words(features["input_ids"])

        def beside(of_tokens: nn.Module, of_words: nn.Module) -> Tensor:
            return torch.cat([of_tokens(tokens), of_words(words)], dim=2)

        # Both kinds of span vector side by side: the scores are of one, and the sum of the other is taken.
        found = span_attention(
            beside(self.start, scoring["start"]),
            beside(self.end, scoring["end"]),
            beside(self.product, scoring["product"]),
            torch.cat([torch.zeros_like(score), score]),
            mask,
        )
        features["sentence_embedding"] = found.pooled[:, : self.embedding_dimension]
        if self.training or self.return_spans:
            features["span_weights"], features["span_sharpness"] = found.weights, found.sharpness
        return features
