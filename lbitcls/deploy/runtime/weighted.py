"""Convolutions and linear layers of an ONNX model, the operations whose weight is a constant, and packed weights."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lbitcls.utils.errors import ConfigError

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

_LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_OF_WEIGHTS = ("DequantizeLinear", "Quant", "Transpose", "Cast")
_SHOWN = 3


def layers_of(model: ModelProto) -> list[NodeProto]:
    """Return the nodes of all convolutions and linear layers; products of two activations (attention) are none."""
    producers = {output: node for node in model.graph.node for output in node.output}
    constants = {tensor.name for tensor in model.graph.initializer}

    def is_constant(name: str) -> bool:
        node = producers.get(name)
        return name in constants if node is None else node.op_type in _OF_WEIGHTS and is_constant(node.input[0])

    return [node for node in model.graph.node if node.op_type in _LAYERS and is_constant(node.input[1])]


def refuse_packed(model: ModelProto, engine: str) -> None:
    """Raise `ConfigError` if a weight is stored in 4 bits, which an engine cannot read."""
    packed = [tensor.name for tensor in model.graph.initializer if tensor.data_type == tensor.INT4]
    if packed:
        names = ", ".join(name.removesuffix("_int4").removesuffix(".codes") for name in packed[:_SHOWN])
        more = f" and {len(packed) - _SHOWN} more" if len(packed) > _SHOWN else ""
        raise ConfigError(
            f"{engine} does not read packed weights (INT4): {names}{more}. Export the model without --pack for it."
        )
