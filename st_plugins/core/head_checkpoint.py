"""Keep what a loss trains besides the model with the checkpoints of its training."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from st_plugins.core import headed_loss, own_parameters
from st_plugins.core.headed_loss import HeadedLoss
from st_plugins.core.writing.resumption import Companion, checkpoint_of


class HeadCheckpointCallback(TrainerCallback):
    """Write a loss's own parameters into every checkpoint, and read them back when a training is resumed.

    The host saves the model, the optimizer and the random state, but no parameters of the loss. Without this a resumed
    training goes on with a new head, and one with ``load_best_model_at_end`` ends with the best model and the last
    head. Deleting old checkpoints deletes their heads too.

    It takes any loss: those with a head (`HeadedLoss`), the host's (the classifier of ``SoftmaxLoss``), and what wraps
    them (`RDropLoss`). What is read back is of the run and step of the checkpoint that the training is resumed from,
    also if that lies in another folder than the new checkpoints; where it is not found, the training does not start.

    It also clears the gradients of these parameters after each step. sentence-transformers 6.0 clears those of the
    model only, so that a head would sum up the gradients of all steps; later versions clear both themselves.

    Args:
        loss: The loss that is trained.
        resume_from_checkpoint: As given to ``trainer.train``; needed only if the checkpoint was moved, and not
            into the trainer's ``output_dir``.

    Example:
        >>> import tempfile
        >>> from st_plugins.miniature import untrained_encoder
        >>> from st_plugins.losses import SimCSELoss
        >>> callback = HeadCheckpointCallback(SimCSELoss(untrained_encoder()))
        >>> with tempfile.TemporaryDirectory() as folder:  # SentenceTransformerTrainer(..., callbacks=[callback])
        ...     arguments = TrainingArguments(folder)
        ...     _ = callback.on_save(arguments, TrainerState(global_step=5), TrainerControl())
        ...     sorted(path.name for path in Path(folder, "checkpoint-5").iterdir())
        ['loss_head.json', 'loss_head.safetensors', 'loss_head.safetensors.json']
    """

    def __init__(self, loss: nn.Module, resume_from_checkpoint: str | Path | None = None) -> None:
        self.loss = loss
        if isinstance(loss, HeadedLoss):
            file, self._save, self._load = headed_loss.TENSORS, loss.save_head, loss.load_head
        else:
            file = own_parameters.FILE
            self._save, self._load = partial(own_parameters.save_own, loss), partial(own_parameters.load_own, loss)
        self._companion = Companion(file, resume_from_checkpoint)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Write the parameters next to the model just saved."""
        if state.is_world_process_zero:
            self._save(checkpoint_of(args, state))
            self._companion.stamp(args, state)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Read the parameters if the training is a resumed one; a checkpoint without them is an error."""
        folder = self._companion.begin(args, state)
        if folder is not None:
            self._load(folder)
            self._companion.say_restored(state)
        elif state.global_step:
            raise FileNotFoundError(
                f"the parameters of the {type(self.loss).__name__} at step {state.global_step} are not found whole "
                f"({self._companion.file}), neither in {args.output_dir} nor where the checkpoint was written: the "
                "training that wrote it needs HeadCheckpointCallback; for a checkpoint that was moved give "
                "HeadCheckpointCallback its path (resume_from_checkpoint), too"
            )

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Bring back the parameters of the best checkpoint, whose model the trainer has just brought back."""
        if args.load_best_model_at_end and state.best_model_checkpoint:
            self._load(Path(state.best_model_checkpoint))

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Clear their gradients, which belong to the step just made."""
        # sentence-transformers 6.0 clears those of the model only, so that a head would sum up all gradients.
        for tensor in own_parameters.own_state(self.loss).values():
            tensor.grad = None
