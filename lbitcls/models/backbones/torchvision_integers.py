"""Quantized network of PyTorch as plain float operations on its integers and the grid of every tensor.

    quint8 tensor, scale s, zero point z     OnGrid: clip(round(x / s) + z, 0, 255), then (q - z) · s
    qint8 weight, a scale for each channel   FromIntegers: the same integers times their scales, the bias added after

Values are floats that lie on those grids. ONNX's QuantizeLinear and DequantizeLinear define the same.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from lbitcls.utils.errors import ConfigError

_LIMITS = (0, 255)  # of quint8


class OnGrid(nn.Module):
    """Rounding of a tensor to a quint8 grid; traced for ONNX as QuantizeLinear and DequantizeLinear."""

    scale: Tensor
    zero_point: Tensor

    def __init__(self, scale: float, zero_point: int) -> None:
        super().__init__()
        self.register_buffer("scale", torch.tensor(scale, dtype=torch.float32))
        self.register_buffer("zero_point", torch.tensor(zero_point, dtype=torch.uint8))

    def forward(self, x: Tensor) -> Tensor:
        grid = (self.scale, self.zero_point)
        if torch.onnx.is_in_onnx_export():
            emit = torch.onnx.ops.symbolic
            integers = emit("QuantizeLinear", (x, *grid), dtype=torch.uint8, shape=x.shape)
            return emit("DequantizeLinear", (integers, *grid), dtype=torch.float32, shape=x.shape)
        zero_point = self.zero_point.to(x.dtype)
        return (((x / self.scale).round() + zero_point).clamp(*_LIMITS) - zero_point) * self.scale


class FromIntegers(nn.Module):
    """Convolution or linear layer with integer weights, the bias added afterwards, and an optional fused ReLU.

    Args:
        layer: PyTorch's quantized layer.
        relu: True if a ReLU follows.
    """

    codes: Tensor
    scale: Tensor
    zero_point: Tensor
    bias: Tensor | None

    def __init__(self, layer: Any, relu: bool) -> None:
        super().__init__()
        weight, bias = layer.weight(), layer.bias()
        scale, zero_point = _grids(weight)
        self.kind = "Linear" if weight.dim() == 2 else "Conv2d"
        self.relu = relu
        self.arguments = () if weight.dim() == 2 else (layer.stride, layer.padding, layer.dilation, layer.groups)
        self.register_buffer("codes", weight.int_repr())
        self.register_buffer("scale", scale)
        self.register_buffer("zero_point", zero_point)
        self.register_buffer("bias", None if bias is None else bias.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        weight = self._weight(x.dtype)
        y = F.linear(x, weight) if self.kind == "Linear" else F.conv2d(x, weight, None, *self.arguments)
        y = y if self.bias is None else y + self.bias.view(-1, *[1] * (self.codes.dim() - 2))
        return y.relu() if self.relu else y

    def _weight(self, dtype: torch.dtype) -> Tensor:
        if torch.onnx.is_in_onnx_export():
            values = (self.codes, self.scale, self.zero_point)
            kind, shape = "DequantizeLinear", self.codes.shape
            return torch.onnx.ops.symbolic(kind, values, attrs={"axis": 0}, dtype=torch.float32, shape=shape)
        channels = (-1, *[1] * (self.codes.dim() - 1))
        return (self.codes.to(dtype) - self.zero_point.to(dtype).view(channels)) * self.scale.view(channels)


def _grids(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return scale, float32, and zero point, int8, of each output channel of a quantized weight."""
    if weight.qscheme() in (torch.per_channel_affine, torch.per_channel_symmetric):
        scale, zero_point = weight.q_per_channel_scales(), weight.q_per_channel_zero_points()
    else:
        scale, zero_point = (torch.full((len(weight),), v) for v in (weight.q_scale(), weight.q_zero_point()))
    return scale.float(), zero_point.to(torch.int8)


def _add(x: Tensor, y: Any, scale: float = 1.0, zero_point: int = 0) -> Tensor:
    return x + y


def _add_relu(x: Tensor, y: Any, scale: float = 1.0, zero_point: int = 0) -> Tensor:
    return (x + y).relu()


def _mul(x: Tensor, y: Any, scale: float = 1.0, zero_point: int = 0) -> Tensor:
    return x * y


def _cat(tensors: list[Tensor], scale: float = 1.0, zero_point: int = 0, dim: int = 0) -> Tensor:
    return torch.cat(tensors, dim)


_FUNCTIONS: dict[str, Callable[..., Tensor]] = {
    "quantized.add": _add,
    "quantized.add_relu": _add_relu,
    "quantized.mul": _mul,
    "quantized.cat": _cat,
    "quantized.add_scalar": _add,
    "quantized.mul_scalar": _mul,
}
"""PyTorch's quantized operations, by name, as float operations; the result's grid is applied afterwards."""
_WITH_WEIGHTS = {"Conv2d": False, "ConvReLU2d": True, "Linear": False, "LinearReLU": True}
"""Types of quantized layers with a weight, each with True if it includes a ReLU."""
_WITHOUT: dict[str, Callable[[Any], nn.Module]] = {
    "Quantize": lambda layer: nn.Identity(),
    "DeQuantize": lambda layer: nn.Identity(),
    "Dropout": lambda layer: nn.Identity(),
    "Hardswish": lambda layer: nn.Hardswish(),
    "ReLU6": lambda layer: nn.ReLU6(),
    "Sigmoid": lambda layer: nn.Sigmoid(),
    "LeakyReLU": lambda layer: nn.LeakyReLU(layer.negative_slope),
}
"""Other types of quantized layers, as float layers."""
_KEEPING = (nn.MaxPool2d, nn.ReLU, nn.Identity, nn.Dropout, nn.Flatten)  # results lie on the grid of the input


class _Tracer(fx.Tracer):
    """Tracer that records the output of one module, a container or not."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name
        self.reached: fx.Node | None = None

    def call_module(self, m: nn.Module, forward: Callable, args: tuple, kwargs: dict) -> Any:
        value = super().call_module(m, forward, args, kwargs)
        if self.reached is None and self.path_of_module(m) == self.name:
            self.reached = value.node
        return value


class _Observer(fx.Interpreter):
    """Interpreter that records scale and zero point of every quantized tensor, which do not depend on the image."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.grids: dict[str, tuple[float, int]] = {}

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if isinstance(value, Tensor) and value.is_quantized:
            self.grids[n.name] = (value.q_scale(), value.q_zero_point())
        return value


@torch.no_grad()
def spelled_out(network: nn.Module, out_layer: str, image: Tensor) -> fx.GraphModule:
    """Return a quantized network up to a layer, in plain operations: image (N, 3, H, W) -> tuple of one feature.

    Args:
        network: Network quantized by PyTorch in eager mode, with uint8 tensors and int8 weights; it is not changed.
        out_layer: Name of the layer whose output is the feature.
        image: float32 (1, 3, H, W), of a size that the network accepts.

    Raises:
        ConfigError: The network cannot be traced, or has operations without a plain form; the message names them.
    """
    tracer = _Tracer(out_layer)
    try:
        graph = tracer.trace(network)
    except Exception as error:  # anything that the network's own code raises on traced values
        raise ConfigError(f"{type(network).__name__} cannot be traced up to '{out_layer}': {error}") from error
    assert tracer.reached is not None
    output = next(node for node in graph.nodes if node.op == "output")
    output.args = ((tracer.reached,),)
    module = fx.GraphModule(network, graph)
    module.graph.eliminate_dead_code()
    module.delete_all_unused_submodules()
    observer = _Observer(module)
    observer.run(image)
    _replace(module, observer.grids)
    return module.eval().requires_grad_(False)


def layers_of(module: nn.Module) -> list[tuple[str, FromIntegers]]:
    """Return names and modules of the layers with integer weights in a `spelled_out` network."""
    return [(name, layer) for name, layer in module.named_modules() if isinstance(layer, FromIntegers)]


def _replace(module: fx.GraphModule, grids: dict[str, tuple[float, int]]) -> None:
    """Replace quantized operations by plain ones, each followed by its grid."""
    refused = []
    for node in list(module.graph.nodes):
        kept = False
        if node.op == "call_module":
            layer = module.get_submodule(node.target)
            kept = isinstance(layer, _KEEPING)
            plain = _plain_layer(layer)
            if plain is None:
                refused.append(f"{node.target} ({type(layer).__name__})")
            elif plain is not layer:
                module.set_submodule(node.target, plain)
        elif node.op == "call_function" and str(node.target).startswith("quantized."):
            function = _FUNCTIONS.get(str(node.target).removesuffix(".default"))
            if function is None:
                refused.append(f"{node.name} ({node.target})")
            else:
                node.target = function
        elif node.op == "call_method" and node.target == "dequantize":
            node.target = "contiguous"
        if node.name in grids and not kept:
            _follow(module, node, grids[node.name])
    if refused:
        raise ConfigError(f"these operations of PyTorch's quantized networks cannot be exported: {', '.join(refused)}.")
    module.recompile()


def _plain_layer(layer: nn.Module) -> nn.Module | None:
    """Return the float layer for a layer: itself if it is one; None if there is none."""
    kind = type(layer).__name__
    if ".quantized" not in type(layer).__module__:
        return layer
    if kind in _WITH_WEIGHTS:
        return FromIntegers(layer, _WITH_WEIGHTS[kind])
    return _WITHOUT[kind](layer) if kind in _WITHOUT else None


def _follow(module: fx.GraphModule, node: fx.Node, grid: tuple[float, int]) -> None:
    """Round the result of a node to its grid, for all its users."""
    name = f"grids.{node.name}"
    module.add_submodule(name, OnGrid(*grid))
    with module.graph.inserting_after(node):
        on_grid = module.graph.call_module(name, (node,))
    node.replace_all_uses_with(on_grid, delete_user_cb=lambda user: user is not on_grid)
