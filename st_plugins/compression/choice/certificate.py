"""From what unlabeled texts show to what users will lose: an estimate, and a bound that holds 19 times out of 20."""

from __future__ import annotations

from dataclasses import dataclass

from st_plugins.compression.choice.fidelity import Measured

# Points of Spearman lost against the loss of rank correlation L in percent, on the dev cells of the study (see
# evaluation/studies/compression): _SCALE · L ** _POWER is in the middle of them; 19 of 20 lie below _ABOVE times that,
# plus _BASE, which is what noise in the ranks of a task's pairs can do. Where the model's own similarities were given
# up, more hangs on directions of little variance.
_SCALE, _POWER, _ABOVE, _BASE = 0.05, 1.5, 2.0, 0.15
_CHANGED_SCALE, _CHANGED_POWER, _CHANGED_ABOVE, _CHANGED_BASE = 0.4, 1.0, 2.5, 0.5
# Of the neighbors that are lost here, so many times are lost on texts of another kind, at most.
_NEIGHBORS_LOST, _NEIGHBORS_BASE = 1.3, 0.02
# Between copies half as much is lost as among neighbors, where the texts are of several kinds.
_COPIES = 2.0
_SURE = 1.645  # standard errors above which a normal variable lies in one case of 20


@dataclass(frozen=True)
class Certificate:
    """What smaller vectors cost, said before anybody has measured it.

    It holds for texts like those that the way was chosen on. Give texts of all kinds that the model will see: chosen
    on captions alone, and measured on other texts, vectors lost several times what had been estimated.

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
    def of(cls, measured: Measured, *, changed: bool = False) -> Certificate:
        """Return what follows from what was measured on unlabeled texts.

        Args:
            measured: What was kept of the similarities on texts that the way was not fitted on.
            changed: Whether these are no longer the model's own.

        Returns:
            The certificate.
        """
        scale, power, above, base = (
            (_CHANGED_SCALE, _CHANGED_POWER, _CHANGED_ABOVE, _CHANGED_BASE)
            if changed
            else (_SCALE, _POWER, _ABOVE, _BASE)
        )
        # Copies are of no kind that a map was fitted on: where they lose more than those of mixed texts do, the texts
        # are of one kind, and others will lose more than they do.
        lost = max(measured.loss, _COPIES * measured.copies, 0.0)  # rounding goes below 0
        sure = lost + _SURE * measured.loss_error
        fewest = measured.neighbors - _SURE * measured.neighbors_error
        return cls(
            loss=scale * (100 * lost) ** power,
            loss_bound=above * scale * (100 * sure) ** power + base,
            neighbors=measured.neighbors,
            neighbors_bound=max(0.0, 1 - _NEIGHBORS_LOST * (1 - fewest) - _NEIGHBORS_BASE),
        )
