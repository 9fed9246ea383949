"""Checks and copies before a training starts."""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Iterable, Iterator
from pathlib import Path

from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Router
from sentence_transformers.sentence_transformer.modules import StaticEmbedding

from st_plugins import io
from st_plugins.core.host import positions, rebuild
from st_plugins.core.loading.hub import local_folder
from st_plugins.core.texts import check_texts
from st_plugins.data.pairs import Pairs
from st_plugins.geometry.probe import NUMBERS

logger = logging.getLogger(__name__)


def check_ranges(
    epochs: float,
    batch_size: int,
    learning_rate: float,
    warmup: float,
    eval_steps: int | None,
    seed: int,
    max_seq_length: int | None,
) -> None:
    """Raise a ValueError for a setting of `train_consert` that is out of its range."""
    for name, value in (("epochs", epochs), ("learning_rate", learning_rate)):
        if not 0 < value < math.inf:
            raise ValueError(f"{name}={value} must be above 0, and finite")
    if batch_size < 2:
        raise ValueError(f"batch_size={batch_size} leaves no negatives; use at least 2")
    if not 0 <= warmup < 1:
        raise ValueError(f"warmup={warmup} is a share of the steps and must lie in [0, 1)")
    if eval_steps is not None and eval_steps < 1:
        raise ValueError(f"eval_steps={eval_steps} must be at least 1, or None for ten evaluations")
    if not 0 <= seed < 2**32:
        raise ValueError(f"seed={seed} must be at least 0 and below 2**32")
    if max_seq_length is not None and max_seq_length < 3:
        raise ValueError(f"max_seq_length={max_seq_length} leaves no token between the special ones; use at least 3")


def selection(select: str | None, dev: Pairs | None) -> str:
    """Return how the checkpoint is chosen, by default or as asked for."""
    if dev is not None and not isinstance(dev, Pairs):
        raise TypeError(f"dev must be Pairs, got a {type(dev).__name__}; st_plugins.data.read_pairs reads a file")
    if select is None:
        return "last" if dev is None else "dev"
    if select == "dev" and dev is None:
        raise ValueError("select='dev' needs development pairs (dev); without any choose 'last' or a geometry number")
    if select not in ("dev", "last") and not set(select.split("+")) <= set(NUMBERS):
        raise ValueError(
            f"select={select!r} is unknown; choose 'dev', 'last', or a number of the geometry: {', '.join(NUMBERS)}, "
            "or a sum such as 'alignment+uniformity'"
        )
    return select


def distinct_texts(texts: Iterable[str]) -> tuple[list[str], int, int]:
    """Return the distinct texts in order, and how many duplicates and blank ones were left out."""
    kept: dict[str, None] = {}
    duplicates = empty = 0
    for text in check_texts(texts, "texts"):
        if not text.strip():
            empty += 1
        elif text in kept:
            duplicates += 1
        else:
            kept[text] = None
    if duplicates or empty:
        logger.info("%d texts kept, %d duplicates and %d blank ones left out", len(kept), duplicates, empty)
    return list(kept), duplicates, empty


def prepared(model: SentenceTransformer | str | Path) -> SentenceTransformer:
    """Return a copy with a new model card, made of modules that load anywhere."""
    loaded = model if isinstance(model, SentenceTransformer) else io.load_sentence_transformer(model, "cpu")
    for module in loaded:
        if not type(module).__module__.startswith("sentence_transformers."):
            raise ValueError(
                f"the model has a {type(module).__name__}, which plain sentence-transformers does not load; fold it "
                "first (st_plugins.fold), or train the encoder without it"
            )
    for module in loaded.modules():
        if isinstance(module, Router):
            raise ValueError(
                f"the model has the routes {', '.join(map(repr, module.sub_modules))}, and a training on unlabelled "
                "texts could only take one of them; use ConSERTLoss in SentenceTransformerTrainer, whose "
                "router_mapping says which"
            )
    if not any(parameter.requires_grad for parameter in loaded.parameters()):
        raise ValueError("the model has no weights to train: all are frozen; call model.requires_grad_(True)")
    for module in loaded.modules():
        for adapter in (getattr(module, "peft_config", None) or {}).values():
            _check_base(adapter.base_model_name_or_path)
    adapted = rebuild(loaded, list(loaded))
    # A folder's name says nothing about a model of that name on the hub.
    adapted.model_card_data.local_files_only = True
    return adapted


def _check_base(name: str | None) -> None:
    """Refuse an adapter whose base model is gone: an adapter is saved alone, and could not be loaded again."""
    try:
        local_folder(name or "")
    except (OSError, ValueError) as error:
        raise ValueError(
            f"the model has an adapter for the base model {name!r}, which is not there, so that the trained model "
            "could not be loaded; save the base model first and put the adapter on what is loaded from there"
        ) from error


def training_length(model: SentenceTransformer, max_seq_length: int | None) -> int | None:
    """Return how many tokens of a text are trained on; None where the model has no limit that could be lower."""
    own = model.max_seq_length
    if not isinstance(own, int) or isinstance(model[0], StaticEmbedding):
        return None
    there = positions(model) or own
    if max_seq_length is not None and max_seq_length > there:
        logger.warning(
            "max_seq_length=%d is more than the encoder's %d positions; texts are cut to %d tokens",
            *(max_seq_length, there, min(own, there)),
        )
    cut = min(own, there, max_seq_length or own)
    return cut if cut < 10**9 else None  # tokenizers without a limit of their own say 1e30, and cannot cut there


@contextlib.contextmanager
def prompted(model: SentenceTransformer, prompt: str | None) -> Iterator[None]:
    """Make a prompt the model's default one for a block; None leaves it as it is."""
    before = model.prompts, model.default_prompt_name
    if prompt is not None:
        model.prompts, model.default_prompt_name = {**model.prompts, "training": prompt}, "training"
    try:
        yield
    finally:
        model.prompts, model.default_prompt_name = before
