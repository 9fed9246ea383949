"""The state of a Whitening: statistics and transform in one place, as buffers that no cast reaches."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from typing_extensions import Self

from st_plugins.methods.whitening.moments import Moments
from st_plugins.methods.whitening.transform import Transform

_STATISTICS = ("statistics_mean", "statistics_scatter", "statistics_cubic", "statistics_scalars", "statistics_count")
_TRANSFORM = ("mean", "weight", "eigenvalues", "explained")
_NAMES = (*_STATISTICS, *_TRANSFORM)


class WhiteningState(nn.Module):
    """Statistics of embeddings and the transform that they give, in float64; nothing before the first embedding."""

    statistics_count: Tensor | None
    mean: Tensor | None
    weight: Tensor | None

    def __init__(self, dimension: int, output_dimension: int | None) -> None:
        super().__init__()
        # Buffers are None until there is something to hold, the transform's also while it is to be derived anew.
        self.dimension, self.output_dimension = dimension, output_dimension
        for name in _NAMES:
            self.register_buffer(name, None)
        self.register_load_state_dict_pre_hook(_make_room)
        self.register_load_state_dict_post_hook(_as_float64)

    @property
    def rows(self) -> int:
        """Number of embeddings seen."""
        return 0 if self.statistics_count is None else int(self.statistics_count.item())

    def array(self, name: str) -> NDArray[np.floating]:
        """Return a copy of a buffer."""
        return np.array(getattr(self, name).detach().cpu().numpy())

    def moments(self) -> Moments:
        """Return a copy of the statistics; what is merged into it is to be given back to `set_moments`."""
        if not self.rows:
            return Moments(self.dimension)
        mean, scatter, cubic, scalars, _ = (self.array(name) for name in _STATISTICS)
        quartic, resolution = scalars.tolist()
        return Moments(self.dimension, self.rows, mean, scatter, cubic, quartic, resolution)

    def set_moments(self, moments: Moments) -> None:
        """Take over statistics; the transform is to be derived from them."""
        arrays = (
            moments.mean,
            moments.scatter,
            moments.cubic,
            np.array([moments.quartic, moments.resolution]),
            np.array([moments.count]),
        )
        self._fill(_STATISTICS, arrays)
        for name in _TRANSFORM:
            setattr(self, name, None)

    def set_transform(self, transform: Transform) -> None:
        """Take over a transform."""
        self._fill(_TRANSFORM, (transform.mean, transform.weight, transform.eigenvalues, transform.explained))

    def _fill(self, names: tuple[str, ...], arrays: tuple[NDArray[Any], ...]) -> None:
        device = torch.device("cpu") if self.statistics_count is None else self.statistics_count.device
        with torch.inference_mode(mode=False):  # else no state could be loaded into them later
            for name, array in zip(names, arrays, strict=True):
                setattr(self, name, torch.from_numpy(np.ascontiguousarray(array)).to(device))

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        """Let ``.to``, ``.half`` and the like move the buffers, but not cast them."""
        kept = dict(self.named_buffers())
        if fn(torch.empty(0)).device.type != "mps":  # where float64 does not exist: they stay on the CPU
            super()._apply(fn, recurse)
        for name, buffer in kept.items():
            moved = getattr(self, name)
            setattr(self, name, moved.to(buffer.dtype) if buffer.is_meta else buffer.to(moved.device))
        return self


def misfit(shapes: Mapping[str, tuple[int, ...]], dimension: Any, output_dimension: Any) -> str:
    """Say why tensors of these shapes are no state of a Whitening."""
    held = {name.removeprefix("state."): shape for name, shape in shapes.items()}
    whose = (
        f"the state of a Whitening with embedding_dimension {dimension!r} and output_dimension {output_dimension!r}"
    )
    kept = output_dimension if output_dimension is not None else held.get("weight", (0,))[0]
    transform = {"mean": (dimension,), "weight": (kept, dimension), "eigenvalues": (dimension,), "explained": (kept,)}
    wanted = {
        "statistics_mean": (dimension,),
        "statistics_scatter": (dimension, dimension),
        "statistics_cubic": (dimension,),
        "statistics_scalars": (2,),
        "statistics_count": (1,),
        # A state of one embedding has statistics, but no transform yet.
        **(transform if set(transform) & set(held) else {}),
    }
    for name, shape in wanted.items():
        if name not in held:
            return f"{whose} must be whole, but {name} is missing"
        if held[name] != shape:
            return f"{whose} has {name} of shape {shape}, but here it is {held[name]}"
    unknown = sorted(set(held) - set(wanted))
    return f"{whose} has no {unknown[0]}" if unknown else ""


def _make_room(module: nn.Module, state: dict[str, Any], prefix: str, *unused: Any) -> None:
    """Before ``load_state_dict``: refuse what is no whole state, else have a buffer for each tensor of it."""
    errors: list[str] = unused[-1]
    if not isinstance(module, WhiteningState):
        return
    given = {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
    if not given:
        return
    problem = misfit(
        {name: tuple(tensor.shape) for name, tensor in given.items()}, module.dimension, module.output_dimension
    )
    half = sorted(name for name, tensor in given.items() if tensor.dtype in (torch.float16, torch.bfloat16))
    if not problem and half:
        problem = f"{half[0]} is in half precision, in which statistics are lost; give the state as it was"
    if not problem and not all(bool(tensor.isfinite().all()) for tensor in given.values() if not tensor.is_meta):
        bad = next(name for name, tensor in given.items() if not bool(tensor.isfinite().all()))
        problem = f"the state of a Whitening must be finite, but {bad} holds NaN or infinity"
    # With strict=False, too: half a state would encode without a word.
    if problem:
        errors.append(f"{prefix or 'Whitening'}: {problem}")
        for name in given:
            state[prefix + name] = getattr(module, name)  # nothing changes
        return
    device = torch.device("cpu") if module.statistics_count is None else module.statistics_count.device
    for name in _NAMES:
        tensor = given.get(name)
        kind = torch.int64 if name == "statistics_count" else torch.float64
        setattr(module, name, None if tensor is None else torch.empty(tensor.shape, dtype=kind, device=device))


def _as_float64(module: nn.Module, *unused: Any) -> None:
    """After ``load_state_dict(assign=True)``, whose tensors keep their type."""
    if isinstance(module, WhiteningState):
        for name, buffer in module.named_buffers():
            setattr(module, name, buffer.to(torch.int64 if name == "statistics_count" else torch.float64))
