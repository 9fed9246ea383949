"""Stop a training before NaN reaches the weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from st_plugins.core.loss import GuardedLoss
from st_plugins.core.nonfinite import NonFiniteLossError, refuse_damaged_weights
from st_plugins.core.own_parameters import own_state
from st_plugins.core.writing.resumption import Companion


class NonFiniteLossCallback(TrainerCallback):
    """Tell the loss the step, for its error, and check the gradients before they are used.

    The losses of this package raise `NonFiniteLossError` with the texts to blame as soon as their value is NaN or
    infinite, with this callback or without; with it the error says at which step of the trainer, otherwise in which
    batch of the loss. It is also raised, with the texts of the latest batch, when the loss is finite but its gradient
    is not: otherwise the update would make the weights NaN, and the next checkpoint would be worthless. Before a step
    is saved, and after the last one, the weights are looked at too. With ``fp16=True`` gradients are left to the
    scaler, which skips such steps.

    A resumed training whose loss has parameters of its own stops before its first step if they did not come back with
    `HeadCheckpointCallback`: they would start anew, while the optimizer goes on with what it knew of the old ones.

    Args:
        loss: The loss that is trained; any loss, also one of the host, or around one of ours.

    Example:
        >>> from st_plugins.miniature import corpus, untrained_encoder
        >>> from st_plugins.losses import ConSERTLoss
        >>> model = untrained_encoder().train()
        >>> loss = ConSERTLoss(model)
        >>> callback = NonFiniteLossCallback(loss)  # SentenceTransformerTrainer(..., callbacks=[callback])
        >>> state = TrainerState(global_step=6)
        >>> _ = callback.on_step_begin(TrainingArguments("unused"), state, TrainerControl())
        >>> loss.training_step
        7
    """

    def __init__(self, loss: nn.Module) -> None:
        self.loss = loss
        self._guarded = [part for part in loss.modules() if isinstance(part, GuardedLoss)]
        self._resumed = False

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Notice that the training is a resumed one."""
        self._resumed = state.global_step > 0

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Tell the loss the number of the step; before the first one of a resumed training, look at its parameters."""
        if self._resumed and not Companion.is_restored(state) and (own := own_state(self.loss)):
            raise ValueError(
                f"the training is resumed, but {sorted(own)} of the {type(self.loss).__name__} would start anew; give "
                "HeadCheckpointCallback(loss) to the trainer, in the first run too"
            )
        self._resumed = False
        for loss in self._guarded:
            loss.training_step = state.global_step + 1

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Check the gradients of the model and of the loss's own parameters."""
        # The scaler of fp16 skips such steps itself, and its gradients are not finite now and then.
        if args.fp16:
            return
        # The norm of all gradients is not finite if one number in them is not, and waits for the device once.
        gradients = [p.grad for p in self.loss.parameters() if p.grad is not None]
        if gradients and not torch.isfinite(torch.nn.utils.get_total_norm(gradients)):
            what = "the gradient is not finite"
            raise (
                self._guarded[0].non_finite(what)
                if self._guarded
                else NonFiniteLossError(what, step=state.global_step + 1)
            )

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Check the weights before they are saved, or the training ends with them."""
        # No loss sees the weights that the last step leaves.
        if control.should_save or control.should_training_stop or state.global_step >= state.max_steps:
            refuse_damaged_weights(self.loss, state.global_step)

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Check the weights where an epoch's end is saved."""
        self.on_step_end(args, state, control)
