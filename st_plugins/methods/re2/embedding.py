"""Where token vectors come from: word vectors, learned subword vectors, or a transformer."""

from __future__ import annotations

from st_plugins.methods.re2.learned_embedding import LearnedEmbedding
from st_plugins.methods.re2.transformer_tokens import TransformerTokens
from st_plugins.methods.re2.word_vectors import WordVectors

__all__ = ["LearnedEmbedding", "TransformerTokens", "WordVectors"]
