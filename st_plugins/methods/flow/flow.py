"""A Glow-style flow on vectors: layers in steps, steps in levels, and the likelihood they give."""

from __future__ import annotations

import math
from typing import Literal, cast, get_args

import torch
from torch import Tensor, nn

from st_plugins.methods.flow.layers import ActNorm, Coupling, FlowLayer, Linear, LULinear, Permutation, varying
from st_plugins.methods.flow.published import PublishedCoupling

PermutationKind = Literal["reverse", "random", "learned", "learned-lu"]
CouplingKind = Literal["additive", "affine"]


class Flow(nn.Module):
    """An invertible map from embeddings u to latents z, under which z should look like standard normal noise."""

    def __init__(
        self,
        dimension: int,
        levels: int = 2,
        depth: int = 3,
        hidden_dimension: int = 32,
        coupling: CouplingKind = "additive",
        permutation: PermutationKind = "random",
        published: bool = False,
    ) -> None:
        super().__init__()
        if depth < 1:
            raise ValueError(f"depth must be at least 1, got {depth}")
        if hidden_dimension < 1:
            raise ValueError(f"hidden_dimension must be at least 1, got {hidden_dimension}")
        if coupling not in get_args(CouplingKind):
            raise ValueError(f"coupling must be one of {get_args(CouplingKind)}, got {coupling!r}")
        if permutation not in get_args(PermutationKind):
            raise ValueError(f"permutation must be one of {get_args(PermutationKind)}, got {permutation!r}")
        # Each level has `depth` steps of three layers. After every level but the last, half of the dimensions leave
        # and are latents as they are (of an odd number the smaller half); the others go on. As in Glow (figure 2), on
        # vectors instead of images, and with a standard normal prior also for what leaves, as in BERT-flow's code.
        self.widths = level_widths(dimension, levels)
        kind = PublishedCoupling if published else Coupling
        self.levels = nn.ModuleList(
            nn.ModuleList(
                layer
                for _ in range(depth)
                for layer in (
                    ActNorm(size, published),
                    _permutation(permutation, size),
                    kind(size, hidden_dimension, coupling),
                )
            )
            for size in self.widths
        )
        self.requires_grad_(False)

    def reset(self, generator: torch.Generator) -> None:
        """Draw the starting point of every layer, and forget the data."""
        for layer in self._layers():
            layer.reset(generator)

    def is_initialized(self) -> bool:
        """Return whether the layers have seen data; that is part of the state, so that it comes with it."""
        return all(bool(layer.initialized) for layer in self._layers() if isinstance(layer, ActNorm))

    @torch.no_grad()
    def initialize(self, rows: Tensor) -> None:
        """Let the `ActNorm` layers normalize these rows, unless they have seen data before."""
        # What varies by rounding only is constant in every layer, also where a level has nothing else to compare with.
        mean, _, varies = varying(rows)
        rows = torch.where(varies.to(rows.device), rows, mean.to(rows))
        self._mapped(rows, initialize=True)

    def forward(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Map embeddings to latents; return them with the log-determinants of the map, ``(rows,)``."""
        return self._mapped(rows)

    def _mapped(self, rows: Tensor, initialize: bool = False) -> tuple[Tensor, Tensor]:
        log_determinants = rows.new_zeros(len(rows))
        latents: list[Tensor] = []
        for layers, kept in zip(self._steps(), [*self.widths[1:], self.widths[-1]], strict=True):
            for layer in layers:
                if initialize:
                    layer.initialize(rows)
                rows, change = layer(rows)
                log_determinants = log_determinants + change
            latents.append(rows[:, kept:])  # of the last level: nothing
            rows = rows[:, :kept]
        return torch.cat([*latents, rows], dim=1), log_determinants

    def inverse(self, latents: Tensor) -> Tensor:
        """Map latents back to embeddings."""
        leaving = [wide - narrow for wide, narrow in zip(self.widths, self.widths[1:], strict=False)]
        rows: Tensor
        *parts, rows = latents.split([*leaving, 0, self.widths[-1]], dim=1)
        for layers, part in zip(reversed(self._steps()), reversed(parts), strict=True):
            rows = torch.cat([rows, part], dim=1)
            for layer in reversed(layers):
                rows = layer.inverse(rows)
        return rows

    def log_likelihood(self, rows: Tensor) -> Tensor:
        """Return ``log N(z; 0, I) + log |det ∂z/∂u|`` in nats."""
        latents, log_determinants = self(rows)
        squares = latents.square().sum(dim=1)
        log_likelihoods: Tensor = log_determinants - 0.5 * (squares + latents.shape[1] * math.log(2 * math.pi))
        return log_likelihoods

    def constant_part(self) -> float:
        """Return what dimensions that do not vary add to the log-determinant of every row."""
        return sum(layer.constant_part().item() for layer in self._layers() if isinstance(layer, ActNorm))

    def _layers(self) -> list[FlowLayer]:
        return [layer for layers in self._steps() for layer in layers]

    def _steps(self) -> list[list[FlowLayer]]:
        return [cast("list[FlowLayer]", list(level.children())) for level in self.levels]  # torch does not type them


def level_widths(dimension: int, levels: int) -> list[int]:
    """Return how many dimensions take part in each level."""
    if levels < 1:
        raise ValueError(f"levels must be at least 1, got {levels}")
    widths = [dimension]
    while len(widths) < levels and widths[-1] > 1:
        widths.append((widths[-1] + 1) // 2)
    if widths[-1] < 2:
        raise ValueError(
            f"a coupling needs 2 dimensions, but with levels={levels} level {len(widths)} would have 1 of "
            f"{dimension}; choose levels <= {max(len(widths) - 1, 1)} and a width of 2 at least"
        )
    return widths


def _permutation(kind: PermutationKind, dimension: int) -> FlowLayer:
    if kind == "learned":
        return Linear(dimension)
    if kind == "learned-lu":
        return LULinear(dimension)
    return Permutation(dimension, random=kind == "random")
