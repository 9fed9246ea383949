"""What a result must say about the model, to be repeatable and comparable with another one."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from sentence_transformers import SentenceTransformer

from st_plugins.core.identity import modules_of, plain
from st_plugins.evaluation.measuring.ways import Way

_SAMPLED = 64  # values of each tensor in a fingerprint: any training moves one of them


def describe_model(model: SentenceTransformer, name: str | None = None) -> dict[str, Any]:
    """Return what the model is made of, as plain JSON values."""
    modules = modules_of(model)
    pooling = None
    for module in modules:
        pooling = module["config"].get("pooling_mode", pooling)
    return {
        "weights": _fingerprint(model, modules),
        "name": name or model.model_card_data.model_name or model.model_card_data.base_model or "SentenceTransformer",
        "modules": modules,
        "pooling": pooling,
        "dimension": model.get_embedding_dimension(),
        "dtype": dtype_of(model),
        "device": str(model.device),
        "max_seq_length": plain(model.max_seq_length),
        "similarity_fn_name": model.similarity_fn_name,
        "prompts": dict(model.prompts or {}),
        "default_prompt_name": model.default_prompt_name,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
    }


def measured(
    model: SentenceTransformer,
    own: Mapping[str, Any],
    similarity: str,
    target_whitening: int | None,
    ways: Mapping[str, tuple[Way, Way]],
    own_ways: Mapping[str, tuple[Way, Way]],
) -> dict[str, dict[str, Any]]:
    """Return how a model was measured, as plain JSON values: for each setting what was used and what is its own."""
    # `compare` refuses what somebody changed on one side; what differs by nature is only said.
    used = {
        "similarity": similarity,
        "max_seq_length": length_of(model),
        "prompts": {name: [way.prompt or None for way in sides] for name, sides in ways.items()},
        "routes": {name: [way.asked for way in sides] for name, sides in ways.items()},
        "truncate_dim": model.truncate_dim,
        "target_whitening": target_whitening,
        "dtype": dtype_of(model),
    }
    theirs = used | {
        "similarity": str(model.similarity_fn_name),
        "prompts": {name: [way.prompt or None for way in sides] for name, sides in own_ways.items()},
        "routes": {name: [way.asked for way in sides] for name, sides in own_ways.items()},
        "target_whitening": None,
        **own,
    }
    return {name: {"used": value, "own": theirs[name]} for name, value in used.items()}


def dtype_of(model: SentenceTransformer) -> str:
    """Return the precision of a model's weights."""
    return str(next(iter(model.parameters()), torch.empty(0)).dtype).removeprefix("torch.")


def length_of(model: Any) -> int | None:
    """Return the model's length limit in tokens; None where it has none."""
    length = model.max_seq_length
    return int(length) if length and math.isfinite(length) else None


def _fingerprint(model: SentenceTransformer, modules: Sequence[Mapping[str, Any]]) -> str:
    """Return a checksum of what the model is, whatever its length limit: modules, and some values of every tensor."""
    # Whatever the length limit: two lengths of one model are one model, measured differently.
    plain = [
        [module["type"], {k: v for k, v in module["config"].items() if k != "max_seq_length"}] for module in modules
    ]
    digest = hashlib.sha256(json.dumps(plain, sort_keys=True, default=str).encode())
    for name, tensor in sorted(model.state_dict().items()):
        # BERT's own pooler, which no embedding passes, is drawn anew at each loading where it is not stored.
        if ".pooler." in name:
            continue
        flat = tensor.detach().flatten()
        step = max(1, flat.numel() // _SAMPLED)
        digest.update(f"{name} {tuple(tensor.shape)}".encode())
        digest.update(flat[::step].to(device="cpu", dtype=torch.float32).numpy().tobytes())
    return digest.hexdigest()


def check_alike(a: Mapping[str, Any], b: Mapping[str, Any], names: tuple[str, str], same: bool) -> list[str]:
    """Refuse two results of which one was measured in another way, and say what differs otherwise."""
    # Each of two models may have a length, similarity and prompt of its own. A setting that somebody changed on one
    # side, or that differs between two measurements of one model, would be taken for a difference of the models.
    notes = []
    for setting in a:
        one, two = a[setting], b.get(setting, {"used": None, "own": None})
        if one["used"] == two["used"]:
            continue
        told = " and ".join(_told(name, value) for name, value in zip(names, (one, two), strict=True))
        if same or any(value["used"] != value["own"] for value in (one, two)):
            raise ValueError(
                "the two were measured differently, which would be taken for a difference of the models: "
                f"{setting} is {told}; evaluate both with the same {setting}"
            )
        notes.append(f"{setting} is {told}")
    return notes


def _told(name: str, value: Mapping[str, Any]) -> str:
    own = "" if value["used"] == value["own"] else f" (the model's own is {setting_in_words(value['own'])})"
    return f"{setting_in_words(value['used'])} for {name!r}{own}"


def setting_in_words(value: Any) -> str:
    """Return a setting in words; of tasks that are all alike, one."""
    if isinstance(value, Mapping):
        different = {json.dumps(sides, ensure_ascii=False): sides for sides in value.values()}
        if len(different) > 1:
            return "; ".join(f"{task}: {setting_in_words(sides)}" for task, sides in sorted(value.items()))
        value = next(iter(different.values()), None)
    if isinstance(value, list):
        return repr(value[0]) if value[0] == value[-1] else " and ".join(map(repr, value))
    return str(value)
