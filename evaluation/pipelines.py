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

from st_plugins.io import load_sentence_transformer
from st_plugins.modules import LayerMix, SpanPooling, TextCNNPooling, TextRCNNPooling, TextRNNPooling, TokenEmbeddings

__all__ = ["LAYER_RECIPES", "NEW_POOLINGS", "Pipeline", "build_model", "pool_tokens"]

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
class Pipeline:
    """One row of the table.

    Args:
        name: Row name, also the JSON's file name.
        model: Folder below ``--models``.
        pooling: ``"mean"``, ``"cls"``, ``"lasttoken"``; ``"first-last-avg"``, ``"last-two-avg"`` or
            ``"embedding-avg"`` (those layers of a ``LayerMix``, averaged) or ``"layer-mix"`` (a learned one); one of
            ``NEW_POOLINGS``; ``"static"`` (the encoder's word embeddings alone, averaged by the host's
            ``StaticEmbedding``) or ``"as-is"`` (the folder is a whole sentence-transformers model).
        whitening: ``"none"``, ``"corpus"`` (on unlabelled texts), ``"target"`` (on each task's own texts,
            transductive) or ``"pooled"`` (once, on the distinct test sentences of all tasks; transductive too).
        dimension: Dimensions kept by the whitening; 0 for all.
        random_weights: Replace the weights by freshly initialised ones of the same shape.
        max_length: Texts are cut to this many tokens; 0 for the model's own limit.
        layers: Keep only this many of the encoder's layers, from below; 0 leaves the embedding layer, -1 keeps all.
        tokens: Pool the encoder's word embeddings alone (``TokenEmbeddings``), without positions and layers.
    """

    name: str
    model: str
    pooling: str = "mean"
    whitening: str = "none"
    dimension: int = 0
    random_weights: bool = False
    max_length: int = 64
    layers: int = -1
    tokens: bool = False


def build_model(row: Pipeline, models: Path, seed: int) -> SentenceTransformer:
    """Build a pipeline without its whitening.

    Args:
        row: The pipeline.
        models: Folder of the models.
        seed: Seed of random weights and of a new pooling.

    Returns:
        The model, in evaluation mode.

    Raises:
        FileNotFoundError: The model's folder does not exist.
    """
    folder = models / row.model
    if not folder.is_dir():
        raise FileNotFoundError(f"model folder {str(folder)!r} of pipeline {row.name!r} does not exist; see --models")
    if row.pooling == "as-is":
        model = load_sentence_transformer(folder)
    else:
        kept = {} if row.layers < 0 else {"num_hidden_layers": row.layers}
        transformer = Transformer(str(folder), config_kwargs=kept)
        if row.random_weights:
            torch.manual_seed(seed)
            transformer.model = AutoModel.from_config(AutoConfig.from_pretrained(folder, **kept))
        tokenizer = transformer.tokenizer
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
        modules.append(pool_tokens(row.pooling, width, seed))
        model = SentenceTransformer(modules=modules)
    if row.max_length and row.pooling != "as-is":
        model.max_seq_length = row.max_length
    return model.eval()


def pool_tokens(pooling: str, width: int, seed: int) -> Module:
    """Build a pooling.

    Args:
        pooling: As for `Pipeline`.
        width: Width of the tokens.
        seed: Seed of its weights, where it has any.

    Returns:
        The module.
    """
    if pooling in NEW_POOLINGS:
        torch.manual_seed(seed)
        return NEW_POOLINGS[pooling](width)
    mean: Module = Pooling(width, pooling_mode="mean" if pooling in LAYER_RECIPES else pooling)
    return mean
