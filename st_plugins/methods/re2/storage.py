"""RE2 matchers on disk: JSON, safetensors, and a folder for the source of their vectors."""

from __future__ import annotations

import copy
import json
import logging
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import nn

from st_plugins import __version__
from st_plugins.core.loading.files import is_there, read_object, read_tensors, shapes
from st_plugins.core.loading.sizes import check_sizes
from st_plugins.methods.re2.config import RE2Config, RE2Schedule
from st_plugins.methods.re2.embedding import LearnedEmbedding, TransformerTokens, WordVectors
from st_plugins.methods.re2.layers import fold_weight_norm
from st_plugins.methods.re2.network import RE2

__all__ = ["SOURCES", "Source", "StoredMatcher", "read_weights", "write"]

logger = logging.getLogger(__name__)

Source = LearnedEmbedding | TransformerTokens | WordVectors
SOURCES: dict[str, Any] = {kind.__name__: kind for kind in (LearnedEmbedding, TransformerTokens, WordVectors)}
_TYPE, _RECORD, _TENSORS, _SOURCE = "RE2Matcher", "matcher.json", "matcher.safetensors", "source"
_KEYS = ("config", "labels", "schedule", "source")


def write(
    folder: Path,
    network: nn.Module,
    source: Source,
    config: RE2Config,
    schedule: RE2Schedule,
    labels: list[str] | None,
    trained: dict[str, Any] | None,
) -> None:
    """Write a matcher's parts."""
    (folder / _SOURCE).mkdir()
    source.save(folder / _SOURCE)
    plain = fold_weight_norm(copy.deepcopy(network))
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in plain.state_dict().items()}
    save_file(state, folder / _TENSORS)
    record = {
        "library": f"st-plugins {__version__}",
        "type": _TYPE,
        "source": type(source).__name__,
        "config": config.to_dict(),
        "schedule": schedule.to_dict(),
        "labels": labels,
        "trained": trained,
    }
    (folder / _RECORD).write_text(json.dumps(record, indent=2, sort_keys=True) + "\n", encoding="utf-8")


class StoredMatcher:
    """What a folder says about its matcher, without the network's weights."""

    def __init__(self, folder: Path) -> None:
        for name in (_RECORD, _TENSORS, _SOURCE):
            if not (folder / name).is_dir() and not is_there(folder / name):
                raise FileNotFoundError(f"{folder} has no {name}; give a folder that RE2Matcher.save wrote")
        self.path, self.tensors = folder / _RECORD, folder / _TENSORS
        record = read_object(self.path)
        if record.get("type") != _TYPE:
            raise ValueError(f"{self.path} is of a {record.get('type')!r}, not of an {_TYPE}")
        unknown = sorted(set(record) - {"library", "type", "trained", *_KEYS})
        if unknown:
            logger.warning("Ignoring %s in %s: written by a newer version?", unknown, self.path)
        try:
            kind = SOURCES[record["source"]]
            self.config = RE2Config.from_dict(record["config"])
            self.schedule = RE2Schedule.from_dict(record["schedule"])
            self.labels: list[str] | None = record["labels"]
            self.trained: dict[str, Any] | None = record.get("trained")
            if not isinstance(self.labels, list | None):
                raise TypeError(f"labels must be a list of names or null, got {self.labels!r}")
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{self.path} does not describe an {_TYPE}: {error!r}") from error
        self.source = kind.load(folder / _SOURCE)

    def check_sizes(self) -> None:
        """Compare what the folder says of the network with its tensors, before memory is asked for."""
        labels = 1 if self.labels is None else len(self.labels)
        check_sizes(
            "RE2",
            {**self.config.to_dict(), "num_labels": labels},
            shapes(self.tensors),
            str(self.path),
            lambda: fold_weight_norm(RE2(self.config, self.source.width, labels)),
            _TENSORS,
        )


def read_weights(network: nn.Module, file: Path) -> None:
    """Read the weights of a network, in place; its weight normalisation is folded, as the stored one is."""
    try:
        fold_weight_norm(network).load_state_dict(read_tensors(file))
    except RuntimeError as error:
        raise ValueError(f"{file} does not fit the network: {error}") from error
