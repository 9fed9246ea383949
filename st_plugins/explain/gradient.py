"""Gradient saliency, what explanations are measured against."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import StaticEmbedding
from sentence_transformers.util import batch_to_device
from torch import Tensor, nn

from st_plugins.core.host import evaluating
from st_plugins.explain.tokens import Reading
from st_plugins.methods.contrastive.encoders import encoder_parts

__all__ = ["gradient_saliency"]


def gradient_saliency(
    model: SentenceTransformer, reading: Reading, score: Callable[[Tensor], Tensor]
) -> NDArray[np.float64]:
    """Return gradient × input of a score at the token-embedding layer, summed over dimensions."""
    features = batch_to_device(dict(reading.features), model.device)
    modules = list(model)
    with evaluating(model), torch.enable_grad():
        if isinstance(modules[0], StaticEmbedding):
            tokens = modules[0].embedding.weight[features["input_ids"]].detach().requires_grad_()
            features["sentence_embedding"] = tokens.mean(0, keepdim=True)
            seen = [tokens]
        else:
            seen = []
            handle = encoder_parts(model).embedding.register_forward_hook(_leaf(seen))
            try:
                features = modules[0](features)
            finally:
                handle.remove()
        for module in modules[1:]:
            features = module(features)
        embedding: Tensor = features["sentence_embedding"][:, : model.truncate_dim]
        (gradient,) = torch.autograd.grad(score(embedding).sum(), seen)
    product = (gradient.double() * seen[0].detach().double()).sum(-1)
    return np.asarray(product.reshape(-1).cpu().numpy())  # one text: (1, n), or (n, 1) where tokens come first


def _leaf(seen: list[Tensor]) -> Callable[[nn.Module, Any, Tensor], Tensor]:
    """Return a hook that cuts the graph at the output of a layer, and keeps that output."""

    def hook(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        seen.append(output.detach().requires_grad_())
        return seen[-1]

    return hook
