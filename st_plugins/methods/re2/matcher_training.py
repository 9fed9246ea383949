"""What is told of a training of an RE2 matcher."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from st_plugins.core.pair_metrics import Accuracy
from st_plugins.core.writing.checkpoints import CheckpointFolder


@dataclass(frozen=True)
class MatcherTraining:
    """What a training of a matcher did.

    Args:
        pairs: Number of pairs trained on.
        dev_pairs: Number of pairs that the weights were chosen on; 0 if none was chosen.
        steps: Optimizer steps made.
        step: The step whose weights the matcher has now.
        metric: What the weights were judged by.
        score: The highest value of it on the development pairs; None without any.
        accuracy: Share of the development pairs that these weights judge right, ``value`` with its 95 % interval from
            ``low`` to ``high``, and the share ``majority`` of the most frequent class; None without any, and for a
            ``metric`` of scores or ranks.
        history: What the trainer logged: losses, learning rates, and scores on the development pairs.
        checkpoints: The folder of the checkpoints, if there were any; see `remove_checkpoints`.
        source: Where the pairs come from.
        checksum: Of the pairs.

    Example:
        >>> MatcherTraining(120, 0, 30, 30, "accuracy", None, None, [], None).summary()
        'trained on 120 pairs, 30 steps; no development pairs, the last step is kept'
    """

    pairs: int
    dev_pairs: int
    steps: int
    step: int
    metric: str
    score: float | None
    accuracy: Accuracy | None
    history: list[dict[str, Any]]
    checkpoints: Path | None
    source: str = ""
    checksum: str = ""

    def summary(self) -> str:
        """Say in words what was done."""
        if self.score is None:
            return (
                f"trained on {self.pairs:,} pairs, {self.steps:,} steps; no development pairs, the last step is kept"
            )
        accuracy = "" if self.accuracy is None else f": accuracy {self.accuracy}"
        return (
            f"trained on {self.pairs:,} pairs; step {self.step:,} of {self.steps:,} is kept, the one with the highest "
            f"{self.metric} ({self.score:.4f}) on {self.dev_pairs:,} development pairs{accuracy}. They took part in "
            "this choice, so scores on them flatter the model"
        )

    def record(self) -> dict[str, Any]:
        """Return what belongs to a saved matcher, as plain JSON values: all but history and checkpoints."""
        return {name: value for name, value in asdict(self).items() if name not in ("history", "checkpoints")}

    def remove_checkpoints(self) -> None:
        """Delete the checkpoints, to be called once the matcher is saved; without any nothing is done."""
        if self.checkpoints is not None:
            folder = CheckpointFolder(self.checkpoints, {})
            folder.path = self.checkpoints  # also if it is the target of a link
            folder.remove()
