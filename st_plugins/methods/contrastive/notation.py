"""How views are written down: as JSON, and as text for a command line."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from typing import Any

from sentence_transformers import SentenceTransformer

from st_plugins.methods.contrastive.encoders import shuffle_kind
from st_plugins.methods.contrastive.views import (
    AdversarialPerturbation,
    EmbeddingDropout,
    FeatureCutoff,
    NoAugmentation,
    TokenCutoff,
    TokenShuffle,
    View,
)

_KNOWN: dict[str, type[View]] = {
    view.name: view
    for view in (NoAugmentation, TokenShuffle, TokenCutoff, FeatureCutoff, EmbeddingDropout, AdversarialPerturbation)
}


def flatten_view(view: View | Iterable[View]) -> tuple[View, ...]:
    """Return the augmentations of a view in order, of a single one too.

    Args:
        view: One augmentation, or a sequence of them.

    Returns:
        At least one augmentation.

    Raises:
        TypeError: It holds something that is no View.
        ValueError: It is empty.

    Example:
        >>> flatten_view(FeatureCutoff(0.2))
        (FeatureCutoff(rate=0.2),)
    """
    if isinstance(view, View):
        return (view,)
    if isinstance(view, str) or not isinstance(view, Iterable):
        raise TypeError(f"a view must be a View or a sequence of them, got {view!r}; parse_view() reads text")
    parts = tuple(view)
    for part in parts:
        if not isinstance(part, View):
            raise TypeError(f"a view must be a View or a sequence of them, got one that holds {part!r}")
    if not parts:
        raise ValueError("a view is empty; write NoAugmentation() for the clean one")
    return parts


def view_config(view: View | Iterable[View], model: SentenceTransformer | None = None) -> list[dict[str, Any]]:
    """Return the augmentations of a view as a list ready for JSON.

    Args:
        view: One augmentation, or a sequence of them.
        model: If given, ``kind="auto"`` of a TokenShuffle is replaced by what it is for this model.

    Returns:
        One dictionary for each, which `view_from_config` reads.

    Example:
        >>> from st_plugins.miniature import untrained_encoder
        >>> view_config(TokenShuffle(), untrained_encoder())
        [{'view': 'token-shuffle', 'kind': 'position_ids', 'include_special_tokens': True}]
    """
    configs = [part.get_config_dict() for part in flatten_view(view)]
    for config in configs:
        # What "auto" stood for is what a record needs: the rule may be another one tomorrow.
        if model is not None and config.get("kind") == "auto":
            config["kind"] = shuffle_kind(model)
    return configs


def view_from_config(config: Mapping[str, Any] | Sequence[Mapping[str, Any]]) -> tuple[View, ...]:
    """Build a view from what `View.get_config_dict` or `view_config` returned.

    Args:
        config: One dictionary, or one for each augmentation.

    Returns:
        The augmentations in order.

    Raises:
        ValueError: A name or an option is unknown, or a value is not allowed.

    Example:
        >>> view_from_config({"view": "feature-cutoff", "rate": 0.1})
        (FeatureCutoff(rate=0.1),)
    """
    parts = []
    for entry in [config] if isinstance(config, Mapping) else config:
        options = dict(entry)
        known = _class_of(options.pop("view", None))
        allowed = [field.name for field in fields(known)]
        for key in options:
            if key not in allowed:
                raise ValueError(f"{known.name} has no option {key!r}; it has {allowed or 'none'}")
        parts.append(known(**options))
    return flatten_view(parts)


def parse_view(text: str) -> tuple[View, ...]:
    """Read the short form of a view: augmentations joined by ``+``, options after ``:``.

    Args:
        text: For example ``"feature-cutoff:0.2+token-shuffle"`` or ``"token-cutoff:0.1:no-include-special-tokens"``.

    Returns:
        The augmentations in order.

    Raises:
        ValueError: A name or an option is unknown, or a value is not allowed.

    Example:
        >>> parse_view("feature-cutoff:0.2+token-shuffle")
        (FeatureCutoff(rate=0.2), TokenShuffle(kind='auto', include_special_tokens=True))
    """
    parts = []
    for piece in text.split("+"):
        name, *written = (word.strip() for word in piece.split(":"))
        known = _class_of(name)
        defaults = {field.name: field.default for field in fields(known)}
        options: dict[str, Any] = {}
        for word in written:
            key, value = _option(word, defaults, known.name)
            if key in options:
                raise ValueError(f"{piece.strip()!r} gives {key} twice")
            options[key] = value
        parts.append(known(**options))
    return flatten_view(parts)


def as_view(view: Any) -> tuple[View, ...]:
    """Return the augmentations of a view, in whatever way it is written."""
    if isinstance(view, str):
        try:
            return parse_view(view)
        except ValueError as error:
            raise ValueError(f"views={view!r}: {error}") from error
    parts = [view] if isinstance(view, Mapping) else view
    if isinstance(parts, Sequence) and parts and all(isinstance(part, Mapping) for part in parts):
        return view_from_config(parts)
    return flatten_view(view)


def _option(word: str, defaults: dict[str, Any], name: str) -> tuple[str, Any]:
    """Tell which option a word means: a flag by its name, a number or a choice by its type."""
    snake = word.replace("-", "_")
    flag = snake.removeprefix("no_")
    if isinstance(defaults.get(flag), bool):
        return flag, flag == snake
    # By type alone, as no view has two numbers or two choices; one that had would need names in the short form.
    for key, default in defaults.items():
        if isinstance(default, str):
            return key, snake
        if isinstance(default, float):
            try:
                return key, float(word)
            except ValueError:
                break
    allowed = [f"no-{key}".replace("_", "-") if default is True else f"a {key}" for key, default in defaults.items()]
    raise ValueError(f"{name} has no option {word!r}; it takes {' and '.join(allowed) or 'none'}")


def _class_of(name: Any) -> type[View]:
    if name not in _KNOWN:
        raise ValueError(f"unknown view {name!r}; known are {', '.join(_KNOWN)}")
    return _KNOWN[name]
