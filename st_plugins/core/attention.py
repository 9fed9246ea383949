"""Queries and keys of every layer of a transformer, captured while it runs with the attention it has (sdpa, flash, …).

Attention weights of an encoder cannot be had without its slow "eager" attention, and those of a training pass are
changed by dropout. The queries and keys behind them can: an attention function registered with transformers records
them and then calls the implementation the model had, so that the model's output does not change by a bit.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.configuration_utils import PreTrainedConfig

# Model types whose captured maps equal their eager attentions in our tests.
_SUPPORTED = (
    "albert",
    "bert",
    "camembert",
    "distilbert",
    "electra",
    "ernie",
    "eurobert",
    "gemma",
    "gemma3_text",
    "gpt2",
    "llama",
    "mistral",
    "mobilebert",
    "modernbert",
    "qwen2",
    "qwen3",
    "roberta",
    "xlm-roberta",
)

_PREFIX = "captured_"  # followed by the name of the implementation that is called: "captured_sdpa"
# Arguments of attention functions that add to the scores something that queries and keys do not tell.
_MORE_THAN_QUERY_AND_KEY = ("position_bias", "softcap", "s_aux")


class LayerAttention(NamedTuple):
    """What one layer compares: its scores are ``query @ key.transpose(2, 3) * scaling``, before mask and softmax.

    Attributes:
        query: ``(B, H, n, d_head)``, after projection and rotary positions, with gradients.
        key: ``(B, H, n, d_head)``; grouped keys are repeated for each of the H heads.
        scaling: What the model multiplies the products with, as a rule ``1 / sqrt(d_head)``.

    Example:
        >>> layer = LayerAttention(torch.ones(1, 2, 3, 4), torch.ones(1, 2, 3, 4), scaling=0.5)
        >>> (layer.query @ layer.key.transpose(2, 3) * layer.scaling)[0, 0, 0].tolist()
        [2.0, 2.0, 2.0]
    """

    query: Tensor
    key: Tensor
    scaling: float


Receiver = Callable[[int, LayerAttention], None]


def supported_models() -> tuple[str, ...]:
    """List the model types whose captured maps are known to equal their own attention; others are tried.

    Returns:
        Names as ``model.config.model_type`` has them, sorted.

    Example:
        >>> "bert" in supported_models()
        True
    """
    return _SUPPORTED


@contextmanager
def capture_attention(model: nn.Module, receive: Receiver | None = None) -> Iterator[list[LayerAttention]]:
    """Capture the queries and keys of all layers in the forward passes inside the block.

    The list holds the layers of the latest pass, in the order in which they ran; a layer that runs several times
    (ALBERT's) has several entries. The block switches the model to a registered attention function, and back at its
    end, whatever happens. Blocks for several models may be open at the same time, and so may several blocks for one
    model: each gets all layers.

    Not for a model that several threads use at the same time. Under gradient checkpointing (non-reentrant) captured
    tensors stay in memory, and layers that run again in the backward pass are not captured again. Compiled models are
    captured too, with a graph break in each layer.

    Args:
        model: A transformers model, or what contains exactly one: a SentenceTransformer, a CrossEncoder, a
            DistributedDataParallel wrapper of them.
        receive: Is handed each layer at once, with its index, and the list stays empty: for maps that are to be
            reduced layer by layer. It runs inside the layer, so under gradient checkpointing it cannot be used where
            gradients are computed.

    Yields:
        The captured layers.

    Raises:
        ValueError: The model is not supported, is wrapped in DataParallel, or was called inside the block without
            reaching the attention function. A call inside the block raises it for inputs that are flattened without
            padding, for attention that adds more to its scores than a mask (T5's position bias, Gemma 2's soft cap),
            and for gradient checkpointing of a form that loses the gradients.

    Example:
        >>> from st_plugins.miniature import untrained_encoder
        >>> model = untrained_encoder()
        >>> with capture_attention(model) as layers:
        ...     output = model(model.preprocess(["a cat slept", "the big dog ate"]))
        >>> query, key, scaling = layers[-1]
        >>> len(layers), query.shape, scaling
        (2, torch.Size([2, 4, 6, 16]), 0.25)
        >>> maps = (query @ key.transpose(2, 3) * scaling).softmax(dim=3)  # of the longer text, which has no pads
        >>> round(maps[1].sum(dim=2).mean().item(), 4)
        1.0
    """
    transformer = _transformer(model)
    capture = _Capture(transformer, receive)
    implementations = {id(config): (config, config._attn_implementation) for config in _configurations(transformer)}
    handles: list[Any] = []
    try:
        for config, name in implementations.values():
            _set_implementation(config, _captured(name))
        # Both begin a pass: the host calls the forward method of a transformer past its hooks, and a transformer that
        # is given embeddings does not look any up.
        handles.append(transformer.register_forward_pre_hook(capture.start))
        handles.append(transformer.get_input_embeddings().register_forward_pre_hook(capture.start))
        _open_captures.append(capture)
        yield capture.layers
        if capture.passes and not capture.count:
            raise ValueError(
                f"{type(transformer).__name__} ran without calling the attention function registered for it; "
                f"model types seen working: {', '.join(_SUPPORTED)}"
            )
    finally:
        if capture in _open_captures:
            _open_captures.remove(capture)
        for handle in handles:
            handle.remove()
        for config, name in implementations.values():
            _set_implementation(config, name)


class _Capture:
    """The layers of one open block."""

    def __init__(self, transformer: PreTrainedModel, receive: Receiver | None) -> None:
        self.layers: list[LayerAttention] = []
        self.passes = 0
        self.count = 0
        self._receive = receive
        self._modules = {id(module) for module in transformer.modules()}
        self._checkpointing = any(getattr(part, "gradient_checkpointing", False) for part in transformer.modules())
        self._gradients = False

    def start(self, *_: Any) -> None:
        self.layers.clear()
        self.passes += 1
        self.count = 0
        self._gradients = torch.is_grad_enabled()

    def record(self, module: nn.Module, query: Tensor, key: Tensor, scaling: float | None) -> None:
        # Gradient checkpointing runs layers again in the backward pass.
        if id(module) not in self._modules or torch._C._current_graph_task_id() != -1:
            return
        if self._gradients and self._checkpointing and module.training:
            if not torch.is_grad_enabled():
                raise ValueError(
                    "gradient checkpointing in its reentrant form loses the gradients of captured queries and keys; "
                    'use gradient_checkpointing_kwargs={"use_reentrant": False}'
                )
            if self._receive is not None:
                raise ValueError(
                    "receive cannot be called inside a layer that gradient checkpointing runs again; leave receive "
                    "out and read the list, or disable gradient checkpointing"
                )
        # Key head g serves the query heads from g · groups on, so each is repeated in its place, not all in a row.
        groups = query.shape[1] // key.shape[1]
        if groups > 1:
            key = key[:, :, None].expand(-1, -1, groups, -1, -1).flatten(1, 2)
        layer = LayerAttention(query, key, query.shape[-1] ** -0.5 if scaling is None else scaling)
        index, self.count = self.count, self.count + 1
        if self._receive is None:
            self.layers.append(layer)
        else:
            self._receive(index, layer)


_open_captures: list[_Capture] = []


def _captured(name: str) -> str:
    """Return the name of the attention that records and then calls implementation ``name``."""
    if name.startswith(_PREFIX):
        return name
    captured = _PREFIX + name
    AttentionInterface.register(captured, partial(_record_and_attend, name))
    masks = AttentionMaskInterface()
    if name in masks:  # the form of masks depends on the name too
        AttentionMaskInterface.register(captured, masks[name])
    return captured


def _record_and_attend(
    name: str,
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """Record the call in the open blocks that know the module, then do what the module would have done."""
    for argument in _MORE_THAN_QUERY_AND_KEY:
        if kwargs.get(argument) is not None:
            raise ValueError(
                f"{type(module).__name__} adds {argument} to its scores, which queries and keys do not tell; "
                f"model types seen working: {', '.join(_SUPPORTED)}"
            )
    if kwargs.get("cu_seq_lens_q") is not None:
        raise ValueError(
            "the inputs are flattened without padding, so that texts cannot be told apart; "
            "set model[0].unpad_inputs = False"
        )
    for capture in list(_open_captures):
        capture.record(module, query, key, kwargs.get("scaling"))
    # The names that the module's forward itself reads; eager attention is registered nowhere.
    names = inspect.unwrap(type(module).forward).__globals__
    functions = names.get("ALL_ATTENTION_FUNCTIONS") or AttentionInterface()
    attend: Any = functions.get_interface(name, names.get("eager_attention_forward"))
    if attend is None:
        raise ValueError(f'{type(module).__name__} hides its eager attention; load it with attn_implementation="sdpa"')
    config: Any = module.config
    captured = config._attn_implementation
    try:
        _set_implementation(config, name)  # flash attention reads it
        output: tuple[Tensor, Tensor | None] = attend(module, query, key, value, attention_mask, **kwargs)
    finally:
        _set_implementation(config, captured)
    return output


def _set_implementation(config: PreTrainedConfig, name: str) -> None:
    # As a dictionary: of this configuration only, not of those inside it. `set_attn_implementation` would check for
    # packages and kernels by name.
    config._attn_implementation = {"": name}


def _configurations(transformer: PreTrainedModel) -> Iterator[PreTrainedConfig]:
    for module in transformer.modules():
        config = getattr(module, "config", None)
        if isinstance(config, PreTrainedConfig):
            yield config


def _transformer(model: nn.Module) -> PreTrainedModel:
    """Find the one transformers model inside."""
    if any(isinstance(module, nn.DataParallel) for module in model.modules()):
        raise ValueError(
            "model is wrapped in DataParallel (one process, several GPUs), whose copies cannot be captured; start one "
            "process for each GPU with torchrun, or let CUDA_VISIBLE_DEVICES show one GPU"
        )
    found = {id(transformer): transformer for transformer in _outermost(model)}
    if len(found) != 1:
        raise ValueError(
            f"model must contain one transformers model, but {type(model).__name__} has {len(found)}; "
            "give capture_attention the one whose attention is wanted"
        )
    (transformer,) = found.values()
    if not transformer.is_backend_compatible():
        raise ValueError(
            f"{type(transformer).__name__} (model_type {transformer.config.model_type!r}) does not use transformers' "
            f"attention interface, so its queries and keys cannot be captured; model types seen working: "
            f"{', '.join(_SUPPORTED)}"
        )
    return transformer


def _outermost(module: nn.Module) -> Iterator[PreTrainedModel]:
    if isinstance(module, PreTrainedModel):
        yield module
        return
    for child in module.children():
        yield from _outermost(child)
