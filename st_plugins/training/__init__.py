"""Callbacks for ``SentenceTransformerTrainer``."""

from __future__ import annotations

from st_plugins.training.head_checkpoint import HeadCheckpointCallback
from st_plugins.training.nan_guard import NonFiniteLossCallback

__all__ = ["HeadCheckpointCallback", "NonFiniteLossCallback"]
