"""Passes over the ONNX graph that arrange maxima and minima relative to quantization."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lbitcls.deploy.passes.graph import POOLS, Graph, through_pools

if TYPE_CHECKING:
    from onnx import NodeProto


def pool_integers(graph: Graph) -> None:
    """Move quantization in front of a maximum or minimum (`POOLS`), if only its quantized result is used.

    The values stay the same, since quantization preserves order; and engines store and pool integers.
    """
    for pool in reversed([node for node in graph.nodes if node.op_type in POOLS and len(node.output) == 1]):
        chain = quantization_of(graph, pool.output[0])
        if not chain:
            continue
        first, last = chain[0], chain[-1]
        source, pooled, result = pool.input[0], pool.output[0], last.output[0]
        first.input[0], last.output[0], pool.input[0], pool.output[0] = source, pooled, pooled, result
        graph.nodes.remove(pool)
        graph.nodes.insert(graph.nodes.index(last) + 1, pool)


def split_maxima(graph: Graph) -> None:
    """Keep OpenVINO from fusing a maximum or minimum of floats with what follows: `Max(y, y)` is y, and stops it.

    OpenVINO 2026.4 fuses a ReduceMax, ReduceMin or GlobalMaxPool with the elementwise operations after it, even across
    a Concat; if these end in a quantization, the integers are off by a few steps. MaxPool is computed correctly.
    """
    if not any(node.op_type == "QuantizeLinear" for node in graph.nodes):
        return
    for node in [node for node in graph.nodes if node.op_type in ("ReduceMax", "ReduceMin", "GlobalMaxPool")]:
        before = through_pools(graph, node.input[0])
        if before is None or before.op_type != "DequantizeLinear":
            output = node.output[0]
            node.output[0] = graph.free_name(f"{output}_alone")
            graph.add_node("Max", [node.output[0]] * 2, output, node, f"{node.name}/Max")


def quantization_of(graph: Graph, tensor: str) -> list[NodeProto]:
    """Return the optional Relu and Clip, the QuantizeLinear and DequantizeLinear that alone consume a tensor, or []."""
    chain: list[NodeProto] = []
    for kind in ("Relu", "Clip", "QuantizeLinear", "DequantizeLinear"):
        node = graph.only_consumer(chain[-1].output[0] if chain else tensor)
        if node is not None and node.op_type == kind:
            chain.append(node)
        elif kind not in ("Relu", "Clip"):
            return []
    return chain
