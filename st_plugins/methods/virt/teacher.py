"""The cross-encoder whose maps are learnt: what it is asked for, and how its answers come layer by layer."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, get_args

import torch
from sentence_transformers import CrossEncoder, SentenceTransformer
from torch import Tensor

from st_plugins.core.attention import LayerAttention, capture_attention
from st_plugins.core.loading.encoder import load_cross_encoder
from st_plugins.core.precision import precise
from st_plugins.methods.virt.inputs import PairInputs, TeacherInput, check_tokenizers, take
from st_plugins.methods.virt.map_cache import MapCache, fingerprint, pair_key
from st_plugins.methods.virt.maps import (
    AttentionTarget,
    Block,
    Distance,
    Heads,
    MapOptions,
    PairAttention,
    Target,
    TargetMaps,
)

logger = logging.getLogger(__name__)

# Is handed the index of a teacher's layer and the maps of that layer.
Consumer = Callable[[int, TargetMaps], None]


class TeacherMaps:
    """A frozen cross-encoder and the layers of it that a student learns from."""

    def __init__(
        self,
        student: SentenceTransformer,
        teacher: CrossEncoder | str | Path,
        layers: Any = "all",
        heads: Heads = "match",
        target: Target = "softmax_slice",
        distance: Distance = "mse",
        include_special_tokens: bool = False,
        cache: str | Path | None = None,
    ) -> None:
        _check_choice("heads", heads, get_args(Heads))
        _check_choice("target", target, get_args(Target))
        _check_choice("distance", distance, get_args(Distance))
        if not isinstance(include_special_tokens, bool):
            raise TypeError(f"include_special_tokens must be True or False, got {include_special_tokens!r}")
        if distance == "kl" and target == "logits":
            raise ValueError("distance='kl' compares distributions, but target='logits' has none; choose 'mse'")
        if isinstance(teacher, str | Path):
            teacher = load_cross_encoder(teacher, str(student.device))
        if not isinstance(teacher, CrossEncoder):
            raise TypeError(f"teacher must be a CrossEncoder or the path of one, got {type(teacher).__name__}")
        for model in (student, teacher):
            with capture_attention(model):
                pass  # raises for models whose attention cannot be captured
        ours, theirs = (_config(model) for model in (student, teacher))
        if heads == "match" and ours.num_attention_heads != theirs.num_attention_heads:
            raise ValueError(
                f"the student has {ours.num_attention_heads} attention heads and the teacher "
                f"{theirs.num_attention_heads}; heads='mean' compares the means over them"
            )
        check_tokenizers(student.tokenizer, teacher.tokenizer)
        # This class is no module, so that the teacher is in nobody's parameters, checkpoints or training mode.
        self.model = teacher
        self.options = MapOptions(heads, target, distance)
        self.depths: tuple[int, int] = (ours.num_hidden_layers, theirs.num_hidden_layers)
        self.layers = map_layers(layers, *self.depths)
        self.inputs = PairInputs(student, teacher, include_special_tokens)
        self._heads = 1 if heads == "mean" else int(theirs.num_attention_heads)
        self._wanted = sorted(set(self.layers.values()))
        self._cache: MapCache | None = None
        self._announced = False
        if cache is not None:
            origin = {"weights": fingerprint(teacher), "config": theirs.to_diff_dict(), "layers": self._wanted}
            options = {"heads": heads, "target": target, "include_special_tokens": include_special_tokens}
            self._cache = MapCache(cache, {**origin, **options})

    @property
    def name(self) -> str:
        """What the teacher was loaded from."""
        return str(_config(self.model).name_or_path)

    def visit(self, pair: TeacherInput, consume: Consumer) -> None:
        """Hand over the wanted layers' maps, from the first layer to the last."""
        if self._cache is None:
            self._run(pair, consume)
        else:
            self._read(self._cache, pair, consume)

    def close(self) -> None:
        """Write what the cache has not yet written."""
        if self._cache is not None:
            self._cache.close()

    def _run(self, pair: TeacherInput, consume: Consumer) -> None:
        gradients = torch.is_grad_enabled()

        def receive(index: int, layer: LayerAttention) -> None:
            if index in self._wanted:
                target = self._target(layer, pair)
                # The student is compared in here, with gradients, so that one layer's maps exist at a time.
                with torch.set_grad_enabled(gradients):
                    consume(index, target)

        # For every batch: who holds the teacher may have set it to training mode, and dropout would be in the maps.
        self.model.eval()
        device = pair.lengths.device
        if self.model.device != device:
            self.model.to(device)
        with torch.no_grad(), capture_attention(self.model, receive):
            self.model(dict(pair.features))

    def _target(self, layer: LayerAttention, pair: TeacherInput) -> AttentionTarget:
        query, key = map(precise, layer[:2])
        first, second = pair.teacher
        attention = PairAttention(
            take(query, first),
            take(key, first),
            take(query, second),
            take(key, second),
            layer.scaling,
            first.lengths,
            second.lengths,
        )
        if self.options.target == "full_row_slice":
            return AttentionTarget(attention, self.options, key, pair.lengths)
        return AttentionTarget(attention, self.options)

    def _read(self, cache: MapCache, pair: TeacherInput, consume: Consumer) -> None:
        """Take maps from the cache after putting in what it lacks, so that every epoch sees the same numbers."""
        ids = pair.features["input_ids"].tolist()
        (starts, lengths), (others, widths) = ((s.starts.tolist(), s.lengths.tolist()) for s in pair.teacher)
        shapes = list(zip(lengths, widths, strict=True))
        keys = [
            pair_key(row[begin : begin + m], row[other : other + n])
            for row, begin, other, (m, n) in zip(ids, starts, others, shapes, strict=True)
        ]
        if any(m and key not in cache for key, (m, _) in zip(keys, shapes, strict=True)):
            self._fill(cache, pair, keys, shapes)
        cells = 2 * len(self._wanted) * self._heads
        flat = [cache.get(key, cells * m * n) if m else None for key, (m, n) in zip(keys, shapes, strict=True)]
        device = pair.lengths.device
        first, second = (span.width for span in pair.teacher)
        for place, layer in enumerate(self._wanted):
            forth = torch.zeros(len(keys), self._heads, first, second, dtype=torch.float16)
            back = torch.zeros(len(keys), self._heads, second, first, dtype=torch.float16)
            for row, (entry, (m, n)) in enumerate(zip(flat, shapes, strict=True)):
                if entry is not None:
                    maps = entry.view(len(self._wanted), 2, self._heads * m * n)[place]
                    forth[row, :, :m, :n] = maps[0].view(-1, m, n)
                    back[row, :, :n, :m] = maps[1].view(-1, n, m)
            consume(layer, _slices(forth.to(device), back.to(device)))

    def _fill(self, cache: MapCache, pair: TeacherInput, keys: list[str], shapes: list[tuple[int, int]]) -> None:
        layers: list[tuple[Tensor, Tensor]] = []
        if not self._announced:
            self._announced = True
            # Two directions, and two bytes a number.
            size = 4 * self._heads * len(self._wanted) * sum(m * n for m, n in shapes) / len(keys)
            logger.warning(
                "The cache of the teacher's maps in %s takes about %.3g kB a pair, %.3g GB for 100,000 pairs like "
                "these.",
                cache.folder,
                size / 1e3,
                size / 1e4,
            )
        with torch.no_grad():
            every = Block(slice(None), pair.teacher[0].width, pair.teacher[1].width, even=False)
            self._run(pair, lambda _, target: layers.append(_half(*target(every))))
        for row, (key, (m, n)) in enumerate(zip(keys, shapes, strict=True)):
            if m:
                parts = [(forth[row, :, :m, :n], back[row, :, :n, :m]) for forth, back in layers]
                cache.put(key, torch.cat([part.flatten() for both in parts for part in both]))


def map_layers(layers: Any, student_depth: int, teacher_depth: int) -> dict[int, int]:
    """Say from which of the teacher's layers each of the student's layers learns."""
    if isinstance(layers, Mapping):
        chosen = {
            _index(own, student_depth, "student"): _index(other, teacher_depth, "teacher")
            for own, other in layers.items()
        }
    elif layers == "all" or (isinstance(layers, Iterable) and not isinstance(layers, str)):
        indices = range(student_depth) if layers == "all" else layers
        # Layer s of L (from 1) learns from ceil(s · L' / L) of the teacher's L': the last one from the last one.
        own = sorted({_index(index, student_depth, "student") for index in indices})
        chosen = {index: -((index + 1) * teacher_depth // -student_depth) - 1 for index in own}
    else:
        raise TypeError(f"layers must be 'all', a list or a mapping of layers, got {layers!r}")
    if not chosen:
        raise ValueError("layers is empty; choose at least one layer, or 'all'")
    return chosen


def _index(index: Any, depth: int, whose: str) -> int:
    try:
        number = int(index)  # JSON makes strings of a mapping's keys
    except (TypeError, ValueError):
        raise TypeError(f"layers must be integers, got {index!r}") from None
    if not -depth <= number < depth:
        raise ValueError(
            f"layers asks for layer {number} of the {whose}, which has {depth}: choose from 0 to {depth - 1}, "
            f"or from -{depth} to -1"
        )
    return number % depth


def _config(model: Any) -> Any:
    return model.transformers_model.config


def _check_choice(name: str, value: Any, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}, got {value!r}")


def _half(forth: Tensor, back: Tensor) -> tuple[Tensor, Tensor]:
    return forth.to("cpu", torch.float16), back.to("cpu", torch.float16)


def _slices(forth: Tensor, back: Tensor) -> TargetMaps:
    def maps(block: Block) -> tuple[Tensor, Tensor]:
        rows, m, n, _ = block
        return forth[rows, :, :m, :n].float(), back[rows, :, :n, :m].float()

    return maps
