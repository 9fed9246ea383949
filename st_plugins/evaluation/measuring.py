"""How texts became vectors: the prompt and the route of each side, what was used and what the model does by itself."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Router

from st_plugins.core.host import check_prompt

__all__ = [
    "Way",
    "check_alike",
    "dtype_of",
    "fingerprint",
    "length_of",
    "measured",
    "own_ways",
    "parse_routes",
    "setting_in_words",
    "way_of_texts",
    "ways_of",
]

Routes = tuple[str | None, str | None]

_QUERIES = {"query", "queries", "question", "questions"}
_DOCUMENTS = {"document", "documents", "doc", "docs", "passage", "passages", "answer", "answers", "context", "corpus"}
_PROMPT_NAMES = {"query": ["query"], "document": ["document", "passage", "corpus"]}  # as the host looks them up
_MODALITIES = ("text", "image", "audio", "video", "message")
_SAMPLED = 64  # values of each tensor in a fingerprint: any training moves one of them


@dataclass(frozen=True)
class Way:
    """How one side of the pairs is encoded."""

    route: str | None
    prompt: str | None
    asked: str | None = field(default=None, compare=False)

    @property
    def arguments(self) -> dict[str, Any]:
        """What ``model.encode`` is called with."""
        chosen = {"task": self.route, "prompt": self.prompt}
        return {name: value for name, value in chosen.items() if value is not None}


def parse_routes(routes: str | Sequence[str] | None) -> Routes | None:
    """Return the routes of the first and the second texts."""
    if routes is None:
        return None
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
    names = _routes(model)
    chosen = _by_columns(columns, names) if routes is None else routes
    for route in chosen:
        if route is None and names and not _has_default(model):
            raise ValueError(
                f"{title}: the model has no default route, and {_told_by(columns)} which of its routes "
                f"{_listed(names)} a text takes; give {argument} (--{argument})"
            )
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


# ---------------------------------------------------------------------------------------------- record and comparison


def measured(
    model: SentenceTransformer,
    own: Mapping[str, Any],
    *,
    similarity: str,
    target_whitening: int | None,
    ways: Mapping[str, tuple[Way, Way]],
    own_ways: Mapping[str, tuple[Way, Way]],
) -> dict[str, dict[str, Any]]:
    """Return how a model was measured, as plain JSON values: for each setting what was used and what is its own."""
    used = {
        "similarity": similarity,
        "max_seq_length": length_of(model),
        "prompts": {name: [way.prompt or None for way in sides] for name, sides in ways.items()},
        "routes": {name: [way.asked for way in sides] for name, sides in ways.items()},
        "truncate_dim": model.truncate_dim,
        "target_whitening": target_whitening,
        "dtype": dtype_of(model),
    }
    theirs = used | {
        "similarity": str(model.similarity_fn_name),
        "prompts": {name: [way.prompt or None for way in sides] for name, sides in own_ways.items()},
        "routes": {name: [way.asked for way in sides] for name, sides in own_ways.items()},
        "target_whitening": None,
        **own,
    }
    return {name: {"used": value, "own": theirs[name]} for name, value in used.items()}


def dtype_of(model: SentenceTransformer) -> str:
    """Return the precision of a model's weights."""
    return str(next(iter(model.parameters()), torch.empty(0)).dtype).removeprefix("torch.")


def length_of(model: Any) -> int | None:
    """Return the model's length limit in tokens; None where it has none."""
    length = model.max_seq_length
    return int(length) if length and math.isfinite(length) else None


def fingerprint(model: SentenceTransformer, modules: Sequence[Mapping[str, Any]]) -> str:
    """Return a checksum of what the model is, whatever its length limit: modules, and some values of every tensor."""
    plain = [
        [module["type"], {k: v for k, v in module["config"].items() if k != "max_seq_length"}] for module in modules
    ]
    digest = hashlib.sha256(json.dumps(plain, sort_keys=True, default=str).encode())
    for name, tensor in sorted(model.state_dict().items()):
        if (
            ".pooler." in name
        ):  # BERT's own, which no embedding passes: drawn anew at each loading where it is not stored
            continue
        flat = tensor.detach().flatten()
        step = max(1, flat.numel() // _SAMPLED)
        digest.update(f"{name} {tuple(tensor.shape)}".encode())
        digest.update(flat[::step].to(device="cpu", dtype=torch.float32).numpy().tobytes())
    return digest.hexdigest()


def check_alike(a: Mapping[str, Any], b: Mapping[str, Any], names: tuple[str, str], same: bool) -> list[str]:
    """Refuse two results of which one was measured in another way, and say what differs otherwise."""
    notes = []
    for setting in a:
        one, two = a[setting], b.get(setting, {"used": None, "own": None})
        if one["used"] == two["used"]:
            continue
        told = " and ".join(_told(name, value) for name, value in zip(names, (one, two), strict=True))
        if same or any(value["used"] != value["own"] for value in (one, two)):
            raise ValueError(
                "the two were measured differently, which would be taken for a difference of the models: "
                f"{setting} is {told}; evaluate both with the same {setting}"
            )
        notes.append(f"{setting} is {told}")
    return notes


def _told(name: str, value: Mapping[str, Any]) -> str:
    own = "" if value["used"] == value["own"] else f" (the model's own is {setting_in_words(value['own'])})"
    return f"{setting_in_words(value['used'])} for {name!r}{own}"


def setting_in_words(value: Any) -> str:
    """Return a setting in words; of tasks that are all alike, one."""
    if isinstance(value, Mapping):
        different = {json.dumps(sides, ensure_ascii=False): sides for sides in value.values()}
        if len(different) > 1:
            return "; ".join(f"{task}: {setting_in_words(sides)}" for task, sides in sorted(value.items()))
        value = next(iter(different.values()), None)
    if isinstance(value, list):
        return repr(value[0]) if value[0] == value[-1] else " and ".join(map(repr, value))
    return str(value)
