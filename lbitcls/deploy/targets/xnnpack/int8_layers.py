"""Integer layers of an ONNX graph, as XNNPACK computes them: convolutions and linear layers with int8 weights.

XNNPACK has two kernels for such a layer:

    int8 to float   (`Kernel.DYNAMIC`)   int8 inputs and weights, a float bias, a float result: exact. XNNPACK takes the
                    input's grid from the range of its values in each image, so channels with constant values, whose
                    weights are 0, make that range the trained grid's.
    int8 to int8    (`Kernel.STATIC`)    the result is quantized at once, and the bias is rounded to whole steps of
                    (input scale x weight scale). For depthwise convolutions with inputs of 7 or 8 bits, for which
                    XNNPACK has no other kernel, if their results are only quantized:
                    layer -> Add -> [Relu or Clip] -> QuantizeLinear.

Any other depthwise convolution is computed as one of groups of two channels: slower, and exact. With fewer bits, a
value that the rounded bias moves to another level moves far, and more so from layer to layer.

The bias's step is made small: weights of few bits are multiplied by the power of two that fills int8, and inputs of few
bits are quantized once more, on a grid as much finer as int8 has room for. Both are exact; the scales shrink as much.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

import numpy as np

from lbitcls.deploy.passes.graph import Graph, attributes, known_array, operation_of, through_pools, weights_of

if TYPE_CHECKING:
    from onnx import NodeProto

INT8_STEPS = 255  # from -128 to 127
_FINE = 127  # steps of a grid from which on a result that falls to the next level matters little
_LARGEST_BIAS = 2.0**30  # in steps; int32 holds twice that
_SMALLEST_SCALE = float(np.finfo(np.float32).tiny)


class Kernel(Enum):
    """XNNPACK's kernel for an integer layer."""

    STATIC = "int8 to int8"
    DYNAMIC = "int8 to float"


@dataclass(frozen=True)
class Int8Grid:
    """Grid of a quantized tensor, in the container int8.

    Attributes:
        scale: Distance of two levels.
        zero_point: Integer of the value 0, -128 to 127.
        low: Smallest integer, relative to the zero point; at most 0.
        high: Largest integer, relative to the zero point; at least 0.
    """

    scale: float
    zero_point: int
    low: int
    high: int

    @property
    def finer(self) -> Int8Grid:
        """Grid of 255 steps that contains each level of this one, a whole number of steps apart."""
        parts = INT8_STEPS // max(self.high - self.low, 1)
        low = self.low * parts
        return Int8Grid(self.scale / parts, -128 - low, low, low + INT8_STEPS)

    @property
    def range(self) -> tuple[float, float]:
        """Smallest and largest value."""
        return self.low * self.scale, self.high * self.scale


@dataclass(frozen=True)
class IntegerLayer:
    """Convolution or linear layer with integer weights and a quantized input.

    Attributes:
        name: Name of the layer.
        source: Name of the input tensor.
        result: Name of the output tensor, with the bias added.
        absorbed: Names of the nodes that the layer replaces, besides its own.
        codes: int8 weights (O, I, kH, kW) or (O, I).
        scale: float32 (O,), scale of each output channel's weights.
        bias: float32 (O,); None without a bias.
        grid: Int8Grid of the input.
        kernel: XNNPACK's kernel.
        strides, pads, dilations: As in ONNX; pads are top, left, bottom, right.
        groups: Number of groups.
    """

    name: str
    source: str
    result: str
    absorbed: tuple[str, ...]
    codes: np.ndarray
    scale: np.ndarray
    bias: np.ndarray | None
    grid: Int8Grid
    kernel: Kernel
    strides: tuple[int, ...] = (1, 1)
    pads: tuple[int, ...] = (0, 0, 0, 0)
    dilations: tuple[int, ...] = (1, 1)
    groups: int = 1

    @property
    def is_linear(self) -> bool:
        """True for a linear layer."""
        return self.codes.ndim == 2


def merge_bounds(graph: Graph) -> None:
    """Merge a Relu into the Clip that alone consumes it: XNNPACK fuses one such operation into a layer, not two."""
    for relu in [node for node in graph.nodes if node.op_type == "Relu"]:
        clip = graph.only_consumer(relu.output[0])
        if clip is None or clip.op_type != "Clip":
            continue
        low, high = clip_bounds(graph, clip)
        if low is None or high is None:
            continue
        zero = graph.add_constant(f"{clip.name}.low", np.array(max(low, 0.0), np.float32))
        clip.input[:] = [relu.input[0], zero, clip.input[2]]
        graph.nodes.remove(relu)


def clip_bounds(graph: Graph, clip: NodeProto) -> tuple[float | None, float | None]:
    """Return the bounds of a Clip; None for one that is omitted or computed."""
    arrays = [graph.array(name) if name else None for name in [*clip.input, "", ""][1:3]]
    low, high = (None if array is None else float(array) for array in arrays)
    return low, high


def grid_of(graph: Graph, quantize: NodeProto) -> Int8Grid:
    """Return the grid of a QuantizeLinear, within the bounds of the Clip before it."""
    zero = known_array(graph, quantize.input[2]) if len(quantize.input) > 2 else np.uint8(0)
    scale, offset = float(known_array(graph, quantize.input[1])), 128 if zero.dtype == np.uint8 else 0
    zero_point = int(zero) - offset
    low, high = -128 - zero_point, 127 - zero_point
    clip = graph.producer(quantize.input[0])
    bounds = clip_bounds(graph, clip) if clip is not None and clip.op_type == "Clip" else (None, None)
    if bounds[0] is not None:
        low = max(low, int(np.floor(bounds[0] / scale + 1e-3)))
    if bounds[1] is not None:
        high = min(high, int(np.ceil(bounds[1] / scale - 1e-3)))
    return Int8Grid(scale, zero_point, min(low, 0), max(high, 0))


def integer_layers(graph: Graph) -> dict[str, IntegerLayer]:
    """Return the integer layers of a graph, by the name of their operation's node."""
    found = {}
    for weight in weights_of(graph):
        operation = operation_of(graph, weight)
        if operation is not None and (layer := _layer(graph, weight, operation)) is not None:
            found[operation.name] = layer
    return found


def _layer(graph: Graph, weight: NodeProto, operation: NodeProto) -> IntegerLayer | None:
    codes, source = known_array(graph, weight.input[0]), through_pools(graph, operation.input[0])
    quantize = graph.producer(source.input[0]) if source is not None and source.op_type == "DequantizeLinear" else None
    if quantize is None or quantize.op_type != "QuantizeLinear" or codes.dtype != np.int8 or _is_other(operation):
        return None
    scale, turned = known_array(graph, weight.input[1]).astype(np.float32), _is_turned(graph, weight, operation)
    if scale.size > 1 and attributes(weight).get("axis", 1) != int(turned):
        return None  # not a scale for each output
    codes = codes.T if turned else codes
    scale = np.broadcast_to(scale.reshape(-1), len(codes))
    bias, absorbed, result = _bias(graph, operation, len(codes))
    grid, (codes, scale) = grid_of(graph, quantize), fill_container(codes, scale)
    known = attributes(operation)
    static = (
        known.get("group", 1) > 1
        and codes.shape[1] == 1
        and grid.high - grid.low >= _FINE
        and _is_quantized_at_once(graph, result)
        and _bias_fits(bias, scale * np.float32(grid.finer.scale))
    )
    options = {
        key: tuple(known[given])
        for key, given in (("strides", "strides"), ("pads", "pads"), ("dilations", "dilations"))
        if given in known
    }
    return IntegerLayer(
        name=operation.name,
        source=operation.input[0],
        result=result,
        absorbed=absorbed,
        codes=codes,
        scale=scale,
        bias=bias,
        grid=grid,
        kernel=Kernel.STATIC if static else Kernel.DYNAMIC,
        groups=known.get("group", 1),
        **options,
    )


def _is_other(operation: NodeProto) -> bool:
    """Return True for a transposed convolution, and a Gemm that computes more than a linear layer."""
    known = attributes(operation)
    plain = known.get("alpha", 1.0) == 1.0 and known.get("beta", 1.0) == 1.0 and not known.get("transA", 0)
    return operation.op_type == "ConvTranspose" or not plain


def _is_turned(graph: Graph, weight: NodeProto, operation: NodeProto) -> bool:
    """Return True if a linear layer's weight is stored with the inputs first, (I, O)."""
    if operation.op_type == "Conv":
        return False
    turned = operation.op_type == "MatMul" or not attributes(operation).get("transB", 0)
    return turned != (operation.input[1] != weight.output[0])


def _bias(graph: Graph, operation: NodeProto, channels: int) -> tuple[np.ndarray | None, tuple[str, ...], str]:
    """Return a layer's bias (O,), the node that adds it, and the name of the sum.

    An Add whose constant differs within a channel, such as an embedding of positions, is not a bias.
    """
    own = graph.array(operation.input[2]) if len(operation.input) > 2 else None
    result = operation.output[0]
    add = graph.only_consumer(result)
    names = [] if add is None or add.op_type != "Add" else [name for name in add.input if name in graph.constants]
    if own is not None or add is None or not names:
        return None if own is None else own.astype(np.float32).reshape(-1), (), result
    added, trailing = known_array(graph, names[0]), 2 if operation.op_type == "Conv" else 0
    shape = (1,) * (trailing + 1 - added.ndim) + added.shape
    places = len(shape) - trailing - 1
    others = [size for place, size in enumerate(shape) if place != places]
    if len(shape) > trailing + 2 or any(size != 1 for size in others) or shape[places] not in (1, channels):
        return None, (), result
    bias = np.broadcast_to(added.reshape(-1), channels).astype(np.float32)
    return bias, (add.name,), add.output[0]


def fill_container(codes: np.ndarray, scale: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Multiply each output channel's codes (O, …) by the power of two that fills int8; divide its scale (O,) by it.

    Exact. A channel whose scale is not a normal number gets zeros, and the scale 1.
    """
    flat = codes.reshape(len(codes), -1).astype(np.int32)
    low, high = flat.min(1), flat.max(1)
    shifts = np.zeros(len(codes), np.int32)
    for shift in range(1, 8):
        shifts[(low << shift >= -128) & (high << shift <= 127)] = shift
    flat, scale = flat << shifts[:, None], scale / np.float32(2) ** shifts.astype(np.float32)
    vanishing = (scale < _SMALLEST_SCALE) | ~flat.any(1)
    flat[vanishing] = 0
    return flat.reshape(codes.shape).astype(np.int8), np.where(vanishing, np.float32(1), scale).astype(np.float32)


def _is_quantized_at_once(graph: Graph, tensor: str) -> bool:
    """Return True if a tensor is only quantized, after at most one Relu or Clip."""
    node = graph.only_consumer(tensor)
    if node is not None and node.op_type in ("Relu", "Clip"):
        node = graph.only_consumer(node.output[0])
    return node is not None and node.op_type == "QuantizeLinear"


def _bias_fits(bias: np.ndarray | None, step: np.ndarray) -> bool:
    return bias is None or bool((np.abs(bias) / step < _LARGEST_BIAS).all())


def with_forced_range(layer: IntegerLayer) -> tuple[np.ndarray, int, list[float]]:
    """Return the weights, the number of groups and the values of the channels that force the range of an input.

    The channels come last, and have the weight 0. With groups, they are groups of their own, whose outputs come last;
    a depthwise convolution, for which XNNPACK has no such kernel, is computed in groups of two channels.
    """
    low, high = layer.grid.finer.range
    values = ([low] if low < 0 else []) + [high]
    codes, groups = layer.codes, layer.groups
    if groups == 1:
        zeros = np.zeros((len(codes), len(values), *codes.shape[2:]), np.int8)
        return np.concatenate([codes, zeros], axis=1), 1, values
    if codes.shape[1] == 1:
        codes, values = _in_pairs(codes, groups), _padded(values, len(values) + (groups + len(values)) % 2)
        more = (groups + len(values)) // 2 * 2 * (len(layer.codes) // groups) - len(codes)
        total = (groups + len(values)) // 2
    else:
        per_group = codes.shape[1]
        extra = -(-len(values) // per_group)
        values, total = _padded(values, extra * per_group), groups + extra
        more = extra * (len(codes) // groups)
    zeros = np.zeros((more, *codes.shape[1:]), np.int8)
    return np.concatenate([codes, zeros]), total, values


def _in_pairs(codes: np.ndarray, channels: int) -> np.ndarray:
    """Return depthwise weights (O, 1, kH, kW) as (O, 2, kH, kW): each output reads one channel of a pair."""
    pairs = np.zeros((len(codes), 2, *codes.shape[2:]), np.int8)
    place = np.arange(len(codes)) // (len(codes) // channels) % 2
    pairs[np.arange(len(codes)), place] = codes[:, 0]
    return pairs


def _padded(values: Sequence[float], length: int) -> list[float]:
    return [*values, *[values[-1]] * (length - len(values))]
