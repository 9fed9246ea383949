"""What a model is, wherever it lies and whatever it is called."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Module
from transformers import PreTrainedModel

# What loading or saving writes into an encoder's configuration; the type is that of the weights.
_NOT_OF_THE_CONTENT = {"_name_or_path", "architectures", "dtype", "torch_dtype", "transformers_version"}

# The same of a slow tokenizer. The length is the model's, and added tokens are in the vocabulary.
_NOT_OF_A_TOKENIZER = {
    *("name_or_path", "is_local", "local_files_only", "tokenizer_class", "processor_class", "backend", "auto_map"),
    *("model_max_length", "added_tokens_decoder", "_commit_hash"),
}


def modules_of(model: SentenceTransformer) -> list[dict[str, Any]]:
    """Return type and settings of each module as plain JSON values, and what it was fitted to."""
    found = []
    for module in model:
        config = module.get_config_dict() if isinstance(module, Module) else {}
        entry = {"type": f"{type(module).__module__}.{type(module).__name__}", "config": plain(config)}
        if (sources := getattr(module, "sources", None)) is not None:
            entry["sources"] = sources
        found.append(entry)
    return found


def fingerprint(model: SentenceTransformer) -> str:
    """Return a SHA-256 of what a model is, wherever it lies and whatever it is called."""
    # Modules with their settings (also dropout), weights, tokenizer, prompts and similarity; not its name.
    settings: dict[str, Any] = {
        "modules": modules_of(model),
        "max_seq_length": plain(model.max_seq_length),
        "similarity_fn_name": model.similarity_fn_name,
        "prompts": dict(model.prompts or {}),
        "default_prompt_name": model.default_prompt_name,
    }
    encoders = [part for part in model.modules() if isinstance(part, PreTrainedModel)]
    settings["encoders"] = [
        {key: value for key, value in part.config.to_dict().items() if key not in _NOT_OF_THE_CONTENT}
        for part in encoders
    ]
    if (tokenizer := _tokenizer(model.tokenizer)) is not None:
        settings["tokenizer"] = tokenizer
    told = json.dumps(settings, sort_keys=True, default=str)
    digest = hashlib.sha256(told.encode())
    for name, tensor in sorted(model.state_dict().items()):
        # BERT's own pooler, which no embedding passes, is drawn anew at each loading where it is not stored.
        if ".pooler." in name and "pooler_output" not in told:
            continue
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(flat.view(torch.uint8).numpy().data if flat.numel() else b"")
    return digest.hexdigest()


def _tokenizer(tokenizer: Any) -> dict[str, Any] | None:
    """Return what a tokenizer is, whatever it is called and wherever it lies; None where there is none."""
    # That of static embeddings is one of the tokenizers package itself; a slow one has only words and settings.
    backend = getattr(tokenizer, "backend_tokenizer", tokenizer)
    if hasattr(backend, "to_str"):
        found: dict[str, Any] = json.loads(backend.to_str())
        return found | {"truncation": None, "padding": None}  # which tokenizing changes
    if not hasattr(tokenizer, "get_vocab"):
        return None
    words = tokenizer.get_vocab()
    given = getattr(tokenizer, "init_kwargs", {})
    settings = {key: plain(value) for key, value in given.items() if value is not None and not _of_its_place(key)}
    return {"vocabulary": words if isinstance(words, dict) else list(words), "settings": settings}


def _of_its_place(setting: str) -> bool:
    """Say whether a setting of a slow tokenizer is what loading or saving writes there."""
    return setting in _NOT_OF_A_TOKENIZER or setting.endswith("_file")


def plain(value: Any) -> Any:
    """Return a setting as JSON has it."""
    if value is None or isinstance(value, str | bool | int | float):
        return value
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return str(value)
