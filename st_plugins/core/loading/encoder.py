"""Sentence encoders and cross-encoders from checked folders, by the host's own loaders."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from sentence_transformers import CrossEncoder, SentenceTransformer
from sentence_transformers.base.modules import Router, Transformer
from sentence_transformers.sentence_transformer.modules import Pooling, StaticEmbedding
from torch import nn

from st_plugins.core.all_layers import keep_layers
from st_plugins.core.devices import check_present
from st_plugins.core.loading.files import read_object
from st_plugins.core.loading.hub import local_folder
from st_plugins.core.loading.staging import HOST_CONFIG, Stage, staged

_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16, "float64": torch.float64}
_MODEL_FILES = ("modules.json", "config.json", "adapter_config.json")


def as_dtype(dtype: str | torch.dtype | None) -> torch.dtype | None:
    """Return a floating-point type from its name."""
    found = _DTYPES.get(dtype) if isinstance(dtype, str) else dtype
    if dtype is not None and found not in _DTYPES.values():
        raise ValueError(f"dtype must be one of {', '.join(_DTYPES)} or a torch.dtype of these, got {dtype!r}")
    return found


def load_encoder(
    path: str | Path,
    device: str | None = None,
    *,
    token: bool | str | None = None,
    revision: str | None = None,
    dtype: str | torch.dtype | None = None,
) -> SentenceTransformer:
    """Load a SentenceTransformer, as `st_plugins.load` describes."""
    wanted = as_dtype(dtype)
    check_present(device)
    with _opened(local_folder(path, revision, token)) as stage:
        if any(kind.startswith("st_plugins.") for kind in stage.classes):
            model = _assembled(stage, device, wanted)
        else:
            model = SentenceTransformer(str(stage.path), device=device, **_options(wanted))
        _check_widths(model.children(), stage)
        _restore_names(model, stage)
    keep_layers(model)
    return (model if wanted is None else model.to(wanted)).eval()


def load_cross_encoder(path: str | Path, device: str | None = None) -> CrossEncoder:
    """Load a cross-encoder with the same checks."""
    check_present(device)
    with _opened(local_folder(path, organization="cross-encoder")) as stage:
        model: CrossEncoder = CrossEncoder(str(stage.path), device=device, **_options(None))
        _restore_names(model, stage)
    return model.eval()


@contextmanager
def _opened(folder: Path) -> Iterator[Stage]:
    """Show the host what it may see of a folder, and let its errors name the folder."""
    if not any((folder / file).exists() for file in _MODEL_FILES):
        raise FileNotFoundError(f"{folder} contains no model: neither modules.json nor config.json is in it")
    with staged(folder) as stage:
        try:
            yield stage
        except (OSError, RuntimeError, TypeError, ValueError, KeyError, AttributeError) as error:
            raise ValueError(_named(error, stage)) from error


def _options(dtype: torch.dtype | None) -> dict[str, Any]:
    """Return the host's arguments; they come before whatever the folder says."""
    # A second lock: what is staged holds no pickle and no code, and the folder's settings were checked.
    model: dict[str, Any] = {"use_safetensors": True, "weights_only": True}
    if dtype is not None:
        model["dtype"] = dtype
    return {"trust_remote_code": False, "local_files_only": True, "model_kwargs": model}


def _assembled(stage: Stage, device: str | None, dtype: torch.dtype | None) -> SentenceTransformer:
    """Load module by module, as the host does for the types it trusts."""
    # It would refuse ours unless it may run any code of the folder, too.
    file = stage.path / HOST_CONFIG
    config: dict[str, Any] = read_object(file) if file.is_file() else {}
    if config.get("model_type", "SentenceTransformer") != "SentenceTransformer":
        raise ValueError(f"{file} says model_type {config['model_type']!r}; only SentenceTransformer can be loaded")
    modules: Any = OrderedDict()
    names = [str(row.get("name", position)) for position, row in enumerate(stage.rows)]
    for name, row in zip(names, stage.rows, strict=True):
        modules[name] = stage.classes[row["type"]].load(
            str(stage.path),
            subfolder=row["path"],
            token=None,
            cache_folder=None,
            revision=None,
            processor_kwargs=None,
            config_kwargs=None,
            backend="torch",
            module_classes=stage.classes,  # for a Router with our modules in it
            **_options(dtype),
        )
    if len(modules) < len(stage.rows):
        raise ValueError(f"{stage.path / 'modules.json'} has two modules of one name: {names}")
    model = SentenceTransformer(
        modules=modules,
        device=device,
        prompts=config.get("prompts"),
        default_prompt_name=config.get("default_prompt_name"),
        similarity_fn_name=config.get("similarity_fn_name"),
        truncate_dim=config.get("truncate_dim"),
    )
    model.module_kwargs = {
        name: row["kwargs"] for name, row in zip(names, stage.rows, strict=True) if row.get("kwargs")
    }
    return model


def _check_widths(modules: Iterable[nn.Module], stage: Stage) -> None:
    """Refuse a pooling that says another width than it gets: it has no tensors that would contradict it."""
    width: int | None = None
    for module in modules:
        if isinstance(module, Router):
            for route in module.sub_modules.values():
                _check_widths(route.children(), stage)
        if isinstance(module, Pooling) and module.embedding_dimension != width is not None:
            raise ValueError(
                f"{stage.folder} has a Pooling with embedding_dimension {module.embedding_dimension!r}, but what "
                f"comes before it has the width {width}; correct the config.json of the Pooling"
            )
        known = getattr(module, "get_embedding_dimension", None)
        width = width if known is None else known()


def _restore_names(model: nn.Module, stage: Stage) -> None:
    """Let the parts of a model say where they came from, and not the folder that was shown to the host."""
    for module in model.modules():
        if isinstance(module, StaticEmbedding) and not module.base_model:
            module.base_model = str(stage.folder)
        if not isinstance(module, Transformer):
            continue
        loaded: Any = module.model
        adapters = getattr(loaded, "peft_config", None) or {}
        for part in (loaded, loaded.config, module.tokenizer, *adapters.values()):
            for attribute in ("name_or_path", "base_model_name_or_path"):
                value = getattr(part, attribute, None)
                if isinstance(value, str) and value.startswith(str(stage.path)):
                    setattr(part, attribute, stage.bases.get(value, value.replace(str(stage.path), str(stage.folder))))


def _named(error: Exception, stage: Stage) -> str:
    """Return an error's message with the model's folder instead of the one that was shown to the host."""
    text = str(error)
    for inner, name in stage.bases.items():
        text = text.replace(inner, name)
    text = text.replace(str(stage.path), str(stage.folder)) or type(error).__name__
    return text if str(stage.folder) in text else f"{stage.folder} cannot be loaded: {text}"
