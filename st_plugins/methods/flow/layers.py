"""The layers of a normalizing flow: each maps vectors to vectors, can be inverted, and knows its log-determinant.

Parameters are kept in float32; a layer computes in the type it is given. Nothing is drawn when a layer is built: it is
the identity (or a plain reversal) until `reset` draws its starting point, so that loading one leaves the random state
alone.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, relu

LOG_SCALE_FACTOR = 3.0  # of the published code: the logarithms of the scales learn three times as fast
_LARGEST_GAIN = 1000.0  # of a dimension that does not vary: what rounding may amount to stays below a hundredth
_LARGEST_LOG_SCALE = 2.0  # of an affine coupling, so that its inverse cannot overflow


class FlowLayer(nn.Module, ABC):
    """Base of the layers: maps ``(rows, d)`` to as many, with ``log |det|`` of the derivative, of a row or of all."""

    def reset(self, generator: torch.Generator) -> None:
        """Draw the starting point; nothing by default."""

    def initialize(self, rows: Tensor) -> None:
        """Look at data before the first step; nothing by default."""

    @abstractmethod
    def forward(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Map the rows."""

    @abstractmethod
    def inverse(self, rows: Tensor) -> Tensor:
        """Undo `forward`."""


def varying(rows: Tensor, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    """Return mean and standard deviation of every dimension, and whether it varies by more than rounding."""
    # An encoder computes all dimensions from the same numbers: so a spread is rounding also beside the largest one.
    given, kept = 64 * torch.finfo(rows.dtype).eps, 64 * torch.finfo(dtype).eps
    deviation, mean = torch.std_mean(rows.detach().cpu().double(), dim=0, correction=0)
    return mean, deviation, (deviation > given * mean.abs()) & (deviation > max(given, kept) * deviation.max())


class ActNorm(FlowLayer):
    """Shift and scale every dimension: ``y = (x - mean) · exp(3 · log_scale) + shift``."""

    mean: Tensor
    shift: Tensor | None
    initialized: Tensor
    limit: Tensor

    def __init__(self, dimension: int, published: bool = False) -> None:
        super().__init__()
        # The published code trains `mean`, in units of the input, so that dimensions which vary little take large
        # steps; a shift in units of the result means the same in all of them. Glow, section 3.1; the 3 is BERT-flow's.
        self.epsilon = 1e-6 if published else 0.0
        if published:
            self.mean = nn.Parameter(torch.zeros(dimension))
            self.shift = None
        else:
            self.register_buffer("mean", torch.zeros(dimension))
            self.shift = nn.Parameter(torch.zeros(dimension))
        self.log_scale = nn.Parameter(torch.zeros(dimension))
        self.register_buffer("initialized", torch.tensor(False))
        self.register_buffer("limit", torch.full((dimension,), math.inf), persistent=False)  # of log_scale

    def reset(self, generator: torch.Generator) -> None:
        """Forget the data."""
        with torch.no_grad():
            for tensor in self.state_dict().values():
                tensor.zero_()

    def initialize(self, rows: Tensor) -> None:
        """Give these rows mean 0 and variance 1; the second time, also after a reload, only look which vary."""
        # A dimension that does not vary is scaled like the one that varies most, and training may make that a thousand
        # times as much, no more: for the likelihood of a constant no scale is too large.
        mean, deviation, varies = varying(rows, self.log_scale.dtype)
        unit = torch.maximum(mean.abs(), deviation.max())
        unit = torch.where(varies, deviation + self.epsilon, torch.where(unit > 0, unit, 1.0))
        start = -unit.log() / LOG_SCALE_FACTOR
        self.limit.copy_(torch.where(varies, math.inf, start + math.log(_LARGEST_GAIN) / LOG_SCALE_FACTOR))
        if self.initialized:
            return
        with torch.no_grad():
            self.mean.copy_(mean)
            self.log_scale.copy_(start)
            if self.shift is not None:  # a large mean is rounded
                self.shift.copy_((self.mean.cpu() - mean) / unit)
            self.initialized.fill_(True)

    @torch.no_grad()
    def hold_constant(self) -> None:
        """Bring those scales back that are above their limit."""
        self.log_scale.copy_(torch.minimum(self.log_scale, self.limit))

    def constant_part(self) -> Tensor:
        """Return what dimensions that do not vary add to the log-determinant, which says nothing about the rows."""
        return LOG_SCALE_FACTOR * self.log_scale.detach()[self.limit.isfinite()].sum()

    def forward(self, rows: Tensor) -> tuple[Tensor, Tensor]:  # noqa: D102 - the base says it
        logarithms = LOG_SCALE_FACTOR * self.log_scale.to(rows.dtype)
        scaled = (rows - self.mean.to(rows.dtype)) * logarithms.exp()
        return scaled if self.shift is None else scaled + self.shift.to(rows.dtype), logarithms.sum()

    def inverse(self, rows: Tensor) -> Tensor:  # noqa: D102 - the base says it
        logarithms = LOG_SCALE_FACTOR * self.log_scale.to(rows.dtype)
        shifted = rows if self.shift is None else rows - self.shift.to(rows.dtype)
        return shifted * (-logarithms).exp() + self.mean.to(rows.dtype)


class Permutation(FlowLayer):
    """Put the dimensions into another order, which is never learned: reversed, or drawn once."""

    order: Tensor

    def __init__(self, dimension: int, random: bool = False) -> None:
        super().__init__()
        self.random = random
        self.register_buffer("order", torch.arange(dimension).flip(0))

    def reset(self, generator: torch.Generator) -> None:
        """Draw the order if it is random."""
        if self.random:
            self.order.copy_(torch.randperm(len(self.order), generator=generator))

    def forward(self, rows: Tensor) -> tuple[Tensor, Tensor]:  # noqa: D102 - the base says it
        return rows[:, self.order], rows.new_zeros(())

    def inverse(self, rows: Tensor) -> Tensor:  # noqa: D102 - the base says it
        return rows[:, self.order.argsort()]


class Linear(FlowLayer):
    """Multiply by a square matrix, ``y = W x``: a learned generalization of a permutation. Starts as a rotation."""

    def __init__(self, dimension: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.eye(dimension))

    def reset(self, generator: torch.Generator) -> None:
        """Draw a rotation."""
        with torch.no_grad():
            self.weight.copy_(_rotation(len(self.weight), generator))

    def forward(self, rows: Tensor) -> tuple[Tensor, Tensor]:  # noqa: D102 - the base says it
        weight = self.weight.to(rows.dtype)
        # O(d³) in every step, which LULinear spares.
        return rows @ weight.T, torch.linalg.slogdet(weight).logabsdet

    def inverse(self, rows: Tensor) -> Tensor:  # noqa: D102 - the base says it
        columns: Tensor = torch.linalg.solve(self.weight.to(rows.dtype), rows.T)
        return columns.T


class LULinear(FlowLayer):
    """`Linear` with the matrix in factors, ``W = P L U``, so that its determinant is a product of d numbers."""

    order: Tensor
    signs: Tensor

    # P is a fixed permutation, L has ones on its diagonal, and the signs of U's are fixed: W can never become singular
    # (Glow, equation 10). L and U are applied one after the other, and undone by substitution.
    def __init__(self, dimension: int) -> None:
        super().__init__()
        self.lower = nn.Parameter(torch.zeros(dimension, dimension))  # below the diagonal
        self.upper = nn.Parameter(torch.zeros(dimension, dimension))  # above the diagonal
        self.log_diagonal = nn.Parameter(torch.zeros(dimension))
        self.register_buffer("signs", torch.ones(dimension))
        self.register_buffer("order", torch.arange(dimension))

    def reset(self, generator: torch.Generator) -> None:
        """Draw a rotation and take it apart."""
        permutation, lower, upper = torch.linalg.lu(_rotation(len(self.order), generator))
        diagonal = upper.diagonal()
        with torch.no_grad():
            self.lower.copy_(lower.tril(-1))
            self.upper.copy_(upper.triu(1))
            self.log_diagonal.copy_(diagonal.abs().log())
            self.signs.copy_(diagonal.sign())
            self.order.copy_(permutation.argmax(dim=1))

    def forward(self, rows: Tensor) -> tuple[Tensor, Tensor]:  # noqa: D102 - the base says it
        lower, upper = self._factors(rows.dtype)
        return (rows @ upper.T @ lower.T)[:, self.order], self.log_diagonal.to(rows.dtype).sum()

    def inverse(self, rows: Tensor) -> Tensor:  # noqa: D102 - the base says it
        lower, upper = self._factors(rows.dtype)
        columns: Tensor = rows[:, self.order.argsort()].T
        columns = torch.linalg.solve_triangular(lower, columns, upper=False, unitriangular=True)
        columns = torch.linalg.solve_triangular(upper, columns, upper=True)
        return columns.transpose(0, 1)

    def _factors(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        diagonal = self.signs.to(dtype) * self.log_diagonal.to(dtype).exp()
        lower = self.lower.to(dtype).tril(-1) + torch.eye(len(diagonal), dtype=dtype, device=diagonal.device)
        return lower, self.upper.to(dtype).triu(1) + diagonal.diag()


class Coupling(FlowLayer):
    """Change the second half of the dimensions by what a small network makes of the first half."""

    def __init__(
        self, dimension: int, hidden_dimension: int = 32, kind: Literal["additive", "affine"] = "additive"
    ) -> None:
        super().__init__()
        # NICE, equation 3.2 (additive), and Glow, table 1 (affine), whose published scale sigmoid(s + 2) can only
        # shrink and does not start at one; ours, exp(s) with |s| < 2, is bounded to both sides and does.
        self.affine = kind == "affine"
        self.kept = dimension // 2
        outputs = (dimension - self.kept) * (2 if self.affine else 1)
        hidden = hidden_dimension
        self._build([(hidden, self.kept), (hidden, hidden), (outputs, hidden)])

    def _build(self, sizes: list[tuple[int, int]]) -> None:
        """Make the network's parameters."""
        self.weights = nn.ParameterList(torch.zeros(size) for size in sizes)
        self.biases = nn.ParameterList(torch.zeros(size[0]) for size in sizes)

    def reset(self, generator: torch.Generator) -> None:
        """Draw the hidden layers, and set the last one to zero."""
        with torch.no_grad():
            for weight, bias in zip(self.weights, self.biases, strict=True):
                bias.zero_()
                drawn = torch.randn(weight.shape, generator=generator)
                weight.copy_(drawn * (2 / weight.shape[1]) ** 0.5)
            self.weights[2].zero_()  # the layer starts as the identity

    def forward(self, rows: Tensor) -> tuple[Tensor, Tensor]:  # noqa: D102 - the base says it
        first, second = rows[:, : self.kept], rows[:, self.kept :]
        shift, logarithms = self._network(first)
        if logarithms is None:
            return torch.cat([first, second + shift], dim=1), rows.new_zeros(())
        return torch.cat([first, second * logarithms.exp() + shift], dim=1), logarithms.sum(dim=1)

    def inverse(self, rows: Tensor) -> Tensor:  # noqa: D102 - the base says it
        first, second = rows[:, : self.kept], rows[:, self.kept :]
        shift, logarithms = self._network(first)
        second = second - shift
        return torch.cat([first, second if logarithms is None else second * (-logarithms).exp()], dim=1)

    def _network(self, first: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the shift, and the logarithm of the scale if there is one."""
        output = self._output(first)
        if not self.affine:
            return output, None
        shift, logarithms = output.chunk(2, dim=1)
        return shift, _LARGEST_LOG_SCALE * (logarithms / _LARGEST_LOG_SCALE).tanh()

    def _output(self, first: Tensor) -> Tensor:
        output = first
        for index, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            output = linear(relu(output) if index else output, weight.to(first.dtype), bias.to(first.dtype))
        return output


def _rotation(dimension: int, generator: torch.Generator) -> Tensor:
    """Draw an orthogonal matrix."""
    rotation: Tensor = torch.linalg.qr(torch.randn(dimension, dimension, generator=generator)).Q
    return rotation
