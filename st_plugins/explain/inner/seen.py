"""What a model makes of texts before it pools them: their tokens, and the layers that these went through."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Transformer
from sentence_transformers.sentence_transformer.modules import StaticEmbedding
from sentence_transformers.util import batch_to_device
from torch import Tensor, nn

from st_plugins.core.all_layers import with_layers
from st_plugins.core.encoding import longest_first
from st_plugins.core.host import evaluating
from st_plugins.core.tokens import unflattened
from st_plugins.explain.inner.reading import Reading, read


@dataclass(frozen=True)
class Seen:
    """A text, and what the pooling is given of it."""

    reading: Reading
    features: dict[str, Any]  # a batch of one without padding, on the model's device
    layers: Tensor | None  # (L + 1, n, d): what went into the first layer and came out of each; None unless asked for


def see(
    model: SentenceTransformer,
    texts: Sequence[str | Sequence[str]],
    prompt: str | None = None,
    *,
    layers: bool = False,
    batch_size: int = 32,
    show_progress_bar: bool = False,
) -> list[Seen]:
    """Run texts through the modules before the pooling, in batches of like length, each text put back by itself."""
    readings = [read(model, text, prompt) for text in texts]
    found: dict[int, Seen] = {}
    modules = list(model)
    with evaluating(model), torch.no_grad():
        for rows in longest_first(
            [len(one.tokens) for one in readings], batch_size, show_progress_bar=show_progress_bar
        ):
            if isinstance(modules[0], StaticEmbedding):
                # It has one flat list of tokens for all texts, and no layer between table and mean.
                for row in rows:
                    features = batch_to_device(dict(readings[row].features), model.device)
                    table = modules[0].embedding.weight[features["input_ids"]]
                    found[row] = Seen(readings[row], features, table[None] if layers else None)
                continue
            given: list[Any] = [texts[row] for row in rows]
            features = readings[rows[0]].features if len(rows) == 1 else model.preprocess(given, prompt=prompt)
            features, states = _before_pooling(modules, batch_to_device(dict(features), model.device), layers)
            for place, row in enumerate(rows):
                found[row] = _alone(features, states, place, readings[row])
    return [found[row] for row in range(len(texts))]


def _before_pooling(
    modules: list[nn.Module], features: dict[str, Any], layers: bool
) -> tuple[dict[str, Any], Sequence[Tensor]]:
    """Return what the first module that writes a sentence embedding is given, and the layers, if asked for."""
    states: Sequence[Tensor] = ()
    if layers and isinstance(modules[0], Transformer):
        features, states = with_layers(modules[0], features)
    else:
        features = modules[0](features)
    if layers and not states and "token_embeddings" in features:
        states = [features["token_embeddings"]]
    for module in modules[1:]:
        before = dict(features)
        features = module(features)
        if "sentence_embedding" in features:
            return unflattened(before), states
    return unflattened(features), states


def _alone(features: dict[str, Any], states: Sequence[Tensor], place: int, reading: Reading) -> Seen:
    """Take one text out of a batch, without the padding of the others."""
    mask = features.get("attention_mask")
    shape = features["input_ids"].shape
    kept = torch.ones(shape[1], dtype=torch.bool) if mask is None else mask[place].bool().cpu()

    def own(value: Any) -> Any:
        if not isinstance(value, Tensor) or not value.ndim or len(value) != shape[0]:
            return value
        one = value[place : place + 1]
        return one[:, kept.to(value.device)] if value.shape[:2] == shape else one

    if int(kept.sum()) != len(reading.tokens):
        raise ValueError(
            f"the model reads {int(kept.sum())} tokens of the text {reading.text[:80]!r} in a batch and "
            f"{len(reading.tokens)} by itself; explanations need a tokenizer that does not depend on the batch"
        )
    layers = torch.stack([own(state)[0] for state in states]) if states else None
    return Seen(reading, {name: own(value) for name, value in features.items() if name != _LAYERS}, layers)


_LAYERS = "all_layer_embeddings"
