"""Models of pairs of texts."""

from __future__ import annotations

from st_plugins.matching.pair_loss import VIRTPairLoss
from st_plugins.matching.virt_pair import VIRTPairClassifier

__all__ = ["VIRTPairClassifier", "VIRTPairLoss"]
