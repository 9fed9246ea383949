"""RE2 as an ONNX file, for runtimes without PyTorch."""

from __future__ import annotations

import copy
import importlib.util
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from st_plugins.core.onnx import OPSET, quiet_exporter
from st_plugins.core.writing.atomic import file_target
from st_plugins.methods.re2.layers import fold_weight_norm
from st_plugins.methods.re2.network import RE2
from st_plugins.methods.re2.token_table import TokenTable


def export_onnx(
    network: RE2,
    path: str | Path,
    source: TokenTable | None = None,
    opset_version: int = OPSET,
    overwrite: bool = False,
) -> Path:
    """Write the network as one ONNX file, in float32, for any number of pairs and of tokens."""
    # Inputs are `first` and `second`, (pairs, tokens, width) float32, with a source `first_ids` and `second_ids`,
    # (pairs, tokens) int64, and masks of bool; each text has at least one column. The output is `logits`. What is
    # beyond max_seq_length columns is cut off in the file, as the tokenizer cuts it for PyTorch: pad on the right.
    if source is not None and not isinstance(source, TokenTable):
        raise TypeError(
            f"source must be WordVectors or LearnedEmbedding, got {type(source).__name__}; export a transformer by "
            "itself, and the network without a source"
        )
    check_exporter()
    target = file_target(path, name="path", overwrite=overwrite, mark=b"first_mask")
    model = _Exported(copy.deepcopy(network), copy.deepcopy(source)).float().cpu().eval()
    fold_weight_norm(model)
    arguments = ("first", "first_mask", "second", "second_mask")
    names = arguments if source is None else ("first_ids", "first_mask", "second_ids", "second_mask")
    width = None if source is not None else network.embedding_dimension
    pairs = torch.export.Dim("pairs", min=1)
    tokens = {side: torch.export.Dim(f"{side}_tokens", min=1) for side in ("first", "second")}
    with quiet_exporter(), torch.no_grad(), target.write() as temporary:
        torch.onnx.export(
            model,
            (*_inputs(width, 3, 5), *_inputs(width, 3, 4)),  # any sizes but 0 and 1, which the exporter would keep
            temporary,
            input_names=list(names),
            output_names=["logits"],
            opset_version=opset_version,
            dynamic_shapes={name: {0: pairs, 1: tokens[name.removesuffix("_mask")]} for name in arguments},
            dynamo=True,
            external_data=False,
            verbose=False,
        )
    return Path(path)


def check_exporter() -> None:
    """Raise an ImportError if a package that exporting needs is missing."""
    missing = [name for name in ("onnx", "onnxscript") if importlib.util.find_spec(name) is None]
    if missing:
        raise ImportError(f"export_onnx needs {' and '.join(missing)}: pip install 'st-plugins[onnx]'")


class _Exported(nn.Module):
    def __init__(self, network: RE2, source: TokenTable | None) -> None:
        super().__init__()
        self.network, self.limit = network, network.config.max_seq_length
        self.table: Any = None if source is None else source.embedding

    def forward(self, first: Tensor, first_mask: Tensor, second: Tensor, second_mask: Tensor) -> Tensor:
        if self.limit is not None:
            first, first_mask = first[:, : self.limit], first_mask[:, : self.limit]
            second, second_mask = second[:, : self.limit], second_mask[:, : self.limit]
        if self.table is not None:
            first, second = self.table(first), self.table(second)
        logits: Tensor = self.network(first, first_mask, second, second_mask)
        return logits


def _inputs(width: int | None, pairs: int, tokens: int) -> tuple[Tensor, Tensor]:
    """Return token vectors, or ids where there is no width, and their mask."""
    values = torch.zeros(pairs, tokens, dtype=torch.long) if width is None else torch.zeros(pairs, tokens, width)
    return values, torch.ones(pairs, tokens, dtype=torch.bool)
