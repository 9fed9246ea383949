"""Keep a loss's head with the checkpoints of its training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from st_plugins.losses.head import HeadedLoss

__all__ = ["HeadCheckpointCallback"]


class HeadCheckpointCallback(TrainerCallback):
    """Write a loss's head into every checkpoint, and read it back when a training is resumed.

    The host saves the model, the optimizer and the random state, but no parameters of the loss. Without this a resumed
    training goes on with a new head, and one with ``load_best_model_at_end`` ends with the best model and the last
    head. Deleting old checkpoints deletes their heads too.

    It also clears the head's gradients after each step. sentence-transformers 6.0 clears those of the model only, so
    that a head would sum up the gradients of all steps; later versions clear both themselves.

    Args:
        loss: The loss whose head to keep.

    Example:
        >>> import tempfile
        >>> from st_plugins.data.miniature import untrained_encoder
        >>> from st_plugins.losses import SimCSELoss
        >>> callback = HeadCheckpointCallback(SimCSELoss(untrained_encoder()))
        >>> with tempfile.TemporaryDirectory() as folder:  # SentenceTransformerTrainer(..., callbacks=[callback])
        ...     arguments = TrainingArguments(folder)
        ...     _ = callback.on_save(arguments, TrainerState(global_step=5), TrainerControl())
        ...     sorted(path.name for path in Path(folder, "checkpoint-5").iterdir())
        ['loss_head.json', 'loss_head.safetensors']
    """

    def __init__(self, loss: HeadedLoss) -> None:
        self.loss = loss

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Write the head next to the model just saved."""
        if state.is_world_process_zero:
            self.loss.save_head(_checkpoint(args, state))

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Read the head if the training is a resumed one; a checkpoint without a head is an error."""
        if state.global_step:
            self.loss.load_head(_checkpoint(args, state))

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Bring back the head of the best checkpoint, whose model the trainer has just brought back."""
        if args.load_best_model_at_end and state.best_model_checkpoint:
            self.loss.load_head(state.best_model_checkpoint)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Clear the head's gradients, which belong to the step just made."""
        for parameter in self.loss.head.parameters():
            parameter.grad = None


def _checkpoint(args: TrainingArguments, state: TrainerState) -> Path:
    # The trainer names checkpoints so, and tells callbacks neither where it saved nor what it resumes from.
    return Path(str(args.output_dir), f"checkpoint-{state.global_step}")
