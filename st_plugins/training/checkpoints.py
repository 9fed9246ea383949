"""The folder beside the output in which a training keeps its checkpoints until it has succeeded."""

from __future__ import annotations

import json
import logging
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from st_plugins.atomic import write_text

__all__ = ["BatchOrderCallback", "CheckpointFolder"]

logger = logging.getLogger(__name__)

_SETTINGS = "settings.json"
_LAST_WRITTEN = "trainer_state.json"  # by the host's trainer, so a checkpoint that has it is whole


class CheckpointFolder:
    """``OUTPUT.checkpoints``: what a training needs to go on after a kill.

    Args:
        output: The folder of the finished model.
        settings: What the training depends on, as plain JSON values.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     checkpoints = CheckpointFolder(Path(folder, "model"), {"seed": 0})
        ...     found = checkpoints.open(resume=True, overwrite=False)  # nothing there: a warning, and a fresh start
        ...     checkpoints.path.name, found, [path.name for path in checkpoints.path.iterdir()]
        ('model.checkpoints', None, ['settings.json'])
    """

    def __init__(self, output: Path, settings: Mapping[str, Any]) -> None:
        self.path = output.resolve().with_name(f"{output.resolve().name}.checkpoints")
        self.settings = json.loads(json.dumps(settings))

    def open(self, *, resume: bool, overwrite: bool) -> Path | None:
        """Create the folder, or find in it where to go on.

        Args:
            resume: Whether to go on from the last checkpoint.
            overwrite: Whether checkpoints may be deleted to start anew; without effect on a resumed training.

        Returns:
            The checkpoint to resume from, or None to start from the beginning.

        Raises:
            FileExistsError: There are checkpoints, and neither ``resume`` nor ``overwrite`` is on.
            ValueError: The checkpoints come from a training with other settings; the message names one.
        """
        left = self.path.is_dir() and any(self.path.iterdir())
        if left and not resume and not overwrite:
            raise FileExistsError(
                f"{str(self.path)!r} holds the checkpoints of an unfinished training; go on with it (resume), "
                "or delete it (overwrite)"
            )
        if left and not resume:
            shutil.rmtree(self.path)
        last = self.last() if resume else None
        if last is not None:
            self._compare()
            return last
        if resume:
            logger.warning("There is no checkpoint in %s to resume from; starting from the beginning.", self.path.name)
        self.path.mkdir(parents=True, exist_ok=True)
        write_text(self.path / _SETTINGS, json.dumps(self.settings, indent=1, sort_keys=True) + "\n")
        return None

    def last(self) -> Path | None:
        """Return the latest whole checkpoint, if there is one; those cut short by a kill do not count."""
        found = {}
        for path in self.path.glob("checkpoint-*"):
            step = re.fullmatch(r"checkpoint-(\d+)", path.name)
            if step and _is_json(path / _LAST_WRITTEN):
                found[int(step[1])] = path
        return found[max(found)] if found else None

    def of_step(self, step: int) -> Path:
        """Return the checkpoint of a step.

        Args:
            step: The optimiser step.

        Returns:
            Its folder.
        """
        return self.path / f"checkpoint-{step}"

    def keep_if_useful(self) -> None:
        """After a failure: keep the folder if a training can be resumed from it, delete it otherwise."""
        last = self.last()
        if last is None:
            shutil.rmtree(self.path, ignore_errors=True)
        else:
            logger.warning("Training stopped early. %s is kept: resume goes on from there.", self.path.name)

    def remove(self) -> None:
        """Delete the folder after success."""
        shutil.rmtree(self.path, ignore_errors=True)

    def _compare(self) -> None:
        file = self.path / _SETTINGS
        before = json.loads(file.read_text(encoding="utf-8")) if _is_json(file) else {}
        for name in sorted(before.keys() | self.settings.keys()):
            if before.get(name) != self.settings.get(name):
                raise ValueError(
                    f"{name} was {before.get(name)!r} in the training to be resumed and is "
                    f"{self.settings.get(name)!r} now; give the same again, or start anew (overwrite, without resume)"
                )


class BatchOrderCallback(TrainerCallback):
    """Give a resumed epoch the order of batches that it had.

    accelerate draws the order of an epoch from its number. Where a resumed training skips batches, older releases
    (1.3) pass the number to the wrapper that skips only, and the order is that of the first epoch.
    """

    def on_epoch_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        train_dataloader: Any = None,
        **kwargs: Any,
    ) -> None:
        """Pass the number on to the sampler, before the trainer wraps it."""
        if hasattr(train_dataloader, "set_epoch"):
            train_dataloader.set_epoch(int(state.epoch or 0))


def _is_json(file: Path) -> bool:
    try:
        json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return True
