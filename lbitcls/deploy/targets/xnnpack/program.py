"""A graph of integer layers as a `.pte` file, with everything that XNNPACK computes in its delegate."""

from __future__ import annotations

import logging
import re
from typing import TYPE_CHECKING, Any

import torch

from lbitcls.deploy.passes.graph import Graph
from lbitcls.deploy.runtime.metadata import require
from lbitcls.deploy.runtime.silence import silent
from lbitcls.deploy.targets.xnnpack.int8_layers import merge_bounds
from lbitcls.deploy.targets.xnnpack.network import LayerStep, Network
from lbitcls.deploy.targets.xnnpack.operators import OPERATORS
from lbitcls.deploy.targets.xnnpack.steps import Step
from lbitcls.utils.errors import ConfigError, LbitclsError, reason_of

if TYPE_CHECKING:
    from onnx import ModelProto

logger = logging.getLogger("lbitcls")
EXTRA = "executorch"
_STEP = re.compile(r"steps\.(\d+)")
_DELEGATION = ("executorch_call_delegate", "getitem")


def inexpressible(graph: Graph) -> list[str]:
    """Return the nodes that have no form for XNNPACK, by name, each with what to do; empty if there are none."""
    computed = {graph.model.graph.input[0].name}
    found = []
    for node in graph.nodes:
        if node.op_type == "Shape" or not computed.intersection(node.input):
            continue  # known when the file is written, for images of one size
        computed.update(node.output)
        if node.op_type not in OPERATORS:
            found.append(
                f"{node.name} is a {node.op_type}, which the export for ExecuTorch cannot express; compute it from "
                "other operations, or export for cpu"
            )
    return found


def program(model: ModelProto) -> bytes:
    """Return an ONNX model of integer layers as the content of a `.pte` file, for batches of one image.

    Operations that XNNPACK lacks are computed by ExecuTorch's portable kernels in float; a warning names them.

    Raises:
        ConfigError: ExecuTorch cannot express an operation, or would compute an integer layer in float.
    """
    graph = Graph(_copy(model))
    merge_bounds(graph)
    graph.save()
    network, image = Network(graph).eval(), _black_image(model)
    _check_all_in_integers(graph, network)
    try:
        with silent(), torch.no_grad():
            lowered = _lowered(network, image)
        _check_delegated(lowered.exported_program().graph, network)
        with silent():
            return bytes(lowered.to_executorch().buffer)
    except LbitclsError:
        raise
    except Exception as error:  # ExecuTorch's passes raise many kinds
        raise ConfigError(f"ExecuTorch cannot convert the model: {reason_of(error)} Export for cpu.") from error


def _lowered(network: Network, image: torch.Tensor) -> Any:
    """Return ExecuTorch's program of a network, with XNNPACK's parts in delegates."""
    lower = require("executorch.exir", EXTRA).to_edge_transform_and_lower
    partitioner = require("executorch.backends.xnnpack.partition.xnnpack_partitioner", EXTRA).XnnpackPartitioner
    network(image)  # registers the constants
    return lower(torch.export.export(network, (image,), strict=False), partitioner=[partitioner()])


def _copy(model: ModelProto) -> ModelProto:
    copy = type(model)()
    copy.CopyFrom(model)
    return copy


def _black_image(model: ModelProto) -> torch.Tensor:
    sizes = [d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim[1:]]
    return torch.zeros(1, *sizes)


def _check_all_in_integers(graph: Graph, network: Network) -> None:
    """Raise `ConfigError` if a layer with integer weights and a quantized input has no integer kernel."""
    quantized = {
        node.name
        for node in graph.nodes
        if node.op_type in ("Conv", "ConvTranspose", "Gemm", "MatMul")
        and all(_is_dequantized(graph, name) for name in node.input[:2])
    }
    if left := sorted(quantized - set(network.layers)):
        raise ConfigError(
            f"ExecuTorch's XNNPACK would compute these quantized layers in float: {', '.join(left)}. Leave them float "
            "in the quant_transformer (bSetQ=False), or export for cpu."
        )


def _is_dequantized(graph: Graph, name: str) -> bool:
    node = graph.producer(name)
    while node is not None and node.op_type == "Transpose":
        node = graph.producer(node.input[0])
    return node is not None and node.op_type == "DequantizeLinear"


def _check_delegated(lowered: torch.fx.Graph, network: Network) -> None:
    """Raise `ConfigError` if XNNPACK left an integer layer out; warn of other operations that it left out."""
    outside = {
        _step_of(node, network): None
        for node in lowered.nodes
        if node.op == "call_function" and not str(getattr(node.target, "__name__", node.target)).startswith(_DELEGATION)
    }
    layers = [step.called for step in outside if isinstance(step, LayerStep)]
    if layers:
        raise ConfigError(
            f"XNNPACK would compute these quantized layers in float: {', '.join(layers)}. Leave them float in the "
            "quant_transformer (bSetQ=False), or export for cpu."
        )
    if outside:
        named = ", ".join(f"{step.called} ({step.kind})" for step in outside)
        logger.warning("XNNPACK lacks these operations, which ExecuTorch's slower portable kernels compute: %s", named)


def _step_of(node: Any, network: Network) -> Step:
    """Return the step that a node of the lowered graph comes from; the first one if that is not recorded."""
    places = [found for path, _ in node.meta.get("nn_module_stack", {}).values() for found in _STEP.findall(path)]
    step: Step = network.steps[int(places[-1])] if places else network.first
    return step
