"""Fit a flow by maximum likelihood, and stop when held-out rows do not become more likely any more."""

from __future__ import annotations

import copy
import logging
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from st_plugins.modules.flow import Flow

__all__ = ["FlowTraining", "maximise_likelihood"]

logger = logging.getLogger(__name__)

_LARGEST = 1e30  # beyond, float32 parameters cannot hold mean and scale
_INITIAL_ROWS = 4096  # that the data-dependent initialisation looks at
_EVALUATED_ROWS = 8192  # at a time


@dataclass(frozen=True)
class FlowTraining:
    """How to fit.

    Args:
        epochs: Passes over the data, at most.
        batch_size: Rows in a step.
        learning_rate: Of Adam.
        held_out: Share of the rows, from 0 to 1, that is left out of the training to measure the likelihood on. With 0
            nothing is measured, and all epochs are trained.
        patience: Epochs without a better held-out likelihood after which to stop.

    Example:
        >>> FlowTraining(held_out=0.25).split(10)
        (8, 2)
    """

    epochs: int = 30
    batch_size: int = 256
    learning_rate: float = 1e-3
    held_out: float = 0.1
    patience: int = 3

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "patience"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not 0 < self.learning_rate < math.inf:
            raise ValueError(f"learning_rate must be a number above 0, got {self.learning_rate}")
        if not 0 <= self.held_out < 1:
            raise ValueError(f"held_out must be a share of the rows, at least 0 and below 1; got {self.held_out}")

    def split(self, rows: int) -> tuple[int, int]:
        """Return how many rows to train on and how many to hold out.

        Args:
            rows: All there are.

        Returns:
            The two numbers.

        Raises:
            ValueError: Fewer than two are left to train on.
        """
        held = max(1, round(self.held_out * rows)) if self.held_out else 0
        if rows - held < 2:
            raise ValueError(
                f"embeddings has {rows} rows, but a flow needs at least 2 to train on beside the {held} held out; "
                "give more texts"
            )
        return rows - held, held


def maximise_likelihood(
    flow: Flow,
    rows: Tensor,
    training: FlowTraining,
    generator: torch.Generator,
    *,
    resume: bool = False,
    show_progress_bar: bool | None = None,
) -> list[dict[str, float]]:
    """Fit a flow in place, and leave it with the parameters of the best epoch.

    The random numbers are drawn in this order: the held-out rows, the starting point (unless ``resume``), the rows of
    the initialisation, and the order of the rows in each epoch.

    Args:
        flow: The flow.
        rows: Embeddings, ``(N, d)``, finite, on the flow's device, in the type to compute in.
        training: How.
        generator: Where all random numbers come from, on the CPU.
        resume: Whether to go on from the flow's parameters, instead of drawing new ones.
        show_progress_bar: Whether to show a progress bar; None shows one on a terminal.

    Returns:
        One entry for each epoch, that before the training first: ``epoch``, ``training`` and ``held_out``, the last
        two being the mean negative log-likelihood in nats for each dimension (of the epoch's steps as they were
        taken; of the held-out rows after it). What was not measured is left out.

    Raises:
        ValueError: There are too few rows, they are all equal or too large, or the likelihood becomes NaN or infinite.

    Example:
        >>> rows = torch.randn(200, 4, generator=torch.Generator().manual_seed(0)).cumsum(dim=1)
        >>> flow = Flow(4, permutation="learned")
        >>> history = maximise_likelihood(flow, rows, FlowTraining(epochs=2), torch.Generator().manual_seed(0))
        >>> [entry["epoch"] for entry in history], bool(history[2]["held_out"] < history[0]["held_out"])
        ([0, 1, 2], True)
    """
    trained, _ = training.split(len(rows))
    _check_spread(rows)
    order = torch.randperm(len(rows), generator=generator)
    rows_trained, rows_held = rows[order[:trained].to(rows.device)], rows[order[trained:].to(rows.device)]
    if not resume:
        flow.reset(generator)
    flow.initialise(rows_trained[torch.randperm(trained, generator=generator)[:_INITIAL_ROWS].to(rows.device)])
    history = [_measured(flow, rows_held, {"epoch": 0})]
    best, best_epoch = copy.deepcopy(flow.state_dict()), 0
    hidden = None if show_progress_bar is None else not show_progress_bar  # None: tqdm looks for a terminal
    flow.requires_grad_(True)
    try:
        optimizer = torch.optim.Adam(flow.parameters(), lr=training.learning_rate)
        with tqdm(total=training.epochs * trained, desc="Flow", unit="rows", unit_scale=True, disable=hidden) as bar:
            for epoch in range(1, training.epochs + 1):
                mean = _epoch(flow, rows_trained, training.batch_size, optimizer, generator, bar)
                history.append(_measured(flow, rows_held, {"epoch": epoch, "training": mean}))
                entry = history[-1]
                if not all(map(math.isfinite, entry.values())):
                    raise ValueError(
                        f"the likelihood became NaN or infinite in epoch {epoch} with learning_rate="
                        f"{training.learning_rate}; choose a smaller one"
                    )
                bar.set_postfix({name: f"{value:.4f}" for name, value in entry.items() if name != "epoch"})
                if not len(rows_held) or entry["held_out"] < history[best_epoch]["held_out"]:
                    best, best_epoch = copy.deepcopy(flow.state_dict()), epoch
                elif epoch - best_epoch >= training.patience:
                    break
    finally:
        flow.zero_grad()
        flow.requires_grad_(False)
    flow.load_state_dict(best)
    return history


def _check_spread(rows: Tensor) -> None:
    """Refuse rows that are all equal or too large, and warn about dimensions in which they do not vary."""
    low, high = rows.amin(dim=0), rows.amax(dim=0)
    largest = torch.maximum(low.abs(), high.abs())
    if bool((largest > _LARGEST).any()):
        raise ValueError(f"embeddings are as large as {largest.max():.1e}, too large to standardise; rescale them")
    constant = int((high - low <= 64 * torch.finfo(rows.dtype).eps * largest).sum())
    if constant == rows.shape[1]:
        raise ValueError(
            f"the {len(rows)} embeddings fitted on are all equal up to rounding, so there is no distribution to "
            "learn; fit on different texts"
        )
    if constant:
        logger.warning("%d of %d dimensions do not vary in the embeddings; they are only shifted.", constant, len(low))


def _epoch(
    flow: Flow, rows: Tensor, batch_size: int, optimizer: torch.optim.Optimizer, generator: torch.Generator, bar: Any
) -> float:
    """Train on every row once; return the mean negative log-likelihood for each dimension."""
    total = 0.0
    with torch.enable_grad():
        for batch in torch.randperm(len(rows), generator=generator).split(batch_size):
            loss = -flow.log_likelihood(rows[batch.to(rows.device)]).mean() / rows.shape[1]
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item() * len(batch)
            bar.update(len(batch))
    return total / len(rows)


@torch.no_grad()
def _measured(flow: Flow, rows: Tensor, entry: dict[str, float]) -> dict[str, float]:
    """Add the held-out likelihood to an entry of the history, if rows are held out."""
    if len(rows):
        total = sum(flow.log_likelihood(part).double().sum().item() for part in rows.split(_EVALUATED_ROWS))
        entry["held_out"] = -total / rows.numel()
    return entry
