"""The layers that RE2 is built of: initialised after He, with weight normalisation."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, linear, pad
from torch.nn.utils.parametrize import is_parametrized, register_parametrization

__all__ = ["Convolution", "activate", "fold_weight_norm", "normalized_weights", "projection"]


def projection(inputs: int, outputs: int, activated: bool = True) -> nn.Linear:
    """Return a linear layer with weight normalisation, its bias zero."""
    layer = nn.Linear(inputs, outputs)
    _he(layer, inputs, activated)
    _normalize(layer)
    return layer


def activate(x: Tensor) -> Tensor:
    """Apply the GELU, in the form with tanh that the authors use."""
    if _learns_or_leaves_the_cpu(x) or x.dtype not in (torch.float32, torch.float64):
        return gelu(x, approximate="tanh")
    slope = 2 * math.sqrt(2 / math.pi)
    return torch.addcmul(x.new_tensor(slope), x, x, value=0.044715 * slope).mul_(x).sigmoid_().mul_(x)


class Convolution(nn.Module):
    """Convolution over tokens with zeros outside the text, then the activation."""

    def __init__(self, inputs: int, outputs: int, kernel_sizes: Sequence[int] = (3,)) -> None:
        super().__init__()
        self.kernel_sizes = tuple(kernel_sizes)
        channels = outputs // len(self.kernel_sizes)
        self.windows = nn.ModuleList(_Window(inputs, channels, size) for size in self.kernel_sizes)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve."""
        found = [window(x) for window in self.windows]
        return activate(found[0] if len(found) == 1 else torch.cat(found, dim=-1))


class _Window(nn.Module):
    """One window: ``weight`` is ``(size, outputs, inputs)``, its norms are those of the outputs."""

    def __init__(self, inputs: int, outputs: int, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(size, outputs, inputs))
        self.bias = nn.Parameter(torch.empty(outputs))
        _he(self, size * inputs, activated=True)
        _normalize(self)

    def forward(self, x: Tensor) -> Tensor:
        weight, length = self.weight, x.shape[1]
        size, middle = len(weight), len(weight) // 2
        beside = middle * len(self.bias)  # the bias is added once, at the middle
        found = linear(x, weight.flatten(0, 1), pad(self.bias, (beside, beside)))
        parts = pad(found, (0, 0, middle, middle)).chunk(size, dim=-1)
        total = parts[0][:, :length]
        for place in range(1, size):
            total = total + parts[place][:, place : place + length]
        return total


def fold_weight_norm(module: nn.Module) -> nn.Module:
    """Replace normalised weights by what they amount to: the same outputs, faster, no longer for training."""
    part: Any
    for part in list(module.modules()):
        if is_parametrized(part, "weight"):
            weight = part.weight.detach().clone()
            trained = any(tensor.requires_grad for tensor in part.parametrizations.weight.parameters())
            # torch's remove_parametrizations would take the property away from the class, which deep copies share.
            part.__class__ = type(part).__bases__[0]
            del part.parametrizations
            part.weight = nn.Parameter(weight, requires_grad=trained)
    return module


@contextmanager
def normalized_weights(module: nn.Module) -> Iterator[None]:
    """Give every layer of a network its weight normalisation, and fold it at the end, whatever happens inside."""
    fold_weight_norm(module)
    for part in module.modules():
        if isinstance(part, nn.Linear | _Window):
            _normalize(part)
    try:
        yield
    finally:
        fold_weight_norm(module)


class _WeightNorm(nn.Module):
    """Norms and directions of weights, each learned. torch's leaves a hook on the layer that cannot be pickled."""

    def __init__(self, dims: tuple[int, ...]) -> None:
        super().__init__()
        self.dims = dims

    def forward(self, norms: Tensor, directions: Tensor) -> Tensor:
        return directions * (norms / self._norms(directions))

    def right_inverse(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        return self._norms(weight), weight

    def _norms(self, weight: Tensor) -> Tensor:
        found: Tensor = torch.linalg.vector_norm(weight, dim=self.dims, keepdim=True)
        return found.clamp_min(torch.finfo(found.dtype).tiny)  # a row of zeros stays one


def _normalize(part: nn.Linear | _Window) -> None:
    """Normalise the weights of each output over everything else."""
    dims = (0, 2) if isinstance(part, _Window) else (1,)
    register_parametrization(part, "weight", _WeightNorm(dims))


def _learns_or_leaves_the_cpu(x: Tensor) -> bool:
    return torch.is_grad_enabled() or torch.compiler.is_compiling() or x.device.type != "cpu"


def _he(layer: nn.Linear | _Window, inputs: int, activated: bool) -> None:
    nn.init.normal_(layer.weight, std=math.sqrt((2 if activated else 1) / inputs))
    nn.init.zeros_(layer.bias)
