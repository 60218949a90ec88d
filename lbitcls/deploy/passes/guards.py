"""Guard nodes, which change no value but keep optimizations of OpenVINO and ONNX Runtime from changing the result."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from lbitcls.deploy.passes.graph import (
    OPERATIONS,
    POOLS,
    Graph,
    operation_of,
    same_grid,
    through_pools,
    weights_of,
)

if TYPE_CHECKING:
    from onnx import NodeProto

_TINY = np.finfo(np.float32).tiny  # added to a float, changes only an exact 0
_PASSING = ("Relu", "Clip", *POOLS, "AveragePool", "Reshape", "Flatten", "Transpose", "Slice", "Concat")
_FOLLOWED = (*_PASSING, "Squeeze", "Unsqueeze", "Expand", "Neg", "Abs", "Mul", "Split", "Pad", "Identity")
KEPT_FLOAT = "KeptFloat"  # name of an addition that keeps the next layer from being computed in integers
_COMPARISONS = ("Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual")
_ZERO_MATTERS = (*_COMPARISONS, "Sign", "Cast", "Ceil", "Log", "Reciprocal", "Div", "NonZero")


def guard_scales(graph: Graph) -> None:
    """Add the smallest number to integer results that have no addition, so that OpenVINO does not move their scales.

    OpenVINO moves the channels' scales behind the next operations, and with them it changes the bounds of a Clip there
    (seen in 2026.4: Conv, ReLU, MaxPool, Clip; also a Concat of integers on different grids). An addition keeps the
    scales in place. Nothing is added where an exact 0 differs from other numbers, for example by its sign.

    An integer ConvTranspose also uses wrong bounds for a later Clip (2026.4), whatever is in between; with an addition
    before it, it is computed in float.
    """
    for weight in weights_of(graph):
        operation = operation_of(graph, weight)
        if operation is not None:
            _guard_bias(graph, operation)
        if operation is not None and operation.op_type == "ConvTranspose" and _is_clipped(graph, operation.output[0]):
            smallest = graph.add_constant("smallest", np.array(_TINY))
            source, taken = operation.input[0], graph.free_name(f"{operation.name}_float")
            graph.add_node("Add", [source, smallest], taken, graph.producer(source), KEPT_FLOAT)
            operation.input[0] = taken
    for node in [node for node in graph.nodes if node.op_type == "Concat"]:
        alike = _on_one_grid(graph, node)
        if not alike and any(_from_integers(graph, n) for n in node.input) and not _zero_matters(graph, node.output[0]):
            graph.append_to(node, "Add", graph.add_constant("smallest", np.array(_TINY)), f"{node.name}/Guard")


def guard_float_layers(graph: Graph) -> None:
    """Add the smallest number to the integers that a float layer reads, so that its weights stay float.

    If such a layer's result is quantized as well, ONNX Runtime rounds its weights to 8 bits (seen in 1.31; no option
    turns it off for the file). A layer left float in a block with 8-bit skip connections is one.
    """
    integer = {id(operation_of(graph, weight)) for weight in weights_of(graph)}
    for node in [node for node in graph.nodes if node.op_type in OPERATIONS and id(node) not in integer]:
        if node.input[1] in graph.constants and _from_integers(graph, node.input[0]):
            source, taken = node.input[0], graph.free_name(f"{node.name}_float")
            name, smallest = f"{node.name}/Guard_float", graph.add_constant("smallest", np.array(_TINY))
            graph.add_node("Add", [source, smallest], taken, graph.producer(source), name)
            node.input[0] = taken


def _guard_bias(graph: Graph, operation: NodeProto) -> None:
    last = operation
    after = graph.only_consumer(last.output[0])
    if after is not None and after.op_type == "Mul" and after.input[1] in graph.constants:  # signs
        last, after = after, graph.only_consumer(after.output[0])
    bias = None if after is None or after.op_type != "Add" else graph.array(after.input[1])
    if after is None or bias is None:
        if not _zero_matters(graph, last.output[0]):
            graph.append_to(last, "Add", graph.add_constant("smallest", np.array(_TINY)), f"{operation.name}/Guard")
    elif not bias.any() and not _zero_matters(graph, after.output[0]):
        after.input[1] = graph.add_constant(after.input[1], bias + _TINY)


def _is_clipped(graph: Graph, name: str) -> bool:
    """Return True if a Clip consumes a tensor, or a result of it before the next layer or quantization."""
    users = graph.consumers(name)
    if any(user.op_type == "Clip" for user in users):
        return True
    users = [user for user in users if user.op_type not in (*OPERATIONS, "QuantizeLinear")]
    return any(_is_clipped(graph, out) for user in users for out in user.output)


def _zero_matters(graph: Graph, name: str) -> bool:
    """Return True if an operation that treats an exact 0 specially consumes a tensor, or one with the same zeros."""
    users = graph.consumers(name)
    if any(user.op_type in _ZERO_MATTERS for user in users):
        return True
    return any(_zero_matters(graph, out) for user in users if user.op_type in _FOLLOWED for out in user.output)


def _on_one_grid(graph: Graph, concat: NodeProto) -> bool:
    """Return True if all inputs of a Concat, or what they are maxima of, are integers on the same grid."""
    sources = [through_pools(graph, name) for name in concat.input]
    first = sources[0]
    return all(
        first is not None and node is not None and node.op_type == "DequantizeLinear" and same_grid(graph, first, node)
        for node in sources
    )


def _from_integers(graph: Graph, name: str) -> bool:
    node = graph.producer(name)
    if node is None or node.op_type not in _PASSING:
        return node is not None and node.op_type == "DequantizeLinear"
    return any(_from_integers(graph, inner) for inner in node.input)


def guard_grids(graph: Graph) -> None:
    """Pool each quantized operand of a sum or product of two tensors, in windows of one pixel.

    OpenVINO fuses such a sum into the preceding convolution, and omits the quantization in between (seen in 2026.4: a
    fifth of the values of a residual block off by a step). A pooling keeps the two apart, in integers, and changes no
    value; adding the smallest number was not enough in every block.
    """
    for node in [node for node in graph.nodes if node.op_type in ("Add", "Mul")]:
        if any(name in graph.constants for name in node.input):
            continue
        for position, source in enumerate(map(graph.producer, node.input)):
            if source is not None and source.op_type == "DequantizeLinear":
                output, name = graph.free_name(f"{source.output[0]}_pooled"), f"{node.name}/Guard_{position}"
                graph.add_node("MaxPool", [source.output[0]], output, source, name, kernel_shape=[1, 1])
                node.input[position] = output


def guard_integers(graph: Graph) -> None:
    """Turn integers into floats by LeakyRelu with slope 1, the identity, before they reach a Clip or an AveragePool.

    OpenVINO moves the integers' scale behind the operations that follow (seen in 2026.4). It then cuts off the bounds
    of a Clip to integers, and rounds the averages if an elementwise operation comes next. Adding the smallest number
    does not stop it here.
    """
    for node in [node for node in graph.nodes if node.op_type == "DequantizeLinear"]:
        if node.input[0] not in graph.constants:
            name = node.output[0]
            _keep_apart(graph, name, [user for user in graph.consumers(name) if _needs_floats(graph, user)])


def guard_pointwise(graph: Graph) -> None:
    """Pass floats between a Transpose and a 1x1 Conv with integer weights through LeakyRelu with slope 1, the identity.

    OpenVINO turns such a Conv into a matrix product, and drops a Transpose directly before it, and one behind it or the
    constants added to its results, whatever it permutes (seen in 2026.4: the sizes do not fit, or the results are
    wrong).
    """
    for operation in filter(None, (operation_of(graph, weight) for weight in weights_of(graph))):
        source = graph.producer(operation.input[0])
        if operation.op_type != "Conv" or (source is not None and source.op_type == "DequantizeLinear"):
            continue
        if source is not None and source.op_type == "Transpose":
            _keep_apart(graph, source.output[0], [operation])
        last: NodeProto | None = operation
        while last is not None:
            users = graph.consumers(last.output[0])
            _keep_apart(graph, last.output[0], [user for user in users if user.op_type == "Transpose"])
            last = next((u for u in users if u.op_type in ("Add", "Mul") and set(u.input) & set(graph.constants)), None)


def _needs_floats(graph: Graph, node: NodeProto) -> bool:
    """Return True if a node is a Clip or an AveragePool that OpenVINO computes wrongly of integers, or leads to one."""
    users = [user for output in node.output for user in graph.consumers(output)]
    averages = node.op_type == "AveragePool" and any(u.op_type not in ("QuantizeLinear", *OPERATIONS) for u in users)
    if node.op_type == "Clip" or averages:
        return True
    return node.op_type in _FOLLOWED and any(_needs_floats(graph, user) for user in users)


def _keep_apart(graph: Graph, name: str, users: list[NodeProto]) -> None:
    """Let these consumers of a tensor read it through LeakyRelu with slope 1."""
    if not users:
        return
    taken = graph.free_name(f"{name}_apart")
    graph.add_node("LeakyRelu", [name], taken, graph.producer(name), f"{users[0].name}/Guard", alpha=1.0)
    for user in users:
        user.input[:] = [taken if given == name else given for given in user.input]


def guard_sums(graph: Graph) -> None:
    """Pass each operand of a sum that is quantized for it alone through LeakyRelu with slope 1, which is the identity.

    OpenVINO computes the sum in the convolution before such an operand, which writes 8 bits then. If nothing lies
    between convolution and quantization, it omits the rounding (seen in 2026.4, and known there as "one special
    residual pattern"); Clip and additions of constants do not count, because they become part of the quantization.
    """
    for node in [node for node in graph.nodes if node.op_type == "Add"]:
        for operand in map(graph.producer, node.input):
            if operand is None or operand.op_type != "DequantizeLinear" or operand.input[0] in graph.constants:
                continue
            first = graph.producer(operand.input[0])
            clip = None if first is None else graph.producer(first.input[0])
            first = clip if clip is not None and clip.op_type == "Clip" else first
            if first is not None and graph.only_consumer(operand.output[0]) is not None:
                source, taken = first.input[0], graph.free_name(f"{operand.output[0]}_guarded")
                name = f"{node.name}/Guard_{list(node.input).index(operand.output[0])}"
                graph.add_node("LeakyRelu", [source], taken, graph.producer(source), name, alpha=1.0)
                first.input[0] = taken
