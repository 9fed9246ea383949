"""What must be known of the host's models: their wrappers, modes, prompts and lengths, and how to rebuild one."""

from __future__ import annotations

import contextlib
import copy
import importlib.util
from collections.abc import Callable, Iterator
from typing import Any

from sentence_transformers import SentenceTransformer
from sentence_transformers.base.model import BaseModel
from sentence_transformers.base.modules import Normalize, Router, Transformer
from torch import nn
from torch.nn.parallel import DataParallel
from transformers.utils import logging as transformers_logging

from st_plugins.core.model_card import CardData, made_of
from st_plugins.core.numbers import check_count
from st_plugins.core.texts import text_fault

_CARRIED = ("language", "license", "base_model", "base_model_revision", "local_files_only")  # of the model card
_TABLES = ("position_embeddings", "embed_positions", "wpe")  # as transformers' encoders call it
_NO_LIMIT = 10**9  # tokenizers without a limit of their own say 1e30


def rebuild(model: SentenceTransformer, modules: list[nn.Module]) -> SentenceTransformer:
    """Return a new model of other modules that otherwise behaves like ``model``."""
    card = CardData()
    if made := made_of(model):
        card.add(*made)
    built = SentenceTransformer(
        modules=[copy.deepcopy(module) for module in modules],
        device=str(model.device),
        prompts={name: text for name, text in model.prompts.items() if text is not None},
        default_prompt_name=model.default_prompt_name,
        similarity_fn_name=model.similarity_fn_name,
        truncate_dim=model.truncate_dim,
        backend=model.backend,
        model_card_data=card,
    )
    built.prompts = dict(model.prompts)  # the host adds an empty "query" and "document" where they are missing
    built.trust_remote_code = model.trust_remote_code
    for name in _CARRIED:  # the rest of the old card would describe other outputs
        setattr(card, name, copy.deepcopy(getattr(model.model_card_data, name)))
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


def check_encoder(model: Any) -> None:
    """Refuse what is no SentenceTransformer, the path of one for example."""
    if isinstance(model, SentenceTransformer):
        return
    # What compress and adapt return holds one.
    held = isinstance(getattr(model, "model", None), SentenceTransformer)
    remedy = "give its .model" if held else "load it first: st_plugins.load(path)"
    raise TypeError(f"model must be a SentenceTransformer, got {type(model).__name__}; {remedy}")


def gives_unit_length(module: nn.Module) -> bool:
    """Return whether a module, as the last one, gives embeddings of unit length."""
    if isinstance(module, Router):
        return all(gives_unit_length(route[-1]) for route in module.sub_modules.values())  # type: ignore[index]
    return isinstance(module, Normalize) or getattr(module, "normalize", False) is True


def check_prompt(prompt: str | None, prompt_name: str | None = None) -> None:
    """Refuse a prompt that cannot be put before a text."""
    if prompt is None:
        return
    if not isinstance(prompt, str):
        raise TypeError(f"prompt must be a string or None, got {prompt!r}")
    if fault := text_fault(prompt):
        raise ValueError(f"prompt {fault}")
    if prompt_name is not None:
        raise ValueError(f"prompt={prompt!r} and prompt_name={prompt_name!r} are both given; leave one out")


def default_prompt(model: SentenceTransformer) -> str | None:
    """Return what the model puts before a text when nothing else is said."""
    return None if model.default_prompt_name is None else model.prompts.get(model.default_prompt_name)


def inner_model(model: nn.Module) -> SentenceTransformer:
    """Return the model inside the wrappers that a trainer puts around it."""
    for part in unwrapped(model):
        if isinstance(part, DataParallel):
            raise ValueError(
                "model is wrapped in DataParallel (one process, several GPUs), where views cannot work; start one "
                "process for each GPU with torchrun, or let CUDA_VISIBLE_DEVICES show one GPU"
            )
        if isinstance(part, SentenceTransformer):
            return part
    raise TypeError(f"model must be a SentenceTransformer or a wrapper of one, got {type(model).__name__}")


def unwrapped(model: nn.Module) -> Iterator[nn.Module]:
    """Yield a model and what is inside each wrapper that a trainer puts around it, the model itself last."""
    part: Any = model
    while isinstance(part, nn.Module):
        yield part
        if isinstance(part, BaseModel):
            return
        # DistributedDataParallel and DataParallel call it the one, torch.compile the other.
        part = getattr(part, "module", None) or getattr(part, "_orig_mod", None)


def check_installed() -> None:
    """Raise a ModuleNotFoundError if the packages of the extra ``train`` are missing."""
    missing = [name for name in ("accelerate", "datasets") if importlib.util.find_spec(name) is None]
    if missing:
        raise ModuleNotFoundError(
            f'training needs the package {" and ".join(missing)}, not installed: pip install "st-plugins[train]"'
        )


def evaluating(model: nn.Module) -> contextlib.AbstractContextManager[None]:
    """Put a model into evaluation mode for a block."""
    return in_mode(model, training=False)


@contextlib.contextmanager
def in_mode(model: nn.Module, *, training: bool) -> Iterator[None]:
    """Put a model into a mode for a block, and every module of it back into its own mode after."""
    modes = [(module, module.training) for module in model.modules()]
    model.train(training)
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


@contextlib.contextmanager
def recorded(module: nn.Module, read: Callable[[Any], Any] = lambda output: output) -> Iterator[list[Any]]:
    """Collect what a module returns inside the block, or what is read from it there and then."""
    found: list[Any] = []
    handle = module.register_forward_hook(lambda module, inputs, output: found.append(read(output)))
    try:
        yield found
    finally:
        handle.remove()


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep transformers from reporting on what it makes, writes and reads inside the block, and from drawing bars."""
    level, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        if bars:
            transformers_logging.enable_progress_bar()


def positions(model: SentenceTransformer) -> int | None:
    """Return how many tokens the encoder has positions for; None if they are relative, rotary or there are none."""
    found = []
    for encoder in _encoders(model):
        configured = getattr(encoder.config, "max_position_embeddings", None)
        for name, module in encoder.named_modules():
            if name.rpartition(".")[2] in _TABLES and isinstance(module, nn.Embedding):
                # RoBERTa and its family begin to count after the padding token.
                rows = module.num_embeddings - (0 if module.padding_idx is None else module.padding_idx + 1)
                found.append(min(rows, configured or rows))
    return min(found, default=None)


def set_length(model: SentenceTransformer, max_seq_length: int) -> None:
    """Cut texts to so many tokens from now on."""
    _check(max_seq_length, positions(model))
    try:
        model.max_seq_length = max_seq_length
    except AttributeError:
        raise ValueError(
            f"max_seq_length={max_seq_length}: a {type(model[0]).__name__} has no length limit that could be set; "
            "leave it out"
        ) from None


def check_length(model: SentenceTransformer) -> None:
    """Refuse a model whose length is set to more than its encoder has positions for, before PyTorch does."""
    length, there = getattr(model, "max_seq_length", None), positions(model)
    if not isinstance(length, int) or length >= _NO_LIMIT:
        return
    # What the host sets itself, the configured number, counts RoBERTa's padding in; short texts never notice.
    configured = [getattr(encoder.config, "max_position_embeddings", None) for encoder in _encoders(model)]
    if length not in configured:
        _check(length, there)


def _encoders(model: SentenceTransformer) -> list[nn.Module]:
    return [module.model for module in model.modules() if isinstance(module, Transformer)]


def _check(length: int, there: int | None) -> None:
    check_count("max_seq_length", length)
    if there is not None and length > there:
        raise ValueError(f"max_seq_length={length} is more than the encoder's {there} positions; give at most {there}")
