"""Load a model folder that may contain our modules, and run no code from it."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Module
from torch import nn

__all__ = ["load"]

_ALLOWED = ("sentence_transformers.", "st_plugins.")
_HOST_CONFIG = "config_sentence_transformers.json"


def load(path: str | Path, device: str | None = None) -> SentenceTransformer:
    """Load a model of stock modules and modules of this package, from a folder or the hub.

    Plain ``SentenceTransformer(path)`` refuses our modules unless ``trust_remote_code=True`` also lets it run any code
    in the folder. Here every module type is checked first: only classes under ``sentence_transformers.`` and
    ``st_plugins.`` that are modules of the host are imported, and Python files and ``auto_map`` entries in the folder
    have no effect. Prompts, similarity function and truncation are restored.

    A folder without ``modules.json`` is taken for a plain Transformers checkpoint and gets mean pooling, as the host
    does it. A name that is no folder goes to the host as a hub id, without ``trust_remote_code``; such a model can
    only have stock modules.

    Args:
        path: Model folder or hub id.
        device: Where to put the model; None lets the host choose.

    Returns:
        The model, in evaluation mode.

    Raises:
        FileNotFoundError: ``path`` looks like a folder but is none, or there is no model in it.
        ValueError: A module type is not allowed, or a file is damaged; the message names it.

    Example:
        >>> import tempfile
        >>> from st_plugins.adapt import whiten
        >>> from st_plugins.data.miniature import corpus, untrained_encoder
        >>> texts = corpus(100)
        >>> whitened = whiten(untrained_encoder(), texts, 8)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     whitened.save(folder, create_model_card=False)
        ...     again = load(folder, device="cpu")
        >>> float(abs(again.encode(texts) - whitened.encode(texts)).max())
        0.0
    """
    name = str(path)
    folder = Path(path).expanduser()
    if folder.is_file():
        raise ValueError(f"path {name!r} is a file; give the model folder that contains it")
    if not folder.is_dir():
        if isinstance(path, Path) or name.startswith((".", "/", "~")) or "\\" in name or name.count("/") > 1:
            raise FileNotFoundError(f"model folder {name!r} does not exist")
        return SentenceTransformer(name, device=device, trust_remote_code=False)
    if not any((folder / file).is_file() for file in ("modules.json", "config.json", "adapter_config.json")):
        raise FileNotFoundError(f"{folder} contains no model: neither modules.json nor config.json is in it")
    _check_files(folder)
    rows = _module_rows(folder) if (folder / "modules.json").is_file() else []
    types = [row["type"] for row in rows] + _nested_types(folder)
    for kind in types:
        if not kind.startswith(_ALLOWED):
            raise ValueError(
                f"{folder} names the module type {kind!r}; allowed are types that start with "
                f"{' or '.join(map(repr, _ALLOWED))}. If you trust its code, load it with "
                "SentenceTransformer(path, trust_remote_code=True)"
            )
    classes = {kind: _import(kind, folder) for kind in types}
    if not any(kind.startswith("st_plugins.") for kind in types):
        return SentenceTransformer(str(folder), device=device, trust_remote_code=False, local_files_only=True)
    return _assemble(folder, rows, classes, device)


def _assemble(
    folder: Path, rows: list[dict[str, Any]], classes: dict[str, type[Module]], device: str | None
) -> SentenceTransformer:
    """Load module by module, as the host does for the types it trusts."""
    file = folder / _HOST_CONFIG
    config: dict[str, Any] = _json(file) if file.is_file() else {}
    if config.get("model_type", "SentenceTransformer") != "SentenceTransformer":
        raise ValueError(f"{file} says model_type {config['model_type']!r}; only SentenceTransformer can be loaded")
    modules: list[nn.Module] = []
    for row in rows:
        loaded = classes[row["type"]].load(
            str(folder),
            subfolder=row["path"],
            token=None,
            cache_folder=None,
            revision=None,
            local_files_only=True,
            trust_remote_code=False,
            model_kwargs=None,
            processor_kwargs=None,
            config_kwargs=None,
            backend="torch",
            module_classes=classes,  # for a Router with our modules in it
        )
        modules.append(loaded)
    model = SentenceTransformer(
        modules=modules,
        device=device,
        prompts=config.get("prompts"),
        default_prompt_name=config.get("default_prompt_name"),
        similarity_fn_name=config.get("similarity_fn_name"),
        truncate_dim=config.get("truncate_dim"),
    )
    model.module_kwargs = {str(position): row["kwargs"] for position, row in enumerate(rows) if row.get("kwargs")}
    return model.eval()


def _module_rows(folder: Path) -> list[dict[str, Any]]:
    file = folder / "modules.json"
    rows = _json(file)
    if not isinstance(rows, list) or not rows:
        raise ValueError(f"{file} must hold a list with at least one module")
    for row in rows:
        if not isinstance(row, dict) or not all(isinstance(row.get(key), str) for key in ("path", "type")):
            raise ValueError(f"{file} has an entry without a 'path' and a 'type': {row!r}")
        if not (folder / row["path"]).resolve().is_relative_to(folder.resolve()):
            raise ValueError(f"{file} has the path {row['path']!r}, which leads out of the folder")
    return rows


def _nested_types(folder: Path) -> list[str]:
    """Return the types that routers (and Asym, their predecessor) name in their configurations."""
    types: list[str] = []
    for file in sorted(folder.rglob("*config.json")):
        config = _json(file)
        nested = config.get("types") if isinstance(config, dict) else None
        if isinstance(nested, dict):
            types += [str(kind) for kind in nested.values()]
    return types


def _import(kind: str, folder: Path) -> type[Module]:
    """Import an allowed type; it has to be a module of the host."""
    package, _, name = kind.rpartition(".")
    try:
        found = getattr(importlib.import_module(package), name)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"{folder} names the module type {kind!r}, which is not installed: {error}") from error
    if not (isinstance(found, type) and issubclass(found, Module)):
        raise ValueError(f"{folder} names {kind!r}, which is not a sentence-transformers module")
    return found


def _check_files(folder: Path) -> None:
    """Refuse damaged files before the host trips over them without naming them."""
    for file in folder.rglob("*.json"):
        _json(file)
    for file in folder.rglob("*.safetensors"):
        try:
            with safe_open(file, framework="np"):
                pass
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{file} is damaged ({error}); copy or download it again") from error


def _json(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is not valid JSON ({error}); copy or download it again") from error
