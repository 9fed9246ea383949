"""Dropout of an encoder: what there is, and a block without it.

Encoders keep dropout in two forms: layers (``torch.nn.Dropout``), and probabilities that an attention function reads
from a module at every call (``attention_dropout`` of ModernBERT and Llama, ``dropout`` of T5). Both are covered; a
model's configuration is not touched, so a checkpoint saved inside the block records the original values.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from torch import nn

_LAYERS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)


def dropout_probabilities(model: nn.Module) -> dict[str, float]:
    """List every dropout probability above zero."""
    return {f"{path}.{name}".lstrip("."): value for path, _, name, value in _found(model)}


@contextlib.contextmanager
def without_dropout(model: nn.Module) -> Iterator[None]:
    """Switch all dropout of a model off inside the block, and restore it afterwards, also after an exception.

    The model can stay in training mode: only the probabilities change. Gradient checkpointing runs the layers again in
    the backward pass, so with it the backward pass has to be inside the block too.

    Args:
        model: Any module.

    Yields:
        Nothing.

    Example:
        >>> import torch
        >>> from st_plugins.miniature import untrained_encoder
        >>> model = untrained_encoder().train()
        >>> features = model.preprocess(["A dog runs."])
        >>> with without_dropout(model):
        ...     first, second = (model(dict(features))["sentence_embedding"] for _ in range(2))
        >>> float((first - second).detach().abs().max()), len(dropout_probabilities(model))
        (0.0, 7)

    Reference:
        ConSERT's published unsupervised base model is trained without encoder dropout (Yan et al., arXiv 2105.11741;
        ``--no_dropout`` of the authors' scripts).
    """
    found = list(_found(model))
    try:
        for _, module, name, _ in found:
            setattr(module, name, 0.0)
        yield
    finally:
        for _, module, name, value in found:
            setattr(module, name, value)


def _found(model: nn.Module) -> Iterator[tuple[str, nn.Module, str, float]]:
    # Layers, and probabilities that an attention function reads from its module at every call.
    for path, module in model.named_modules():
        for name, value in vars(module).items():
            probability = name == "p" if isinstance(module, _LAYERS) else "drop" in name and isinstance(value, float)
            if probability and value > 0:
                yield path, module, name, value
