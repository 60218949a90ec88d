"""Folds BatchNorm into the scales of the preceding integer weights, and into the constant added to their results.

    γ/σ · (conv(x, codes · s) + b - mean) + β  =  conv(x, codes · s·γ/σ) + (b - mean)·γ/σ + β

is exact: only the scale of each output channel and the added constant change; no weight is quantized again. `b` is the
layer's bias, or any other added constant, such as a position along the width: it is broadcast as in ONNX.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from lbitcls.deploy.passes.graph import OPERATIONS, Graph, attributes, known_array

if TYPE_CHECKING:
    from onnx import NodeProto


def absorb_norms(graph: Graph) -> list[str]:
    """Fold BatchNormalizations into the scales and bias of the preceding integer layers; return names of the others."""
    left = []
    for norm in [node for node in graph.nodes if node.op_type == "BatchNormalization"]:
        if not _absorb(graph, norm):
            left.append(norm.name)
    return left


def _absorb(graph: Graph, norm: NodeProto) -> bool:
    values, (bias_add, operation) = _values(graph, norm), _before(graph, norm)
    weight = graph.producer(operation.input[1]) if operation is not None else None
    if values is None or operation is None or weight is None or not _scales_outputs(graph, weight, operation):
        return False
    gamma, beta, mean, variance = values
    rank, scale = known_array(graph, weight.input[0]).ndim, known_array(graph, weight.input[1]).astype(np.float64)
    bias = np.zeros((1,) * rank) if bias_add is None else _added(graph, bias_add, rank, len(scale))
    if bias is None or len(scale) != len(mean):
        return False
    factor = gamma / np.sqrt(variance + attributes(norm).get("epsilon", 1e-5))
    channels = (1, -1, *[1] * (rank - 2))
    shift = (beta.reshape(channels) + (bias - mean.reshape(channels)) * factor.reshape(channels)).astype(np.float32)
    layer = operation.name
    weight.input[1] = graph.add_constant(f"{layer}.scale_with_norm", (scale * factor).astype(np.float32))
    if bias_add is not None:
        graph.bypass(bias_add, operation)
    graph.bypass(norm, operation)
    shift = shift[0] if len(shift) == 1 else shift
    graph.append_to(operation, "Add", graph.add_constant(f"{layer}.bias_with_norm", shift), f"{layer}/Add")
    return True


def _values(graph: Graph, norm: NodeProto) -> tuple[np.ndarray, ...] | None:
    """Return γ, β, mean and variance (C,); None if one of them is computed from the image."""
    arrays = [graph.array(name) for name in norm.input[1:5]]
    if attributes(norm).get("training_mode", 0):
        return None
    known = tuple(array.astype(np.float64) for array in arrays if array is not None)
    return known if len(known) == len(arrays) else None


def _before(graph: Graph, norm: NodeProto) -> tuple[NodeProto | None, NodeProto | None]:
    """Return the Add of a constant, if any, and the layer's operation whose result only `norm` consumes."""
    node = graph.producer(norm.input[0])
    if node is None or graph.only_consumer(norm.input[0]) is None:
        return None, None
    if node.op_type in OPERATIONS:
        return None, node
    computed = [name for name in node.input if name not in graph.constants]
    if node.op_type != "Add" or len(computed) != 1:
        return None, None
    operation = graph.producer(computed[0])
    if operation is None or operation.op_type not in OPERATIONS or graph.only_consumer(computed[0]) is None:
        return None, None
    return node, operation


def _scales_outputs(graph: Graph, weight: NodeProto, operation: NodeProto) -> bool:
    """Return True if a weight has one scale per output channel (axis 1) of the operation."""
    known, found = attributes(operation), attributes(weight)
    if weight.op_type != "DequantizeLinear" or weight.input[0] not in graph.constants or len(operation.input) > 2:
        return False
    if operation.op_type == "ConvTranspose":
        return found.get("axis", 1) == 1 and known.get("group", 1) == 1
    if operation.op_type == "Gemm":
        return found.get("axis", 1) == (0 if known.get("transB", 0) else 1)
    return operation.op_type == "Conv" and found.get("axis", 1) == 0  # a MatMul's axis 1 may be anything


def _added(graph: Graph, add: NodeProto, rank: int, channels: int) -> np.ndarray | None:
    """Return the constant that an Add adds, reshaped to `rank` axes; None if the Add increases the rank or channels.

    Broadcasting aligns the last axes: (W,) runs along the width, (C, 1, 1) along the channels.
    """
    constant = next(known_array(graph, name) for name in add.input if name in graph.constants)
    if constant.ndim > rank:
        return None
    constant = constant.reshape((1,) * (rank - constant.ndim) + constant.shape).astype(np.float64)
    return constant if constant.shape[1] in (1, channels) else None
