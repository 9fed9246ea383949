"""From what unlabeled texts show to what users will lose: an estimate, and a bound that holds 19 times out of 20."""

from __future__ import annotations

from dataclasses import dataclass

from st_plugins.compression.choice.fidelity import Measured

# Points of Spearman lost against the loss of rank correlation L in percent, on the dev cells of the study (see
# evaluation/studies/compression): the middle of them follows _SCALE · L ** _POWER, and 19 of 20 lie below _ABOVE times
# that, plus _BASE, which is what the rounding of a task's own ranks can do.
_SCALE, _POWER, _ABOVE, _BASE = 0.03, 1.5, 3.0, 0.1
# Neighbors are fewer on texts of another kind: of the share that is lost here so many times is lost there, at most.
_NEIGHBORS_LOST = 1.5
_SURE = 1.645  # standard errors above which a normal variable lies in one case of 20


@dataclass(frozen=True)
class Certificate:
    """What smaller vectors cost, said before anybody has measured it.

    Args:
        loss: Estimated loss of Spearman's correlation with people's scores, in points (times 100).
        loss_bound: What the loss is not above, in 19 of 20 cases.
        neighbors: Estimated share of the ten nearest neighbors that stay the same.
        neighbors_bound: What that share is not below, in 19 of 20 cases.

    Example:
        >>> from st_plugins.compression.choice.fidelity import Measured
        >>> promised = Certificate.of(Measured(0.01, 0.0005, 0.85, 0.005))
        >>> 0 < promised.loss < promised.loss_bound, promised.neighbors_bound < promised.neighbors
        (True, True)
    """

    loss: float
    loss_bound: float
    neighbors: float
    neighbors_bound: float

    @classmethod
    def of(cls, measured: Measured) -> Certificate:
        """Return what follows from what was measured on unlabeled texts."""
        sure = measured.loss + _SURE * measured.loss_error
        fewest = measured.neighbors - _SURE * measured.neighbors_error
        return cls(
            loss=_SCALE * (100 * measured.loss) ** _POWER,
            loss_bound=_ABOVE * _SCALE * (100 * sure) ** _POWER + _BASE,
            neighbors=measured.neighbors,
            neighbors_bound=max(0.0, 1 - _NEIGHBORS_LOST * (1 - fewest)),
        )
