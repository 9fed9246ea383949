"""What has to be known about the inside of encoders to go through their layers: where hidden states are exchanged."""

from __future__ import annotations

import contextlib
import copy
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Transformer
from sentence_transformers.sentence_transformer.modules import StaticEmbedding
from torch import Tensor, nn

from st_plugins.core.all_layers import with_layers
from st_plugins.core.host import recorded
from st_plugins.explain.inner.reading import check_route
from st_plugins.methods.contrastive.encoders import encoder_parts
from st_plugins.methods.self_explaining.span_attention import span_reach
from st_plugins.methods.self_explaining.span_pooling import SpanPooling

Depth = Literal["output", "input"] | int

_ATTENTION = ("eager", "sdpa")  # those that PyTorch differentiates forward


@dataclass(frozen=True)
class Place:
    """A call of a module whose output is the hidden states at some depth."""

    module: nn.Module
    call: int  # 0 for the first call in a pass: ALBERT has one layer for all depths
    tokens_first: bool  # whether the states are (tokens, batch, features)

    @contextlib.contextmanager
    def holding(self, states: Tensor) -> Iterator[None]:
        """Put other states ``(S, d)`` in the place of the model's own, for one pass."""
        given, calls = states.unsqueeze(int(self.tokens_first)), itertools.count()

        def exchange(module: nn.Module, inputs: Any, output: Any) -> Any:
            if next(calls) != self.call:
                return output
            return given if isinstance(output, Tensor) else type(output)((given, *output[1:]))

        handle = self.module.register_forward_hook(exchange)
        try:
            yield
        finally:
            handle.remove()

    def states(self, transformer: nn.Module, features: dict[str, Any]) -> Tensor:
        """Return the model's own states ``(S, d)`` of one text."""
        with recorded(self.module, _tensor) as seen:
            transformer(dict(features))
        states: Tensor = seen[self.call]
        return states.squeeze(int(self.tokens_first))


def place_of(model: SentenceTransformer, features: dict[str, Any], depth: Depth) -> Place:
    """Find where the hidden states at a depth leave a module, by watching one pass."""
    transformer = check_through(model, depth)
    encoder: Any = transformer.model
    parts = encoder_parts(model)
    if depth == "input":
        return Place(parts.embedding, 0, parts.tokens_first)
    # No list of layers by name: transformers itself says what the hidden states are, and which call made them is seen
    # by their place in memory, which is kept until all is compared.
    calls: list[tuple[nn.Module, Any]] = []
    hooks = [
        module.register_forward_hook(lambda module, inputs, output: calls.append((module, _tensor(output))))
        for module in encoder.modules()
        if module is not encoder
    ]
    try:
        _, hidden = with_layers(transformer, dict(features))
    finally:
        for hook in hooks:
            hook.remove()
    last = len(hidden) - 1
    if not last:
        raise ValueError(
            f"the encoder {type(encoder).__name__} does not return its hidden states, so that depth={depth!r} cannot "
            "be found in it; use depth='input' or 'output'"
        )
    if isinstance(depth, bool) or not isinstance(depth, int) or not 1 <= depth <= last:
        raise ValueError(
            f"depth={depth!r} must be 'output', 'input', or the number of a layer of {type(encoder).__name__}, 1 to "
            f"{last}"
        )
    found, counts = None, dict.fromkeys(encoder.modules(), 0)
    for module, output in calls:
        # The outermost module, which returns last, is the one whose output is read on.
        if isinstance(output, Tensor) and output.data_ptr() == hidden[depth].data_ptr():
            found = Place(module, counts[module], parts.tokens_first)
        counts[module] += 1
    if found is None:
        raise ValueError(
            f"no module of the encoder {type(encoder).__name__} returns what it calls its hidden states after layer "
            f"{depth}; use depth='input' or 'output'"
        )
    return found


def check_through(model: SentenceTransformer, depth: Depth) -> Transformer:
    """Return the encoder; refuse what cannot be gone through before the model runs."""
    transformer: Any = model[0]
    check_route(transformer)
    if isinstance(transformer, StaticEmbedding):
        raise ValueError(
            f"depth={depth!r}: a StaticEmbedding has no layers to go through; use depth='output', whose contributions "
            "are those of the input already"
        )
    if not isinstance(transformer, Transformer) or not isinstance(transformer.model, nn.Module):
        raise ValueError(
            f"depth={depth!r}: the model starts with a {type(transformer).__name__}, but the layers gone through are "
            "those of a Transformer; use depth='output'"
        )
    attention = getattr(transformer.model.config, "_attn_implementation", None)
    if attention is not None and attention not in _ATTENTION:
        raise ValueError(
            f"depth={depth!r}: {type(transformer.model).__name__} runs with attn_implementation={attention!r}, which "
            "has no forward derivative; load the model with model_kwargs={'attn_implementation': 'sdpa'}"
        )
    return transformer  # type: ignore[no-any-return]


def differentiable(modules: Sequence[nn.Module], features: dict[str, Any]) -> tuple[list[Callable[..., Any]], int]:
    """Return modules that forward derivatives pass, made for one text, and how many vectors they make at once."""
    steps: list[Callable[..., Any]] = []
    features, most = dict(features), 1
    for module in modules:
        if isinstance(module, SpanPooling):
            # Its own way of forgetting spans has no forward derivative: here they are all kept.
            mask = module.span_mask(features)
            reach = span_reach(mask, None, min(mask.shape[1], module.max_span_length or mask.shape[1]))[0].tolist()
            spans = [(first, first + more) for first, count in enumerate(reach) for more in range(count)]
            steps.append(partial(_attend, module, torch.tensor(spans, dtype=torch.long, device=mask.device)))
            most = max(most, len(spans))
        else:
            steps.append(module)
        features = module(features)
    return steps, most


def _attend(pooling: SpanPooling, spans: Tensor, features: dict[str, Any]) -> dict[str, Any]:
    vectors = pooling.span_vectors(features["token_embeddings"][0], spans)
    weights = (vectors @ pooling.score.weight[0]).softmax(0)
    return {**features, "sentence_embedding": (weights @ vectors)[None]}


def full_precision(model: SentenceTransformer) -> SentenceTransformer:
    """Return the model, or a float32 copy of one in half precision, whose steps are too coarse to add up."""
    if all(parameter.dtype in (torch.float32, torch.float64) for parameter in model.parameters()):
        return model
    return copy.deepcopy(model).float()


def _tensor(output: Any) -> Any:
    return output[0] if isinstance(output, tuple) and output else output
