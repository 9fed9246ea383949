"""Model folders that embedding servers read: what they make of a model, and the older names and keys they look for."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Dense, Normalize, Transformer
from sentence_transformers.sentence_transformer.modules import Pooling
from torch import nn

from st_plugins.core.host import check_encoder, positions

# The rules are those of text-embeddings-inference (huggingface, July 2026, commit 0d124dc): `modules.json` in
# backends/src/lib.rs, the pooling and the length in router/src/lib.rs, Dense in backends/candle/src/models/dense.rs.
# One module with another name, and no Dense at all is applied; without the older keys the server does not start.
_MODULES: tuple[type[nn.Module], ...] = (Transformer, Pooling, Dense, Normalize)
_POOLINGS = {
    "cls": "pooling_mode_cls_token",
    "mean": "pooling_mode_mean_tokens",
    "lasttoken": "pooling_mode_lasttoken",
}
_ACTIVATIONS: tuple[type[nn.Module], ...] = (nn.Identity, nn.Tanh)
_NO_LIMIT = 10**9  # tokenizers without a limit of their own say 1e30


def served_otherwise(model: SentenceTransformer) -> str | None:
    """Say why servers would give other vectors than the host does, or None where they give the same."""
    check_encoder(model)
    modules = list(model)
    normalized = False
    for module in modules:
        if type(module) not in _MODULES:
            return (
                f"servers know no {type(module).__name__}; fold a Whitening first, and save other models as they are"
            )
        if isinstance(module, Dense):
            if normalized:
                return "servers apply a Dense before they normalize, here it comes after the Normalize"
            if type(module.activation_function) not in _ACTIVATIONS or module.use_residual:
                return "servers apply a Dense only without a residual, and with no activation function or tanh"
        normalized = normalized or isinstance(module, Normalize)
        if isinstance(module, Dense | Normalize) and {module.module_input_name, module.module_output_name} != {
            "sentence_embedding"
        }:
            return f"servers apply a {type(module).__name__} to sentence embeddings only"
    if not [*map(type, modules[:2])] == [Transformer, Pooling] or {Transformer, Pooling} & {*map(type, modules[2:])}:
        return "servers begin with one Transformer and one Pooling"
    pooling: Any = modules[1]
    if pooling.pooling_mode not in _POOLINGS:
        return f"servers pool by {', '.join(_POOLINGS)} only, not by {pooling.pooling_mode!r}"
    if not pooling.include_prompt and any(model.prompts.values()):
        return "servers pool the tokens of the prompt too, which include_prompt=False leaves out"
    if _length(model) is None:
        return "servers need a length to cut texts to; set model.max_seq_length"
    return None


def save_plain(model: SentenceTransformer, folder: Path) -> str | None:
    """Save a model, for servers too where they give the same vectors; where they would not, say why."""
    model.save(str(folder))
    fault = served_otherwise(model) or _missing(folder)
    if fault is None:
        _add_older_keys(model, folder)
    return fault


def save_served(model: SentenceTransformer, folder: Path) -> None:
    """Save a model that servers give the same vectors of, with the names and keys that they look for."""
    model.save(str(folder))
    if fault := _missing(folder):
        raise ValueError(fault)
    _add_older_keys(model, folder)


def _missing(folder: Path) -> str | None:
    """Say which file that servers read is missing in a folder, if one is."""
    for name in ("config.json", "tokenizer.json"):
        if not (folder / name).is_file():
            return f"the model has no {name} of its own, which servers read; merge its adapter, if it has one"
    return None


def _add_older_keys(model: SentenceTransformer, folder: Path) -> None:
    kinds = [type(module).__name__ for module in model]
    rows = json.loads((folder / "modules.json").read_text(encoding="utf-8"))
    for row, kind in zip(rows, kinds, strict=True):
        row["type"] = f"sentence_transformers.models.{kind}"
    _write(folder / "modules.json", rows)
    pooling: Any = model[1]
    _add(folder / "1_Pooling" / "config.json", {key: mode == pooling.pooling_mode for mode, key in _POOLINGS.items()})
    _add(folder / Transformer.config_file_name, {"max_seq_length": _length(model)})


def _length(model: SentenceTransformer) -> int | None:
    limits = (getattr(model, "max_seq_length", None), positions(model))
    return min((limit for limit in limits if limit is not None and limit < _NO_LIMIT), default=None)


def _add(file: Path, more: Mapping[str, Any]) -> None:
    """Put older keys beside those of the host, which goes by its own."""
    _write(file, json.loads(file.read_text(encoding="utf-8")) | dict(more))


def _write(file: Path, content: Any) -> None:
    file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
