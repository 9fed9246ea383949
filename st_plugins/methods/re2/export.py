"""RE2 as an ONNX file, for runtimes without PyTorch."""

from __future__ import annotations

import copy
import importlib.util
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from st_plugins.core.writing.atomic import file_target
from st_plugins.methods.re2.layers import fold_weight_norm
from st_plugins.methods.re2.network import RE2
from st_plugins.methods.re2.token_table import TokenTable

__all__ = ["OPSET", "export_onnx"]

OPSET = 20


def export_onnx(
    network: RE2,
    path: str | Path,
    source: TokenTable | None = None,
    opset_version: int = OPSET,
    overwrite: bool = False,
) -> Path:
    """Write the network as one ONNX file, in float32, for any number of pairs and of tokens."""
    if source is not None and not isinstance(source, TokenTable):
        raise TypeError(
            f"source must be WordVectors or LearnedEmbedding, got {type(source).__name__}; export a transformer by "
            "itself, and the network without a source"
        )
    missing = [name for name in ("onnx", "onnxscript") if importlib.util.find_spec(name) is None]
    if missing:
        raise ImportError(f"export_onnx needs {' and '.join(missing)}: pip install 'st-plugins[onnx]'")
    target = file_target(path, name="path", overwrite=overwrite, mark=b"a_mask")
    model = _Exported(copy.deepcopy(network), copy.deepcopy(source)).float().cpu().eval()
    fold_weight_norm(model)
    first = "ids" if source is not None else "vectors"
    names = ["a_ids", "a_mask", "b_ids", "b_mask"] if first == "ids" else ["a", "a_mask", "b", "b_mask"]
    pairs, a_tokens, b_tokens = (torch.export.Dim(name, min=1) for name in ("pairs", "a_tokens", "b_tokens"))
    with _quiet(), torch.no_grad(), target.write() as temporary:
        torch.onnx.export(
            model,
            _inputs(network.width, first, 3, 5) + _inputs(network.width, first, 3, 4),
            temporary,
            input_names=names,
            output_names=["logits"],
            opset_version=opset_version,
            dynamic_shapes={
                name: {0: pairs, 1: a_tokens if name.startswith("a") else b_tokens}
                for name in ("a", "a_mask", "b", "b_mask")
            },
            dynamo=True,
            external_data=False,
            verbose=False,
        )
    return Path(path)


class _Exported(nn.Module):
    def __init__(self, network: RE2, source: TokenTable | None) -> None:
        super().__init__()
        self.network = network
        self.table: Any = None if source is None else source.embedding

    def forward(self, a: Tensor, a_mask: Tensor, b: Tensor, b_mask: Tensor) -> Tensor:
        if self.table is not None:
            a, b = self.table(a), self.table(b)
        logits: Tensor = self.network(a, a_mask, b, b_mask)
        return logits


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep back the exporter's remarks on its own internals; errors are raised all the same."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _inputs(width: int, kind: str, pairs: int, tokens: int) -> tuple[Tensor, Tensor]:
    values = torch.zeros(pairs, tokens, dtype=torch.long) if kind == "ids" else torch.zeros(pairs, tokens, width)
    return values, torch.ones(pairs, tokens, dtype=torch.bool)
