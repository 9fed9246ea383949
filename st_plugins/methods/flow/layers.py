"""The layers of a normalising flow: each maps vectors to vectors, can be inverted, and knows its log-determinant.

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

__all__ = ["LOG_SCALE_FACTOR", "ActNorm", "Coupling", "FlowLayer", "LULinear", "Linear", "Permutation", "varying"]

LOG_SCALE_FACTOR = 3.0  # of the published code: the logarithms of the scales learn three times as fast
_LARGEST_GAIN = 1000.0  # of a dimension that does not vary: what rounding may amount to stays below a hundredth
_LARGEST_LOG_SCALE = 2.0  # of an affine coupling, so that its inverse cannot overflow


class FlowLayer(nn.Module, ABC):
    """Base of the layers.

    Reads ``(rows, d)`` and returns ``(rows, d)`` with ``log |det|`` of the map's derivative, one number for each row
    or one for all of them.
    """

    def reset(self, generator: torch.Generator) -> None:
        """Draw the starting point; nothing by default.

        Args:
            generator: Where the random numbers come from, on the CPU.
        """

    def initialise(self, rows: Tensor) -> None:
        """Look at data before the first step; nothing by default.

        Args:
            rows: What the layer will be given, ``(rows, d)``.
        """

    @abstractmethod
    def forward(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Map the rows.

        Args:
            rows: ``(rows, d)``.

        Returns:
            The images ``(rows, d)``, and the log-determinants, ``(rows,)`` or ``()``.
        """

    @abstractmethod
    def inverse(self, rows: Tensor) -> Tensor:
        """Undo `forward`.

        Args:
            rows: Images, ``(rows, d)``.

        Returns:
            What they are the images of, ``(rows, d)``.
        """


def varying(rows: Tensor, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    """Return mean and standard deviation of every dimension, and whether it varies by more than rounding.

    A standard deviation is rounding beside that of the dimension which varies most, too: an encoder computes all of
    them from the same numbers.

    Args:
        rows: ``(rows, d)``.
        dtype: Of the layer's parameters. What varies less than its resolution, beside the largest, is rounding.

    Returns:
        Mean and standard deviation (divided by N) in float64 on the CPU, and booleans, ``(d,)`` each.

    Example:
        >>> mean, deviation, varies = varying(torch.tensor([[1.0, 7.0, 1e-30], [3.0, 7.0, -1e-30]]))
        >>> mean.tolist(), deviation[:2].tolist(), varies.tolist()
        ([2.0, 7.0, 0.0], [1.0, 0.0], [True, False, False])
    """
    given, kept = 64 * torch.finfo(rows.dtype).eps, 64 * torch.finfo(dtype).eps
    deviation, mean = torch.std_mean(rows.detach().cpu().double(), dim=0, correction=0)
    return mean, deviation, (deviation > given * mean.abs()) & (deviation > max(given, kept) * deviation.max())


class ActNorm(FlowLayer):
    """Shift and scale every dimension: ``y = (x - mean) · exp(3 · log_scale) + shift``.

    The first rows it sees get mean 0 and variance 1 by that; then scale and shift are parameters like others. Since
    the shift is counted in units of the result, a step of a given size means the same in a dimension that varies a lot
    and in one that hardly does. A dimension in which those rows do not vary stays near 0: it is scaled like the one
    that varies most, and training may make that a thousand times as much, no more, since for the likelihood of a
    constant no scale is too large.

    Args:
        dimension: Width d of the rows.
        published: Whether to do as the published code: it has no ``shift`` and trains ``mean``, in units of the input,
            and adds 1e-6 to the standard deviation that it starts from.

    Example:
        >>> layer, rows = ActNorm(2), torch.tensor([[1.0, 0.0], [3.0, 8.0]])
        >>> layer.initialise(rows)
        >>> images, log_determinant = layer(rows)
        >>> images.round(decimals=4).tolist(), round(log_determinant.item(), 4)  # -log(1 · 4)
        ([[-1.0, -1.0], [1.0, 1.0]], -1.3863)

    Reference:
        Kingma & Dhariwal, "Glow" (2018), arXiv 1807.03039, section 3.1. The factor 3 is BERT-flow's code's. The code
        takes the statistics of the first batch in single precision; here they are taken in float64.
    """

    mean: Tensor
    shift: Tensor | None
    initialised: Tensor
    limit: Tensor

    def __init__(self, dimension: int, published: bool = False) -> None:
        super().__init__()
        self.epsilon = 1e-6 if published else 0.0
        if published:
            self.mean = nn.Parameter(torch.zeros(dimension))
            self.shift = None
        else:
            self.register_buffer("mean", torch.zeros(dimension))
            self.shift = nn.Parameter(torch.zeros(dimension))
        self.log_scale = nn.Parameter(torch.zeros(dimension))
        self.register_buffer("initialised", torch.tensor(False))
        self.register_buffer("limit", torch.full((dimension,), math.inf), persistent=False)  # of log_scale

    def reset(self, generator: torch.Generator) -> None:
        """Forget the data.

        Args:
            generator: Not used.
        """
        with torch.no_grad():
            for tensor in self.state_dict().values():
                tensor.zero_()

    def initialise(self, rows: Tensor) -> None:
        """Give these rows mean 0 and variance 1; the second time, also after a reload, only look which vary.

        Args:
            rows: ``(rows, d)``.
        """
        mean, deviation, varies = varying(rows, self.log_scale.dtype)
        unit = torch.maximum(mean.abs(), deviation.max())
        unit = torch.where(varies, deviation + self.epsilon, torch.where(unit > 0, unit, 1.0))
        start = -unit.log() / LOG_SCALE_FACTOR
        self.limit.copy_(torch.where(varies, math.inf, start + math.log(_LARGEST_GAIN) / LOG_SCALE_FACTOR))
        if self.initialised:
            return
        with torch.no_grad():
            self.mean.copy_(mean)
            self.log_scale.copy_(start)
            if self.shift is not None:  # a large mean is rounded
                self.shift.copy_((self.mean.cpu() - mean) / unit)
            self.initialised.fill_(True)

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
    """Put the dimensions into another order, which is never learned: reversed, or drawn once.

    Args:
        dimension: Width d of the rows.
        random: Whether `reset` draws the order.

    Example:
        >>> images, log_determinant = Permutation(3)(torch.tensor([[1.0, 2.0, 3.0]]))
        >>> images.tolist(), log_determinant.item()
        ([[3.0, 2.0, 1.0]], 0.0)
    """

    order: Tensor

    def __init__(self, dimension: int, random: bool = False) -> None:
        super().__init__()
        self.random = random
        self.register_buffer("order", torch.arange(dimension).flip(0))

    def reset(self, generator: torch.Generator) -> None:
        """Draw the order if it is random.

        Args:
            generator: Where it comes from.
        """
        if self.random:
            self.order.copy_(torch.randperm(len(self.order), generator=generator))

    def forward(self, rows: Tensor) -> tuple[Tensor, Tensor]:  # noqa: D102 - the base says it
        return rows[:, self.order], rows.new_zeros(())

    def inverse(self, rows: Tensor) -> Tensor:  # noqa: D102 - the base says it
        return rows[:, self.order.argsort()]


class Linear(FlowLayer):
    """Multiply by a square matrix, ``y = W x``: a learned generalisation of a permutation. Starts as a rotation.

    Args:
        dimension: Width d of the rows.

    Example:
        >>> layer = Linear(4)
        >>> layer.reset(torch.Generator().manual_seed(0))
        >>> rows = torch.eye(4)
        >>> images, log_determinant = layer(rows)
        >>> bool(abs(log_determinant) < 1e-5), bool((layer.inverse(images) - rows).abs().max() < 1e-5)
        (True, True)

    Reference:
        Glow, section 3.2, the plain form: ``log |det W|`` costs O(d³) in every step.
    """

    def __init__(self, dimension: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.eye(dimension))

    def reset(self, generator: torch.Generator) -> None:
        """Draw a rotation.

        Args:
            generator: Where it comes from.
        """
        with torch.no_grad():
            self.weight.copy_(_rotation(len(self.weight), generator))

    def forward(self, rows: Tensor) -> tuple[Tensor, Tensor]:  # noqa: D102 - the base says it
        weight = self.weight.to(rows.dtype)
        return rows @ weight.T, torch.linalg.slogdet(weight).logabsdet

    def inverse(self, rows: Tensor) -> Tensor:  # noqa: D102 - the base says it
        columns: Tensor = torch.linalg.solve(self.weight.to(rows.dtype), rows.T)
        return columns.T


class LULinear(FlowLayer):
    """`Linear` with the matrix in factors, ``W = P L U``, so that its determinant is a product of d numbers.

    P is a fixed permutation, L has ones on its diagonal, and the signs of U's diagonal are fixed: W can never become
    singular. L and U are applied one after the other, and undone by substitution.

    Args:
        dimension: Width d of the rows.

    Example:
        >>> layer = LULinear(4)
        >>> layer.reset(torch.Generator().manual_seed(0))
        >>> weight = layer(torch.eye(4))[0].T  # a rotation
        >>> bool((weight @ weight.T - torch.eye(4)).abs().max() < 1e-5)
        True

    Reference:
        Glow, section 3.2, equation 10.
    """

    order: Tensor
    signs: Tensor

    def __init__(self, dimension: int) -> None:
        super().__init__()
        self.lower = nn.Parameter(torch.zeros(dimension, dimension))  # below the diagonal
        self.upper = nn.Parameter(torch.zeros(dimension, dimension))  # above the diagonal
        self.log_diagonal = nn.Parameter(torch.zeros(dimension))
        self.register_buffer("signs", torch.ones(dimension))
        self.register_buffer("order", torch.arange(dimension))

    def reset(self, generator: torch.Generator) -> None:
        """Draw a rotation and take it apart.

        Args:
            generator: Where it comes from.
        """
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
    """Change the second half of the dimensions by what a small network makes of the first half.

    ``y₁ = x₁``, and ``y₂ = x₂ + t(x₁)`` (additive) or ``y₂ = x₂ · exp(s(x₁)) + t(x₁)`` (affine), with ``|s| < 2``. The
    network has two hidden layers with ReLU; its last layer starts at zero, so that the layer starts as the identity.
    Of an odd width the second half is the larger one.

    Args:
        dimension: Width d of the rows, at least 2.
        width: Units in each hidden layer.
        kind: ``"additive"`` or ``"affine"``.

    Example:
        >>> layer, rows = Coupling(5, width=8), torch.arange(10.0).view(2, 5)
        >>> layer.reset(torch.Generator().manual_seed(0))
        >>> torch.nn.init.constant_(layer.biases[2], 0.5)[0].item()
        0.5
        >>> layer(rows)[0].tolist()
        [[0.0, 1.0, 2.5, 3.5, 4.5], [5.0, 6.0, 7.5, 8.5, 9.5]]

    Reference:
        Dinh et al., "NICE" (2015), arXiv 1410.8516, equation 3.2 (additive); Glow, table 1 (affine). BERT-flow uses
        the additive one with 32 units (its code normalises the hidden layers, too: `PublishedCoupling`). The affine
        scale of the published code, ``sigmoid(s + 2)``, can only shrink and does not start at one; ours is bounded to
        both sides and does.
    """

    def __init__(self, dimension: int, width: int = 32, kind: Literal["additive", "affine"] = "additive") -> None:
        super().__init__()
        self.affine = kind == "affine"
        self.kept = dimension // 2
        outputs = (dimension - self.kept) * (2 if self.affine else 1)
        self._build([(width, self.kept), (width, width), (outputs, width)])

    def _build(self, sizes: list[tuple[int, int]]) -> None:
        """Make the network's parameters."""
        self.weights = nn.ParameterList(torch.zeros(size) for size in sizes)
        self.biases = nn.ParameterList(torch.zeros(size[0]) for size in sizes)

    def reset(self, generator: torch.Generator) -> None:
        """Draw the hidden layers, and set the last one to zero.

        Args:
            generator: Where they come from.
        """
        with torch.no_grad():
            for weight, bias in zip(self.weights, self.biases, strict=True):
                bias.zero_()
                drawn = torch.randn(weight.shape, generator=generator)
                weight.copy_(drawn * (2 / weight.shape[1]) ** 0.5)
            self.weights[2].zero_()

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
