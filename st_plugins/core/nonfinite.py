"""The error of every training whose loss is no longer a number, and the check of what a training leaves."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

_SHOWN = 5
_BEFORE = (
    "Nothing was updated or saved. If the rows are all of the batch, the weights are damaged: resume from a "
    "checkpoint with a lower learning rate; in fp16, try bf16"
)


class NonFiniteLossError(FloatingPointError, ValueError):
    """A loss, its gradient or what it left is NaN or infinite; raised before an optimizer or a file can take it.

    Every training of this package raises it: those of the losses, and of RE2, of models of label tokens and of
    normalizing flows.

    Args:
        what: What is not finite.
        rows: Positions in the batch of the sentences whose embedding is not finite; empty if all of them are finite,
            or none is known.
        texts: The sentences at these positions, decoded; all sentences of the batch if ``rows`` is empty, and none if
            they are not known.
        step: The optimizer step, counted from 1, where it is known (see `NonFiniteLossCallback`).
        batch: The batch that the loss was trained on, counted from 1, where it is known.
        remedy: What to do.

    Example:
        >>> raise NonFiniteLossError("the loss is nan", [1], ["a dog"], 7)
        Traceback (most recent call last):
        st_plugins.core.nonfinite.NonFiniteLossError: the loss is nan at step 7; the embeddings of rows [1] of the
        batch are not finite: ['a dog']. Nothing was updated or saved...
    """

    def __init__(
        self,
        what: str,
        rows: Sequence[int] = (),
        texts: Sequence[str] = (),
        step: int | None = None,
        batch: int | None = None,
        remedy: str = _BEFORE,
    ) -> None:
        self.rows, self.texts, self.step, self.batch = list(rows), list(texts), step, batch
        when = "" if batch is None else f" in batch {batch}"
        said = self.what = what + (when if step is None else f" at step {step}")
        if rows:
            said += f"; the embeddings of rows {_short(self.rows)} of the batch are not finite: {_short(self.texts)}"
        elif texts:
            said += f"; the batch was: {_short(self.texts)}"
        super().__init__(f"{said}. {remedy}" if remedy else said)


class NonFiniteRowsError(ValueError):
    """A module found rows of a batch that are not finite."""

    def __init__(self, message: str, rows: list[int]) -> None:
        super().__init__(message)
        self.rows = rows


def refuse_damaged_weights(model: nn.Module, step: int | None = None) -> None:
    """Raise an error if a weight is NaN or infinite: a last step may leave such, and no loss sees them any more."""
    weights = {name: weight.detach() for name, weight in model.named_parameters() if weight.is_floating_point()}
    if weights and not torch.stack([weight.isfinite().all() for weight in weights.values()]).all():
        bad = [name for name, weight in weights.items() if not weight.isfinite().all()]
        raise NonFiniteLossError(
            f"the weights {_short(bad)} are no longer finite",
            step=step,
            remedy="Nothing was saved of them: train again, or resume from a checkpoint, with a lower learning rate",
        )


def _short(items: Sequence[int] | Sequence[str]) -> str:
    more = len(items) - _SHOWN
    return f"{list(items[:_SHOWN])}" + (f" and {more} more" if more > 0 else "")
