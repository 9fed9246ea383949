"""The folder beside the output in which a training keeps its checkpoints until it has succeeded."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any, BinaryIO

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from st_plugins.core.writing import marks
from st_plugins.core.writing.atomic import folder_target, write_text
from st_plugins.core.writing.neighbors import lock

logger = logging.getLogger(__name__)

_SETTINGS = "settings.json"
_STATE = "trainer_state.json"  # of the host's trainer
_SCORES = "eval/sts_suite_results.csv"  # which the host has STSSuiteEvaluator write
_PACKAGES = ("st-plugins", "sentence-transformers", "transformers", "torch")


class CheckpointFolder:
    """``OUTPUT.checkpoints``: what a training needs to go on after a kill."""

    # Everything in it that a training wrote carries a mark (see `marks`); only that is resumed from, and only that is
    # ever deleted. While a training is at work no other one can use the folder.
    def __init__(self, output: Path, settings: Mapping[str, Any]) -> None:
        beside = output.expanduser().resolve()
        self.path = beside.with_name(f"{beside.name}.checkpoints").resolve()
        self.settings = json.loads(json.dumps(settings))
        self._run = hashlib.sha256(json.dumps(self.settings, sort_keys=True).encode()).hexdigest()
        self._held: BinaryIO | None = None

    def open(self, *, resume: bool, overwrite: bool) -> Path | None:
        """Create the folder, or find in it where to go on."""
        self.check(resume=resume, overwrite=overwrite)
        if not self._is_there():
            with folder_target(self.path, name="the folder of the checkpoints").write() as folder:
                self._write_settings(folder)
        self._hold()
        try:
            start = None
            if resume:
                if self._found():
                    self._compare()
                start = self.last()
                if start is None:
                    logger.warning(
                        "There is no checkpoint in %s to resume from; starting from the beginning.", self.path.name
                    )
            if start is None:
                for path in self._found().values():
                    _remove(path)
                self._write_settings(self.path)
            return start
        except BaseException:
            self._release()
            raise

    def check(self, *, resume: bool, overwrite: bool) -> None:
        """Look whether the folder can be used, before anything is loaded; it is left as it is."""
        if not self._is_there():
            return
        if not self.path.is_dir() or marks.about(self.path) is None:
            raise FileExistsError(
                f"{str(self.path)!r} is in the way of the checkpoints, and no training of st-plugins made it; move it "
                "away, or choose another output (--output)"
            )
        if not resume and not overwrite:
            raise FileExistsError(
                f"{str(self.path)!r} holds the checkpoints of an unfinished training; go on with it (resume, "
                "--resume), or delete it (overwrite, --overwrite)"
            )

    def _is_there(self) -> bool:
        return self.path.exists() and (not self.path.is_dir() or any(self.path.iterdir()))

    def _write_settings(self, folder: Path) -> None:
        content = {"settings": self.settings, "versions": _versions()}
        write_text(folder / _SETTINGS, json.dumps(content, indent=1, sort_keys=True) + "\n")

    def _found(self) -> dict[int, Path]:
        """Return the folders of checkpoints that a training wrote or began to write, by step."""
        found = {}
        for path in self.path.glob("checkpoint-*"):
            step = re.fullmatch(r"checkpoint-(\d+)", path.name)
            if step and not path.is_symlink() and (marks.about(path) or {}).get("step") == int(step[1]):
                found[int(step[1])] = path
        return found

    def last(self) -> Path | None:
        """Return the latest whole checkpoint of this training, if there is one."""
        # Those that were cut short by a kill, or whose files have changed since, do not count.
        for step, path in sorted(self._found().items(), reverse=True):
            if marks.about(path) == self._about(step):
                damaged = next((one for one in (path, self._best(path)) if not marks.intact(one)), None)
                if damaged is None:
                    return path
                needs = "" if damaged == path else f", which {path.name} needs,"
                logger.warning(
                    "%s%s is damaged or missing; training goes on from an earlier one.", damaged.name, needs
                )
        return None

    def _best(self, path: Path) -> Path:
        """Return the checkpoint that is the best so far, for what was trained up to the given one."""
        try:
            step = json.loads((path / _STATE).read_text(encoding="utf-8"))["best_global_step"]
        except (OSError, ValueError, KeyError):
            return path
        return self.of_step(step) if step else path

    def of_step(self, step: int) -> Path:
        """Return the checkpoint of a step."""
        return self.path / f"checkpoint-{step}"

    @contextlib.contextmanager
    def writing(self, step: int, keep: int | None = None) -> Iterator[Path]:
        """Give the folder of a new checkpoint to fill; it counts when the block ends without an exception."""
        self.begin(step)
        yield self.of_step(step)
        self.finish(step, keep)

    def begin(self, step: int) -> None:
        """Make the folder of a checkpoint, marked as unfinished."""
        path = self.of_step(step)
        if path.is_dir() and not path.is_symlink():
            _remove(path)
        if os.path.lexists(path):
            raise FileExistsError(
                f"{str(path)!r} is in the way of a checkpoint, and holds what no training of st-plugins wrote; move "
                "it away, and go on with the training (resume, --resume)"
            )
        path.mkdir()
        marks.mark(path, step=step, run=self._run, unfinished=True)

    def finish(self, step: int, keep: int | None = None) -> None:
        """Mark a checkpoint as whole, and delete older ones."""
        marks.mark(self.of_step(step), **self._about(step))
        found = self._found()
        others = sorted(found.keys() - {step})
        kept = keep if keep in others else max(others, default=step)
        for other in others:
            if other != kept:
                _remove(found[other])

    def _about(self, step: int) -> dict[str, Any]:
        return {"step": step, "run": self._run}

    def keep_if_useful(self) -> None:
        """After a failure: keep the folder if a training can be resumed from it, delete it otherwise."""
        if self.last() is None:
            self.remove()
        else:
            self._release()
            logger.warning("Training stopped early. %s is kept: resume goes on from there.", self.path.name)

    def remove(self) -> None:
        """Delete what the training wrote, after success, and the folder if nothing else is in it."""
        for path in self._found().values():
            _remove(path)
        for name in (_SCORES, _SETTINGS):
            (self.path / name).unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            (self.path / _SCORES).parent.rmdir()
        marks.remove(self.path)
        self._release()
        if self.path.exists():
            logger.warning("%s holds files that the training did not write; they are left.", self.path.name)

    def _hold(self) -> None:
        self._held = (self.path / marks.MARK).open("rb")
        if lock(self._held) is False:
            self._release()
            raise FileExistsError(
                f"another process is training into {str(self.path)!r}; wait for it, or choose another output "
                "(--output)"
            )

    def _release(self) -> None:
        if self._held is not None:
            self._held.close()
            self._held = None

    def _compare(self) -> None:
        try:
            content = json.loads((self.path / _SETTINGS).read_text(encoding="utf-8"))
            before, versions = content["settings"], content["versions"]
        except (OSError, ValueError, KeyError, TypeError):
            before, versions = {}, {}
        for name in sorted(before.keys() | self.settings.keys()):
            if before.get(name) != self.settings.get(name):
                raise ValueError(
                    f"the checkpoints in {self.path.name} belong to another training: {name} was {before.get(name)!r} "
                    f"there and is {self.settings.get(name)!r} now; give the same again, or start anew (overwrite, "
                    "without resume)"
                )
        for name, version in _versions().items():
            if versions.get(name) != version:
                logger.warning(
                    "The training to be resumed was begun with %s %s, and this is %s; it may go on differently.",
                    name,
                    versions.get(name),
                    version,
                )


class CheckpointCallback(TrainerCallback):
    """Mark the checkpoints that the host's trainer writes into a `CheckpointFolder`, and delete old ones."""

    # The trainer needs save_total_limit=None: it would delete everything that is called like a checkpoint. Callbacks
    # that write into checkpoints come before this one.
    def __init__(self, folder: CheckpointFolder) -> None:
        self.folder = folder

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Mark the place of the checkpoint that is to follow."""
        if control.should_save and state.is_world_process_zero:
            self.folder.begin(state.global_step)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Mark the checkpoint as whole."""
        if state.is_world_process_zero:
            self.folder.finish(state.global_step, state.best_global_step)


class BatchOrderCallback(TrainerCallback):
    """Give a resumed epoch the order of batches that it had."""

    def on_epoch_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        train_dataloader: Any = None,
        **kwargs: Any,
    ) -> None:
        """Pass the number on to the sampler, before the trainer wraps it."""
        # accelerate draws the order of an epoch from its number. Where a resumed training skips batches, older
        # releases (1.3) pass the number to the wrapper that skips only, and the order is that of the first epoch.
        if hasattr(train_dataloader, "set_epoch"):
            train_dataloader.set_epoch(int(state.epoch or 0))


def _remove(checkpoint: Path) -> None:
    """Delete a checkpoint, but no file that was put into a finished one."""
    if (marks.about(checkpoint) or {}).get("unfinished"):
        shutil.rmtree(checkpoint)
    else:
        marks.remove(checkpoint)


def _versions() -> dict[str, str]:
    found = {}
    for name in _PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found
