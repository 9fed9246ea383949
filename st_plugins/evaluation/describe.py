"""What a result must say about the model and the machine to be repeatable."""

from __future__ import annotations

from typing import Any

from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Module

from st_plugins.evaluation.measuring import dtype_of, fingerprint

__all__ = ["describe_model"]


def describe_model(model: SentenceTransformer, name: str | None = None) -> dict[str, Any]:
    """Return what the model is made of, as plain JSON values."""
    modules = []
    pooling = None
    for module in model:
        config = module.get_config_dict() if isinstance(module, Module) else {}
        mode = config.get("pooling_mode")
        pooling = mode if mode is not None else pooling
        entry = {"type": f"{type(module).__module__}.{type(module).__name__}", "config": _plain(config)}
        if (sources := getattr(module, "sources", None)) is not None:  # what it was fitted to
            entry["sources"] = sources
        modules.append(entry)
    return {
        "weights": fingerprint(model, modules),
        "name": name or model.model_card_data.model_name or model.model_card_data.base_model or "SentenceTransformer",
        "modules": modules,
        "pooling": _plain(pooling),
        "dimension": model.get_embedding_dimension(),
        "dtype": dtype_of(model),
        "device": str(model.device),
        "max_seq_length": _plain(model.max_seq_length),
        "similarity_fn_name": model.similarity_fn_name,
        "prompts": dict(model.prompts or {}),
        "default_prompt_name": model.default_prompt_name,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
    }


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, str | bool | int | float):
        return value
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return str(value)
