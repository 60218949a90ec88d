"""ONNX graph as the writer reads it: who computes a tensor, its shape, its grid, and whole layers."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from lbitcls.deploy.passes.graph import POOLS, attributes
from lbitcls.deploy.runtime.metadata import require
from lbitcls.deploy.targets.tflite.flatfile import TFLiteGrid

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

LAYERS = ("Conv", "Gemm", "MatMul")
_RESHAPING = ("Flatten", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze")
MOVING = (*_RESHAPING, "Concat", "GlobalMaxPool", "MaxPool", "Pad", "ReduceMax", "Slice", "Split")
"""Operations whose results are values of their inputs: integers pass through them unchanged."""
BOUNDS = ("Relu", "Clip")


@dataclass(frozen=True)
class TFLiteLayer:
    """Convolution or linear layer, with the operations behind it that belong to it.

    Attributes:
        node: Operation.
        taken: Name of its input.
        weight: Weight, with the output channels on axis 0: integers, or float32.
        scales: Scale of each output channel's integers; None: the weight is float32.
        bias: Bias of each output channel.
    """

    node: NodeProto
    taken: str
    weight: np.ndarray
    scales: np.ndarray | None
    bias: np.ndarray

    @property
    def floats(self) -> np.ndarray:
        """Weight in float32."""
        if self.scales is None:
            return self.weight
        return self.weight * self.scales.reshape(-1, *[1] * (self.weight.ndim - 1)).astype(np.float32)


class Source:
    """Finished graph, indexed. Shapes contain the batch axis as 1."""

    def __init__(self, model: ModelProto) -> None:
        onnx = require("onnx")
        self.nodes: list[NodeProto] = list(model.graph.node)
        self.outputs = [value.name for value in model.graph.output]
        self.image = model.graph.input[0].name
        self._made = {name: node for node in self.nodes for name in node.output}
        self._used: dict[str, list[NodeProto]] = defaultdict(list)
        for node in self.nodes:
            for name in node.input:
                self._used[name].append(node)
        self._tensors = {tensor.name: tensor for tensor in model.graph.initializer}
        self._arrays: dict[str, np.ndarray] = {}
        inferred = onnx.shape_inference.infer_shapes(model).graph
        self._shapes = {
            value.name: tuple(size.dim_value for size in value.type.tensor_type.shape.dim)
            for value in (*inferred.value_info, *inferred.input, *inferred.output)
        }

    def producer(self, name: str) -> NodeProto | None:
        """Return the node that outputs a tensor; None for constants and the image."""
        return self._made.get(name)

    def consumers(self, name: str) -> list[NodeProto]:
        """Return the nodes that consume a tensor."""
        return self._used[name]

    def array(self, name: str) -> np.ndarray | None:
        """Return the value of a constant; None if the tensor is not one."""
        if name not in self._arrays and name in self._tensors:
            self._arrays[name] = require("onnx").numpy_helper.to_array(self._tensors[name])
        return self._arrays.get(name)

    def known(self, name: str) -> np.ndarray:
        """Return the value of a constant."""
        value = self.array(name)
        assert value is not None, name
        return value

    def shape(self, name: str) -> tuple[int, ...]:
        """Return a tensor's shape for one image; empty if it is unknown."""
        constant = self.array(name)
        if constant is not None:
            return constant.shape
        shape = self._shapes.get(name, ())
        return (1, *shape[1:]) if shape and all(shape[1:]) else ()

    def bounds(self, node: NodeProto) -> tuple[float, float]:
        """Return the lower and upper bound of a Relu or Clip with constant bounds."""
        if node.op_type == "Relu":
            return 0.0, np.inf
        arrays = [self.array(name) if name else None for name in (*node.input[1:], "", "")[:2]]
        return tuple(end if a is None else float(a) for a, end in zip(arrays, (-np.inf, np.inf), strict=True))  # type: ignore[return-value]

    def behind_bounds(self, name: str) -> tuple[str, float, float]:
        """Return the tensor before a tensor's Relu and Clip operations, and the bounds that they set."""
        low, high = -np.inf, np.inf
        node = self.producer(name)
        while node is not None and node.op_type in BOUNDS and self._has_bounds(node):
            lower, upper = self.bounds(node)
            low, high = min(max(low, lower), high), max(min(high, upper), low)
            name = node.input[0]
            node = self.producer(name)
        return name, low, high

    def _has_bounds(self, node: NodeProto) -> bool:
        return all(not name or self.array(name) is not None for name in node.input[1:])

    def grid(self, quantize: NodeProto) -> TFLiteGrid:
        """Return the integers that a QuantizeLinear outputs, within the bounds of operations right before it."""
        scale, zero = float(self.known(quantize.input[1])), self.known(quantize.input[2])
        ends = np.iinfo(zero.dtype)
        plain = TFLiteGrid(scale, int(zero), int(ends.min), int(ends.max), zero.dtype.name)
        _, low, high = self.behind_bounds(quantize.input[0])
        used = plain.narrowed(low, high)
        return TFLiteGrid.of_levels(scale, used.low - used.zero, used.high - used.zero)

    def is_held(self, name: str) -> bool:
        """Return True for dequantized integers, moved or not."""
        node = self.producer(name)
        while node is not None and node.op_type in MOVING and node.op_type != "Concat":
            node = self.producer(node.input[0])
        return node is not None and node.op_type == "DequantizeLinear" and self.array(node.input[0]) is None

    def is_used_in_float(self, name: str) -> bool:
        """Return True if more than quantization reads a tensor, moved or within bounds or not."""
        if name in self.outputs:
            return True
        readers = self.consumers(name)
        moved = [output for node in readers if node.op_type in (*MOVING, *BOUNDS) for output in node.output]
        others = {node.op_type for node in readers} - {*MOVING, *BOUNDS, "QuantizeLinear"}
        return bool(others) or any(map(self.is_used_in_float, moved))

    def quantize_of(self, name: str) -> NodeProto | None:
        """Return the QuantizeLinear that decides the integers of a tensor of codes."""
        node = self.producer(name)
        while node is not None and node.op_type in (*POOLS, *MOVING):
            node = self.producer(node.input[0])
        return node if node is not None and node.op_type == "QuantizeLinear" else None

    def layer(self, name: str) -> TFLiteLayer | None:
        """Return the layer that computes a tensor; None if something else does."""
        node = self.producer(name)
        steps: list[tuple[str, np.ndarray]] = []
        while node is not None and node.op_type in ("Add", "Mul"):
            side = next((i for i, operand in enumerate(node.input) if self.array(operand) is not None), None)
            if side is None:
                return None
            steps.append((node.op_type, self.known(node.input[side]).astype(np.float64)))
            node = self.producer(node.input[1 - side])
        if node is None or node.op_type not in LAYERS or not self._is_layer(node):
            return None
        weight, scales = self._weight(node)
        axis = -3 if node.op_type == "Conv" else -1  # of the channels in an operand
        if not all(_per_channel(operand, len(weight), axis) for _, operand in steps):
            return None
        factor, shift = np.ones(len(weight)), np.broadcast_to(self._own_bias(node), len(weight))
        for kind, operand in reversed(steps):
            flat = operand.reshape(-1)
            factor, shift = (factor * flat, shift * flat) if kind == "Mul" else (factor, shift + flat)
        return _scaled(node, weight, scales, factor, shift)

    def _is_layer(self, node: NodeProto) -> bool:
        given = attributes(node)
        plain = given.get("alpha", 1.0) == 1.0 and given.get("beta", 1.0) == 1.0 and not given.get("transA", 0)
        rank = 4 if node.op_type == "Conv" else 2
        return plain and self._constant(node.input[1]) is not None and len(self.shape(node.input[1])) in (0, rank)

    def _own_bias(self, node: NodeProto) -> Any:
        return 0.0 if len(node.input) < 3 or not node.input[2] else self.known(node.input[2]).astype(np.float64)

    def _constant(self, name: str) -> NodeProto | np.ndarray | None:
        """Return a weight's DequantizeLinear, or its constant; None if it is computed."""
        node = self.producer(name)
        while node is not None and node.op_type == "Transpose":
            name = node.input[0]
            node = self.producer(name)
        if node is not None and node.op_type == "DequantizeLinear" and self.array(node.input[0]) is not None:
            return node
        return self.array(name)

    def _weight(self, node: NodeProto) -> tuple[np.ndarray, np.ndarray | None]:
        """Return a layer's weight with output channels first, as int32, and its scales; or float32 and None."""
        found, between = self._constant(node.input[1]), self.producer(node.input[1])
        assert found is not None
        values, scales = (found, None) if isinstance(found, np.ndarray) else self._centered(found)
        while between is not None and between.op_type == "Transpose":
            values = values.transpose(attributes(between).get("perm"))
            between = self.producer(between.input[0])
        rows_last = node.op_type == "MatMul" or (node.op_type == "Gemm" and not attributes(node).get("transB", 0))
        values = values.T if rows_last else values
        return values, None if scales is None else np.broadcast_to(scales, len(values)).copy()

    def _centered(self, dequantize: NodeProto) -> tuple[np.ndarray, np.ndarray]:
        """Return the integers of a weight without their zero points, as int32, and its scales."""
        codes, zero = self.known(dequantize.input[0]), self.known(dequantize.input[2]).astype(np.int32)
        axis = attributes(dequantize).get("axis", 1) % codes.ndim
        if zero.ndim:
            zero = np.expand_dims(zero, [place for place in range(codes.ndim) if place != axis])
        return codes.astype(np.int32) - zero, self.known(dequantize.input[1]).astype(np.float64).reshape(-1)


def _per_channel(operand: np.ndarray, channels: int, axis: int) -> bool:
    """Return True if a constant has one value, or one for each channel."""
    return operand.size == 1 or (operand.ndim >= -axis and operand.shape[axis] == operand.size == channels)


def _scaled(
    node: NodeProto, weight: np.ndarray, scales: np.ndarray | None, factor: np.ndarray, bias: np.ndarray
) -> TFLiteLayer:
    """Return the layer with one more factor for each output channel."""
    broad = factor.reshape(-1, *[1] * (weight.ndim - 1))
    if scales is None:
        weight = (weight * broad).astype(np.float32)
    else:
        weight, scales = np.where(broad < 0, -weight, weight), scales * np.abs(factor)
    return TFLiteLayer(node, node.input[0], weight, scales, bias)
