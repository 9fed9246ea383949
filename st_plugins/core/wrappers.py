"""What the host's losses around others do to a model while they run, seen from inside.

``MatryoshkaLoss`` calls the loss once for each dimension, with the model's ``forward`` exchanged: the model embeds the
first time only, and what it gave is cut shorter each time. ``AdaptiveLayerLoss`` does so once for each layer, with the
``forward`` of the model's Transformer exchanged: that runs the first time only, and answers with another of its layers
each time, which it finds in the features. ``Matryoshka2dLoss`` is the one around the other. None of this is announced;
this file is the only one that knows the classes that the host puts in.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from sentence_transformers.base.losses import uses_gradient_cache
from sentence_transformers.sentence_transformer.losses import (
    Matryoshka2dLoss,
    MatryoshkaLoss,
    adaptive_layer,
    matryoshka,
)
from torch import Tensor, nn

from st_plugins.core.host import unwrapped

_LAYERS = "all_layer_embeddings"


class Around(NamedTuple):
    """What is around a loss that is running."""

    truncates: bool = False  # MatryoshkaLoss
    answers: bool = False  # and it answers from what it kept: the model does not run
    layers: bool = False  # AdaptiveLayerLoss
    answers_layer: bool = False  # and the Transformer does not run, but answers with a layer from the features

    @property
    def name(self) -> str:
        """The wrapper as the user wrote it."""
        if self.truncates and self.layers:
            return "Matryoshka2dLoss"
        return "MatryoshkaLoss" if self.truncates else "AdaptiveLayerLoss"


def around(model: nn.Module) -> Around:
    """Say which of the host's losses stand around the one that is running."""
    truncates = answers = False
    inner = model
    for inner in unwrapped(model):
        forward: Any = inner.forward
        if isinstance(forward, matryoshka.ForwardDecorator):
            truncates = True
            # The first dimension of a batch fills what the others are answered from.
            answers = forward.cache_dim not in (None, forward.dim)
    inside: Any = getattr(next(inner.children(), None), "forward", None)
    layers = isinstance(inside, adaptive_layer.TransformerDecorator)
    return Around(truncates, answers, layers, layers and inside.layer_idx is not None)


def refuse_around(model: nn.Module, loss: str, reason: str, *, truncates: bool = True, layers: bool = True) -> None:
    """Raise a ValueError if one of the host's losses stands around that the running one cannot work in."""
    found = around(model)
    if (found.truncates and truncates) or (found.layers and layers):
        raise ValueError(f"{found.name} cannot be around {loss}: {reason}")


def refuse_around_layers(model: nn.Module, loss: str) -> None:
    """Raise a ValueError if ``MatryoshkaLoss`` is around ``AdaptiveLayerLoss``, and not inside."""
    *_, inner = unwrapped(model)
    forward: Any = inner.forward
    if isinstance(forward, adaptive_layer.ForwardDecorator) and isinstance(forward.fn, matryoshka.ForwardDecorator):
        raise ValueError(
            f"MatryoshkaLoss cannot be around AdaptiveLayerLoss, here around {loss}: the model runs for the first "
            f"dimension only, so that the others have no layers; write AdaptiveLayerLoss(model, MatryoshkaLoss(model, "
            "…)), or Matryoshka2dLoss"
        )


def wrapped(loss: nn.Module) -> nn.Module | None:
    """Return the loss inside another, whatever it is called there."""
    inside = getattr(loss, "loss", None)
    if isinstance(loss, Matryoshka2dLoss) and isinstance(inside, MatryoshkaLoss):
        inside = inside.loss  # which that class puts between
    return inside if isinstance(inside, nn.Module) else None


def written(loss: nn.Module | None) -> str:
    """Write a loss as its user did, for remedies."""
    if loss is None:
        return "loss"
    name, inside = type(loss).__name__, wrapped(loss)
    if inside is None:
        return f"{name}(model)"
    if "model" not in dict(loss.named_children()):  # ours take it from the loss
        return f"{name}({written(inside)}, …)"
    teacher = "teacher, " if hasattr(loss, "teacher") else ""
    return f"{name}(model, {teacher}{written(inside)}, …)"


def gradient_cached(loss: nn.Module) -> str | None:
    """Name the loss, this one or one inside, that embeds twice: without gradients, and in the backward pass."""
    # The innermost, for losses around it say so of themselves, too.
    return next((type(part).__name__ for part in reversed(list(loss.modules())) if uses_gradient_cache(part)), None)


def keep_layers(features: dict[str, Any], output: dict[str, Any], found: Around) -> None:
    """Leave the layers of a pass where `AdaptiveLayerLoss` looks for them in the next: in the features."""
    if found.layers and not found.answers_layer and _LAYERS in output:
        # With the last layer alone the wrapper would do nothing, and say nothing of it.
        if len(output[_LAYERS]) < 2:
            raise ValueError(
                f"{found.name} got only the model's last layer: a model that is compiled in a process where another "
                "was traced with hooks overlooks that its layers are asked for; train in a fresh process, or compile "
                "nothing"
            )
        features[_LAYERS] = output[_LAYERS]


def repeated(features: dict[str, Any], count: int) -> dict[str, Any]:
    """Return a tokenized batch with every row several times: all rows, and all of them again."""
    rows = len(features["attention_mask" if "attention_mask" in features else "input_ids"])
    # Layers that `keep_layers` left there have more rows: they are of the repeated batch already.
    return {
        key: value.repeat(count, *[1] * (value.ndim - 1))
        if isinstance(value, Tensor) and value.ndim and len(value) == rows
        else value
        for key, value in features.items()
    }
