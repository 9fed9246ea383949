"""Weights of eight bits, for processors: the products of the Transformer in whole numbers."""

from __future__ import annotations

import logging
from pathlib import Path

from onnxruntime.quantization import QuantType, quantize_dynamic

_SCOPES = "pkg.torch.onnx.name_scopes"  # where the exporter notes which module a node comes from
_PRODUCTS = ["MatMul", "Gemm"]


def quantize(file: Path, output: Path) -> None:
    """Turn the weights of the Transformer's linear layers into eight bits, a scale for each output."""
    import onnx

    nodes = [node for node in onnx.load(file).graph.node if node.op_type in _PRODUCTS]
    # What comes after the Transformer is small and decides every number of the vector: it stays as it is.
    scopes = {node.name: next((one.value for one in node.metadata_props if one.key == _SCOPES), "") for node in nodes}
    after = [name for name, scope in scopes.items() if scope and "'parts.0'" not in scope]
    root = logging.getLogger()
    level = root.level
    try:
        root.setLevel(logging.ERROR)  # it advises to infer shapes first, which changes nothing here
        quantize_dynamic(
            file,
            output,
            op_types_to_quantize=_PRODUCTS,
            per_channel=True,
            # Unsigned like the activations: where processors have no instruction for eight bits, sums of signed
            # weights overflow 16 bits, and the vectors would be others than on the machine that wrote the file.
            weight_type=QuantType.QUInt8,
            # A Gemm is made a MatMul of another name before the names are looked at.
            nodes_to_exclude=[*after, *(f"{name}_MatMul" for name in after)],
            extra_options={"DefaultTensorType": onnx.TensorProto.FLOAT},
        )
    finally:
        root.setLevel(level)
