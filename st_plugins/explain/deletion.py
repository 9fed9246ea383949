"""Encode a text without some of its tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import StaticEmbedding
from sentence_transformers.util import batch_to_device
from torch import Tensor

from st_plugins.core.host import evaluating
from st_plugins.explain.tokens import Reading

__all__ = ["encode_without"]


def encode_without(model: SentenceTransformer, reading: Reading, kept: Sequence[NDArray[np.bool_]]) -> Tensor:
    """Delete tokens from the input of a model and encode what is left, as ERASER does: removed, not masked."""
    index = torch.from_numpy(np.stack([np.flatnonzero(keep) for keep in kept]))
    features: dict[str, Any] = dict(reading.features)
    if isinstance(model[0], StaticEmbedding):
        features["input_ids"] = features["input_ids"][index].reshape(-1)
        features["offsets"] = torch.arange(len(index)) * index.shape[1]
    else:
        shape = features["input_ids"].shape
        for name, value in features.items():
            if isinstance(value, Tensor) and value.shape == shape:
                features[name] = value[0][index]
    with evaluating(model), torch.no_grad():
        embeddings: Tensor = model(batch_to_device(features, model.device))["sentence_embedding"]
    return embeddings[:, : model.truncate_dim].float().cpu()
