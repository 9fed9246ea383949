"""The host's trainer, small and quiet, for the tests of the losses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from datasets import Dataset
from sentence_transformers import SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from transformers import TrainerCallback


def host_trainer(loss: Any, data: Dataset, folder: Path, *callbacks: TrainerCallback, **arguments: Any) -> Any:
    settings = {
        "max_steps": 4,
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-3,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        **arguments,
    }
    return SentenceTransformerTrainer(
        model=loss.model,
        args=SentenceTransformerTrainingArguments(str(folder), **settings),
        train_dataset=data,
        eval_dataset=data if "eval_strategy" in settings else None,
        loss=loss,
        callbacks=list(callbacks),
    )


def logged(run: Any, key: str) -> list[float]:
    return [entry[key] for entry in run.state.log_history if key in entry]
