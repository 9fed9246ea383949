"""Two dropout passes of a batch in one forward pass, for a loss that knows nothing of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sentence_transformers.base.losses import column_merging_disabled
from torch import Tensor, nn

from st_plugins.core.loss import Features
from st_plugins.core.wrappers import around, keep_layers, repeated


class TwoPasses(nn.Module):
    """Stands in for the model inside a loss: the model sees each batch once, twice over, the loss one half of it."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.module = model  # the name under which wrappers keep the model
        self.training = model.training
        self.outputs: list[Features] = []
        self.show(0)

    def show(self, half: int, rows: Tensor | None = None) -> None:
        """Say what the loss gets to see next, and begin with the first column again."""
        self._half, self._rows, self.columns_shown = half, rows, 0

    def forward(self, features: Features, **kwargs: Any) -> Features:
        """Return what the model makes of the next column in the pass to show."""
        # The first time, the model gets each row twice, so that both copies have dropout masks of their own. Whenever
        # the loss is called again, it is shown the other half, or some rows of a half, of the same outputs.
        both = 2 * _batch_size(features)
        if self.columns_shown == len(self.outputs):
            output = self.module(repeated(features, 2), **kwargs)
            keep_layers(features, output, around(self.module))
            self.outputs.append(output)
        output = self.outputs[self.columns_shown]
        self.columns_shown += 1
        # What has another number of rows, such as the length of a prompt, belongs to both halves.
        return {
            key: self._part(value) if isinstance(value, Tensor) and value.ndim and len(value) == both else value
            for key, value in output.items()
        }

    def embeddings(self) -> list[Tensor]:
        """Return what both passes made of each column, ``(2 · N, d)``; nothing if the model does not embed."""
        found = [output.get("sentence_embedding") for output in self.outputs]
        return [embeddings for embeddings in found if isinstance(embeddings, Tensor)]

    def _part(self, value: Tensor) -> Tensor:
        half = value.chunk(2)[self._half]
        return half if self._rows is None else half[self._rows.to(half.device)]

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            # Not self.module: before it is set, that would come back here without end.
            return getattr(super().__getattr__("module"), name)


@contextmanager
def two_passes(loss: nn.Module) -> Iterator[TwoPasses]:
    """Put a `TwoPasses` into the place of a loss's model inside the block, and the model back after it."""
    model: Any = loss.model
    passes = TwoPasses(model)
    loss.model = passes
    try:
        # Columns are told apart by their order, which a batch of all of them would not have.
        with column_merging_disabled():
            yield passes
    finally:
        loss.model = model


def _batch_size(features: Features) -> int:
    tokens = features.get("attention_mask", features.get("input_ids"))
    if not isinstance(tokens, Tensor) or tokens.ndim < 2 or "cu_seq_lens_q" in features:
        raise ValueError(
            "two passes need a batch with one row of tokens for each text (input_ids or attention_mask of shape (N, "
            f"tokens)), got {sorted(features)}; static embeddings have no dropout, and for Flash Attention set "
            "attn_implementation='sdpa'"
        )
    return len(tokens)
