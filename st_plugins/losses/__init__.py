"""Losses for ``SentenceTransformerTrainer`` and ``SentenceTransformer.fit``."""

from __future__ import annotations

from st_plugins.losses.consert import ConSERTLoss, nt_xent
from st_plugins.losses.consert_joint import ConSERTJointLoss
from st_plugins.losses.nonfinite import NonFiniteLossError
from st_plugins.losses.self_explaining import SelfExplainingLoss, SpanSharpnessRegularizer
from st_plugins.losses.simcse import SimCSELoss, simcse_loss

__all__ = [
    "ConSERTJointLoss",
    "ConSERTLoss",
    "NonFiniteLossError",
    "SelfExplainingLoss",
    "SimCSELoss",
    "SpanSharpnessRegularizer",
    "nt_xent",
    "simcse_loss",
]
