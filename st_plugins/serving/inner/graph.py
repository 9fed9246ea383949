"""A whole model as one graph: from token ids to the vectors that ``encode`` returns."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Transformer
from sentence_transformers.sentence_transformer.modules import Pooling
from torch import Tensor, nn

from st_plugins.core.onnx import OPSET, quiet_exporter

INPUTS = ("input_ids", "attention_mask", "token_type_ids")
_LARGEST = 2_000_000_000  # protobuf takes no message of 2 GiB


def check_exportable(model: SentenceTransformer) -> None:
    """Refuse what one graph from token ids to vectors cannot hold, before minutes of work."""
    first: Any = model[0]
    kind = type(first).__name__
    if not isinstance(first, Transformer):
        raise ValueError(
            f"model begins with a {kind}, and only a Transformer can be exported; export the routes of a Router, or "
            "use the model as it is"
        )
    if "message" in first.modality_config or "text" not in first.modality_config:
        raise ValueError(
            f"model takes {', '.join(map(str, first.modalities))}; only a Transformer of plain texts can be exported"
        )
    if getattr(first.tokenizer, "backend_tokenizer", None) is None:
        raise ValueError("model has a tokenizer written in Python, which no file can hold; export needs a fast one")
    if any(isinstance(module, Pooling) and not module.include_prompt for module in model) and any(
        model.prompts.values()
    ):
        raise ValueError(
            "model leaves the tokens of its prompts out of the pooling (include_prompt=False), which a graph without "
            "texts cannot; remove its prompts to export it for texts without one"
        )
    size = 4 * sum(parameter.numel() for parameter in model.parameters())
    if size > _LARGEST:
        raise ValueError(
            f"model has {size / 1e9:.1f} GB of weights in float32, and one ONNX file holds no more than 2 GB; take a "
            "smaller model, or export it with external data through optimum"
        )


def write_graph(model: SentenceTransformer, file: Path) -> None:
    """Write the graph of a model in float32, for any number of texts and tokens."""
    features = model.preprocess(["a text", "another one"])
    tensors = {name: value for name, value in features.items() if isinstance(value, Tensor)}
    unknown = tensors.keys() - set(INPUTS)
    if unknown:
        raise ValueError(f"model takes {', '.join(sorted(unknown))}; only {', '.join(INPUTS)} can be exported")
    names = [name for name in INPUTS if name in tensors]
    # Any sizes but 0 and 1, which the exporter would keep.
    example = tuple(tensors[name].new_ones((3, 5)) for name in names)
    batch, tokens = torch.export.Dim("batch", min=1), torch.export.Dim("tokens", min=1)
    try:
        with quiet_exporter(), torch.no_grad():
            torch.onnx.export(
                _Whole(model, names),
                example,
                file,
                input_names=names,
                output_names=["sentence_embedding"],
                opset_version=OPSET,
                dynamic_shapes={"tensors": tuple({0: batch, 1: tokens} for _ in names)},
                dynamo=True,
                external_data=False,
                verbose=False,
            )
    except Exception as error:  # the exporter's errors are of many kinds
        first: Any = model[0]
        reason = [*str(error.__cause__ or error).splitlines(), type(error).__name__][0]
        raise ValueError(
            f"PyTorch cannot export this model ({type(first.model).__name__} with "
            f"{', '.join(type(module).__name__ for module in model)}): {reason}"
        ) from error


class _Whole(nn.Module):
    def __init__(self, model: SentenceTransformer, names: list[str]) -> None:
        super().__init__()
        # Not the model itself, whose forward also looks at what encode() was called with.
        self.parts = nn.ModuleList(model)
        self.names = names
        self.width = model.truncate_dim

    def forward(self, *tensors: Tensor) -> Tensor:
        features: dict[str, Any] = dict(zip(self.names, tensors, strict=True))
        for part in self.parts:
            features = part(features)
        vectors: Tensor = features["sentence_embedding"]
        return vectors if self.width is None else vectors[:, : self.width]
