"""What the published BERT-flow does in its own way: the networks of its couplings, and its optimizer."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, relu

from st_plugins.methods.flow.layers import LOG_SCALE_FACTOR, ActNorm, Coupling


class PublishedCoupling(Coupling):
    """`Coupling` with the network of the published code."""

    # ``conv_stack`` of flow/glow_ops_1x1.py in the authors' code: a hidden layer has no bias and is normalized before
    # its ReLU; the last one has a scale, (W h + b) · exp(3 · log_scale).
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

    def initialize(self, rows: Tensor) -> None:
        """Let the hidden layers normalize what these rows give them."""
        self._output(rows[:, : self.kept], initialize=True)

    def _output(self, first: Tensor, initialize: bool = False) -> Tensor:
        output = first
        for weight, norm in zip(self.weights, self._norms(), strict=False):
            output = linear(output, weight.to(first.dtype))
            if initialize:
                norm.initialize(output)
            output = relu(norm(output)[0])
        output = linear(output, self.weights[2].to(first.dtype), self.bias.to(first.dtype))
        return output * (LOG_SCALE_FACTOR * self.log_scale.to(first.dtype)).exp()

    def _norms(self) -> list[ActNorm]:
        return [norm for norm in self.norms if isinstance(norm, ActNorm)]


class PublishedAdam(torch.optim.Optimizer):
    """Adam as BERT's own code has it: the moments are not corrected for starting at zero, and decay is decoupled."""

    def __init__(self, params: Iterable[nn.Parameter], lr: float = 1e-3) -> None:
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """Take a step."""
        # ``AdamWeightDecayOptimizer`` of optimization_bert_flow.py there. Without the correction the first steps are
        # about three times as large. All parameters are decayed: the code spares "bias" and "LayerNorm", which no flow
        # has.
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
