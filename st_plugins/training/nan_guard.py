"""Stop a training before NaN reaches the weights."""

from __future__ import annotations

from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from st_plugins.losses.embedding import ViewLoss

__all__ = ["NonFiniteLossCallback"]


class NonFiniteLossCallback(TrainerCallback):
    """Tell the loss the step, for its error, and check the gradients before they are used.

    The losses of this package raise `NonFiniteLossError` with the texts to blame as soon as their value is NaN or
    infinite; with this callback the error says at which step. It is also raised, with the texts of the latest batch,
    when the loss is finite but its gradient is not: otherwise the update would make the weights NaN, and the next
    checkpoint would be worthless. With ``fp16=True`` gradients are left to the scaler, which skips such steps.

    Args:
        loss: The loss that is trained.

    Example:
        >>> from st_plugins.data.miniature import corpus, untrained_encoder
        >>> from st_plugins.losses import ConSERTLoss
        >>> model = untrained_encoder().train()
        >>> loss = ConSERTLoss(model)
        >>> callback = NonFiniteLossCallback(loss)  # SentenceTransformerTrainer(..., callbacks=[callback])
        >>> state = TrainerState(global_step=6)
        >>> _ = callback.on_step_begin(TrainingArguments("unused"), state, TrainerControl())
        >>> loss.training_step
        7
    """

    def __init__(self, loss: ViewLoss) -> None:
        self.loss = loss

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Tell the loss the number of the step."""
        self.loss.training_step = state.global_step + 1

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Check the gradients of the model and of the loss's own parameters."""
        if args.fp16:
            return
        gradients = [p.grad for p in self.loss.parameters() if p.grad is not None]
        if gradients and not torch.isfinite(torch.nn.utils.get_total_norm(gradients)):
            raise self.loss.non_finite("the gradient is not finite")
