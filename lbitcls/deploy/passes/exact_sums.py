"""Pass that lets engines without integer kernels add integers: the sums are exact, so every engine's are the same.

Such an engine convolves dequantized values in float, and each order of the additions rounds in its own way:

    before    sum of (scale_x * x) * (scale_w * w)
    after     (sum of x * w) * (scale_x * scale_w)

As long as the sums stay below 2^24, float32 represents them exactly. The pass costs one multiplication per result.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from lbitcls.deploy.passes.graph import POOLS, Graph, operation_of, weights_of

if TYPE_CHECKING:
    from onnx import NodeProto

_SUMMING = ("Conv", "Gemm", "MatMul")


def sum_exactly(graph: Graph) -> None:
    """Move the scales of integer layers behind their sums."""
    for weight in weights_of(graph):
        operation = operation_of(graph, weight)
        if operation is None or operation.op_type not in _SUMMING or len(operation.input) != 2:
            continue
        source = _own_integers(graph, operation)
        if source is None:
            continue
        inputs, weights = graph.array(source.input[1]), graph.array(weight.input[1])
        if inputs is None or weights is None or inputs.size != 1:
            continue
        factors = weights * inputs.reshape(())
        if operation.op_type == "Conv" and factors.ndim:
            shape = graph.constants[weight.input[0]].dims
            factors = factors.reshape(-1, *[1] * (len(shape) - 2))
        for node, scale in ((source, inputs), (weight, weights)):
            node.input[1] = graph.add_constant(f"{node.name}.one", np.ones_like(scale))
        name = graph.add_constant(f"{operation.name}.scale_of_sum", factors.astype(np.float32))
        graph.append_to(operation, "Mul", name, f"{operation.name}/Mul")


def _own_integers(graph: Graph, operation: NodeProto) -> NodeProto | None:
    """Return the DequantizeLinear of an operation's input, used by it alone; None if it is something else.

    Maxima and minima in between, which are of the same integers, are passed if nothing else uses them.
    """
    tensor, alone = operation.input[0], True
    node = graph.producer(tensor)
    while node is not None and node.op_type in POOLS:
        alone = alone and graph.only_consumer(tensor) is not None
        tensor = node.input[0]
        node = graph.producer(tensor)
    if node is None or node.op_type != "DequantizeLinear" or not alone:
        return None
    if graph.only_consumer(tensor) is not None:
        return node
    if tensor != operation.input[0]:
        return None  # a maximum of values that others use too
    copy = graph.add_node("DequantizeLinear", list(node.input), graph.free_name(f"{tensor}_own"), node, node.name)
    copy.attribute.extend(node.attribute)
    operation.input[0] = copy.output[0]
    return copy
