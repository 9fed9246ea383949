"""Training from a list of texts to a model folder, and callbacks for ``SentenceTransformerTrainer``."""

from __future__ import annotations

from st_plugins.core.head_checkpoint import HeadCheckpointCallback
from st_plugins.core.nan_guard import NonFiniteLossCallback
from st_plugins.methods.contrastive.train_consert import train_consert
from st_plugins.methods.contrastive.train_result import TrainingResult

__all__ = ["HeadCheckpointCallback", "NonFiniteLossCallback", "TrainingResult", "train_consert"]
