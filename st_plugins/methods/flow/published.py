"""What the published BERT-flow does in its own way: the networks of its couplings, and its optimiser."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, relu

from st_plugins.methods.flow.layers import LOG_SCALE_FACTOR, ActNorm, Coupling

__all__ = ["PublishedAdam", "PublishedCoupling"]


class PublishedCoupling(Coupling):
    """`Coupling` with the network of the published code.

    A hidden layer has no bias, is drawn with standard deviation 0.05, and is normalised by an `ActNorm` before its
    ReLU. The last layer starts at zero and has a bias and a scale: ``(W h + b) · exp(3 · log_scale)``.

    Args:
        dimension: Width d of the rows, at least 2.
        width: Units in each hidden layer.
        kind: As for `Coupling`; the published experiments have ``"additive"`` ones only.

    Example:
        >>> layer, rows = PublishedCoupling(4, width=8), torch.randn(32, 4, generator=torch.Generator().manual_seed(0))
        >>> layer.reset(torch.Generator().manual_seed(0))
        >>> layer.initialise(rows)
        >>> bool(layer(rows)[0].equal(rows)), bool(layer.norms[1].initialised)
        (True, True)

    Reference:
        ``conv_stack`` of ``flow/glow_ops_1x1.py`` in the authors' code (bohanli/BERT-flow).
    """

    def _build(self, sizes: list[tuple[int, int]]) -> None:
        self.weights = nn.ParameterList(torch.zeros(size) for size in sizes)
        self.norms = nn.ModuleList(ActNorm(size[0], published=True) for size in sizes[:2])
        self.bias = nn.Parameter(torch.zeros(sizes[2][0]))
        self.log_scale = nn.Parameter(torch.zeros(sizes[2][0]))

    def reset(self, generator: torch.Generator) -> None:  # noqa: D102 - the base says it
        with torch.no_grad():
            for weight in list(self.weights)[:2]:
                weight.copy_(0.05 * torch.randn(weight.shape, generator=generator))
            for tensor in (self.weights[2], self.bias, self.log_scale):
                tensor.zero_()
        for norm in self._norms():
            norm.reset(generator)

    def initialise(self, rows: Tensor) -> None:
        """Let the hidden layers normalise what these rows give them.

        Args:
            rows: ``(rows, d)``.
        """
        self._output(rows[:, : self.kept], initialise=True)

    def _output(self, first: Tensor, initialise: bool = False) -> Tensor:
        output = first
        for weight, norm in zip(self.weights, self._norms(), strict=False):
            output = linear(output, weight.to(first.dtype))
            if initialise:
                norm.initialise(output)
            output = relu(norm(output)[0])
        output = linear(output, self.weights[2].to(first.dtype), self.bias.to(first.dtype))
        return output * (LOG_SCALE_FACTOR * self.log_scale.to(first.dtype)).exp()

    def _norms(self) -> list[ActNorm]:
        return [norm for norm in self.norms if isinstance(norm, ActNorm)]


class PublishedAdam(torch.optim.Optimizer):
    """Adam as BERT's own code has it: the moments are not corrected for starting at zero, and decay is decoupled.

    ``m ← 0.9 m + 0.1 g``, ``v ← 0.999 v + 0.001 g²``, ``p ← p - rate · (m / (√v + 1e-6) + 0.01 p)``. Without the
    correction the first steps are about three times as large. All parameters of a flow are decayed: the code spares
    those named "bias" and "LayerNorm", and a flow has none.

    Args:
        params: The parameters.
        lr: The rate, constant.

    Example:
        >>> parameter = torch.nn.Parameter(torch.tensor([1.0]))
        >>> parameter.grad = torch.tensor([0.5])
        >>> PublishedAdam([parameter], lr=0.1).step()
        >>> round(parameter.item(), 4)  # 1 - 0.1 · (0.1 · 0.5 / (0.001 · 0.25) ** 0.5 + 0.01), but for 1e-6
        0.6828

    Reference:
        ``AdamWeightDecayOptimizer`` of ``optimization_bert_flow.py`` in the authors' code (bohanli/BERT-flow).
    """

    def __init__(self, params: Iterable[nn.Parameter], lr: float = 1e-3) -> None:
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """Take a step.

        Args:
            closure: Not used.
        """
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state["mean"], state["square"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
                mean = state["mean"].mul_(0.9).add_(parameter.grad, alpha=0.1)
                square = state["square"].mul_(0.999).addcmul_(parameter.grad, parameter.grad, value=0.001)
                parameter.sub_(group["lr"] * (mean / (square.sqrt() + 1e-6) + 0.01 * parameter))
