"""Carry the parts of a pooled vector through the modules that come after the pooling."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from sentence_transformers.base.modules import Dense, Normalize
from sentence_transformers.sentence_transformer.modules import Dropout, LayerNorm
from torch import Tensor, nn

from st_plugins.methods.whitening.fold import affine_map, is_affine
from st_plugins.methods.whitening.whitening import Whitening

_SUPPORTED = "Dense, Normalize, LayerNorm, Dropout and Whitening"
_EPS = 1e-12  # of the host's normalisation


@dataclass(frozen=True)
class _Step:
    """One map of parts: ``carry(parts, shares, alone)``, float64 on the CPU, sum to image of the sum."""

    carry: Callable[[Tensor, Tensor, bool], Tensor]
    exact: bool = True


class Tail:
    """The modules after the pooling, as maps of parts."""

    # The pooled vector is a sum of parts p = Σ pₛ, where each part has a share aₛ of the whole, Σ aₛ = 1. A step maps
    # parts to parts so that the sum of the new parts is what the module makes of p:
    # - affine modules (Dense without activation, Whitening): pₛ → W pₛ + aₛ b;
    # - modules that scale the whole vector (Normalize, LayerNorm after its centering): the scale is the one of p, so
    #   pₛ → pₛ / |p|. Nothing is approximated, exactly as when a cosine divides by both norms;
    # - an activation f of a Dense: with z = Σ zₛ the input, entry by entry zₛ → zₛ (f(z) - f(0)) / z + aₛ f(0), the
    #   secant through zero: the rescale rule of DeepLIFT (arXiv 1704.02685, section 3.5.2) with reference point zero.
    #   The sum is still right, but how it is divided is one choice among many, so the result is not exact.

    def __init__(self, modules: Iterable[nn.Module], dimension: int | None = None) -> None:
        self._steps = [step for module in modules for step in _steps(module)]
        if dimension is not None:
            self._steps.append(_Step(lambda parts, shares, alone: parts[:, :dimension]))

    @property
    def exact(self) -> bool:
        """Whether no step divides a sum by choice."""
        return all(step.exact for step in self._steps)

    def __call__(self, parts: Tensor, shares: Tensor, *, alone: bool = False) -> Tensor:
        """Carry parts ``(S, d)``, float64 on the CPU, with shares ``(S,)`` that sum to 1, to the end."""
        # Alone, each part passes activations by itself, as if it were the whole text: the sum misses the embedding.
        for step in self._steps:
            parts = step.carry(parts, shares, alone)
        return parts


def _steps(module: nn.Module) -> list[_Step]:
    read, written = (getattr(module, f"module_{way}_name", "sentence_embedding") for way in ("input", "output"))
    # A module that writes something else, such as a head, is beside the embedding, and dropout is off.
    if written != "sentence_embedding" or type(module) is Dropout:
        return []
    if is_affine(module):
        weight, bias = affine_map(module)
        steps = [_Step(lambda parts, shares, alone: parts @ weight.T + shares[:, None] * bias)]
        return [*steps, _Step(_unit_length)] if isinstance(module, Whitening) and module.normalize else steps
    if read == "sentence_embedding" and type(module) is Normalize:
        return [_Step(_unit_length)]
    if read == "sentence_embedding" and type(module) is Dense:
        return [_activated(module)]
    if type(module) is LayerNorm:
        return [_layer_norm(module.norm)]
    raise ValueError(
        f"a {type(module).__name__} comes after the pooling, which cannot be carried over to parts of a text; "
        f"supported there are {_SUPPORTED} of sentence-transformers and st_plugins that act on sentence_embedding"
    )


def _unit_length(parts: Tensor, shares: Tensor, alone: bool) -> Tensor:
    unit: Tensor = parts / parts.sum(0).norm().clamp_min(_EPS)
    return unit


def _layer_norm(norm: nn.LayerNorm) -> _Step:
    weight, bias = (tensor.detach().cpu().double() for tensor in (norm.weight, norm.bias))

    def carry(parts: Tensor, shares: Tensor, alone: bool) -> Tensor:
        centered = parts - parts.mean(-1, keepdim=True)
        deviation = (centered.sum(0).square().mean() + norm.eps).sqrt()
        return centered / deviation * weight + shares[:, None] * bias

    return _Step(carry)


def _activated(dense: Dense) -> _Step:
    weight = dense.linear.weight.detach().cpu().double()
    bias = dense.linear.bias.detach().cpu().double() if dense.bias else torch.zeros(len(weight)).double()
    # `affine_map` has the skip connection of a Dense in its weight, which no activation sees.
    residual = affine_map(dense)[0] - weight
    activation: Any = dense.activation_function
    if isinstance(activation, nn.Module):
        activation = copy.deepcopy(activation).cpu().double()

    def carry(parts: Tensor, shares: Tensor, alone: bool) -> Tensor:
        before = parts @ weight.T + shares[:, None] * bias
        whole = before.sum(0)
        # One entry by itself must give what it gives among the others: a softmax does not.
        if not torch.allclose(activation(whole[:, None])[:, 0], activation(whole)):
            raise ValueError(
                f"the activation {type(activation).__name__} of a Dense after the pooling mixes dimensions, which "
                "cannot be carried over to parts of a text; supported are those that act on each entry"
            )
        at_zero = activation(torch.zeros_like(whole))
        if alone:
            # As if each part were the whole text: scaled up to a share of 1, and back.
            own = torch.where(shares[:, None] > 0, before / shares[:, None].clamp_min(_EPS), 0.0)
            after = shares[:, None] * activation(own)
        else:
            # Where the input is zero the secant becomes the tangent.
            safe = torch.where(whole.abs() < _EPS, _EPS, whole)
            after = before * ((activation(safe) - at_zero) / safe) + shares[:, None] * at_zero
        out: Tensor = after + parts @ residual.T
        return out

    return _Step(carry, exact=False)
