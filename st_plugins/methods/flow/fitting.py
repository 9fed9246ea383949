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
from typing_extensions import Self

from st_plugins.core.nonfinite import NonFiniteLossError
from st_plugins.methods.flow.flow import Flow
from st_plugins.methods.flow.layers import ActNorm
from st_plugins.methods.flow.published import PublishedAdam

logger = logging.getLogger(__name__)

_LARGEST = 1e30  # beyond, float32 parameters cannot hold mean and scale
_INITIAL_ROWS = 4096  # that the data-dependent initialization looks at
_PUBLISHED_INITIAL_ROWS = 32
_EVALUATED_ROWS = 8192  # at a time


@dataclass(frozen=True)
class FlowTraining:
    """How to fit."""

    epochs: int = 30
    batch_size: int = 256
    learning_rate: float = 1e-3
    held_out: float = 0.1
    patience: int = 3
    published: bool = False

    @classmethod
    def as_published(cls) -> Self:
        """Return the training of the published code on the texts of a task: one epoch, 32 pairs of texts a step."""
        return cls(epochs=1, batch_size=64, learning_rate=1e-3, held_out=0.0, published=True)

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "patience"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not 0 < self.learning_rate < math.inf:
            raise ValueError(f"learning_rate must be a number above 0, got {self.learning_rate}")
        if not 0 <= self.held_out < 1:
            raise ValueError(f"held_out must be a share of the rows, at least 0 and below 1; got {self.held_out}")

    def split(self, rows: int) -> tuple[int, int]:
        """Return how many rows to train on and how many to hold out."""
        held = max(1, round(self.held_out * rows)) if self.held_out else 0
        if rows - held < 2:
            raise ValueError(
                f"embeddings has {rows} rows, but a flow needs at least 2 to train on beside the {held} held out; "
                "give more texts"
            )
        return rows - held, held


def maximize_likelihood(
    flow: Flow,
    rows: Tensor,
    training: FlowTraining,
    generator: torch.Generator,
    *,
    resume: bool = False,
    show_progress_bar: bool | None = None,
) -> tuple[list[dict[str, float]], bool]:
    """Fit a flow in place, and leave it with the parameters of the best epoch."""
    # Random numbers are drawn in this order: the held-out rows, the starting point (unless resumed), the rows of the
    # initialization, and the order of the rows in each epoch.
    trained, _ = training.split(len(rows))
    _check_spread(rows)
    order = torch.randperm(len(rows), generator=generator)
    rows_trained, rows_held = rows[order[:trained].to(rows.device)], rows[order[trained:].to(rows.device)]
    if not resume:
        flow.reset(generator)
    initial = _PUBLISHED_INITIAL_ROWS if training.published else _INITIAL_ROWS
    flow.initialize(rows_trained[torch.randperm(trained, generator=generator)[:initial].to(rows.device)])
    measured = rows_held if len(rows_held) else rows_trained
    start, first = _measured(flow, measured)
    # In the history, of each epoch: the mean of its steps as they were taken, and of the held-out rows after it; in
    # nats for each dimension.
    history: list[dict[str, float]] = [{"epoch": 0, "held_out": first} if len(rows_held) else {"epoch": 0}]
    _check_finite({"epoch": 0, "": first}, training)
    best, best_epoch, lowest = copy.deepcopy(flow.state_dict()), 0, start
    hidden = None if show_progress_bar is None else not show_progress_bar  # None: tqdm looks for a terminal
    flow.requires_grad_(True)
    try:
        kind = PublishedAdam if training.published else torch.optim.Adam
        optimizer = kind(flow.parameters(), lr=training.learning_rate)
        with tqdm(total=training.epochs * trained, desc="Flow", unit="rows", unit_scale=True, disable=hidden) as bar:
            for epoch in range(1, training.epochs + 1):
                mean = _epoch(flow, rows_trained, training, optimizer, generator, bar)
                history.append({"epoch": epoch, "training": mean})
                if len(rows_held) or epoch == training.epochs:
                    judged, value = _measured(flow, measured)
                    _check_finite({"epoch": epoch, "": value}, training)
                if len(rows_held):
                    history[-1]["held_out"] = value
                _check_finite(history[-1], training)
                bar.set_postfix({name: f"{value:.4f}" for name, value in history[-1].items() if name != "epoch"})
                if len(rows_held) and judged < lowest:
                    best, best_epoch, lowest = copy.deepcopy(flow.state_dict()), epoch, judged
                elif len(rows_held) and epoch - best_epoch >= training.patience:
                    break
    finally:
        flow.zero_grad()
        flow.requires_grad_(False)
    if len(rows_held):
        flow.load_state_dict(best)
    else:
        lowest = judged
    # Asked without the scales of dimensions that do not vary, which can always be made larger.
    if lowest >= start:
        logger.warning(
            "The flow never became better than it was before the fit (negative log-likelihood %.4f, then %.4f): "
            "fitting it was of no use. Choose a smaller learning_rate than %g, or give more texts.",
            start,
            judged,
            training.learning_rate,
        )
    return history, lowest < start


def _check_finite(entry: dict[str, float], training: FlowTraining) -> None:
    if not all(map(math.isfinite, entry.values())):
        raise NonFiniteLossError(
            f"the likelihood became NaN or infinite in epoch {entry['epoch']} with learning_rate="
            f"{training.learning_rate}; choose a smaller one",
            remedy="",
        )


def _check_spread(rows: Tensor) -> None:
    """Refuse rows that are all equal or too large, and warn about dimensions in which they do not vary."""
    low, high = rows.amin(dim=0), rows.amax(dim=0)
    largest = torch.maximum(low.abs(), high.abs())
    if bool((largest > _LARGEST).any()):
        raise ValueError(f"embeddings are as large as {largest.max():.1e}, too large to standardize; rescale them")
    spread = high - low
    given, kept = 64 * torch.finfo(rows.dtype).eps, 64 * torch.finfo(torch.float32).eps  # of rows and parameters
    constant = int(((spread <= given * largest) | (spread <= kept * spread.max())).sum())
    if constant == rows.shape[1]:
        raise ValueError(
            f"the {len(rows)} embeddings fitted on are all equal up to rounding, so there is no distribution to "
            "learn; fit on different texts"
        )
    if constant:
        logger.warning("%d of %d dimensions do not vary in the embeddings; they stay near 0.", constant, len(low))


def _epoch(
    flow: Flow,
    rows: Tensor,
    training: FlowTraining,
    optimizer: torch.optim.Optimizer,
    generator: torch.Generator,
    bar: Any,
) -> float:
    """Train on every row once; return the mean negative log-likelihood for each dimension."""
    total, seen = 0.0, 0
    norms = [layer for layer in flow.modules() if isinstance(layer, ActNorm)]
    batches = torch.randperm(len(rows), generator=generator).split(training.batch_size)
    if training.published and len(batches[-1]) < training.batch_size:
        batches = batches[:-1] or batches
    with torch.enable_grad():
        for batch in batches:
            loss = -flow.log_likelihood(rows[batch.to(rows.device)]).mean() / rows.shape[1]
            optimizer.zero_grad()
            # In bits, for the first texts of the pairs and again for the second: only clipping notices.
            (loss * (2 / math.log(2)) if training.published else loss).backward()
            if training.published:
                torch.nn.utils.clip_grad_norm_(flow.parameters(), 1.0)
            optimizer.step()
            for norm in norms:
                norm.hold_constant()
            total, seen = total + loss.item() * len(batch), seen + len(batch)
            bar.update(len(batch))
    return total / seen


@torch.no_grad()
def _measured(flow: Flow, rows: Tensor) -> tuple[float, float]:
    """Return the mean negative log-likelihood for each dimension: without those that do not vary, and as it is."""
    total = sum(flow.log_likelihood(part).double().sum().item() for part in rows.split(_EVALUATED_ROWS))
    value = -total / rows.numel()
    return value + flow.constant_part() / rows.shape[1], value
