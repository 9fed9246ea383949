"""A module fitted to a model's embeddings and put behind it, but before its Normalize."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Normalize, Router
from sentence_transformers.sentence_transformer.modules import Dropout
from torch import Tensor, nn
from tqdm.auto import tqdm

from st_plugins.core.host import check_encoder, check_prompt, rebuild
from st_plugins.core.texts import check_texts

_MODALITIES = ("text", "image", "audio", "video", "message")  # routes that the host chooses by what it is given
_BLOCK = 4096  # texts encoded before they are added to the statistics and forgotten


def opened(
    model: SentenceTransformer, texts: Sequence[str], least: int, what: str, prompt: str | None, route: str | None
) -> tuple[list[str], SentenceTransformer, list[nn.Module], int]:
    """Check what is to be fitted on; return it, a copy of the model to fit behind, what comes last, and the width."""
    check_encoder(model)
    check_prompt(prompt)
    texts = check_texts(texts, "texts")
    if len(texts) < least:
        raise ValueError(f"texts has {len(texts)} entries, but {what} needs at least {least}; give more text")
    if len(set(texts)) < 2:
        raise ValueError(f"the {len(texts)} texts are all equal, but {what} needs different ones")
    return texts, *opened_head(model, prompt, route)


def opened_head(
    model: SentenceTransformer, prompt: str | None, route: str | None
) -> tuple[SentenceTransformer, list[nn.Module], int]:
    """Return a copy of the model to fit behind, what comes last, and the width."""
    check_encoder(model)
    check_prompt(prompt)
    routers = [module for module in model.modules() if isinstance(module, Router)]
    named = {name for router in routers for name in router.sub_modules if name not in _MODALITIES}
    routes = sorted(named | {task for router in routers for task, _ in router.route_mappings if task})
    if routes and route not in routes:
        raise ValueError(
            f"route is {route!r}, but the model has the routes {', '.join(map(repr, routes))}: say with which of them "
            "the texts are encoded"
        )
    if route is not None and not routes:
        raise ValueError(f"route is {route!r}, but the model has no routes; leave it out")
    # What is fitted goes before a Normalize at the end, with a Dropout around it, which encodes nothing.
    modules = list(model)
    head = list(modules)
    while len(head) > 1 and isinstance(head[-1], Normalize | Dropout):
        head.pop()
    if not any(isinstance(module, Normalize) for module in modules[len(head) :]):
        head = modules
    result = rebuild(model, head)
    result.truncate_dim = None  # else the end of each embedding would not be fitted on
    return result, [copy.deepcopy(module) for module in modules[len(head) :]], width_of(result)


def closed(result: SentenceTransformer, modules: Iterable[nn.Module]) -> SentenceTransformer:
    """Append what was fitted, and what comes last."""
    for module in modules:
        result.append(module.to(result.device).eval())
    return result


def encoded(
    model: SentenceTransformer,
    texts: list[str],
    batch_size: int,
    title: str,
    show_progress_bar: bool | None,
    prompt: str | None,
    route: str | None,
) -> Iterator[Tensor]:
    """Yield the embeddings block by block under a progress bar."""
    hidden = None if show_progress_bar is None else not show_progress_bar  # None: tqdm looks for a terminal
    options: dict[str, Any] = {"batch_size": batch_size} | ({} if route is None else {"task": route})
    with tqdm(total=len(texts), desc=title, unit="texts", disable=hidden) as bar:
        for start in range(0, len(texts), _BLOCK):  # in their order, by which the fit names a bad row
            block = texts[start : start + _BLOCK]
            yield model.encode(block, prompt=prompt, show_progress_bar=False, convert_to_tensor=True, **options)
            bar.update(len(block))


def width_of(module: Any) -> int:
    """Return the width of what a module or model gives."""
    dimension = module.get_embedding_dimension()
    if dimension is None:
        raise ValueError("the model does not say its embedding dimension; append a Pooling or Dense module to it")
    return int(dimension)
