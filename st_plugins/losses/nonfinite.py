"""The error that stops a training whose loss is no longer a number."""

from __future__ import annotations

__all__ = ["NonFiniteLossError"]

_SHOWN = 5


class NonFiniteLossError(FloatingPointError):
    """The loss, or its gradient, is NaN or infinite; raised before the optimizer or a checkpoint can take it.

    Args:
        what: What is not finite.
        rows: Positions in the batch of the sentences whose embedding is not finite; empty if all of them are finite.
        texts: The sentences at these positions, decoded; all sentences of the batch if ``rows`` is empty.
        step: The optimizer step, counted from 1, where it is known (see `NonFiniteLossCallback`).

    Example:
        >>> raise NonFiniteLossError("the loss is nan", [1], ["a dog"], 7)
        Traceback (most recent call last):
        st_plugins.losses.nonfinite.NonFiniteLossError: the loss is nan at step 7; the embeddings of rows [1] of the
        batch are not finite: ['a dog']. Nothing was updated or saved...
    """

    def __init__(self, what: str, rows: list[int], texts: list[str], step: int | None = None) -> None:
        self.rows, self.texts, self.step = rows, texts, step
        when = "" if step is None else f" at step {step}"
        blame = f"the embeddings of rows {_short(rows)} of the batch are not finite" if rows else "the batch was"
        super().__init__(
            f"{what}{when}; {blame}: {_short(texts)}. Nothing was updated or saved. If the rows are all of the batch, "
            "the weights are damaged: resume from a checkpoint with a lower learning rate; in fp16, try bf16"
        )


def _short(items: list[int] | list[str]) -> str:
    more = len(items) - _SHOWN
    return f"{items[:_SHOWN]}" + (f" and {more} more" if more > 0 else "")
