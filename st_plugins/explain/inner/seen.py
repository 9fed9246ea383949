"""What a model makes of texts before it pools them: their tokens, and the layers that these went through."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
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
from st_plugins.core.host import check_length, default_prompt, evaluating
from st_plugins.core.tokens import unflattened
from st_plugins.explain.inner.reading import Reading, read


@dataclass(frozen=True)
class Seen:
    """A text, what the pooling is given of it, and what comes out in the end."""

    reading: Reading
    features: dict[str, Any]  # a batch of one without padding, on the model's device
    layers: Tensor | None  # (L + 1, n, d): what went into the first layer and came out of each; None unless asked for
    embedding: Tensor  # (k,), on the CPU: what `model.encode` gives


def see(
    model: SentenceTransformer,
    texts: Sequence[str | Sequence[str]],
    prompt: str | None = None,
    *,
    layers: bool = False,
) -> list[Seen]:
    """Run texts through the model, each put back by itself."""
    found = dict(look(model, texts, prompt, layers=layers))
    return [found[row] for row in range(len(texts))]


def look(
    model: SentenceTransformer,
    texts: Sequence[str | Sequence[str]],
    prompt: str | None = None,
    *,
    layers: bool = False,
    batch_size: int = 32,
    show_progress_bar: bool = False,
    names: Sequence[str] | None = None,
) -> Iterator[tuple[int, Seen]]:
    """Yield what the model makes of texts, with their rows, batch by batch, so that one batch is held at a time."""
    check_length(model)
    prompt = default_prompt(model) if prompt is None else prompt
    names = names or ["text"] * len(texts)  # what messages call them
    readings = [read(model, text, prompt, name) for text, name in zip(texts, names, strict=True)]
    lengths = [len(one.tokens) for one in readings]
    for rows in longest_first(lengths, batch_size, description="Explaining", show_progress_bar=show_progress_bar):
        # Nothing is left switched off while the caller has its turn.
        with evaluating(model), torch.no_grad():
            found = list(_batch(model, [texts[row] for row in rows], [readings[row] for row in rows], prompt, layers))
        yield from zip(rows, found, strict=True)


def _batch(
    model: SentenceTransformer,
    texts: Sequence[str | Sequence[str]],
    readings: Sequence[Reading],
    prompt: str | None,
    layers: bool,
) -> Iterator[Seen]:
    """Run texts of like length through all modules at once."""
    modules = list(model)
    if isinstance(modules[0], StaticEmbedding):
        # It has one flat list of tokens for all texts, and no layer between table and mean.
        for reading in readings:
            features = batch_to_device(dict(reading.features), model.device)
            table = modules[0].embedding.weight[features["input_ids"]]
            _, _, embeddings = _run(modules, dict(features), False)
            yield Seen(reading, features, table[None] if layers else None, embeddings[0].cpu()[: model.truncate_dim])
        return
    given: list[Any] = list(texts)
    features = readings[0].features if len(readings) == 1 else model.preprocess(given, prompt=prompt)
    features, states, embeddings = _run(modules, batch_to_device(dict(features), model.device), layers)
    for place, reading in enumerate(readings):
        yield _alone(features, states, embeddings[place].cpu()[: model.truncate_dim], place, reading)


def _run(
    modules: list[nn.Module], features: dict[str, Any], layers: bool
) -> tuple[dict[str, Any], Sequence[Tensor], Tensor]:
    """Return what the first module that writes an embedding is given, the layers, if asked for, and the embeddings."""
    states: Sequence[Tensor] = ()
    before: dict[str, Any] = dict(features)
    if layers and isinstance(modules[0], Transformer):
        features, states = with_layers(modules[0], features)
    else:
        features = modules[0](features)
    if layers and not states and "token_embeddings" in features:
        states = [features["token_embeddings"]]
    for module in modules[1:]:
        if "sentence_embedding" not in features:
            before = dict(features)
        features = module(features)
    if "sentence_embedding" not in features:
        names = ", ".join(type(module).__name__ for module in modules)
        raise ValueError(f"the model ({names}) has no pooling, so there is no embedding to explain; add a Pooling")
    return unflattened(before), states, features["sentence_embedding"]


def _alone(
    features: dict[str, Any], states: Sequence[Tensor], embedding: Tensor, place: int, reading: Reading
) -> Seen:
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
            f"the model reads {int(kept.sum())} tokens of the {reading.name} {reading.text[:80]!r} in a batch and "
            f"{len(reading.tokens)} by itself; explanations need a tokenizer that does not depend on the batch"
        )
    layers = torch.stack([own(state)[0] for state in states]) if states else None
    kept_features = {name: own(value) for name, value in features.items() if name != _LAYERS}
    return Seen(reading, kept_features, layers, embedding)


_LAYERS = "all_layer_embeddings"
