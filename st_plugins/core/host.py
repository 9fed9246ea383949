"""Build a SentenceTransformer from modules, with everything else taken from another one."""

from __future__ import annotations

import contextlib
import copy
import importlib.util
from collections.abc import Iterator
from typing import Any

from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Normalize, Router
from torch import nn
from torch.nn.parallel import DataParallel

from st_plugins.core.texts import text_fault

__all__ = [
    "check_installed",
    "check_prompt",
    "default_prompt",
    "evaluating",
    "gives_unit_length",
    "inner_model",
    "rebuild",
]

_CARRIED = ("language", "license", "base_model", "base_model_revision", "local_files_only")  # of the model card


def rebuild(model: SentenceTransformer, modules: list[nn.Module]) -> SentenceTransformer:
    """Return a new model of other modules that otherwise behaves like ``model``.

    Prompts, default prompt, similarity function, truncation, device, per-module keyword arguments and training mode
    carry over. Weights are copied, not shared. The model card is a new one, because the old one would describe other
    outputs; language, licence and base model are on it too.

    Args:
        model: The model to resemble; left as it is.
        modules: The modules of the new one; those of ``model`` may be among them.

    Returns:
        The new model.

    Example:
        >>> from st_plugins.miniature import untrained_encoder
        >>> encoder = untrained_encoder(dimension=16)
        >>> encoder.prompts = {"query": "find: "}
        >>> twin = rebuild(encoder, list(encoder))
        >>> twin.prompts["query"], float(abs(twin.encode("a dog") - encoder.encode("a dog")).max())
        ('find: ', 0.0)
    """
    built = SentenceTransformer(
        modules=[copy.deepcopy(module) for module in modules],
        device=str(model.device),
        prompts={name: text for name, text in model.prompts.items() if text is not None},
        default_prompt_name=model.default_prompt_name,
        similarity_fn_name=model.similarity_fn_name,
        truncate_dim=model.truncate_dim,
        backend=model.backend,
    )
    built.prompts = dict(model.prompts)  # the host adds an empty "query" and "document" where they are missing
    built.trust_remote_code = model.trust_remote_code
    for name in _CARRIED:
        setattr(built.model_card_data, name, copy.deepcopy(getattr(model.model_card_data, name)))
    # The host keeps which encode() arguments a module takes by the module's name; the new names are positions.
    taken = model.module_kwargs or {}
    arguments = {id(module): taken[name] for name, module in model.named_children() if taken.get(name)}
    built.module_kwargs = {
        str(position): arguments[id(module)] for position, module in enumerate(modules) if id(module) in arguments
    }
    kept = {id(module) for module in model}
    for module, copied in zip(modules, built, strict=True):
        if id(module) not in kept:  # the copy of an old one is in the mode that the old one is in
            copied.train(model.training)
    built.training = model.training
    return built


def gives_unit_length(module: nn.Module) -> bool:
    """Return whether a module, as the last one, gives embeddings of unit length.

    Args:
        module: A module of a pipeline.

    Returns:
        True for a Normalize, for a module of ours with ``normalize=True``, and for a Router all of whose routes end in
        such a module.

    Example:
        >>> gives_unit_length(Normalize()), gives_unit_length(nn.Identity())
        (True, False)
    """
    if isinstance(module, Router):
        return all(gives_unit_length(route[-1]) for route in module.sub_modules.values())  # type: ignore[index]
    return isinstance(module, Normalize) or getattr(module, "normalize", False) is True


def check_prompt(prompt: str | None, prompt_name: str | None = None) -> None:
    """Refuse a prompt that cannot be put before a text.

    Args:
        prompt: The prompt, if there is one.
        prompt_name: Its name among the model's prompts, if that is given instead.

    Raises:
        TypeError: The prompt is no string.
        ValueError: It holds half a character, or both are given.

    Example:
        >>> check_prompt("query: ")
    """
    if prompt is None:
        return
    if not isinstance(prompt, str):
        raise TypeError(f"prompt must be a string or None, got {prompt!r}")
    if fault := text_fault(prompt):
        raise ValueError(f"prompt {fault}")
    if prompt_name is not None:
        raise ValueError(f"prompt={prompt!r} and prompt_name={prompt_name!r} are both given; leave one out")


def default_prompt(model: SentenceTransformer) -> str | None:
    """Return what the model puts before a text when nothing else is said.

    Args:
        model: The model.

    Returns:
        The prompt, or None.

    Example:
        >>> from st_plugins.miniature import untrained_encoder
        >>> encoder = untrained_encoder(dimension=16)
        >>> encoder.prompts, encoder.default_prompt_name = {"x": "find: "}, "x"
        >>> default_prompt(encoder)
        'find: '
    """
    return None if model.default_prompt_name is None else model.prompts.get(model.default_prompt_name)


def inner_model(model: nn.Module) -> SentenceTransformer:
    """Return the model inside the wrappers that a trainer puts around it.

    Args:
        model: A SentenceTransformer, or a DistributedDataParallel or compiled wrapper of one.

    Returns:
        The SentenceTransformer.

    Raises:
        TypeError: There is none inside.
        ValueError: A wrapper is DataParallel, whose copies of the model would miss the views.

    Example:
        >>> from st_plugins.miniature import untrained_encoder
        >>> model = untrained_encoder()
        >>> inner_model(model) is model
        True
    """
    inner: Any = model
    while not isinstance(inner, SentenceTransformer):
        if isinstance(inner, DataParallel):
            raise ValueError(
                "model is wrapped in DataParallel (one process, several GPUs), where views cannot work; start one "
                "process for each GPU with torchrun, or let CUDA_VISIBLE_DEVICES show one GPU"
            )
        wrapped = getattr(inner, "module", None) or getattr(inner, "_orig_mod", None)
        if not isinstance(wrapped, nn.Module):
            raise TypeError(f"model must be a SentenceTransformer or a wrapper of one, got {type(model).__name__}")
        inner = wrapped
    return inner


def check_installed() -> None:
    """Raise a ModuleNotFoundError if the packages of the extra ``train`` are missing."""
    missing = [name for name in ("accelerate", "datasets") if importlib.util.find_spec(name) is None]
    if missing:
        raise ModuleNotFoundError(
            f'training needs the package {" and ".join(missing)}, not installed: pip install "st-plugins[train]"'
        )


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put a model into evaluation mode for a block, and every module of it back into its own mode after.

    Args:
        model: The model.

    Yields:
        Nothing.

    Example:
        >>> model = nn.Sequential(nn.Linear(1, 1), nn.Dropout().eval())
        >>> with evaluating(model):
        ...     [module.training for module in model]
        [False, False]
        >>> [module.training for module in model]
        [True, False]
    """
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
