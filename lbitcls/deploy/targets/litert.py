"""LiteRT (TensorFlow Lite): phones and microcontrollers; a `.tflite` file of integer operations.

Weights are int8 with one scale per output channel, biases int32, activations int8. Where training gave an input a grid,
the operation before it writes its result directly on that grid; the other tensors between layers get 8 bits from
calibration images (`lbitcls.deploy.targets.tflite.filling`). The engine therefore rounds where training did not; not at
additions if the model has layers of fewer than 8 bits: they, and the convolutions before them, are in float32 then.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from lbitcls.deploy.passes.graph import Graph
from lbitcls.deploy.runtime.metadata import ModelInfo, with_trailer
from lbitcls.deploy.targets.base import INT16_OPSET, Target
from lbitcls.deploy.targets.tflite.filling import fill
from lbitcls.deploy.targets.tflite.flatbuffer import tflite_bytes
from lbitcls.deploy.targets.tflite.writing import UnsupportedError
from lbitcls.registry import TARGETS

if TYPE_CHECKING:
    from onnx import ModelProto


@TARGETS.register_module(name="litert")
class LiteRT(Target):
    """LiteRT's interpreter, with the XNNPACK delegate or its own kernels."""

    suffix = ".tflite"
    extra = "litert"
    packages = ("ai_edge_litert", "flatbuffers")
    engines = ("litert",)
    needs_images = True
    rounds_between_layers = True
    opsets = (INT16_OPSET, INT16_OPSET)
    kinds = ("Conv2d", "Linear")
    weight_bits = 8
    packed_weights = False

    def fill_grids(self, graph: Graph, batches: Sequence[np.ndarray]) -> None:
        """Quantize the tensors between integer layers to 8 bits, and the logits to 16."""
        if not self.faults(graph):  # else the export names them when the graph is finished
            fill(graph, batches)

    def faults(self, graph: Graph) -> list[str]:
        """Return the operations that have no counterpart in the format."""
        try:
            tflite_bytes(graph.save())
        except UnsupportedError as error:
            return [f"{error}; leave this part out, or export for another target"]
        return []

    def write(self, model: ModelProto, info: ModelInfo, path: Path) -> None:
        """Write the file; the metadata lie behind the flat buffer."""
        path.write_bytes(with_trailer(tflite_bytes(model), info))
