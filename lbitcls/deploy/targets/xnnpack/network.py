"""An ONNX graph as a PyTorch module that `torch.export` accepts: one step for each node, in XNNPACK's forms."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lbitcls.deploy.passes.graph import Graph
from lbitcls.deploy.runtime.metadata import require
from lbitcls.deploy.targets.xnnpack.int8_layers import IntegerLayer, Kernel, integer_layers, with_forced_range
from lbitcls.deploy.targets.xnnpack.operators import OPERATORS
from lbitcls.deploy.targets.xnnpack.steps import Step
from lbitcls.deploy.targets.xnnpack.values import INT8, Value, quantized, real

if TYPE_CHECKING:
    from onnx import NodeProto

_SMALLEST_STEP = torch.finfo(torch.float32).eps  # of XNNPACK's own grids


class LayerStep(Step):
    """Convolution or linear layer in integers."""

    def __init__(self, node: NodeProto, layer: IntegerLayer) -> None:
        super().__init__(node)
        self.layer, self.inputs, self.outputs = layer, [layer.source], [layer.result]

    def forward(self, *inputs: Value) -> Value:
        """Compute the layer, with its bias."""
        layer, x = self.layer, real(inputs[0])
        codes, groups, scale, bias = layer.codes, layer.groups, layer.scale, layer.bias
        pads = (0, 0, 0, 0) if layer.is_linear else layer.pads
        if pads[:2] != pads[2:]:
            x, pads = F.pad(x, (pads[1], pads[3], pads[0], pads[2])), (0, 0, 0, 0)
        if layer.kernel is Kernel.DYNAMIC:
            codes, groups, values = with_forced_range(layer)
            more = (0, len(codes) - len(layer.codes))
            scale = np.pad(scale, more, constant_values=1)
            bias = None if bias is None else np.pad(bias, more)
            x = _on_own_grid(_with_channels(x, values, 0 if layer.is_linear else 2))
        elif layer.grid.finer.scale < layer.grid.scale:
            x = quantized(x, layer.grid.finer.scale, layer.grid.finer.zero_point).real()
        weight = torch.ops.quantized_decomposed.dequantize_per_channel(
            self.constant("codes", codes),
            self.constant("scale", scale),
            self.constant("zero_points", np.zeros(len(codes), np.int64)),
            0,
            *INT8,
        )
        shift = None if bias is None else self.constant("bias", bias)
        if layer.is_linear:
            return F.linear(x, weight, shift)
        result = F.conv2d(x, weight, shift, layer.strides, pads[:2], layer.dilations, groups)
        return result if len(codes) == len(layer.codes) else result.narrow(1, 0, len(layer.codes))


def _with_channels(x: Tensor, values: list[float], trailing: int) -> Tensor:
    """Append channels with constant values; `trailing` axes follow that of the channels."""
    for value in dict.fromkeys(values):
        x = F.pad(x, [0, 0] * trailing + [0, values.count(value)], value=value)
    return x


def _on_own_grid(x: Tensor) -> Tensor:
    """Quantize `x` on the grid that XNNPACK takes from its range."""
    ops = torch.ops.quantized_decomposed
    scale, zero_point = ops.choose_qparams.tensor(x, *INT8[:2], _SMALLEST_STEP, INT8[2])
    integers = ops.quantize_per_tensor.tensor(x, scale, zero_point, *INT8)
    return ops.dequantize_per_tensor.tensor(integers, scale, zero_point, *INT8)


class Network(nn.Module):
    """An ONNX model of one image input, for batches of one image.

    Args:
        graph: Graph with QuantizeLinear and DequantizeLinear; all constants are initializers.

    Raises:
        ConfigError: An operator has no form for XNNPACK; names the nodes.
    """

    steps: Any

    def __init__(self, graph: Graph) -> None:
        super().__init__()
        self.image = graph.model.graph.input[0].name
        self.results = [value.name for value in graph.model.graph.output]
        self.constants = {name: graph.array(name) for name in graph.constants}
        self.layers = integer_layers(graph)
        absorbed = {name for layer in self.layers.values() for name in layer.absorbed}
        weights = {node.input[1] for node in graph.nodes if node.name in self.layers}
        self.steps = nn.ModuleList(
            LayerStep(node, self.layers[node.name])
            if node.name in self.layers
            else Step(node, OPERATORS.get(node.op_type))
            for node in graph.nodes
            if node.name not in absorbed and node.output[0] not in weights
        )
        self.opset = next(o.version for o in graph.model.opset_import if o.domain in ("", "ai.onnx"))
        self.first = Step(graph.nodes[0])

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """Compute the model's outputs for images (1, C, H, W)."""
        values: dict[str, Value] = {**self.constants, "": None, self.image: self.first.channels_last(image)}
        for step in self.steps:
            given = [values[name] for name in step.inputs]
            result = self._constant(step, given) if step.kind == "Shape" or _is_constant(given) else step(*given)
            for name, value in zip(step.outputs, result if isinstance(result, list) else [result], strict=False):
                values[name] = value
        return tuple(real(values[name]) for name in self.results)

    def _constant(self, step: Any, given: list[Value]) -> list[np.ndarray]:
        """Compute a node that depends on constants and shapes only."""
        onnx = require("onnx")
        if step.kind == "Shape":
            shape = tuple(given[0].values.shape if hasattr(given[0], "values") else given[0].shape)
            return [np.array(shape[step.attributes.get("start", 0) : step.attributes.get("end")], np.int64)]
        node = onnx.helper.make_node(step.kind, step.inputs, step.outputs, **step.attributes)
        run = onnx.reference.ReferenceEvaluator(node, opsets={"": self.opset}).run
        return run(None, {name: value for name, value in zip(step.inputs, given) if name})


def _is_constant(given: list[Value]) -> bool:
    return all(value is None or isinstance(value, np.ndarray) for value in given)
