"""Masked pairs: which tokens are asked for, and the logits where they are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import MODEL_FOR_MASKED_LM_MAPPING

from st_plugins.methods.label_token.tokens import integer_token_ids, label_token_ids

IGNORED = -100
_MASKED, _RANDOM = 0.8, 0.1  # of the tokens asked for, as in BERT; the rest stays as it is


@dataclass
class PairMasking:
    """Turn pairs into batches in which tokens of both texts, and the label, are asked for."""

    tokenizer: Any
    share: float
    swap: bool
    generator: torch.Generator
    token_types: bool = True

    def __post_init__(self) -> None:
        self._label_ids = label_token_ids(self.tokenizer)
        self._integers = torch.tensor(integer_token_ids(self.tokenizer))

    def __call__(self, rows: list[tuple[str, str, str | None]]) -> dict[str, Tensor]:
        """Make a batch."""
        pairs = [(first, second) for first, second, _ in rows]
        if self.swap:
            swapped = (self._draw(len(pairs)) < 0.5).tolist()
            pairs = [(b, a) if exchange else (a, b) for (a, b), exchange in zip(pairs, swapped, strict=True)]
        features = features_of(self.tokenizer, pairs, self.token_types)
        # Unknown tokens are not asked for: there is nothing to learn about them but that they are rare.
        ids = features["input_ids"]
        asked = torch.isin(ids, self._integers) & (self._draw(ids.shape) < self.share)
        # One draw a token: below 0.8 the mask, from 0.9 on another integer, between them the token itself, so that
        # what is not masked cannot be trusted either.
        fate = self._draw(ids.shape)
        others = self._integers[torch.randint(len(self._integers), ids.shape, generator=self.generator)]
        hidden = ids.masked_fill(asked & (fate < _MASKED), self.tokenizer.mask_token_id)
        hidden = torch.where(asked & (fate >= 1 - _RANDOM), others, hidden)
        labels = ids.masked_fill(~asked, IGNORED)
        # The place of the label always holds the mask, so that pairs look the same in training and in use; where the
        # label is not known, nothing is asked for there.
        wanted = [IGNORED if label is None else self._label_ids[label] for _, _, label in rows]
        labels[label_places(ids, self.tokenizer)] = torch.tensor(wanted)
        return {**features, "input_ids": hidden, "labels": labels}

    def _draw(self, shape: int | torch.Size) -> Tensor:
        return torch.rand(shape, generator=self.generator)


def features_of(tokenizer: Any, pairs: list[tuple[str, str]], token_types: bool) -> dict[str, Tensor]:
    """Tokenize pairs."""
    found = tokenizer(pairs, truncation=True, padding=True, return_tensors="pt", return_token_type_ids=token_types)
    return dict(found)


def label_places(ids: Tensor, tokenizer: Any) -> Tensor:
    """Return where the labels of unmasked pairs belong."""
    return ids.eq(tokenizer.mask_token_id)


def check_masked_language_model(model: Any, name: str) -> None:
    """Refuse what is no masked language model of transformers."""
    mapping: Any = MODEL_FOR_MASKED_LM_MAPPING
    wanted = mapping.get(type(getattr(model, "config", None)), ())
    if not isinstance(model, wanted):
        raise TypeError(
            f"{name} must be a masked language model (a class that AutoModelForMaskedLM makes), got a "
            f"{type(model).__name__}; the head predicts the label, so an encoder without one will not do"
        )


def logits_at(model: Any, features: Mapping[str, Tensor], chosen: Tensor) -> Tensor:
    """Compute a masked language model's logits at some places, without those at all others."""
    # The output layer is handed the chosen hidden states only: it is the largest layer of a small model.
    hook = model.get_output_embeddings().register_forward_pre_hook(lambda layer, inputs: (inputs[0][chosen],))
    try:
        logits: Tensor = model(**features).logits
    finally:
        hook.remove()
    # Heads that multiply by the layer's weights themselves never call it.
    return logits[chosen] if logits.ndim == 3 else logits
