"""Let an encoder return the outputs of all its layers, and keep doing so wherever the model goes."""

from __future__ import annotations

import copy
import logging
import uuid
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Transformer
from sentence_transformers.sentence_transformer.modules import WeightedLayerPooling
from torch import Tensor, nn
from transformers import PreTrainedModel

logger = logging.getLogger(__name__)

_INSTALLED = "_output_capturing_hooks_installed"
_PROCESS = uuid.uuid4().hex  # another one in each process that imports this, not in a fork


def return_all_layers(transformer: Transformer) -> None:
    """Let a Transformer fill ``all_layer_embeddings``, in place and for good."""
    # The switch alone is lost in four ways, each of which ends in the last layer without a word: transformers knows
    # only in the process that built an encoder how to record its layers, so that a copy unpickled elsewhere (a process
    # pool) records none; its recorders cannot be pickled at all; peft's wrapper passes None for the switch; and an
    # adapter is saved without the encoder's configuration. Hence it is also an argument of each call, part of
    # sentence_bert_config.json, and looked after by a hook that is pickled with the module. A backend without layers
    # (ONNX) then fails instead of returning the last one.
    transformer.model.config.output_hidden_states = True
    for parameters in transformer.modality_config.values():
        if parameters["method_output_name"] == "last_hidden_state":
            parameters["method_output_name"] = ["hidden_states", -1]  # type: ignore[typeddict-item]
    keeper: Any = transformer
    keeper.config_kwargs = {"output_hidden_states": True}
    keeper.config_keys = [*type(transformer).config_keys, "config_kwargs"]
    if not any(isinstance(hook, _Layers) for hook in transformer._forward_pre_hooks.values()):
        transformer.register_forward_pre_hook(_Layers(transformer))


def with_layers(transformer: Transformer, features: dict[str, Any]) -> tuple[dict[str, Any], Sequence[Tensor]]:
    """Run an encoder once, with the outputs of all its layers, (batch, n, d) each, beside what it returns."""
    encoders = list(_encoders(transformer))
    before = [getattr(encoder, _INSTALLED, False) for encoder in encoders]
    # Asked for in the call the layers are computed, but the host hands them on only if the configuration says so, too.
    configuration: Any = transformer.model.config
    switch = getattr(configuration, "output_hidden_states", False)
    configuration.output_hidden_states = True
    try:
        found = transformer(features, output_hidden_states=True)
    finally:
        configuration.output_hidden_states = switch
        # A model that has been looked at once must still be copied and sent to other processes.
        for encoder, installed in zip(encoders, before, strict=True):
            if not installed:
                _forget_recorders(encoder)
    states = found.get("all_layer_embeddings")
    # A backend without layers (ONNX) gives the token vectors, which are all there is.
    return found, tuple(states) if states else (found["token_embeddings"],) if "token_embeddings" in found else ()


def keep_layers(model: SentenceTransformer) -> None:
    """Call :func:`return_all_layers` where a loaded model averages layers with the host's ``WeightedLayerPooling``."""
    if not any(isinstance(module, WeightedLayerPooling) for module in model.modules()):
        return
    for module in model.modules():
        if isinstance(module, Transformer) and getattr(module.model.config, "output_hidden_states", False):
            return_all_layers(module)
        elif isinstance(module, Transformer):
            logger.warning(
                "The model has a WeightedLayerPooling, but its encoder does not return its layers, so that only the "
                "last one is read; set output_hidden_states to true in the encoder's config.json if all are meant."
            )


class _Layers:
    """A hook of a Transformer that travels with it: what its encoder needs to return its layers is seen to."""

    def __init__(self, transformer: Transformer) -> None:
        self.transformer, self.process = transformer, _PROCESS

    def __call__(self, module: nn.Module, arguments: Any) -> None:
        transformer: Any = module
        if not transformer.model.config.output_hidden_states:  # the encoder is another one now
            transformer.model.config.output_hidden_states = True
        if self.process != _PROCESS:
            _introduce(transformer)
            self.process = _PROCESS

    def __getstate__(self) -> dict[str, Any]:
        # Asked for before the submodules are, which then have nothing left that cannot be pickled.
        for encoder in _encoders(self.transformer):
            _forget_recorders(encoder)
        return self.__dict__


@torch.compiler.disable  # type: ignore[untyped-decorator]
def _introduce(transformer: Transformer) -> None:
    """Make the class of an unpickled encoder known to transformers, which learns of it when one is built."""
    for encoder in _encoders(transformer):
        with torch.device("meta"):
            type(encoder)(copy.deepcopy(encoder.config))


def _encoders(transformer: Transformer) -> Iterator[PreTrainedModel]:
    return (module for module in transformer.modules() if isinstance(module, PreTrainedModel))


def _forget_recorders(encoder: PreTrainedModel) -> None:
    """Remove the local functions with which transformers records layers; the next call installs them again."""
    if not getattr(encoder, _INSTALLED, False):
        return
    for module in encoder.modules():
        for key, hook in list(module._forward_hooks.items()):
            if getattr(hook, "__module__", "").startswith("transformers.") and "<locals>" in hook.__qualname__:
                del module._forward_hooks[key]
    setattr(encoder, _INSTALLED, False)
