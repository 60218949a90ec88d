"""Layers of an exported model that OpenVINO runs in integers, and the reasons why others run in float."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from lbitcls.deploy.passes.graph import OPERATIONS, Graph, through_pools
from lbitcls.deploy.passes.guards import KEPT_FLOAT
from lbitcls.deploy.runtime.engines.openvino import ONE_THREAD, openvino_core
from lbitcls.deploy.runtime.metadata import require

if TYPE_CHECKING:
    from onnx import NodeProto

_LAYERS = ("Convolution", "Deconvolution", "FullyConnected", "MatMul")
_FACTS = ("layerType", "runtimePrecision", "originalLayersNames")


def integer_layers(path: str | Path) -> dict[str, Any]:
    """Return the convolutions and linear layers of a file that OpenVINO runs in integers, and the others.

    Returns:
        `convolutions`, `linear`: dicts with `integer` and `total`, two counts, and `float`: the names of the float
        layers, each with the reason.
    """
    in_integers: set[str] = set()
    for facts in executed_operations(path):
        if facts["runtimePrecision"] in ("u8", "i8") and facts["layerType"] in _LAYERS:
            in_integers.update(facts["originalLayersNames"].split(","))
    graph = Graph(require("onnx").load(str(path)))
    found: dict[str, Any] = {kind: {"integer": 0, "total": 0, "float": {}} for kind in ("convolutions", "linear")}
    for node in graph.nodes:
        if node.op_type in OPERATIONS and not _of_activations(graph, node):
            group = found["convolutions" if "Conv" in node.op_type else "linear"]
            group["total"] += 1
            if in_integers & _names(graph, node):
                group["integer"] += 1
            else:
                group["float"][node.name] = _why_float(graph, node)
    return found


def executed_operations(path: str | Path) -> list[dict[str, str]]:
    """Return `layerType`, `runtimePrecision` and `originalLayersNames` of each operation that OpenVINO executes."""
    compiled = openvino_core().compile_model(str(path), "CPU", ONE_THREAD)
    found = [operation.get_rt_info() for operation in compiled.get_runtime_model().get_ordered_ops()]
    return [{key: facts[key].astype(str) for key in _FACTS} for facts in found]


def _names(graph: Graph, node: NodeProto) -> set[str]:
    """Return the names that OpenVINO may give a layer: those of its node, of its bias's Add, and of their results."""
    names = {node.name, *node.output}
    add = graph.only_consumer(node.output[0])
    return names if add is None or add.op_type != "Add" else names | {add.name, *add.output}


def _of_activations(graph: Graph, node: NodeProto) -> bool:
    """Return True if both operands are computed from the image (as in attention), so that it is not a layer."""
    return not any(_constant_below(graph, name) for name in node.input[:2])


def _constant_below(graph: Graph, name: str) -> bool:
    node = graph.producer(name)
    if node is None:
        return name in graph.constants
    return node.op_type in ("DequantizeLinear", "Transpose", "Cast") and _constant_below(graph, node.input[0])


def _why_float(graph: Graph, node: NodeProto) -> str:
    weight = graph.producer(node.input[1])
    while weight is not None and weight.op_type in ("Transpose", "Cast"):
        weight = graph.producer(weight.input[0])
    source = through_pools(graph, node.input[0])
    if weight is None or weight.op_type != "DequantizeLinear":
        return "its weight is float"
    if source is not None and source.name.startswith(KEPT_FLOAT):
        return "OpenVINO would use wrong bounds for a later Clip"
    if source is None or source.op_type != "DequantizeLinear":
        return "its input is float"
    codes = graph.array(weight.input[0])
    if codes is not None and codes.dtype.itemsize > 1:
        return "its integer weights need 16 bits"
    return f"OpenVINO has no integer kernel for this {node.op_type}"
