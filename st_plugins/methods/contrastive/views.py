"""Views of a batch: what each augmentation is called, what it takes and what it does."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields
from numbers import Real
from typing import Any, ClassVar

from torch import Tensor

from st_plugins.methods.contrastive import functional


@dataclass(frozen=True)
class View:
    """Base class: one augmentation of the token embeddings of a batch.

    A subclass overrides `augment`. Views are compared, hashed and shown by their options; ``str(view)`` is the short
    form that `parse_view` reads.

    Example:
        >>> print(TokenCutoff(0.1, include_special_tokens=False), repr(TokenCutoff(0.1)))
        token-cutoff:0.1:no-include-special-tokens TokenCutoff(rate=0.1, include_special_tokens=True)
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
        words = [self.name]
        for option in fields(self):
            value = getattr(self, option.name)
            if not isinstance(value, bool):
                words.append(str(value).replace("_", "-"))
            elif value != option.default:
                words.append(("" if value else "no-") + option.name.replace("_", "-"))
        return ":".join(words)


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
    where positions are distances between slots; `st_plugins.methods.contrastive.encoders` has the table, and
    ``shuffle_kind(model)`` says it of a model.

    Args:
        kind: ``"position_ids"``, ``"embeddings"``, or ``"auto"`` for what suits the encoder.
        include_special_tokens: Whether [CLS], [SEP] and their like are moved too, as in the published code.

    Reference:
        Yan et al., "ConSERT: A Contrastive Framework for Self-Supervised Sentence Representation Transfer" (2021),
        arXiv 2105.11741, section 3.2. The published code writes the ids 0 … n - 1 to the first n slots, which is
        wrong for RoBERTa (its ids start at 2, and 1 is the pad's) and for padding on the left; we permute the ids
        that the encoder would have used.

    Example:
        >>> import torch
        >>> from st_plugins.augment import augmented
        >>> from st_plugins.miniature import untrained_encoder
        >>> model = untrained_encoder().train()
        >>> with augmented(model, [NoAugmentation(), TokenShuffle()]):
        ...     output = model(model.preprocess(["the cat chased the dog"] * 3))
        >>> output["sentence_embedding"].shape
        torch.Size([6, 64])
    """

    name: ClassVar[str] = "token-shuffle"
    kind: str = "auto"
    include_special_tokens: bool = True

    def __post_init__(self) -> None:
        if self.kind not in ("auto", "position_ids", "embeddings"):
            raise ValueError(f"kind must be 'auto', 'position_ids' or 'embeddings', got {self.kind!r}")
        _check_flag("include_special_tokens", self.include_special_tokens)


@dataclass(frozen=True)
class TokenCutoff(View):
    """``int(n * rate)`` of the n real tokens of each sentence become zero vectors.

    They stay in the attention and in the mean over the tokens, as published.

    Args:
        rate: Share of the tokens, in [0, 1).
        include_special_tokens: Whether [CLS], [SEP] and their like are cut too (and counted in n), as in the
            published code.

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
    include_special_tokens: bool = True

    def __post_init__(self) -> None:
        _check_rate(self)
        _check_flag("include_special_tokens", self.include_special_tokens)

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
        include_special_tokens: Whether [CLS], [SEP] and their like are dropped too (and counted in n).

    Reference:
        Yan et al., arXiv 2105.11741, section 3.2.

    Example:
        >>> import torch
        >>> EmbeddingDropout(0.5).augment(torch.ones(1, 3, 5), torch.ones(1, 3), torch.zeros(1, 3)).sum().item()
        8.0
    """

    name: ClassVar[str] = "embedding-dropout"
    rate: float = 0.2
    include_special_tokens: bool = True

    def __post_init__(self) -> None:
        _check_rate(self)
        _check_flag("include_special_tokens", self.include_special_tokens)

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


def _eligible(view: Any, attention_mask: Tensor, special_tokens: Tensor) -> Tensor:
    """Return which tokens a view may touch."""
    real = attention_mask.bool()
    return real if view.include_special_tokens else real & ~special_tokens.bool()


def _check_rate(view: Any) -> None:
    # As a float, also where it is given as 0: equal views are written alike.
    rate = _number("rate", view.rate)
    if not 0.0 <= rate < 1.0:
        raise ValueError(f"rate must be in [0, 1), got {view.rate!r}")
    object.__setattr__(view, "rate", rate)


def _number(name: str, value: Any) -> float:
    # True is a number to Python, and would be a norm of 1.
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} must be a number, got {value!r}")
    return float(value)


def _check_flag(name: str, value: Any) -> None:
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, got {value!r}")
