"""NVIDIA TensorRT: int8 throughout, every zero point 0, per-channel weights.

TensorRT may not be installed on the exporting machine, so its rules are checked by the structure of the graph.
"""

from __future__ import annotations

import numpy as np

from lbitcls.deploy.passes.graph import Graph, attributes, weights_of
from lbitcls.deploy.targets.base import Target
from lbitcls.registry import TARGETS


@TARGETS.register_module(name="tensorrt")
class TensorRT(Target):
    """TensorRT's explicit quantization; ONNX Runtime judges its files, since they lack the guards for OpenVINO."""

    containers = ("int8",)
    zero_points = False
    weight_bits = 8
    packed_weights = False

    def faults(self, graph: Graph) -> list[str]:
        """Return other containers and zero points, scales that are not positive, and scales on a wrong axis."""
        found = []
        for node in graph.nodes:
            if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
                scale, zero = graph.array(node.input[1]), graph.array(node.input[2])
                if zero is None or zero.dtype != np.int8 or zero.any():
                    found.append(f"{node.name} has no int8 zero point of 0")
                if scale is None or not (scale > 0).all():
                    found.append(f"{node.name} has a scale that is not above 0")
        for weight in weights_of(graph):
            operation = graph.consumers(weight.output[0])[0]
            axis = 1 if operation.op_type == "ConvTranspose" else 0
            if attributes(weight).get("axis", 1) != axis:
                found.append(f"{weight.name} has its scales on an axis other than {axis}")
        return found
