"""How many batches there is time for."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from st_plugins.adaptation.race.entries import Entry

LEAST_BATCHES = 10  # a training of fewer says nothing about its way
# Seconds of a batch, in those of ConSERT's: the anchor embeds it once more, TSDAE restores every word.
_COSTS = {"TSDAE": 2.0, "found pairs": 0.8}
_ANCHORED = 1.2
_SLACK = 1.15


def cost(entry: Entry) -> float:
    """Return what a batch of an entry takes, in batches of ConSERT; 0 for a map."""
    if entry.map:
        return 0.0
    return _COSTS.get(entry.loss, 1.0) * (_ANCHORED if entry.anchored else 1.0)


@dataclass
class Budget:
    """Seconds for a race, and what has been spent of them, in earlier runs too."""

    seconds: float
    spent: float = 0.0
    _begun: float = field(default_factory=time.monotonic)

    @property
    def used(self) -> float:
        """Seconds spent up to now."""
        return self.spent + time.monotonic() - self._begun

    @property
    def left(self) -> float:
        """Seconds left; below 0 when it is overdrawn."""
        return self.seconds - self.used


def plan(
    entries: Sequence[Entry], batches: int, budget: Budget, per_batch: float, per_look: float
) -> tuple[int, dict[str, float]]:
    """Return the batches of each training, and the seconds of each entry that there is time for."""
    # With too little time for all, first the trainings are made shorter, then the last of the entries are left out.
    kept = list(entries)
    while kept:
        looks = per_look * len(kept)
        batch = per_batch * sum(map(cost, kept))
        room = budget.left / _SLACK - looks
        count = batches if batch == 0 or room >= batches * batch else int(room / batch)
        if count >= min(batches, LEAST_BATCHES) and looks <= budget.left:
            return count, {entry.name: count * per_batch * cost(entry) + per_look for entry in kept}
        kept.pop()
    return 0, {}
