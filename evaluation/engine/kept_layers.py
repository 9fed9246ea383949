"""The lower layers of an encoder, frozen: what they make of a text is computed once and kept."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from torch import Tensor, nn

_BLOCK = 2048  # texts in a file: a run that is stopped loses no more


class LowerLayers:
    """The embeddings and the lowest layers of an encoder, and their float16 outputs by the tokens of a text."""

    def __init__(self, encoder: Any, layers: int, folder: Path | None = None) -> None:
        self.encoder, self.folder = copy.deepcopy(encoder), folder
        self.encoder.encoder.layer = self.encoder.encoder.layer[:layers]
        self.encoder.config.num_hidden_layers = layers
        # They do not change, so there is no dropout either: a text has one output, which may be kept.
        self.encoder.eval().requires_grad_(False)
        self.padding = int(encoder.config.pad_token_id or 0)
        self.states: dict[bytes, Tensor] = {}
        self._new: list[tuple[Tensor, Tensor]] = []
        for file in sorted(folder.glob("*.safetensors")) if folder else ():
            block = load_file(file)
            parts = (block[name].split(block["lengths"].tolist()) for name in ("ids", "states"))
            self.states |= {_key(ids): states for ids, states in zip(*parts, strict=True)}

    def __deepcopy__(self, memo: Any) -> LowerLayers:
        # Copies of a model share what was computed, which is larger than any model.
        return self

    def outputs(self, ids: Tensor) -> Tensor:
        """Return the outputs ``(texts, tokens, d)`` for padded token ids, computing those that are not known yet."""
        rows = [row[row != self.padding].cpu().int() for row in ids]
        keys = [_key(row) for row in rows]
        missing = [place for place, key in enumerate(keys) if key not in self.states]
        if missing:
            longest = max(len(rows[place]) for place in missing)
            part = ids[missing, :longest] if bool((ids[missing, 0] != self.padding).all()) else ids[missing]
            attended = part != self.padding
            with torch.no_grad():
                found = self.encoder(input_ids=part, attention_mask=attended.long()).last_hidden_state
            for place, states, counted in zip(missing, found, attended, strict=True):
                self.states[keys[place]] = states[counted].half().cpu()
                self._new.append((rows[place], self.states[keys[place]]))
            if len(self._new) >= _BLOCK:
                self.write()
        result = torch.zeros(*ids.shape, self.states[keys[0]].shape[1], device=ids.device)
        result[ids != self.padding] = _joined([self.states[key] for key in keys]).to(result)
        return result

    def write(self) -> None:
        """Write what is new to the folder, if there is one."""
        if self.folder and self._new:
            self.folder.mkdir(parents=True, exist_ok=True)
            ids, states = (_joined(parts) for parts in zip(*self._new, strict=True))
            lengths = torch.tensor([len(row) for row, _ in self._new])
            # Named by what is in it: processes that run side by side do not meet.
            name = hashlib.sha256(ids.numpy().tobytes()).hexdigest()[:16]
            save_file({"ids": ids, "lengths": lengths, "states": states}, self.folder / f"{name}.part")
            (self.folder / f"{name}.part").rename(self.folder / f"{name}.safetensors")
        self._new = []


def _joined(parts: Sequence[Tensor]) -> Tensor:
    with torch.autocast(parts[0].device.type, enabled=False):  # which knows no float16 on a CPU
        return torch.cat(list(parts))


def _key(ids: Tensor) -> bytes:
    return hashlib.blake2b(ids.numpy().astype(np.int32).tobytes(), digest_size=16).digest()


class KeptEmbeddings(nn.Module):
    """What takes the place of an encoder's embeddings: the outputs of layers below, which it does not train."""

    def __init__(self, below: LowerLayers) -> None:
        super().__init__()
        self.below = below

    def forward(self, input_ids: Tensor, **_: Any) -> Tensor:
        """Return the outputs of the layers below ``(texts, tokens, d)``."""
        return self.below.outputs(input_ids)


def freeze_below(model: SentenceTransformer, layers: int, folder: Path | None = None) -> LowerLayers:
    """Let a model keep its lowest layers and what they put out; only the others are left in it.

    The encoder is one like BERT or MPNet, whose ``embeddings`` come before ``encoder.layer``.
    """
    transformer: Any = model[0]
    encoder = transformer.model
    if not 0 < layers < len(encoder.encoder.layer):
        raise ValueError(f"layers={layers} must leave some of the encoder's {len(encoder.encoder.layer)} layers")
    below = LowerLayers(encoder, layers, folder)
    encoder.embeddings = KeptEmbeddings(below)
    encoder.encoder.layer = encoder.encoder.layer[layers:]
    encoder.config.num_hidden_layers -= layers
    return below
