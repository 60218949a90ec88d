"""QONNX: ONNX with `Quant` nodes that state the true bit widths, for FINN and hls4ml, which compile it for FPGAs.

The graph of integer layers is converted by `lbitcls.deploy.passes.quant_nodes`; no value changes.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from lbitcls.deploy.passes.graph import Graph
from lbitcls.deploy.passes.quant_nodes import quantization_faults, to_quant_nodes
from lbitcls.deploy.runtime.engines.qonnx import with_shapes
from lbitcls.deploy.runtime.metadata import ModelInfo, sealed
from lbitcls.deploy.targets.base import Choice, LayerFacts, Target
from lbitcls.registry import TARGETS

if TYPE_CHECKING:
    from onnx import ModelProto


@TARGETS.register_module(name="qonnx")
class QONNX(Target):
    """QONNX files for a batch of one image, since circuits have fixed shapes; qonnx's own executor judges them."""

    extra = "qonnx"
    engines = ("qonnx",)
    packed_weights = False

    def place(self, layer: LayerFacts, choice: Choice) -> LayerFacts:
        """Return the layer without a container: its input has as many bits as it was trained with."""
        return replace(super().place(layer, choice), container=None)

    def faults(self, graph: Graph) -> list[str]:
        """Return the quantizations that no Quant node expresses."""
        return super().faults(graph) + quantization_faults(graph)

    def write(self, model: ModelProto, info: ModelInfo, path: Path) -> None:
        """Write the model with Quant nodes, a batch size of 1, and the shape of every tensor."""
        graph = Graph(model)
        to_quant_nodes(graph, {layer["name"]: layer["weight_bits"] for layer in info.layers})
        path.write_bytes(sealed(with_shapes(graph.save(), 1)))
