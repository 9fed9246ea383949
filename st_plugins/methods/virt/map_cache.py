"""A teacher's maps on disk, so that later epochs need no teacher."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from st_plugins import __version__
from st_plugins.core.writing.atomic import atomic_file, write_text

logger = logging.getLogger(__name__)

_RECORD = "virt_cache.json"
_SHARD = "maps-{}.safetensors"
_SHARD_BYTES = 64 * 2**20


def fingerprint(model: nn.Module) -> str:
    """Return the SHA-256 of a model's weights: names, types, shapes and numbers."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        # As bytes, because numpy has no bfloat16.
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def pair_key(first: Sequence[int], second: Sequence[int]) -> str:
    """Return the name of a pair of texts."""
    # By token ids, so that what truncation has cut is no part of a pair's name.
    return hashlib.sha256(json.dumps([list(first), list(second)]).encode()).hexdigest()


class MapCache:
    """Flat tensors of half precision in a folder, found by name."""

    def __init__(self, folder: str | Path, origin: dict[str, Any]) -> None:
        self.folder = Path(folder)
        self._new: dict[str, Tensor] = {}
        self._bytes = 0
        self._where: dict[str, Path] = {}
        self._open: dict[Path, Any] = {}
        self._check(origin)
        for path in sorted(self.folder.glob(_SHARD.format("*"))):
            self._where |= dict.fromkeys(self._shard(path).keys(), path)
        # The entries, not the cache: a finalizer that holds the cache itself would keep it alive.
        self._closing = weakref.finalize(self, _write, self.folder, self._new)

    def __len__(self) -> int:
        """Return the number of entries."""
        return len(self._where) + len(self._new)

    def __contains__(self, key: object) -> bool:
        """Tell whether there is an entry of this name."""
        return key in self._where or key in self._new

    def get(self, key: str, size: int | None = None) -> Tensor:
        """Return an entry."""
        if key in self._new:
            return self._new[key]
        path = self._where[key]
        with _damage(path):
            tensor: Tensor = self._shard(path).get_tensor(key)
            if size is not None and tensor.shape != (size,):
                raise OSError(f"an entry has the shape {tuple(tensor.shape)}, not ({size},)")
        return tensor

    def put(self, key: str, tensor: Tensor) -> None:
        """Add an entry, unless there is one of this name."""
        if key in self:
            return
        # Entries wait for a file of some size, which is then written whole or not at all; what a killed process
        # had not written is made again. Several processes may write to one folder.
        self._new[key] = tensor.detach().to("cpu", torch.float16).clone()
        self._bytes += 2 * tensor.numel()
        if self._bytes >= _SHARD_BYTES:
            self.close()

    def close(self) -> None:
        """Write what is not yet written; the cache can be used on."""
        path = _write(self.folder, self._new)
        if path is not None:
            self._where |= dict.fromkeys(self._new, path)
        self._new.clear()
        self._bytes = 0

    def _shard(self, path: Path) -> Any:
        if path not in self._open:
            with _damage(path):
                self._open[path] = safe_open(path, framework="pt")
        return self._open[path]

    def _check(self, origin: dict[str, Any]) -> None:
        record = self.folder / _RECORD
        # As the record will be read: JSON turns tuples into lists, and numbers that are keys into strings.
        wanted = json.loads(json.dumps(origin))
        if self.folder.exists() and not self.folder.is_dir():
            raise ValueError(f"cache {self.folder} is a file; give a new folder")
        if not record.is_file():
            if self.folder.exists() and any(self.folder.iterdir()):
                raise ValueError(
                    f"cache {self.folder} has files but no {_RECORD}: it is no cache of VIRTLoss; give a new folder"
                )
            content = {"library": f"st-plugins {__version__}", "origin": wanted}
            write_text(record, json.dumps(content, indent=2, sort_keys=True) + "\n")
            return
        try:
            found = json.loads(record.read_text(encoding="utf-8"))["origin"]
            differences = sorted(name for name in {*found, *wanted} if found.get(name) != wanted.get(name))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{record} is damaged ({error}); delete the folder {self.folder}") from error
        if differences:
            details = ", ".join(f"{name} {found.get(name)!r} there, {wanted.get(name)!r} here" for name in differences)
            raise ValueError(
                f"cache {self.folder} was made differently ({details}); give another folder, or delete it"
            )


def _write(folder: Path, entries: dict[str, Tensor]) -> Path | None:
    if not entries:
        return None
    # Named by content: processes that write the same entries write the same file.
    path = folder / _SHARD.format(hashlib.sha256("".join(sorted(entries)).encode()).hexdigest()[:16])
    with atomic_file(path) as temporary:
        save_file(entries, temporary)
    return path


@contextlib.contextmanager
def _damage(path: Path) -> Any:
    try:
        yield
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is damaged ({error}); delete this file, its maps are then made again") from error
