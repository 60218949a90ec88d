"""Passes over the ONNX graph that decide how a maximum or minimum stands beside quantization."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lbitcls.deploy.passes.graph import POOLS, Graph, through_pools

if TYPE_CHECKING:
    from onnx import NodeProto


def pool_integers(graph: Graph) -> None:
    """Quantize before a maximum or minimum (`POOLS`), where that is done to its result alone.

    The values are the same, since quantization keeps the order; and engines write, and pool, integers.
    """
    for pool in reversed([node for node in graph.nodes if node.op_type in POOLS and len(node.output) == 1]):
        chain = _quantization_of(graph, pool.output[0])
        if not chain:
            continue
        first, last = chain[0], chain[-1]
        source, pooled, result = pool.input[0], pool.output[0], last.output[0]
        first.input[0], last.output[0], pool.input[0], pool.output[0] = source, pooled, pooled, result
        graph.nodes.remove(pool)
        graph.nodes.insert(graph.nodes.index(last) + 1, pool)


def split_maxima(graph: Graph) -> None:
    """Keep OpenVINO from joining a maximum or minimum of floats with what follows: `Max(y, y)` is y, and ends it.

    OpenVINO 2026.4 joins a ReduceMax, ReduceMin or GlobalMaxPool with the elementwise operations after it, across a
    Concat, and where these end in a quantization the integers are off by some steps. MaxPool is computed rightly.
    """
    if not any(node.op_type == "QuantizeLinear" for node in graph.nodes):
        return
    for node in [node for node in graph.nodes if node.op_type in ("ReduceMax", "ReduceMin", "GlobalMaxPool")]:
        before = through_pools(graph, node.input[0])
        if before is None or before.op_type != "DequantizeLinear":
            output = node.output[0]
            node.output[0] = graph.free_name(f"{output}_alone")
            graph.add_node("Max", [node.output[0]] * 2, output, node, f"{node.name}/Max")


def _quantization_of(graph: Graph, tensor: str) -> list[NodeProto]:
    """The Relu and Clip, if there are any, QuantizeLinear and DequantizeLinear that alone take a tensor; or nothing."""
    chain: list[NodeProto] = []
    for kind in ("Relu", "Clip", "QuantizeLinear", "DequantizeLinear"):
        node = graph.only_consumer(chain[-1].output[0] if chain else tensor)
        if node is not None and node.op_type == kind:
            chain.append(node)
        elif kind not in ("Relu", "Clip"):
            return []
    return chain
