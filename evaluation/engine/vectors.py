"""Embeddings that are computed once and kept: each distinct text of a study goes through an encoder one time."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file
from sentence_transformers import SentenceTransformer
from tqdm.auto import tqdm

from st_plugins.core.encoding import encode_longest_first

_BLOCK = 2048  # texts encoded before they are written: a run that is stopped loses no more


class KeptVectors:
    """The embeddings of one model, in a folder of safetensors files, found by the hash of their text."""

    def __init__(self, folder: Path, batch_size: int = 64) -> None:
        self.folder, self.batch_size = folder, batch_size
        self.place: dict[bytes, tuple[int, int]] = {}
        self.blocks: list[NDArray[np.float32]] = []
        for file in sorted(folder.glob("*.safetensors")):
            self._add(load_file(file))

    def _add(self, block: dict[str, NDArray[Any]]) -> None:
        for row, key in enumerate(block["keys"]):
            self.place.setdefault(key.tobytes(), (len(self.blocks), row))
        self.blocks.append(block["vectors"])

    def encode(self, model: SentenceTransformer, texts: Sequence[str], title: str = "Encoding") -> NDArray[np.float32]:
        """Return the embeddings ``(texts, d)``, encoding what has not been encoded before."""
        missing = [text for text in dict.fromkeys(texts) if _key(text) not in self.place]
        # By length, so that little is padded within a block; the order is not kept, the texts' hashes are.
        missing.sort(key=len, reverse=True)
        self.folder.mkdir(parents=True, exist_ok=True)
        for start in tqdm(range(0, len(missing), _BLOCK), desc=title, unit="blocks", disable=not missing):
            block = missing[start : start + _BLOCK]
            vectors = encode_longest_first(
                model, block, [len(text) for text in block], batch_size=self.batch_size, show_progress_bar=False
            )
            found: dict[str, NDArray[Any]] = {
                "keys": np.stack([np.frombuffer(_key(text), np.uint8) for text in block]),
                "vectors": vectors,
            }
            # Named by what is in it: processes that run side by side do not meet.
            name = hashlib.sha256(found["keys"].tobytes()).hexdigest()[:16]
            save_file(found, self.folder / f"{name}.part")
            (self.folder / f"{name}.part").rename(self.folder / f"{name}.safetensors")
            self._add(found)
        places = [self.place[_key(text)] for text in texts]
        return np.stack([self.blocks[block][row] for block, row in places])


def _key(text: str) -> bytes:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()
