"""The student's queries and keys by text column, while a loss embeds the columns."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from sentence_transformers.base.losses import column_merging_disabled
from torch import nn

from st_plugins.core.attention import LayerAttention, capture_attention
from st_plugins.core.host import inner_model
from st_plugins.core.loss import Features
from st_plugins.methods.virt.inputs import TeacherInput, take
from st_plugins.methods.virt.maps import PairAttention

# For each text column the layers by index.
ColumnLayers = list[dict[int, LayerAttention]]


@contextmanager
def capture_columns(model: nn.Module, columns: Sequence[Features], layers: Iterable[int]) -> Iterator[ColumnLayers]:
    """Capture layers of a model, and tell by the batches that go through it which column they belong to."""
    captured: ColumnLayers = [{} for _ in columns]
    wanted = list(layers)
    inner = inner_model(model)
    # Some losses of the host embed all columns as one batch, whose queries would belong to no column.
    with column_merging_disabled(), capture_attention(inner) as running:
        same: list[int] = []
        latest: Any = None

        def recognize(module: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
            features = arguments[0] if arguments else next(iter(keywords.values()), {})
            # Wrappers copy dictionaries, but not the tensors in them.
            same[:] = [
                index for index, column in enumerate(columns) if column["input_ids"] is features.get("input_ids")
            ]

        def keep(module: nn.Module, arguments: tuple[Any, ...], output: Any) -> None:
            nonlocal latest
            # A loss may answer from its own cache, without running the model.
            if not same or not running or running[0].query is latest:
                return
            latest = running[0].query
            index = next((index for index in same if not captured[index]), None)
            if index is None:
                raise ValueError(
                    f"the task loss embeds text column {same[0]} more than once, so that VIRTLoss cannot tell which "
                    "pass to compare; use a task loss that embeds each column once"
                )
            captured[index].update({layer: running[layer] for layer in wanted if layer < len(running)})

        handles = [
            inner.register_forward_pre_hook(recognize, with_kwargs=True),
            inner.register_forward_hook(keep),
        ]
        try:
            yield captured
        finally:
            for handle in handles:
                handle.remove()


def check_captured(captured: ColumnLayers, columns: Sequence[Features], layers: Iterable[int], what: str) -> None:
    """Raise a ValueError unless every column went through the model in one pass, with gradients if they are on."""
    wanted = set(layers)
    for index, (found, features) in enumerate(zip(captured, columns, strict=True)):
        shape = tuple(features["input_ids"].shape)
        seen = {(tensors.query.shape[0], tensors.query.shape[2]) for tensors in found.values()}
        if set(found) != wanted or seen != {shape}:
            raise ValueError(
                f"{what} does not embed text column {index} as it is in one pass of the model (captured layers "
                f"{sorted(found)} of shapes {sorted(seen)}, expected {sorted(wanted)} of {shape}); use a loss that "
                "does: no Cached… loss, no mini-batches, no augmented views, no R-Drop"
            )
        if torch.is_grad_enabled() and not any(tensors.query.requires_grad for tensors in found.values()):
            raise ValueError(
                f"the queries of text column {index} have no gradient: {what} embeds without gradients, or all the "
                "layers to train are frozen; unfreeze one, choose other layers, or use torch.no_grad() to evaluate"
            )


def pair_attention(pair: TeacherInput, first: LayerAttention, second: LayerAttention) -> PairAttention:
    """Put the tokens to compare at the beginning of their rows."""
    left, right = pair.student
    return PairAttention(
        take(first.query, left),
        take(first.key, left),
        take(second.query, right),
        take(second.key, right),
        first.scaling,
        left.lengths,
        right.lengths,
    )
