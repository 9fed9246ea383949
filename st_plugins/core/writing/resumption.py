"""Files that callbacks put into checkpoints, found again in the checkpoint that a training is resumed from.

The host tells callbacks neither where it saved nor what it resumes from, and that may be in another folder than the
training's own. So each run has a name, which travels in the trainer's state and beside the file.
"""

from __future__ import annotations

import json
import uuid
from pathlib import Path
from typing import Any

from transformers import TrainerState, TrainingArguments

from st_plugins.core.writing.atomic import write_text
from st_plugins.core.writing.marks import checksum

_RESTORED = "st_plugins_restored"


class Companion:
    """One file in every checkpoint of a run."""

    def __init__(self, file: str, checkpoint: str | Path | None = None) -> None:
        self.file = file
        self.checkpoint = None if checkpoint is None else Path(checkpoint).expanduser()
        self._key = f"st_plugins {file}"  # no callback's class, whose state the host would restore by itself

    def begin(self, args: TrainingArguments, state: TrainerState) -> Path | None:
        """Name the run, at the beginning of the training."""
        states: dict[str, Any] = state.stateful_callbacks or {}  # type: ignore[assignment]
        before = states.get(self._key)
        folder = Path(str(args.output_dir)).resolve()
        states[self._key] = {"run": uuid.uuid4().hex, "folder": str(folder)}
        state.stateful_callbacks = states  # type: ignore[assignment]
        if not state.global_step or not isinstance(before, dict):
            return None
        name = f"checkpoint-{state.global_step}"
        # A file of another run may lie there under the same name: the stamp says whose it is.
        places = [folder / name, Path(str(before.get("folder", ""))) / name]
        for place in places if self.checkpoint is None else [self.checkpoint]:
            if self._stamp(place) == {"run": before.get("run"), "step": state.global_step} | self._content(place):
                return place
        return None

    @staticmethod
    def say_restored(state: TrainerState) -> None:
        """Let other callbacks of this training know that the loss's parameters came back."""
        vars(state)[_RESTORED] = True  # no field of the state, so that it is not saved

    @staticmethod
    def is_restored(state: TrainerState) -> bool:
        """Return whether a callback of this training said so."""
        return bool(vars(state).get(_RESTORED))

    def stamp(self, args: TrainingArguments, state: TrainerState) -> None:
        """Say of the file in the checkpoint just written which run and step it is of."""
        folder = checkpoint_of(args, state)
        states: dict[str, Any] = state.stateful_callbacks or {}  # type: ignore[assignment]
        run = states.get(self._key, {}).get("run")
        write_text(
            folder / f"{self.file}.json",
            json.dumps({"run": run, "step": state.global_step} | self._content(folder)) + "\n",
        )

    def _content(self, folder: Path) -> dict[str, str]:
        file = folder / self.file
        return {"sha256": checksum(file)} if file.is_file() else {}

    def _stamp(self, folder: Path) -> Any:
        file = folder / f"{self.file}.json"
        try:
            return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None
        except ValueError:
            return None


def checkpoint_of(args: TrainingArguments, state: TrainerState) -> Path:
    """Return the folder that the trainer saves this step into."""
    return Path(str(args.output_dir), f"checkpoint-{state.global_step}")
