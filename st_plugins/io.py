"""Load a model folder that may contain our modules, and run no code from it; save one that servers read."""

from __future__ import annotations

import importlib
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from st_plugins.core.devices import check_present
from st_plugins.core.host import default_prompt
from st_plugins.core.loading.encoder import as_dtype, load_encoder
from st_plugins.core.loading.files import is_there
from st_plugins.core.loading.hub import local_folder
from st_plugins.core.serving import save_served, served_otherwise
from st_plugins.core.writing.atomic import folder_target

if TYPE_CHECKING:
    import torch
    from sentence_transformers import SentenceTransformer

logger = logging.getLogger(__name__)

# What is no SentenceTransformer, by the file that only its folder has.
_OTHERS = {
    "matcher.json": ("st_plugins.matching", "RE2Matcher"),
    "pair_head.json": ("st_plugins.matching", "VIRTPairClassifier"),
    "label_token_model.json": ("st_plugins.matching", "LabelTokenModel"),
}


def load(
    path: str | Path,
    device: str | None = None,
    *,
    token: bool | str | None = None,
    revision: str | None = None,
    dtype: str | torch.dtype | None = None,
) -> Any:
    """Load a model of stock modules and modules of this package, from a folder or the hub.

    Plain ``SentenceTransformer(path)`` refuses our modules unless ``trust_remote_code=True`` also lets it run any code
    in the folder. Here nothing of the folder runs, whatever its JSON says: only classes under
    ``sentence_transformers.`` and ``st_plugins.`` that are modules of the host are imported; weights come from
    safetensors, never from a pickle; settings that could open other files or run code are refused by name, as are
    pipes and other files that are no regular ones; sizes are compared with the tensors before memory is asked for.
    Files that loading does not use are not looked at. Prompts, similarity function and truncation are restored.

    A folder without ``modules.json`` is taken for a plain Transformers checkpoint and gets mean pooling, as the host
    does it. A LoRA adapter is put on the base model that it names, for which the same holds. A name that is no folder
    is a hub id: the files that loading uses are fetched, or taken from the cache, and treated as a folder.

    Args:
        path: Model folder or hub id.
        device: Where to put the model; None lets the host choose.
        token: For the hub.
        revision: Branch, tag or commit on the hub.
        dtype: ``"float32"``, ``"float16"``, ``"bfloat16"`` or the type of torch; None for that of the model.

    Returns:
        The model, in evaluation mode: a ``SentenceTransformer``, or the `RE2Matcher`, `VIRTPairClassifier` or
        `LabelTokenModel` that the folder is of.

    Raises:
        FileNotFoundError: There is no such folder or model of the hub, or no model in it.
        ValueError: A module type, setting or file is not allowed, a file is damaged, or the device is not there; the
            message names it.

    Example:
        >>> import tempfile
        >>> from st_plugins.recipes import whiten
        >>> from st_plugins.miniature import corpus, untrained_encoder
        >>> texts = corpus(100)
        >>> whitened = whiten(untrained_encoder(), texts, 8)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     whitened.save(folder, create_model_card=False)
        ...     again = load(folder, device="cpu")
        >>> float(abs(again.encode(texts) - whitened.encode(texts)).max())
        0.0
    """
    wanted = as_dtype(dtype)
    check_present(device)
    folder = local_folder(path, revision, token)
    kind = _other_kind(folder)
    if kind is None:
        return load_encoder(folder, device, dtype=wanted)
    module, name = kind
    model = getattr(importlib.import_module(module), name).load(folder)
    return model.to(**{key: value for key, value in {"device": device, "dtype": wanted}.items() if value is not None})


def save_for_servers(model: SentenceTransformer, path: str | Path, *, overwrite: bool = False) -> None:
    """Save a model so that embedding servers give the vectors that sentence-transformers gives.

    Text-embeddings-inference knows modules by the names ``sentence_transformers.models.*``, and reads the pooling and
    the length from keys that sentence-transformers 6 no longer writes: with the folder of ``model.save`` it does not
    start, or, told the pooling, leaves out the Dense layers without an error. Here the names are the older ones, and
    the older keys stand beside the new. Plain ``SentenceTransformer(path)`` and `load` read the folder as before.

    The same vectors come from models of a Transformer, a Pooling ("mean", "cls" or "lasttoken"), Dense layers and, at
    the end, a Normalize, from the server's own (candle) backend; its others apply no Dense. It normalizes also the
    vectors of a model that does not, unless a request says ``"normalize": false``.

    Args:
        model: The model, folded (see `fold`).
        path: Folder to write.
        overwrite: Whether to replace what an earlier call has written.

    Raises:
        ValueError: Servers would give other vectors; the message says why.
        FileExistsError: There is something in ``path`` already.

    Example:
        >>> import json, pathlib, tempfile
        >>> from st_plugins.miniature import untrained_encoder
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_for_servers(untrained_encoder(), pathlib.Path(folder, "model"))
        ...     modules = json.loads(pathlib.Path(folder, "model", "modules.json").read_text())
        >>> [module["type"] for module in modules]
        ['sentence_transformers.models.Transformer', 'sentence_transformers.models.Pooling']
    """
    fault = served_otherwise(model)
    if fault:
        raise ValueError(f"model would be served as other vectors: {fault}")
    target = folder_target(path, name="path", overwrite=overwrite)
    if model.truncate_dim is not None:
        logger.warning(
            "Servers do not cut vectors to the model's truncate_dim: ask for 'dimensions': %d in each request.",
            model.truncate_dim,
        )
    if default_prompt(model):
        logger.warning(
            "Servers do not read which prompt is the default: tell them when they start (default prompt name: %s).",
            model.default_prompt_name,
        )
    with target.write() as folder:
        save_served(model, folder)


def load_sentence_transformer(
    path: str | Path, device: str | None = None, *, dtype: str | torch.dtype | None = None
) -> SentenceTransformer:
    """Load a model that must be a SentenceTransformer."""
    check_present(device)
    folder = local_folder(path)
    kind = _other_kind(folder)
    if kind is not None:
        raise ValueError(
            f"{str(path)!r} is a {kind[1]}, which compares pairs and has no vectors of single texts; give a "
            "SentenceTransformer"
        )
    return load_encoder(folder, device, dtype=dtype)


def _other_kind(folder: Path) -> tuple[str, str] | None:
    return next((kind for file, kind in _OTHERS.items() if is_there(folder / file)), None)
