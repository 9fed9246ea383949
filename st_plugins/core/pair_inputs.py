"""What goes into a pair model: pairs of texts, prompts, and token vectors as a caller gives them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer
from torch import Tensor

from st_plugins.core.texts import text_fault

TokenVectors = Tensor | NDArray[np.floating]


def as_pairs(inputs: Any) -> tuple[list[tuple[str, str]], bool]:
    """Return pairs of texts as a list of tuples."""
    given = inputs.tolist() if isinstance(inputs, np.ndarray) else inputs
    if isinstance(given, Mapping) or not isinstance(given, Iterable):
        raise ValueError(
            f"inputs must be pairs of texts, (text, text), got {str(given)[:80]} ({type(given).__name__})"
        )
    single = isinstance(given, str) or _is_pair(given)
    pairs: list[Any] = [given] if single else list(given)
    for row, pair in enumerate(pairs):
        if not _is_pair(pair):
            raise ValueError(f"inputs must be pairs of texts, (text, text), but entry {row} is {str(pair)[:80]!r}")
    return [(pair[0], pair[1]) for pair in pairs], single


def distinct(items: Sequence[Any]) -> tuple[list[int], list[int]]:
    """Return which items are different, so that equal ones are computed once and get the same number."""
    known: dict[Any, int] = {}
    first: list[int] = []
    found = []
    for row, item in enumerate(items):
        # Texts and pairs are the same if they are equal, anything else (tensors) if it is one object.
        key = item if isinstance(item, str) or _is_pair(item) else id(item)
        if key not in known:
            known[key] = len(first)
            first.append(row)
        found.append(known[key])
    return first, found


def check_documents(documents: Any, kinds: tuple[type, ...], name: str = "documents") -> list[Any]:
    """Return documents as a list, or raise a TypeError."""
    if isinstance(documents, str | Mapping) or not isinstance(documents, Iterable):
        raise TypeError(f"{name} must be a list of texts, got {str(documents)[:80]!r}; put it into a list")
    found = list(documents)
    for row, document in enumerate(found):
        if not isinstance(document, kinds):
            raise TypeError(
                f"{name} must be texts, or what was encoded of them, but entry {row} is a "
                f"{type(document).__name__}: {str(document)[:80]}"
            )
        if fault := text_fault(document) if isinstance(document, str) else "":
            raise ValueError(f"{name}[{row}] {fault}")
    return found


def _is_pair(item: Any) -> bool:
    return isinstance(item, list | tuple) and len(item) == 2 and all(isinstance(text, str) for text in item)


def resolve_prompt(model: SentenceTransformer, name: str | None, prompt: str | None) -> str | None:
    """Return the prompt to use, the model's default one if none is asked for."""
    name = name or model.default_prompt_name
    if prompt is not None or name is None:
        return prompt
    if name not in model.prompts:
        raise ValueError(f"prompt_name must be one of {list(model.prompts)}, got {name!r}; or give the prompt itself")
    return model.prompts[name]


def checked(texts: Sequence[TokenVectors], width: int, name: str) -> list[Tensor]:
    """Return what a caller gave as tensors."""
    found = [torch.as_tensor(tokens) for tokens in texts]
    for row, tokens in enumerate(found):
        if tokens.ndim != 2 or tokens.shape[1] != width or not tokens.is_floating_point():
            raise ValueError(
                f"{name} must be floating-point vectors of shape (tokens, {width}), but entry {row} is "
                f"{tokens.dtype} of shape {tuple(tokens.shape)}; use encode_tokens of this classifier"
            )
    return found
