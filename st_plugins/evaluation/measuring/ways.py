"""How the two sides of a task are encoded: the prompt and the route of each."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Router

from st_plugins.core.host import check_prompt

Routes = tuple[str | None, str | None]

_QUERIES = {"query", "queries", "question", "questions"}
_DOCUMENTS = {"document", "documents", "doc", "docs", "passage", "passages", "answer", "answers", "context", "corpus"}
_PROMPT_NAMES = {"query": ["query"], "document": ["document", "passage", "corpus"]}  # as the host looks them up
_MODALITIES = ("text", "image", "audio", "video", "message")


@dataclass(frozen=True)
class Way:
    """How one side of the pairs is encoded."""

    route: str | None  # the host's ``task``; None for none, or where the model does not take one
    prompt: str | None
    # A model without routes takes at most a prompt from what was asked for: two ways that differ in this only are one.
    asked: str | None = field(default=None, compare=False)

    @property
    def arguments(self) -> dict[str, Any]:
        """What ``model.encode`` is called with."""
        chosen = {"task": self.route, "prompt": self.prompt}
        return {name: value for name, value in chosen.items() if value is not None}


def parse_routes(routes: str | Sequence[str] | None) -> Routes | None:
    """Return the routes of the first and the second texts."""
    if routes is None:
        return None  # the names of the columns decide
    names = [name.strip() for name in (routes.split(",") if isinstance(routes, str) else routes)]
    if not 1 <= len(names) <= 2 or not all(names):
        raise ValueError(f"routes={routes!r}: give one for each side, such as 'query,document', or 'default'")
    first, second = (None if name == "default" else name for name in (names[0], names[-1]))
    return first, second


def ways_of(
    model: SentenceTransformer,
    title: str,
    columns: tuple[str, str],
    routes: Routes | None = None,
    prompt: str | None = None,
    prompt_name: str | None = None,
    argument: str = "routes",
) -> tuple[Way, Way, str]:
    """Return how the two sides of a task are encoded, and a warning when that may not be how the model is used."""
    if prompt is None and prompt_name is not None and prompt_name not in model.prompts:
        raise ValueError(f"prompt_name={prompt_name!r}: the model has {_listed(model.prompts) or 'no prompts'}")
    if prompt is None and prompt_name is not None:
        prompt = model.prompts[prompt_name]
    # The columns decide where nobody did: `encode_query` and `encode_document` for "question" and "answer".
    names = _routes(model)
    chosen = _by_columns(columns, names) if routes is None else routes
    for route in chosen:
        if route is None and names and not _has_default(model):
            raise ValueError(
                f"{title}: the model has no default route, and {_told_by(columns)} which of its routes "
                f"{_listed(names)} a text takes; give {argument} (--{argument})"
            )
        # A model without routers takes a route as the name of a prompt.
        known = list(dict.fromkeys([*names, *model.prompts, *([] if names else _PROMPT_NAMES)]))
        if route is not None and route not in known:
            raise ValueError(f"{argument}={route!r}: the model does not have it, it has {_listed(known)}")
    first, second = (_way(model, route, prompt, names) for route in chosen)
    warning = ""
    # The host gives every model empty prompts for queries and documents.
    prompted = [side for side, keys in _PROMPT_NAMES.items() if any(model.prompts.get(key) for key in keys)]
    others = {_way(model, route, prompt, names) for route in (None, *(names or prompted))}
    if routes is None and chosen == (None, None) and len(others) > 1:
        what = f"the routes {_listed(names)}" if names else "prompts of its own for 'query' and 'document'"
        warning = (
            f"{title}: the model has {what}, but {_told_by(columns)} which text is which: all were encoded by plain "
            f"encode, with its default route and prompt. Where some are queries, say so with {argument} (--{argument} "
            f"{'query' if argument == 'route' else 'query,document'})"
        )
    return first, second, warning


def way_of_texts(
    model: SentenceTransformer,
    column: str = "",
    route: str | None = None,
    prompt: str | None = None,
    prompt_name: str | None = None,
) -> tuple[Way, str]:
    """Return how texts that are no pairs are encoded, and a warning as :func:`ways_of` does."""
    check_prompt(prompt, prompt_name)
    if route is not None and (not route.strip() or "," in route):
        raise ValueError(f"route={route!r}: give one route of the model, or 'default'")
    routes = parse_routes(route)
    names = _routes(model)
    # One column has no partner that tells it apart, so its own name must be enough.
    side = column if column in names else _side(column)
    if routes is None and side is not None and (not names or side in names):
        routes = side, side
    way, _, warning = ways_of(model, "the texts", (column, column), routes, prompt, prompt_name, argument="route")
    return way, warning


def _way(model: SentenceTransformer, route: str | None, prompt: str | None, names: Sequence[str]) -> Way:
    if prompt is None:
        wanted = _PROMPT_NAMES.get(route or "", [route] if route else [])
        name = next((name for name in wanted if name in model.prompts), model.default_prompt_name)
        prompt = model.prompts.get(name) if name else None
    if not prompt and not model.default_prompt_name:
        prompt = None  # an empty prompt says something only where a default one is to be left out
    takes = route in names if names else "task" in model.get_model_kwargs()
    return Way(route if takes else None, prompt, route)


def own_ways(model: SentenceTransformer, columns: tuple[str, str], ways: tuple[Way, Way]) -> tuple[Way, Way]:
    """Return what the model does by itself where it was used in these ways: its prompts there, and its routes."""
    names = _routes(model)
    # A model that cannot do without being told a route has none of its own: what it was told counts as such.
    told = bool(names) and not _has_default(model)
    first, second = (
        Way(None, _way(model, way.asked, None, names).prompt, way.asked if told and route is None else route)
        for way, route in zip(ways, _by_columns(columns, names), strict=True)
    )
    return first, second


def _routes(model: SentenceTransformer) -> list[str]:
    """Return the tasks that the model's routers tell apart."""
    found: dict[str, None] = {}
    for module in model.modules():
        if isinstance(module, Router):
            found |= {name: None for name in module.sub_modules if name not in _MODALITIES}
            found |= {task: None for task, _ in module.route_mappings if task}
    return list(found)


def _has_default(model: SentenceTransformer) -> bool:
    # As the host chooses a route: the default one, or what its mappings or its name say of plain text.
    routers = [module for module in model.modules() if isinstance(module, Router)]
    return all(
        module.default_route is not None
        or "text" in module.sub_modules
        or any(task is None and kind in (None, "text") for task, kind in module.route_mappings)
        for module in routers
    )


def _by_columns(columns: tuple[str, str], names: Sequence[str]) -> Routes:
    first, second = columns
    if first in names and second in names:
        return first, second
    sides = _side(first), _side(second)
    if set(sides) == {"query", "document"} and (not names or {"query", "document"} <= set(names)):
        return sides
    return None, None


def _side(column: str) -> str | None:
    words = set(re.findall("[a-z]+", re.sub("(?<=[a-z])(?=[A-Z])", " ", column).lower()))  # also of "queryText"
    query, document = bool(words & _QUERIES), bool(words & _DOCUMENTS)
    return None if query == document else "query" if query else "document"


def _told_by(columns: Sequence[str]) -> str:
    return f"the columns {_listed(columns)} do not say" if all(columns) else "nothing says"


def _listed(names: Any) -> str:
    return ", ".join(repr(name) for name in names)
