"""Gradient saliency, which explanations are measured against."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import StaticEmbedding
from sentence_transformers.util import batch_to_device
from torch import Tensor, nn

from st_plugins.core.host import check_encoder, evaluating
from st_plugins.explain.inner.reading import read
from st_plugins.methods.contrastive.encoders import encoder_parts


def gradient_saliency(
    model: SentenceTransformer,
    text: str | Sequence[str],
    score: Callable[[Tensor], Tensor],
    *,
    prompt: str | None = None,
) -> NDArray[np.float64]:
    """Return gradient × input of a score, what an explanation that costs nothing would say.

    It is taken at the token-embedding layer and summed over dimensions. Unlike contributions it adds up to nothing.

    Args:
        model: The model; as it was afterwards, and without gradients in its parameters.
        text: The text, or a pair of texts that the model reads as one.
        score: From embeddings ``(1, k)`` on the model's device to a score ``(1,)``, differentiable.
        prompt: As for ``explain_text``.

    Returns:
        ``(n,)``, one number a token, special tokens included: positive where a token, enlarged, would raise the score.

    Raises:
        ValueError: There is nothing to explain in the text.

    Example:
        >>> from st_plugins.miniature import untrained_encoder
        >>> gradient_saliency(untrained_encoder(), "A dog sleeps.", lambda embeddings: embeddings[:, 0]).shape
        (6,)

    Reference:
        Shrikumar, Greenside, Shcherbina & Kundaje, "Not Just a Black Box: Learning Important Features Through
        Propagating Activation Differences" (2016), arXiv 1605.01713, section 2: gradient × input.
    """
    check_encoder(model)
    features = batch_to_device(dict(read(model, text, prompt).features), model.device)
    modules = list(model)
    with evaluating(model), torch.enable_grad():
        if isinstance(modules[0], StaticEmbedding):
            # An embedding bag has no layer between tokens and sum to hook into: its mean is taken by hand.
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

    # The parameters below the cut get no gradient, and the model is left without any.
    def hook(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        seen.append(output.detach().requires_grad_())
        return seen[-1]

    return hook
