"""The layers of a normalising flow: each maps vectors to vectors, can be inverted, and knows its log-determinant.

Parameters are kept in float32; a layer computes in the type it is given. Nothing is drawn when a layer is built: it is
the identity (or a plain reversal) until `reset` draws its starting point, so that loading one leaves the random state
alone.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, relu

__all__ = ["ActNorm", "Coupling", "FlowLayer", "LULinear", "Linear", "Permutation", "varying"]

_LOG_SCALE_FACTOR = 3.0  # of the published code: the logarithms of the scales learn three times as fast
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


def varying(rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return mean and standard deviation of every dimension, and whether it varies by more than rounding.

    Args:
        rows: ``(rows, d)``.

    Returns:
        Mean and standard deviation (divided by N) in float64 on the CPU, and booleans, ``(d,)`` each.

    Example:
        >>> mean, deviation, varies = varying(torch.tensor([[1.0, 7.0], [3.0, 7.0]]))
        >>> mean.tolist(), deviation.tolist(), varies.tolist()
        ([2.0, 7.0], [1.0, 0.0], [True, False])
    """
    resolution = 64 * torch.finfo(rows.dtype).eps
    deviation, mean = torch.std_mean(rows.detach().cpu().double(), dim=0, correction=0)
    return mean, deviation, deviation > resolution * mean.abs()


class ActNorm(FlowLayer):
    """Shift and scale every dimension: ``y = (x - mean) · exp(3 · log_scale)``.

    The first rows it sees get mean 0 and variance 1 by that; then both are parameters like others. A dimension in
    which those rows do not vary is only shifted.

    Args:
        dimension: Width d of the rows.

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

    initialised: Tensor

    def __init__(self, dimension: int) -> None:
        super().__init__()
        self.mean = nn.Parameter(torch.zeros(dimension))
        self.log_scale = nn.Parameter(torch.zeros(dimension))
        self.register_buffer("initialised", torch.tensor(False))

    def reset(self, generator: torch.Generator) -> None:
        """Forget the data.

        Args:
            generator: Not used.
        """
        with torch.no_grad():
            self.mean.zero_()
            self.log_scale.zero_()
            self.initialised.fill_(False)

    def initialise(self, rows: Tensor) -> None:
        """Give these rows mean 0 and variance 1; the second time, also after a reload, do nothing.

        Args:
            rows: ``(rows, d)``.
        """
        if self.initialised:
            return
        mean, deviation, varies = varying(rows)
        with torch.no_grad():
            self.mean.copy_(mean)
            self.log_scale.copy_(-torch.where(varies, deviation, 1.0).log() / _LOG_SCALE_FACTOR)
            self.initialised.fill_(True)

    def forward(self, rows: Tensor) -> tuple[Tensor, Tensor]:  # noqa: D102 - the base says it
        logarithms = _LOG_SCALE_FACTOR * self.log_scale.to(rows.dtype)
        return (rows - self.mean.to(rows.dtype)) * logarithms.exp(), logarithms.sum()

    def inverse(self, rows: Tensor) -> Tensor:  # noqa: D102 - the base says it
        logarithms = _LOG_SCALE_FACTOR * self.log_scale.to(rows.dtype)
        return rows * (-logarithms).exp() + self.mean.to(rows.dtype)


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
        the additive one with 32 units (its code normalises the hidden layers, too). The affine scale of the published
        code, ``sigmoid(s + 2)``, can only shrink and does not start at one; ours is bounded to both sides and does.
    """

    def __init__(self, dimension: int, width: int = 32, kind: Literal["additive", "affine"] = "additive") -> None:
        super().__init__()
        self.affine = kind == "affine"
        self.kept = dimension // 2
        outputs = (dimension - self.kept) * (2 if self.affine else 1)
        sizes = [(width, self.kept), (width, width), (outputs, width)]
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
        output = first
        for index, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            output = linear(relu(output) if index else output, weight.to(first.dtype), bias.to(first.dtype))
        if not self.affine:
            return output, None
        shift, logarithms = output.chunk(2, dim=1)
        return shift, _LARGEST_LOG_SCALE * (logarithms / _LARGEST_LOG_SCALE).tanh()


def _rotation(dimension: int, generator: torch.Generator) -> Tensor:
    """Draw an orthogonal matrix."""
    rotation: Tensor = torch.linalg.qr(torch.randn(dimension, dimension, generator=generator)).Q
    return rotation
