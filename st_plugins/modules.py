"""Sentence-transformers modules: features in, features out."""

from __future__ import annotations

from st_plugins.core.token_embeddings import TokenEmbeddings
from st_plugins.methods.flow.normalizing_flow import NormalizingFlow
from st_plugins.methods.layer_mix.layer_mix import LayerMix
from st_plugins.methods.self_explaining.span_attention import SpanAttention, span_attention
from st_plugins.methods.self_explaining.span_pooling import SpanPooling
from st_plugins.methods.text_pooling.text_cnn import TextCNNPooling
from st_plugins.methods.text_pooling.text_rcnn import TextRCNNPooling
from st_plugins.methods.text_pooling.text_rnn import TextRNNPooling
from st_plugins.methods.whitening.whitening import Whitening

__all__ = [
    "LayerMix",
    "NormalizingFlow",
    "SpanAttention",
    "SpanPooling",
    "TextCNNPooling",
    "TextRCNNPooling",
    "TextRNNPooling",
    "TokenEmbeddings",
    "Whitening",
    "span_attention",
]
