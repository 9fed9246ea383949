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

Maps = list[tuple[Tensor, Tensor]]

_PARTS = {"full": 4, "symmetric": 4, "simple": 2, "symmetric_exact": 3}
_SCALE = math.sqrt(0.5)


def projection(inputs: int, outputs: int, activated: bool = True) -> nn.Linear:
    """Return a linear layer with weight normalisation, its bias zero."""
    layer = nn.Linear(inputs, outputs)
    _he(layer, inputs, activated)
    _normalize(layer)
    return layer


def activate(x: Tensor) -> Tensor:
    """Apply the GELU, in the form with tanh that the authors use."""
    # x σ(2 √(2/π) (x + 0.044715 x³)), since 1 + tanh(u) = 2 σ(2u): PyTorch's tanh takes three times as long on a CPU
    # as its sigmoid.
    if _learns_or_leaves_the_cpu(x) or x.dtype not in (torch.float32, torch.float64):
        return gelu(x, approximate="tanh")
    slope = 2 * math.sqrt(2 / math.pi)
    return torch.addcmul(x.new_tensor(slope), x, x, value=0.044715 * slope).mul_(x).sigmoid_().mul_(x)


class Convolution(nn.Module):
    """Convolution over tokens with zeros outside the text, then the activation."""

    # Several sizes divide the channels of the result among them.

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
        # Every token meets the weights of all places of the window at once; what comes out is shifted and added.
        weight, length = self.weight, x.shape[1]
        size, middle = len(weight), len(weight) // 2
        beside = middle * len(self.bias)  # the bias is added once, at the middle
        found = linear(x, weight.flatten(0, 1), pad(self.bias, (beside, beside)))
        parts = pad(found, (0, 0, middle, middle)).chunk(size, dim=-1)
        total = parts[0][:, :length]
        for place in range(1, size):
            total = total + parts[place][:, place : place + length]
        return total


class ConvolutionalEncoder(nn.Module):
    """Encode tokens in their context, by a few convolutions."""

    # What is no token is zero before every convolution, so that a text's encoding does not depend on its padding.
    # Section 2; dropout, before every layer but the first and of the result, as in the authors' code.

    def __init__(
        self, inputs: int, hidden: int, layers: int = 2, kernel_sizes: Sequence[int] = (3,), dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            Convolution(hidden if layer else inputs, hidden, kernel_sizes) for layer in range(layers)
        )
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Encode."""
        outside = None if mask is None else ~mask[..., None]
        for number, layer in enumerate(self.layers):
            if number:
                x = self.dropout(x)
            x = layer(x if outside is None else x.masked_fill(outside, 0.0))
        x = self.dropout(x)
        return x


class Alignment(nn.Module):
    """Give each token of a text the mean of the other text's tokens, weighted by how well they go with it."""

    # Section 2.2: with e_ij = τ F(a_i)ᵀ F(b_j), the token a_i gets Σ_j softmax_j(e_ij) b_j, and b_j gets
    # Σ_i softmax_i(e_ij) a_i. The temperature τ, learned, is in the authors' code only.

    def __init__(self, inputs: int, hidden: int, kind: str = "linear", dropout: float = 0.0) -> None:
        super().__init__()
        self.temperature = nn.Parameter(torch.tensor(1 / math.sqrt(hidden)))
        self.dropout = nn.Dropout(dropout)
        self.project = projection(inputs, hidden) if kind == "linear" else None

    def forward(
        self,
        first: Tensor,
        second: Tensor,
        first_mask: Tensor | None = None,
        second_mask: Tensor | None = None,
        maps: Maps | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Align two texts."""
        return self.attend(self.compared(first), self.compared(second), first, second, first_mask, second_mask, maps)

    def compared(self, x: Tensor) -> Tensor:
        """Return ``F(x)``."""
        return x if self.project is None else activate(self.project(self.dropout(x)))

    def attend(
        self,
        first_compared: Tensor,
        second_compared: Tensor,
        first: Tensor,
        second: Tensor,
        first_mask: Tensor | None = None,
        second_mask: Tensor | None = None,
        maps: Maps | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Do what `forward` does after ``F``."""
        # Scores and softmax are float32 at least, under autocast too; the authors mask with -1e7, which half precision
        # cannot hold. Where the other text has no tokens, zeros are found.
        dtype = torch.promote_types(first.dtype, torch.float32)
        with torch.autocast(first.device.type, enabled=False):
            scores = (first_compared.to(dtype) * self.temperature.to(dtype)) @ second_compared.to(dtype).transpose(
                1, 2
            )
            if first_mask is None or second_mask is None:
                for_first, for_second = scores.softmax(dim=2), scores.transpose(1, 2).softmax(dim=2)
            else:
                outside = ~(first_mask[:, :, None] & second_mask[:, None, :])
                scores = scores.masked_fill(outside, torch.finfo(dtype).min)
                for_first = scores.softmax(dim=2).masked_fill(outside, 0.0)
                for_second = scores.softmax(dim=1).masked_fill(outside, 0.0).transpose(1, 2)
        if maps is not None:
            maps.append((for_first, for_second))
        return for_first.to(second.dtype) @ second, for_second.to(first.dtype) @ first


class Fusion(nn.Module):
    """Compare tokens ``x`` with what they found, ``x'``, by concatenation, difference and product."""

    # Equations 4 and 5: "full" is G([G₁([x; x']); G₂([x; x - x']); G₃([x; x ∘ x'])]), "simple" is G₁([x; x']). The
    # concatenations with x are never formed: W [x; y] = W_x x + W_y y, where W_x x of the three is one product, and
    # W [x; x - x'] = (W_x + W_y) x - W_y x'.

    def __init__(self, inputs: int, hidden: int, kind: str = "full", dropout: float = 0.0) -> None:
        super().__init__()
        self.inputs, self.hidden = inputs, hidden
        # Rows of G₁, G₂, G₃; weight normalisation is by row, so it is that of three layers.
        self.compare = projection(2 * inputs, hidden if kind == "simple" else 3 * hidden)
        self.combine = projection(3 * hidden, hidden) if kind == "full" else None
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, aligned: Tensor) -> Tensor:
        """Compare."""
        own, other = self.compare.weight.split(self.inputs, dim=1)
        if self.combine is None:
            return activate(linear(x, own, self.compare.bias) + linear(aligned, other))
        same, difference, product = other.split(self.hidden)
        first, second, third = own.split(self.hidden)
        found = linear(x, torch.cat([first, second + difference, third]), self.compare.bias)
        by_aligned = linear(aligned, torch.cat([same, -difference]))
        found = found + torch.cat([by_aligned, linear(x * aligned, product)], dim=-1)
        return activate(self.combine(self.dropout(activate(found))))


def masked_max(x: Tensor, mask: Tensor | None = None) -> Tensor:
    """Return the largest value of each feature over the tokens of a text, ``(B, n, d)`` with n at least 1."""
    if mask is None:
        return x.amax(dim=1)
    # Zeros for a text without tokens, where the authors' code gives -inf.
    largest = x.masked_fill(~mask[..., None], torch.finfo(x.dtype).min).amax(dim=1)
    return largest.masked_fill(~mask.any(dim=1, keepdim=True), 0.0)


class AugmentedResidual(nn.Module):
    """Make the input of the next block from the token vectors ``x`` and the outputs ``o⁽¹⁾, o⁽²⁾, …`` so far."""

    # Equation 1 and the factor of section 3.2. The input of block n is
    # "paper"  [x; o⁽ⁿ⁻¹⁾] for n = 2, then [x; (o⁽ⁿ⁻¹⁾ + o⁽ⁿ⁻²⁾) / √2]
    # "code"   [x; rₙ] with r₂ = o⁽¹⁾ and rₙ = (rₙ₋₁ + o⁽ⁿ⁻¹⁾) / √2, which the authors' code computes
    # "plain"  rₙ = (rₙ₋₁ + o⁽ⁿ⁻¹⁾) / √2 with r₁ a projection of x, an ordinary residual connection
    # "paper" and "code" are the same for up to three blocks, as many as the published configurations have; from the
    # fourth on "paper" forgets all outputs but two. We concatenate as their TensorFlow code does; their PyTorch code
    # has the token vectors last.

    def __init__(self, width: int, hidden: int, kind: str = "code") -> None:
        super().__init__()
        self.kind = kind
        self.output_width = hidden if kind == "plain" else width + hidden
        self.project = projection(width, hidden, activated=False) if kind == "plain" else None

    def forward(self, x: Tensor, outputs: Sequence[Tensor]) -> Tensor:
        """Return the input of the block after those that gave ``outputs``."""
        if self.project is not None:
            return _running(self.project(x), outputs)
        if self.kind == "paper":
            outputs = outputs[-2:]
        return torch.cat([x, _running(outputs[0], outputs[1:])], dim=-1)


def _running(total: Tensor, outputs: Sequence[Tensor]) -> Tensor:
    for output in outputs:
        total = (total + output) * _SCALE
    return total


class Prediction(nn.Module):
    r"""Compare the vectors ``v₁, v₂`` of two texts and give the logits, by a perceptron with one hidden layer."""

    # Equations 6 to 8: "full" is [v₁; v₂; v₁ - v₂; v₁ ∘ v₂], "symmetric" [v₁; v₂; |v₁ - v₂|; v₁ ∘ v₂] and "simple"
    # [v₁; v₂]. "symmetric" still depends on the order of the texts, by its first two parts. "symmetric_exact", ours,
    # [v₁ + v₂; |v₁ - v₂|; v₁ ∘ v₂], does not, and loses nothing: sum and absolute difference determine the two values
    # of a feature up to their order.

    def __init__(self, hidden: int, num_labels: int, kind: str = "full", dropout: float = 0.0) -> None:
        super().__init__()
        self.kind = kind
        self.inner = projection(_PARTS[kind] * hidden, hidden)
        self.outer = projection(hidden, num_labels, activated=False)
        self.dropout = nn.Dropout(dropout)

    def forward(self, v1: Tensor, v2: Tensor) -> Tensor:
        """Compute the logits."""
        hidden = activate(self.inner(self.dropout(self._compared(v1, v2))))
        logits: Tensor = self.outer(self.dropout(hidden))
        return logits

    def _compared(self, v1: Tensor, v2: Tensor) -> Tensor:
        if self.kind == "simple":
            return torch.cat([v1, v2], dim=-1)
        difference = v1 - v2 if self.kind == "full" else (v1 - v2).abs()
        both = [v1 + v2] if self.kind == "symmetric_exact" else [v1, v2]
        return torch.cat([*both, difference, v1 * v2], dim=-1)


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
    # A weight that was not changed is the same to the bit afterwards.
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
