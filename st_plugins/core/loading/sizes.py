"""Sizes that a configuration names, against the tensors that are really there, before memory is asked for."""

from __future__ import annotations

import math
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import (
    register_module_module_registration_hook,
    register_module_parameter_registration_hook,
)
from transformers import AutoConfig, AutoModel

from st_plugins.core.loading.files import Shapes

_SIZE = re.compile(
    r"(?:.*_)?(?:dimensions?|width|levels|depth|layers|blocks|hidden|features|channels|hidden_dim|num_labels|"
    r"kernel_sizes|stride_sizes|max_width|max_length|max_seq_length|max_span_length|dimension)"
)
_SWITCHES = ("parallel_blocks",)
_LOOP = re.compile(r".*(?:layer|level|depth|block|expert)")  # each unit of these is a Python object
_MODEL_SIZE = re.compile(
    r"(?:vocab|hidden|intermediate|embedding|type_vocab|expert|moe_intermediate)_size|num_.*_(?:layers|heads)|d_model|"
    r"d_ff|d_kv|n_(?:embd|layers?|heads?|positions|ctx|inner)|(?:num_)?(?:layers|heads|hidden_layers)|dim|"
    r"max_position_embeddings"
)
# The configuration classes of transformers make a Python object of each of these, before there is a model.
_OBJECTS = re.compile(r"(?:.*_)?(?:n_layer|layers|experts|blocks|stages|levels|depth|num_labels)")
_MOST_LAYERS, _MOST_OBJECTS, _MOST_LABELS = 256, 512, 1 << 12
# A model may have parts that its file has not (a decoder, a pooler), but not many times the file.
_MOST_TIMES, _MOST_MORE = 4, 1 << 22
_MOST_POSITIONS = 1 << 24
_MOST_PARTS = 1 << 12
_NUMBER = re.compile(r"\.\d+\.")


def check_whole(values: Mapping[str, Any], where: str) -> None:
    """Check that sizes are whole numbers, 0 or more, whatever else they may be."""
    for key, value in values.items():
        for size in value if isinstance(value, list) else [value]:
            named = _SIZE.fullmatch(key) and key not in _SWITCHES and size is not None
            if named and (type(size) is not int or size < 0):
                raise ValueError(f"{where} has {key}: {value!r}, which must be a whole number that is not negative")


def check_sizes(
    kind: str,
    values: Mapping[str, Any],
    shapes: Shapes,
    where: str,
    build: Callable[[], nn.Module],
    tensors: str = "model.safetensors",
) -> None:
    """Check a module's configuration against the shapes in its file, without memory for either."""
    check_whole(values, where)
    said = ", ".join(f"{key} {value!r}" for key, value in values.items() if _SIZE.fullmatch(key)) or "no sizes"
    # Before anything is built: also on the device `meta` each layer is a Python object.
    for key, value in values.items():
        if _LOOP.match(key) and type(value) is int and value > max(_MOST_LAYERS, len(shapes)):
            raise ValueError(f"{where} describes a {kind} with {key} {value}, but its file has {len(shapes)} tensors")
    try:
        with torch.device("meta"):
            expected = {name: tuple(tensor.shape) for name, tensor in build().state_dict().items()}
    except (RuntimeError, TypeError, ValueError, OverflowError, ZeroDivisionError) as error:
        raise ValueError(f"{where} does not describe a {kind}: {error} ({said})") from error
    wrong = sorted(name for name in {*expected, *shapes} if expected.get(name) != shapes.get(name))
    if wrong:
        name = wrong[0]
        raise ValueError(
            f"{Path(where).with_name(tensors)} does not fit {where}: a {kind} with {said} has {name} of shape "
            f"{expected.get(name)}, but the file has {shapes.get(name)}; copy or download the model again"
        )


def check_model_sizes(folder: Path, config: Mapping[str, Any], shapes: Shapes, named: Path) -> None:
    """Check the ``config.json`` of a model of transformers against the shapes in its files."""
    flat = _flat(config)
    sizes = {key: value for key, value in flat.items() if _MODEL_SIZE.fullmatch(key.rpartition(".")[2])}
    said = ", ".join(f"{key} {value!r}" for key, value in sizes.items())
    largest = max((size for shape in shapes.values() for size in shape), default=0)
    for key, value in flat.items():
        last, least, most = key.rpartition(".")[2], -math.inf, math.inf
        if key in sizes and value is not None and not isinstance(value, list):
            least = 0 if re.search("type_vocab|layer|dim$|d_kv|moe|expert|embedding|inner", key) else 1
            most = _MOST_TIMES**4 * max(_MOST_LAYERS, largest)
            if "max_position" in key or "n_positions" in key or "n_ctx" in key:
                least, most = -1, max(largest, _MOST_POSITIONS)  # -1: XLNet's "no limit"
        elif type(value) is not int:
            continue
        if _OBJECTS.fullmatch(last):
            most = max(largest, _MOST_LABELS) if last == "num_labels" else _MOST_OBJECTS
        if type(value) is not int or not least <= value <= most:
            raise ValueError(
                f"{named} has {key}: {value!r}, which is no size of it (the largest in its file is {largest}); "
                "copy or download it again"
            )
    held = sum(math.prod(shape) for shape in shapes.values())
    try:
        loaded = AutoConfig.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
        with _at_most(_MOST_TIMES * held + _MOST_MORE, _MOST_TIMES * len(shapes) + _MOST_PARTS), torch.device("meta"):
            model = AutoModel.from_config(loaded, trust_remote_code=False)
    except Exception as error:
        text = str(error).replace(str(folder), str(named.parent))
        raise ValueError(f"{named} does not describe a model that can be built ({said}): {text}") from error
    missing = _missing_from_a_layer([name for name, _ in model.named_parameters()], shapes, model.base_model_prefix)
    if missing:
        raise ValueError(
            f"{named} describes a model with {missing} ({said}), but its weights have that of other layers only; the "
            "missing ones would be random: copy or download the model again"
        )


@contextmanager
def _at_most(numbers: int, parts: int) -> Iterator[None]:
    """Stop a model from being built, by a ValueError, when it has more numbers or more parts than these."""
    builder, seen = threading.get_ident(), [0, 0]

    def count(module: nn.Module, name: str, part: nn.Module | nn.Parameter | None) -> None:
        if part is None or threading.get_ident() != builder:
            return
        seen[0] += part.numel() if isinstance(part, nn.Parameter) else 0
        seen[1] += 1
        if seen[0] > numbers or seen[1] > parts:
            raise ValueError(
                f"it has more than {numbers:,} numbers or {parts:,} parts, many times what is in its weights; copy or "
                "download the model again"
            )

    # On the device `meta` tensors cost nothing, but each part is an object: a configuration of a few bytes could ask
    # for millions. The hooks are of the whole process, so other threads are left alone.
    hooks = [register_module_parameter_registration_hook(count), register_module_module_registration_hook(count)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _missing_from_a_layer(wanted: list[str], held: Shapes, prefix: str) -> str | None:
    """Return a parameter that the files have for other layers, but not for its own."""
    # What a file has under no number may have another name there, or be left out on purpose (a pooler, a decoder).
    given = {name.removeprefix(f"{prefix}.") for name in held}
    elsewhere = {_NUMBER.sub(".#.", name) for name in given}
    return next((n for n in wanted if n not in given and "#" in (t := _NUMBER.sub(".#.", n)) and t in elsewhere), None)


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return a configuration with the nested ones' keys in it, as ``outer.inner``."""
    found: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            found |= _flat(value, f"{prefix}{key}.")
        else:
            found[prefix + key] = value
    return found
