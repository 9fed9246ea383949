"""The race: texts split, every entry made in turn, and looked at on what was held out."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer

from st_plugins.adaptation.race.entries import Entry
from st_plugins.adaptation.race.held_out import HeldOut, Seen, Vectors, kept
from st_plugins.adaptation.race.training import Schedule, train
from st_plugins.compression.choice.candidates import Maps
from st_plugins.core.appending import closed, opened
from st_plugins.core.loss import forked_rng
from st_plugins.core.rows import non_finite_rows
from st_plugins.methods.whitening.fold import dense_of
from st_plugins.methods.whitening.moments import Moments

Array = NDArray[np.floating]

_SHARE, _MOST = 0.2, 500  # of the texts, and how many at most, are held out
_MAPPED = 5000  # texts that a map is fitted on


@dataclass(eq=False)
class Race:
    """One given model, one set of texts, and what each entry makes of them."""

    given: SentenceTransformer
    texts: list[str]
    schedule: Schedule
    batch_size: int = 32  # of encoding
    training: list[str] = field(init=False)
    held: HeldOut = field(init=False)

    def __post_init__(self) -> None:
        generator = torch.Generator().manual_seed(self.schedule.seed)
        order = torch.randperm(len(self.texts), generator=generator).tolist()
        held = held_out_of(len(order))
        self.held = HeldOut.of([self.texts[place] for place in order[:held]], self.given.tokenizer, self.schedule.seed)
        self.training = [self.texts[place] for place in order[held:]]
        self.vectors = self.encoded(self.given)
        self.seen = Seen.of(self.vectors)
        self._maps: Maps | None = None

    def encoded(self, model: SentenceTransformer) -> Vectors:
        """Encode what was held out."""
        return self.held.encoded(lambda texts: self._encode(model, texts))

    def run(self, entry: Entry, on_batch: Callable[[], Any] = lambda: None) -> SentenceTransformer:
        """Make an entry: a copy of the given model, changed."""
        if entry.map:
            return self._mapped(entry)
        return train(self.given, entry, self.training, self.schedule, on_batch)

    def look(self, model: SentenceTransformer) -> dict[str, float]:
        """Measure a model beside the given one on what was held out."""
        vectors = self.encoded(model)
        return measures(self.vectors, self.seen, vectors)

    def _mapped(self, entry: Entry) -> SentenceTransformer:
        texts, head, tail, width = opened(self.given, self.training, 2, "a map", self.schedule.prompt, None)
        if self._maps is None:
            self._maps = Maps(Moments(width).merge(Moments.of(self._encode(head, texts[:_MAPPED]))))
        mean, weight = self._maps.directions(entry.map)
        # Turned back into the space that was given: the similarities are the same, and so is the dimension.
        basis = weight / np.linalg.norm(weight, axis=1, keepdims=True)
        back = basis.T @ weight
        with forked_rng(head.device):  # a new layer draws weights before it gets its own
            layer = dense_of(torch.from_numpy(back), torch.from_numpy(-back @ mean), head.dtype or torch.float32)
        mapped = closed(head, [layer, *tail]).eval()
        mapped.truncate_dim = self.given.truncate_dim  # the map was fitted on whole embeddings
        return mapped

    def _encode(self, model: SentenceTransformer, texts: list[str]) -> Array:
        options: Any = {"batch_size": self.batch_size, "show_progress_bar": False, "prompt": self.schedule.prompt}
        with torch.autocast(model.device.type, torch.bfloat16, enabled=self.schedule.bf16):
            vectors = np.asarray(model.encode(texts, **options), dtype=np.float32)
        if bad := len(non_finite_rows(vectors)):
            remedy = "its weights are damaged, load it anew" if model is self.given else "lower learning_rate"
            raise ValueError(f"the model gives {bad} of {len(texts)} texts embeddings that are not finite; {remedy}")
        return vectors


def drawn(texts: list[str], most: int, seed: int) -> list[str]:
    """Return so many of the texts at most, drawn from all of them: files are often sorted."""
    if len(texts) <= most:
        return texts
    order = torch.randperm(len(texts), generator=torch.Generator().manual_seed(seed))
    return [texts[place] for place in sorted(order[:most].tolist())]


def held_out_of(count: int) -> int:
    """Return how many of so many texts nothing is trained on."""
    return min(int(_SHARE * count), _MOST)


def measures(before: Vectors, seen: Seen, after: Vectors) -> dict[str, float]:
    """Return what changed between two sets of vectors of what was held out."""
    new = Seen.of(after)
    found = {}
    for name in ("copies", "parts"):
        moved = getattr(new, name) - getattr(seen, name)
        if len(moved):
            found[name] = float(moved.mean())
            found[f"{name}_error"] = float(moved.std() / np.sqrt(len(moved)))
            found[f"{name}_given"] = float(getattr(seen, name).mean())
    for name in ("uniformity", "alignment", "alike", "strange", "rank"):
        found[name] = getattr(new, name) - getattr(seen, name)
        found[f"{name}_given"] = getattr(seen, name)
    return found | kept(before, after)


def timed(work: Callable[[], Any]) -> tuple[Any, float]:
    """Return what some work gives, and the seconds that it took."""
    begin = time.perf_counter()
    return work(), time.perf_counter() - begin
