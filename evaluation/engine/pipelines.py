"""The pipelines that the studies evaluate and train: an encoder of a recipe with one of the poolings."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Module
from sentence_transformers.sentence_transformer.modules import Pooling, StaticEmbedding, Transformer
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoTokenizer

import st_plugins
from evaluation.engine.study import Row
from st_plugins.modules import LayerMix, SpanPooling, TextCNNPooling, TextRCNNPooling, TextRNNPooling, TokenEmbeddings

LAYER_RECIPES = {
    "first-last-avg": "first-last",
    "last-two-avg": "last-two",
    "embedding-avg": "embedding",
    "layer-mix": "learned",
}
NEW_POOLINGS: dict[str, Callable[[int], Module]] = {
    "span": SpanPooling,
    "text-cnn": TextCNNPooling,
    "text-rnn": lambda width: TextRNNPooling(width, 128, readout="max"),
    "text-rcnn": lambda width: TextRCNNPooling(width, 256, 128),
}
"""Poolings with weights of their own, which begin random, by the width of the tokens."""


@dataclass(frozen=True)
class Pipeline(Row):
    """An encoder with a pooling."""

    model: str  # folder below --models
    # "mean", "cls", "lasttoken"; a key of LAYER_RECIPES (those layers of a LayerMix, averaged or learned) or of
    # NEW_POOLINGS; "static" (the word embeddings alone, averaged by the host's StaticEmbedding) or "as-is" (the folder
    # is a whole sentence-transformers model).
    pooling: str = "mean"
    random_weights: bool = False  # freshly initialised ones of the same shape
    max_length: int = 64  # texts are cut to so many tokens; 0 for the model's own limit
    layers: int = -1  # keep so many of the encoder's layers, from below; 0 leaves the embedding layer, -1 keeps all
    tokens: bool = False  # pool the word embeddings alone (TokenEmbeddings), without positions and layers


def build_model(row: Pipeline, models: Path, seed: int) -> SentenceTransformer:
    """Build a pipeline, in evaluation mode; the seed is that of random weights and of a new pooling."""
    folder = models / row.model
    if not folder.is_dir():
        raise FileNotFoundError(f"model folder {str(folder)!r} of pipeline {row.name!r} does not exist; see --models")
    if row.pooling == "as-is":
        whole: SentenceTransformer = st_plugins.load(folder)
        return whole
    kept = {} if row.layers < 0 else {"num_hidden_layers": row.layers}
    transformer = Transformer(str(folder), config_kwargs=kept)
    if row.random_weights:
        torch.manual_seed(seed)
        transformer.model = AutoModel.from_config(AutoConfig.from_pretrained(folder, **kept))
    tokenizer = transformer.tokenizer
    # A decoder has no token to pad with, and batches need one; it is masked, so any will do.
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token or AutoTokenizer.from_pretrained(folder).unk_token
    embedding: Any = transformer.model.get_input_embeddings()
    table: Tensor = embedding.weight.detach()
    if row.pooling == "static":
        return SentenceTransformer(modules=[StaticEmbedding(tokenizer, table)]).eval()
    width = table.shape[1] if row.tokens else transformer.get_embedding_dimension()
    modules: list[nn.Module] = [TokenEmbeddings(tokenizer, width, weights=table) if row.tokens else transformer]
    if row.pooling in LAYER_RECIPES:
        modules.append(LayerMix.after(transformer, LAYER_RECIPES[row.pooling]))
    modules.append(_pool_tokens(row.pooling, width, seed))
    model = SentenceTransformer(modules=modules)
    if row.max_length:
        model.max_seq_length = row.max_length
    return model.eval()


def _pool_tokens(pooling: str, width: int, seed: int) -> Module:
    if pooling in NEW_POOLINGS:
        torch.manual_seed(seed)
        return NEW_POOLINGS[pooling](width)
    mean: Module = Pooling(width, pooling_mode="mean" if pooling in LAYER_RECIPES else pooling)
    return mean
