"""Masked pairs: which tokens are asked for, and the logits where they are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import MODEL_FOR_MASKED_LM_MAPPING

from st_plugins.methods.label_token.tokens import integer_token_ids, label_token_ids

__all__ = ["IGNORED", "PairMasking", "check_masked_language_model", "features_of", "label_places", "logits_at"]

IGNORED = -100
_MASKED, _RANDOM = 0.8, 0.1  # of the tokens asked for, as in BERT; the rest stays as it is


@dataclass
class PairMasking:
    """Turn pairs into batches in which tokens of both texts, and the label, are asked for.

    Every known token of either text is asked for with probability ``share``: 80 % of these are masked, 10 % replaced
    by another integer, 10 % left. The place of the label always holds the mask; it is asked for where the label is
    known and not scored where it is not. Unknown tokens are not asked for.

    Args:
        tokenizer: A tokenizer of `build_tokenizer`.
        share: Share of the tokens that are asked for.
        swap: Whether the texts of a pair change places with probability 1/2.
        generator: Source of all draws.
        token_types: Whether the encoder tells first and second text apart by token types.

    Example:
        >>> from st_plugins.matching import AnonymisedPairs, build_tokenizer
        >>> tokenizer = build_tokenizer(AnonymisedPairs(["12 7"], ["7 9"]))
        >>> masking = PairMasking(tokenizer, 0.15, False, torch.Generator().manual_seed(0))
        >>> batch = masking([("12 7", "7 9", "1"), ("7", "7", None)])
        >>> batch["input_ids"].shape, batch["labels"][:, 1].tolist()
        (torch.Size([2, 8]), [6, -100])
    """

    tokenizer: Any
    share: float
    swap: bool
    generator: torch.Generator
    token_types: bool = True

    def __post_init__(self) -> None:
        self._label_ids = label_token_ids(self.tokenizer)
        self._integers = torch.tensor(integer_token_ids(self.tokenizer))

    def __call__(self, rows: list[tuple[str, str, str | None]]) -> dict[str, Tensor]:
        """Make a batch.

        Args:
            rows: First text, second text, and label or None.

        Returns:
            The features, with ``labels`` (N, n): what is asked for, and -100 elsewhere.
        """
        pairs = [(first, second) for first, second, _ in rows]
        if self.swap:
            swapped = (self._draw(len(pairs)) < 0.5).tolist()
            pairs = [(b, a) if exchange else (a, b) for (a, b), exchange in zip(pairs, swapped, strict=True)]
        features = features_of(self.tokenizer, pairs, self.token_types)
        ids = features["input_ids"]
        asked = torch.isin(ids, self._integers) & (self._draw(ids.shape) < self.share)
        fate = self._draw(ids.shape)
        others = self._integers[torch.randint(len(self._integers), ids.shape, generator=self.generator)]
        hidden = ids.masked_fill(asked & (fate < _MASKED), self.tokenizer.mask_token_id)
        hidden = torch.where(asked & (fate >= 1 - _RANDOM), others, hidden)
        labels = ids.masked_fill(~asked, IGNORED)
        wanted = [IGNORED if label is None else self._label_ids[label] for _, _, label in rows]
        labels[label_places(ids, self.tokenizer)] = torch.tensor(wanted)
        return {**features, "input_ids": hidden, "labels": labels}

    def _draw(self, shape: int | torch.Size) -> Tensor:
        return torch.rand(shape, generator=self.generator)


def features_of(tokenizer: Any, pairs: list[tuple[str, str]], token_types: bool) -> dict[str, Tensor]:
    """Tokenize pairs.

    Args:
        tokenizer: A tokenizer of `build_tokenizer`.
        pairs: The pairs.
        token_types: Whether to return token types.

    Returns:
        Padded ``input_ids`` and ``attention_mask``, and ``token_type_ids`` if wanted, each ``(N, n)``.

    Example:
        >>> from st_plugins.matching import AnonymisedPairs, build_tokenizer
        >>> tokenizer = build_tokenizer(AnonymisedPairs(["12 7"], ["7 9"]))
        >>> features_of(tokenizer, [("7", "9")], True)["token_type_ids"].tolist()
        [[0, 0, 0, 0, 1, 1]]
    """
    found = tokenizer(pairs, truncation=True, padding=True, return_tensors="pt", return_token_type_ids=token_types)
    return dict(found)


def label_places(ids: Tensor, tokenizer: Any) -> Tensor:
    """Return where the labels of unmasked pairs belong.

    Args:
        ids: Pairs whose only mask is the one that the tokenizer puts there, ``(N, n)``.
        tokenizer: A tokenizer of `build_tokenizer`.

    Returns:
        True at one place of each row, ``(N, n)``.

    Example:
        >>> from st_plugins.matching import AnonymisedPairs, build_tokenizer
        >>> tokenizer = build_tokenizer(AnonymisedPairs(["12 7"], ["7 9"]))
        >>> label_places(torch.tensor(tokenizer([("7", "9")])["input_ids"]), tokenizer).tolist()
        [[False, True, False, False, False, False]]
    """
    return ids.eq(tokenizer.mask_token_id)


def check_masked_language_model(model: Any, name: str) -> None:
    """Refuse what is no masked language model of transformers.

    Args:
        model: The model.
        name: Name of the argument, for the message.

    Raises:
        TypeError: It is none.

    Example:
        >>> check_masked_language_model(torch.nn.Linear(1, 1), "encoder")
        Traceback (most recent call last):
        TypeError: encoder must be a masked language model (a class that AutoModelForMaskedLM makes), got a Linear;...
    """
    mapping: Any = MODEL_FOR_MASKED_LM_MAPPING
    wanted = mapping.get(type(getattr(model, "config", None)), ())
    if not isinstance(model, wanted):
        raise TypeError(
            f"{name} must be a masked language model (a class that AutoModelForMaskedLM makes), got a "
            f"{type(model).__name__}; the head predicts the label, so an encoder without one will not do"
        )


def logits_at(model: Any, features: Mapping[str, Tensor], chosen: Tensor) -> Tensor:
    """Compute a masked language model's logits at some places, without those at all others.

    The output layer is handed the chosen hidden states only: it is the largest layer of a small model.

    Args:
        model: The model.
        features: Its inputs, ``(N, n)`` each.
        chosen: Places, ``(N, n)``, boolean.

    Returns:
        ``(chosen places, vocabulary)``, row by row.

    Example:
        >>> from transformers import BertConfig, BertForMaskedLM
        >>> shape = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
        >>> model = BertForMaskedLM(BertConfig(vocab_size=11, **shape))
        >>> logits_at(model, {"input_ids": torch.tensor([[1, 2, 3]])}, torch.tensor([[True, False, True]])).shape
        torch.Size([2, 11])
    """
    hook = model.get_output_embeddings().register_forward_pre_hook(lambda layer, inputs: (inputs[0][chosen],))
    try:
        logits: Tensor = model(**features).logits
    finally:
        hook.remove()
    # Heads that multiply by the layer's weights themselves never call it.
    return logits[chosen] if logits.ndim == 3 else logits
