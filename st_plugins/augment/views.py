"""Views of a batch: what each augmentation is called, what it takes, and how it is written down."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from numbers import Real
from typing import Any, ClassVar

from sentence_transformers import SentenceTransformer
from torch import Tensor

from st_plugins.augment import functional
from st_plugins.augment.encoders import shuffle_kind

__all__ = [
    "AdversarialPerturbation",
    "EmbeddingDropout",
    "FeatureCutoff",
    "NoAugmentation",
    "TokenCutoff",
    "TokenShuffle",
    "View",
    "flatten_view",
    "parse_view",
    "view_config",
    "view_from_config",
]


@dataclass(frozen=True)
class View:
    """Base class: one augmentation of the token embeddings of a batch.

    A subclass overrides `augment`. Views are compared, hashed and shown by their options; ``str(view)`` is the short
    form that `parse_view` reads.

    Example:
        >>> print(TokenCutoff(0.1, keep_special_tokens=True), repr(TokenCutoff(0.1)))
        token-cutoff:0.1:keep-special-tokens TokenCutoff(rate=0.1, keep_special_tokens=False)
    """

    name: ClassVar[str] = ""

    def augment(self, embeddings: Tensor, attention_mask: Tensor, special_tokens: Tensor) -> Tensor:
        """Return the augmented token embeddings; the base class leaves them as they are.

        Args:
            embeddings: ``(batch, tokens, features)``.
            attention_mask: ``(batch, tokens)``, True for the real tokens.
            special_tokens: ``(batch, tokens)``, True for [CLS], [SEP] and their like.

        Returns:
            Of the same shape and type.
        """
        return embeddings

    def get_config_dict(self) -> dict[str, Any]:
        """Return name and options, ready for JSON.

        Returns:
            ``{"view": name, option: value, ...}``, which `view_from_config` reads.

        Example:
            >>> FeatureCutoff().get_config_dict()
            {'view': 'feature-cutoff', 'rate': 0.2}
        """
        return {"view": self.name, **asdict(self)}

    def __str__(self) -> str:
        options = []
        for key, value in asdict(self).items():
            if value is True:
                options.append(_kebab(key))
            elif value is not False:
                options.append(_kebab(value) if isinstance(value, str) else f"{value:g}")
        return ":".join([self.name, *options])


@dataclass(frozen=True)
class NoAugmentation(View):
    """The clean view: the batch as it is (encoder dropout, if it is on, still differs between two of them).

    Example:
        >>> print(NoAugmentation())
        none
    """

    name: ClassVar[str] = "none"


@dataclass(frozen=True)
class TokenShuffle(View):
    """The real tokens of a sentence in a random order.

    Either their position ids are permuted, as published, or the order in which the encoder reads their embeddings,
    where positions are distances between slots; `st_plugins.augment.encoders` has the table, and
    ``shuffle_kind(model)`` says it of a model.

    Args:
        kind: ``"position_ids"``, ``"embeddings"``, or ``"auto"`` for what suits the encoder.
        keep_special_tokens: Whether [CLS], [SEP] and their like keep their places; the published code moves them.

    Reference:
        Yan et al., "ConSERT: A Contrastive Framework for Self-Supervised Sentence Representation Transfer" (2021),
        arXiv 2105.11741, section 3.2. The published code writes the ids 0 … n - 1 to the first n slots, which is
        wrong for RoBERTa (its ids start at 2, and 1 is the pad's) and for padding on the left; we permute the ids
        that the encoder would have used.

    Example:
        >>> import torch
        >>> from st_plugins.augment import augmented
        >>> from st_plugins.data.miniature import untrained_encoder
        >>> model = untrained_encoder().train()
        >>> with augmented(model, [NoAugmentation(), TokenShuffle()]):
        ...     output = model(model.preprocess(["the cat chased the dog"] * 3))
        >>> output["sentence_embedding"].shape
        torch.Size([6, 64])
    """

    name: ClassVar[str] = "token-shuffle"
    kind: str = "auto"
    keep_special_tokens: bool = False

    def __post_init__(self) -> None:
        if self.kind not in ("auto", "position_ids", "embeddings"):
            raise ValueError(f"kind must be 'auto', 'position_ids' or 'embeddings', got {self.kind!r}")
        _check_flag("keep_special_tokens", self.keep_special_tokens)


@dataclass(frozen=True)
class TokenCutoff(View):
    """``int(n * rate)`` of the n real tokens of each sentence become zero vectors.

    They stay in the attention and in the mean over the tokens, as published.

    Args:
        rate: Share of the tokens, in [0, 1).
        keep_special_tokens: Whether [CLS], [SEP] and their like are spared (and not counted in n); the published
            code cuts them too.

    Reference:
        Yan et al., arXiv 2105.11741, section 3.2.

    Example:
        >>> import torch
        >>> cut = TokenCutoff(0.5).augment(torch.ones(1, 4, 2), torch.ones(1, 4), torch.zeros(1, 4))
        >>> cut.sum().item()
        4.0
    """

    name: ClassVar[str] = "token-cutoff"
    rate: float = 0.15
    keep_special_tokens: bool = False

    def __post_init__(self) -> None:
        _check_rate(self)
        _check_flag("keep_special_tokens", self.keep_special_tokens)

    def augment(self, embeddings: Tensor, attention_mask: Tensor, special_tokens: Tensor) -> Tensor:
        """Cut tokens; see `View.augment`."""
        if not self.rate:
            return embeddings
        return functional.token_cutoff(embeddings, _eligible(self, attention_mask, special_tokens), self.rate)


@dataclass(frozen=True)
class FeatureCutoff(View):
    """``int(d * rate)`` of the d features of each sentence become zero, the same ones for all its tokens.

    Args:
        rate: Share of the features, in [0, 1).

    Reference:
        Yan et al., arXiv 2105.11741, section 3.2.

    Example:
        >>> import torch
        >>> cut = FeatureCutoff(0.5).augment(torch.ones(1, 3, 4), torch.ones(1, 3), torch.zeros(1, 3))
        >>> cut.sum(dim=1).sum().item(), (cut == 0).sum(dim=1).unique().tolist()
        (6.0, [0, 3])
    """

    name: ClassVar[str] = "feature-cutoff"
    rate: float = 0.2

    def __post_init__(self) -> None:
        _check_rate(self)

    def augment(self, embeddings: Tensor, attention_mask: Tensor, special_tokens: Tensor) -> Tensor:
        """Cut features; see `View.augment`."""
        return functional.feature_cutoff(embeddings, self.rate) if self.rate else embeddings


@dataclass(frozen=True)
class EmbeddingDropout(View):
    """Exactly ``int(n * d * rate)`` of the n × d numbers of each sentence become zero; the others are not scaled up.

    Args:
        rate: Share of the numbers, in [0, 1).
        keep_special_tokens: Whether [CLS], [SEP] and their like are spared (and not counted in n).

    Reference:
        Yan et al., arXiv 2105.11741, section 3.2.

    Example:
        >>> import torch
        >>> EmbeddingDropout(0.5).augment(torch.ones(1, 3, 5), torch.ones(1, 3), torch.zeros(1, 3)).sum().item()
        8.0
    """

    name: ClassVar[str] = "embedding-dropout"
    rate: float = 0.2
    keep_special_tokens: bool = False

    def __post_init__(self) -> None:
        _check_rate(self)
        _check_flag("keep_special_tokens", self.keep_special_tokens)

    def augment(self, embeddings: Tensor, attention_mask: Tensor, special_tokens: Tensor) -> Tensor:
        """Drop numbers; see `View.augment`."""
        if not self.rate:
            return embeddings
        return functional.embedding_dropout(embeddings, _eligible(self, attention_mask, special_tokens), self.rate)


@dataclass(frozen=True)
class AdversarialPerturbation(View):
    """A step of fixed length at every real token, along the gradient of a loss.

    It takes two passes: in the first this view leaves the batch as it is, and the loss is differentiated with respect
    to the token embeddings; `AugmentedPass.perturbations` turns the gradients into steps, which the second pass adds
    after all other augmentations.

    Args:
        norm: Euclidean length of the step at each token.

    Reference:
        Yan et al., arXiv 2105.11741, section 3.2, after Goodfellow et al., arXiv 1412.6572.

    Example:
        >>> print(AdversarialPerturbation(0.5))
        adversarial:0.5
    """

    name: ClassVar[str] = "adversarial"
    norm: float = 1.0

    def __post_init__(self) -> None:
        number = _number("norm", self.norm)
        if not 0.0 <= number < math.inf:
            raise ValueError(f"norm must be a finite number of at least 0, got {self.norm!r}")
        object.__setattr__(self, "norm", number)


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
        >>> from st_plugins.data.miniature import untrained_encoder
        >>> view_config(TokenShuffle(), untrained_encoder())
        [{'view': 'token-shuffle', 'kind': 'position_ids', 'keep_special_tokens': False}]
    """
    configs = [part.get_config_dict() for part in flatten_view(view)]
    for config in configs:
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
        text: For example ``"feature-cutoff:0.2+token-shuffle"`` or ``"token-cutoff:0.1:keep-special-tokens"``.

    Returns:
        The augmentations in order.

    Raises:
        ValueError: A name or an option is unknown, or a value is not allowed.

    Example:
        >>> parse_view("feature-cutoff:0.2+token-shuffle")
        (FeatureCutoff(rate=0.2), TokenShuffle(kind='auto', keep_special_tokens=False))
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


def _option(word: str, defaults: dict[str, Any], name: str) -> tuple[str, Any]:
    """Tell which option a word means: a flag by its name, a number or a choice by its type."""
    snake = word.replace("-", "_")
    if isinstance(defaults.get(snake), bool):
        return snake, True
    for key, default in defaults.items():
        if isinstance(default, str):
            return key, snake
        if isinstance(default, float):
            try:
                return key, float(word)
            except ValueError:
                break
    allowed = [_kebab(key) if default is False else f"a {key}" for key, default in defaults.items()]
    raise ValueError(f"{name} has no option {word!r}; it takes {' and '.join(allowed) or 'none'}")


def _class_of(name: Any) -> type[View]:
    if name not in _KNOWN:
        raise ValueError(f"unknown view {name!r}; known are {', '.join(_KNOWN)}")
    return _KNOWN[name]


def _eligible(view: Any, attention_mask: Tensor, special_tokens: Tensor) -> Tensor:
    """Return which tokens a view may touch."""
    real = attention_mask.bool()
    return real & ~special_tokens.bool() if view.keep_special_tokens else real


def _check_rate(view: Any) -> None:
    rate = _number("rate", view.rate)
    if not 0.0 <= rate < 1.0:
        raise ValueError(f"rate must be in [0, 1), got {view.rate!r}")
    object.__setattr__(view, "rate", rate)


def _number(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} must be a number, got {value!r}")
    return float(value)


def _check_flag(name: str, value: Any) -> None:
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, got {value!r}")


def _kebab(text: str) -> str:
    return text.replace("_", "-")
