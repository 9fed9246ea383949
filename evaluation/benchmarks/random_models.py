"""BERTs with random weights and the tokenizer of the miniature world: speed does not depend on what a model knows."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
from transformers import BertConfig, PreTrainedModel

from st_plugins.miniature import untrained_encoder
from st_plugins.miniature.english.grammar import vocabulary


def bert_config(hidden_size: int, layers: int, heads: int, **options: Any) -> BertConfig:
    """Return the configuration of a BERT of this shape."""
    return BertConfig(
        hidden_size=hidden_size,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=4 * hidden_size,
        **options,
    )


def save_random(model: type[PreTrainedModel], config: BertConfig, folder: Path | str, seed: int = 0) -> str:
    """Write a checkpoint with random weights, and return the folder."""
    torch.manual_seed(seed)
    model(config).save_pretrained(folder)
    tokenizer: Any = untrained_encoder().tokenizer
    tokenizer.model_max_length = config.max_position_embeddings
    tokenizer.save_pretrained(folder)
    return str(folder)


def mean_pooled(folder: str, device: str = "cpu", **model_kwargs: Any) -> SentenceTransformer:
    """Return a checkpoint with mean pooling."""
    transformer = Transformer(folder, model_kwargs=model_kwargs)
    return SentenceTransformer(modules=[transformer, Pooling(transformer.get_embedding_dimension())], device=device)


def random_texts(count: int, shortest: int, longest: int) -> list[str]:
    """Return texts of words that are one token each."""
    generator, pool = random.Random(0), sorted(vocabulary())  # noqa: S311 - no secrets
    return [" ".join(generator.choices(pool, k=generator.randint(shortest, longest))) for _ in range(count)]


def vocabulary_size() -> int:
    """Return how many tokens the tokenizer has."""
    return len(untrained_encoder().tokenizer)
