"""Integer type of layer inputs: int8, or uint8 with a zero point."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from lbitcls.deploy.passes.graph import Graph

if TYPE_CHECKING:
    from onnx import NodeProto


def signed_inputs(graph: Graph) -> list[NodeProto]:
    """Return the QuantizeLinear nodes that output int8."""
    return [node for node in graph.nodes if node.op_type == "QuantizeLinear" and _is_signed(graph, node)]


def _is_signed(graph: Graph, node: NodeProto) -> bool:
    zero_point = graph.array(node.input[2])
    return zero_point is not None and zero_point.dtype == np.int8


def to_uint8(graph: Graph) -> None:
    """Convert all int8 inputs to uint8: integers and zero points shift until the smallest is 0; no value changes.

    OpenVINO subtracts the container's smallest value before it rounds, so values near it are rounded most accurately:
    zero point 8 for 4 bits, 128 for 8 bits.
    """
    for node in signed_inputs(graph):
        zero_point, scale = (graph.array(node.input[i]) for i in (2, 1))
        assert zero_point is not None and scale is not None
        bounds = graph.producer(node.input[0])
        low = graph.array(bounds.input[1]) if bounds is not None and bounds.op_type == "Clip" else None
        # The Clip may be the model's own, with bounds beyond the integers' range, or between two integers.
        least = -128 if low is None else max(-128, int(np.floor(low / scale + 1e-3)) + int(zero_point))
        value = np.array(int(zero_point) - least, np.uint8)
        name = graph.add_constant(f"{node.input[1].removesuffix('.scale')}.zero_point_uint8", value)
        for user in (node, *graph.consumers(node.output[0])):
            user.input[2] = name
