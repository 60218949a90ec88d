"""NVIDIA TensorRT: int8 throughout, every zero point 0, per-channel weights.

TensorRT may not be installed on the exporting machine, so its rules are checked by the structure of the graph: INT8
tensors are symmetric (zero points of 0, scales that are constants above 0), only weights have a scale per channel, on
the axis of the output channels, and INT4 is for weights beside float inputs. Its parser reads ONNX up to opset 25
(TensorRT 11); earlier releases up to lower ones (https://docs.nvidia.com/deeplearning/tensorrt, "Explicit
Quantization" and "ONNX Opset Guide").
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from lbitcls.deploy.passes.graph import Graph, attributes, known_array, weights_of
from lbitcls.deploy.targets.base import Target
from lbitcls.registry import TARGETS

if TYPE_CHECKING:
    from onnx import NodeProto


@TARGETS.register_module(name="tensorrt")
class TensorRT(Target):
    """TensorRT's explicit quantization; ONNX Runtime judges its files, since they lack the guards for OpenVINO."""

    containers = ("int8",)
    zero_points = False
    weight_bits = 8
    packed_weights = False

    def faults(self, graph: Graph) -> list[str]:
        """Return other containers and zero points, scales that TensorRT does not take, and scales on a wrong axis."""
        found = []
        for node in graph.nodes:
            if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
                scale, zero = graph.array(node.input[1]), graph.array(node.input[2])
                if zero is None or zero.dtype != np.int8 or zero.any():
                    found.append(f"{node.name} has no int8 zero point of 0")
                if scale is None or not (scale > 0).all():
                    found.append(f"{node.name} has a scale that is not above 0")
                elif node.input[0] not in graph.constants and scale.size != 1:
                    found.append(f"{node.name} has several scales, which only weights may have")
        for weight in weights_of(graph):
            axis = output_axis(graph, weight)
            if known_array(graph, weight.input[1]).ndim and attributes(weight).get("axis", 1) != axis:
                found.append(f"{weight.name} has its scales on an axis other than {axis}")
        return found


def output_axis(graph: Graph, weight: NodeProto) -> int:
    """Return the axis of a weight's output channels, as the layer's operation reads it."""
    operation, rank = graph.consumers(weight.output[0])[0], known_array(graph, weight.input[0]).ndim
    if operation.op_type == "Transpose":
        after = graph.consumers(operation.output[0])[0]
        order = attributes(operation).get("perm", list(range(rank))[::-1])
        return order[rank - 1] if after.op_type == "MatMul" else 0
    if operation.op_type in ("MatMul", "Gemm"):
        return 0 if attributes(operation).get("transB", 0) else rank - 1
    return 1 if operation.op_type == "ConvTranspose" else 0
