"""Fold affine modules into one stock Dense, so that a model loads anywhere without this package."""

from __future__ import annotations

import logging

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Dense, Normalize
from torch import Tensor, nn

from st_plugins.core.host import check_encoder, rebuild
from st_plugins.methods.whitening.whitening import Whitening

logger = logging.getLogger(__name__)


def fold(model: SentenceTransformer) -> SentenceTransformer:
    """Return the same model made of stock modules: every run of affine modules with a Whitening in it becomes a Dense.

    A whitening is ``y = W (x - μ)``, hence a Dense with weight ``W``, bias ``-W μ`` and no activation; with the Dense
    layers before and after it (identity activation only) it multiplies out to a single one, which has no bias where
    nothing is added (``center=False``). The product is taken in float64. A Whitening with ``normalize=True`` becomes
    that Dense and a stock Normalize. Everything else stays where it is, and prompts, similarity function and
    truncation carry over. A Dense that comes after a Normalize is served as other vectors by servers that apply linear
    layers right after the pooling: a warning says so, and `whiten` does not make such a model. `save_for_servers`
    writes the folded model so that they read it.

    Args:
        model: The model; left as it is.

    Returns:
        A new model whose outputs equal those of ``model`` to about 1e-5; an equal copy when there is no Whitening.
        Where the mean is very large against the spread, float32 cannot represent the bias well; a warning says how
        much is lost.

    Raises:
        TypeError: ``model`` is no SentenceTransformer.
        ValueError: A Whitening sits inside another module (a Router, say), or the model is float16 and the folded
            weights do not fit into that type.

    Example:
        >>> import numpy as np
        >>> from st_plugins.miniature import corpus, untrained_encoder
        >>> from st_plugins.recipes import whiten
        >>> texts = corpus(300)
        >>> whitened = whiten(untrained_encoder(), texts, 16)
        >>> folded = fold(whitened)
        >>> [type(module).__name__ for module in folded]
        ['Transformer', 'Pooling', 'Dense']
        >>> bool(np.abs(folded.encode(texts) - whitened.encode(texts)).max() < 1e-4)
        True
    """
    check_encoder(model)
    nested = sum(isinstance(module, Whitening) for module in model.modules())
    nested -= sum(isinstance(module, Whitening) for module in model)
    if nested:
        raise ValueError(
            f"model holds {nested} Whitening inside another module (a Router?), which fold() cannot reach; fold the "
            "inner pipelines first, or load the model with st_plugins.load"
        )
    dtype = model.dtype or torch.float32
    modules: list[nn.Module] = []
    run: list[nn.Module] = []
    for module in model:
        if is_affine(module):
            run.append(module)
        if not is_affine(module) or (isinstance(module, Whitening) and module.normalize):
            modules += _folded(run, dtype)
            run = []
            modules.append(Normalize() if isinstance(module, Whitening) else module)
    modules += _folded(run, dtype)
    first = next((place for place, module in enumerate(modules) if isinstance(module, Normalize)), len(modules))
    if any(isinstance(module, Dense) for module in modules[first:]):
        logger.warning(
            "The folded model has a Dense after a Normalize. Servers that apply every Dense right after the pooling "
            "and normalize last give other vectors than sentence-transformers does. Whiten a model that ends in its "
            "Normalize with st_plugins.whiten, which puts the linear layers before it."
        )
    return rebuild(model, modules)


def is_affine(module: nn.Module) -> bool:
    """Return whether the module maps ``sentence_embedding`` to an affine function of itself."""
    if isinstance(module, Whitening):
        return True
    return (
        type(module) is Dense
        and isinstance(module.activation_function, nn.Identity)
        and module.module_input_name == module.module_output_name == "sentence_embedding"
    )


def _folded(run: list[nn.Module], dtype: torch.dtype) -> list[nn.Module]:
    """Multiply a run of affine modules out to one Dense; leave it alone if nothing of ours is in it."""
    if not any(isinstance(module, Whitening) for module in run):
        return run
    # In float64: the bias -W μ is as large as the mean over the smallest spread, and rounding in between would show.
    weight, bias = affine_map(run[0])
    for module in run[1:]:
        following, offset = affine_map(module)
        weight, bias = following @ weight, following @ bias + offset
    return [dense_of(weight, bias, dtype)]


def dense_of(weight: Tensor, bias: Tensor, dtype: torch.dtype) -> Dense:
    """Return a stock Dense without activation in a model's type; without a bias where there is none to add."""
    largest = max(float(weight.abs().max()), float(bias.abs().max()))
    if not bool(weight.to(dtype).isfinite().all() and bias.to(dtype).isfinite().all()):
        raise ValueError(
            f"the folded weights (up to {largest:.1e}) do not fit into "
            f"{dtype}; convert the model with .float() first, or keep fewer dimensions"
        )
    lost = torch.finfo(dtype).eps * float(bias.abs().max())
    if lost > 1e-4:
        logger.warning(
            "The folded bias is as large as %.1e: in %s outputs may be off by about %.1e, because the mean of the "
            "embeddings is large against their spread. Keep the Whitening if that matters.",
            float(bias.abs().max()),
            dtype,
            lost,
        )
    return Dense(
        weight.shape[1],
        weight.shape[0],
        bias=bool(bias.any()),
        activation_function=nn.Identity(),
        init_weight=weight.to(dtype),
        init_bias=bias.to(dtype),
    ).eval()


def affine_map(module: nn.Module) -> tuple[Tensor, Tensor]:
    """Return weight and bias of an affine module, in float64 on the CPU."""
    if isinstance(module, Whitening):
        mean, weight = module.affine()
        return weight, -weight @ mean
    if not isinstance(module, Dense):
        raise TypeError(f"{type(module).__name__} is not affine")
    weight = module.linear.weight.detach().cpu().double()
    bias = module.linear.bias.detach().cpu().double() if module.bias else torch.zeros(len(weight)).double()
    if module.use_residual:
        same = module.in_features == module.out_features
        residual = torch.eye(len(weight)) if same else module.residual.weight.detach().cpu()
        weight = weight + residual.double()
    return weight, bias
