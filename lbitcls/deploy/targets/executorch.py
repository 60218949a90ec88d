"""Phones and other devices with ExecuTorch: a `.pte` file, all of which XNNPACK computes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from lbitcls.deploy.passes.graph import Graph
from lbitcls.deploy.runtime.metadata import ModelInfo, with_trailer
from lbitcls.deploy.targets.base import Target
from lbitcls.registry import TARGETS

if TYPE_CHECKING:
    from onnx import ModelProto


@TARGETS.register_module(name="executorch")
class ExecuTorch(Target):
    """Arm and x86 CPUs with ExecuTorch's XNNPACK delegate: int8 weights, for images one at a time."""

    suffix = ".pte"
    extra = "executorch"
    packages = ("executorch",)
    engines = ("executorch",)
    kinds = ("Conv2d", "Linear")
    weight_bits = 8
    packed_weights = False

    def faults(self, graph: Graph) -> list[str]:
        """Return what the target rejects in a finished graph's structure, with the nodes' names; empty if nothing."""
        from lbitcls.deploy.targets.xnnpack.program import inexpressible

        return super().faults(graph) + inexpressible(graph)

    def write(self, model: ModelProto, info: ModelInfo, path: Path) -> None:
        """Write a `.pte` file, with the metadata behind it."""
        from lbitcls.deploy.targets.xnnpack.program import program

        path.write_bytes(with_trailer(program(model), info))
