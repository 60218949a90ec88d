"""ONNX's operators as PyTorch functions, in the forms that XNNPACK computes.

Each function gets a node's `Step` and its inputs, and returns its output. An input is a float tensor computed from the
image, an `Integers` (a quantized one), or an array (a constant); None if it is omitted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from lbitcls.deploy.targets.xnnpack.network import Step

Value = Any  # Tensor, Integers, np.ndarray or None
INT8 = (-128, 127, torch.int8)
_MOST_NEGATIVE = -3.0e38  # instead of minus infinity, which XNNPACK's file format cannot express


@dataclass(frozen=True)
class Integers:
    """Quantized tensor: int8 values with one scale and zero point."""

    values: Tensor
    scale: float
    zero_point: int

    def real(self) -> Tensor:
        """Return the float tensor; each call adds a node of its own, as XNNPACK fuses it with the one that reads it."""
        return torch.ops.quantized_decomposed.dequantize_per_tensor(self.values, self.scale, self.zero_point, *INT8)

    def again(self, real: Tensor) -> Integers:
        """Return a tensor whose values lie on the same grid, in integers."""
        return quantized(real, self.scale, self.zero_point)


def quantized(x: Tensor, scale: float, zero_point: int) -> Integers:
    """Quantize `x` to the whole range of int8."""
    values = torch.ops.quantized_decomposed.quantize_per_tensor(x, scale, zero_point, *INT8)
    return Integers(values, scale, zero_point)


def real(value: Value) -> Tensor:
    """Return the float tensor of a value that is computed from the image."""
    return value.real() if isinstance(value, Integers) else value


def keeping(function: Callable[..., Tensor]) -> Callable[..., Value]:
    """Make a function of float tensors, whose results are some of its input's values, keep integers."""

    def of_either(step: Step, x: Value, *others: Value) -> Value:
        result = function(step, real(x), *others)
        return x.again(result) if isinstance(x, Integers) else result

    return of_either


def elementwise(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Make a function of one float tensor an operator."""
    return lambda step, x: function(real(x))


def binary(function: Callable[[Any, Any], Tensor]) -> Callable[..., Tensor]:
    """Make a function of two operands an operator; either may be a constant."""

    def of_operands(step: Step, *inputs: Value) -> Tensor:
        rank = max(real_rank(value) for value in inputs)
        return function(*(operand(step, place, value, rank) for place, value in enumerate(inputs)))

    return of_operands


def real_rank(value: Value) -> int:
    """Return the number of axes of a value."""
    return value.values.dim() if isinstance(value, Integers) else value.ndim


def operand(step: Step, place: int, value: Value, rank: int) -> Any:
    """Return an operand as XNNPACK accepts it: a number, or a tensor of `rank` axes."""
    if not isinstance(value, np.ndarray):
        return real(value)
    if value.size == 1:
        return float(value.reshape(()))
    return step.constant(f"operand_{place}", value.reshape((1,) * (rank - value.ndim) + value.shape))


def _maximum(x: Any, y: Any) -> Tensor:
    if isinstance(x, float) or isinstance(y, float):
        x, y = (y, x) if isinstance(x, float) else (x, y)
        return torch.clamp(x, min=y)
    return torch.maximum(x, y)


def _minimum(x: Any, y: Any) -> Tensor:
    if isinstance(x, float) or isinstance(y, float):
        x, y = (y, x) if isinstance(x, float) else (x, y)
        return torch.clamp(x, max=y)
    return torch.minimum(x, y)


def clip(step: Step, x: Value, low: Value = None, high: Value = None) -> Tensor:
    """Clip; XNNPACK fuses `hardtanh` with the layer before it, and not `clamp`."""
    if low is not None and high is not None:
        return F.hardtanh(real(x), float(low), float(high))
    if low is not None and float(low) == 0:
        return torch.relu(real(x))
    bounds = (None if bound is None else float(bound) for bound in (low, high))
    return torch.clamp(real(x), *bounds)


def quantize(step: Step, x: Value, scale: Value, zero_point: Value = None) -> Integers:
    """QuantizeLinear; uint8 becomes int8, with all integers 128 smaller."""
    unsigned = zero_point is None or zero_point.dtype == np.uint8
    return quantized(real(x), float(scale), (0 if zero_point is None else int(zero_point)) - (128 if unsigned else 0))


def dequantize(step: Step, x: Integers, *grid: Value) -> Integers:
    """DequantizeLinear: nothing to do, since operators read an `Integers` as floats."""
    return x


def max_pool(step: Step, x: Tensor) -> Tensor:
    """MaxPool over two axes."""
    kernel, strides, pads = step.window()
    if pads[:2] != pads[2:]:
        x, pads = F.pad(x, (pads[1], pads[3], pads[0], pads[2]), value=_MOST_NEGATIVE), (0, 0, 0, 0)
    dilations = tuple(step.attributes.get("dilations", (1, 1)))
    return F.max_pool2d(x, kernel, strides, pads[:2], dilations, bool(step.attributes.get("ceil_mode", 0)))


def average_pool(step: Step, x: Value) -> Tensor:
    """AveragePool over two axes; XNNPACK does not count zeros of a padding, so these are added first."""
    kernel, strides, pads = step.window()
    counted, x = bool(step.attributes.get("count_include_pad", 0)), real(x)
    if counted and any(pads):
        x, pads = F.pad(x, (pads[1], pads[3], pads[0], pads[2])), (0, 0, 0, 0)
    step.expect(pads[:2] == pads[2:], "averages over a padding that differs from side to side")
    return F.avg_pool2d(x, kernel, strides, pads[:2], bool(step.attributes.get("ceil_mode", 0)), False)


def global_average(step: Step, x: Value) -> Tensor:
    """GlobalAveragePool."""
    return real(x).mean((2, 3), keepdim=True)


def global_max(step: Step, x: Tensor) -> Tensor:
    """GlobalMaxPool."""
    return F.max_pool2d(x, tuple(x.shape[2:]))


def reduce(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Make a reduction an operator; over height and width XNNPACK computes it with both axes kept."""

    def over_axes(step: Step, x: Tensor, axes: Value = None) -> Tensor:
        given = step.attributes.get("axes") if axes is None else axes.tolist()
        places = sorted(axis % x.dim() for axis in (range(x.dim()) if given is None else given))
        kept = function(x, places)
        return kept if step.attributes.get("keepdims", 1) else kept.reshape(_without(kept.shape, places))

    return over_axes


def _without(shape: Sequence[int], places: Sequence[int]) -> list[int]:
    return [size for place, size in enumerate(shape) if place not in places]


def _largest(x: Tensor, places: list[int]) -> Tensor:
    return F.max_pool2d(x, tuple(x.shape[2:])) if places == [2, 3] and x.dim() == 4 else x.amax(places, keepdim=True)


def _mean(step: Step, x: Value, axes: Value = None) -> Tensor:
    return reduce(lambda y, places: y.mean(places, keepdim=True))(step, real(x), axes)


def _sum(step: Step, x: Value, axes: Value = None) -> Tensor:
    return reduce(lambda y, places: y.sum(places, keepdim=True))(step, real(x), axes)


def reshape(step: Step, x: Tensor, shape: np.ndarray) -> Tensor:
    """Reshape."""
    sizes = [x.shape[place] if size == 0 else size for place, size in enumerate(shape.tolist())]
    return step.channels_last(x.reshape(sizes))


def flatten(step: Step, x: Tensor) -> Tensor:
    """Flatten to two axes."""
    axis = step.attributes.get("axis", 1) % (x.dim() + 1)
    return x.reshape(int(np.prod(x.shape[:axis])), -1)


def transpose(step: Step, x: Tensor) -> Tensor:
    """Transpose."""
    order = step.attributes.get("perm") or range(x.dim())[::-1]
    return step.channels_last(x.permute(*order))


def squeeze(step: Step, x: Tensor, axes: Value = None) -> Tensor:
    """Squeeze."""
    places = [place for place, size in enumerate(x.shape) if size == 1]
    places = places if axes is None else [axis % x.dim() for axis in axes.tolist()]
    return x.reshape(_without(x.shape, places))


def unsqueeze(step: Step, x: Tensor, axes: np.ndarray) -> Tensor:
    """Unsqueeze."""
    rank = x.dim() + len(axes)
    places, sizes = {axis % rank for axis in axes.tolist()}, iter(x.shape)
    return step.channels_last(x.reshape([1 if place in places else next(sizes) for place in range(rank)]))


def concat(step: Step, *inputs: Value) -> Value:
    """Concat, in integers if all inputs are on one grid."""
    axis, first = step.attributes["axis"], inputs[0]
    rank = max(real_rank(value) for value in inputs)
    joined = torch.cat([operand(step, place, value, rank) for place, value in enumerate(inputs)], axis)
    one_grid = all(isinstance(value, Integers) for value in inputs) and (
        len({(value.scale, value.zero_point) for value in inputs}) == 1
    )
    return first.again(joined) if one_grid else joined


def cut(step: Step, x: Tensor, starts: Value, ends: Value, axes: Value = None, steps: Value = None) -> Tensor:
    """Slice; a convolution with a kernel of one pixel takes every n-th row or column, which XNNPACK's slices cannot."""
    starts, ends = starts.tolist(), ends.tolist()
    axes = list(range(len(starts))) if axes is None else axes.tolist()
    for axis, start, end, by in zip(axes, starts, ends, [1] * len(starts) if steps is None else steps.tolist()):
        step.expect(by > 0, "slices backwards")
        axis, size = axis % x.dim(), x.shape[axis]
        start, end, _ = slice(start, end).indices(size)
        x = x if (start, end) == (0, size) else x.narrow(axis, start, end - start)
        if by > 1:
            step.expect(x.dim() == 4 and axis > 1, f"takes every {by}th element of axis {axis}, not of rows or columns")
            one = step.constant(f"one_{axis}", np.ones((x.shape[1], 1, 1, 1), np.float32))
            x = F.conv2d(x, one, stride=(by, 1) if axis == 2 else (1, by), groups=x.shape[1])
    return x


def split(step: Step, x: Value, sizes: Value = None) -> list[Value]:
    """Split, in integers if the input is."""
    axis, length = step.attributes.get("axis", 0), real(x).shape[step.attributes.get("axis", 0)]
    each = -(-length // len(step.outputs))
    given = [each] * (len(step.outputs) - 1) if sizes is None else sizes.tolist()[:-1]
    parts, start = [], 0
    for size in [*given, length - sum(given)]:
        part = real(x).narrow(axis, start, size)
        parts.append(x.again(part) if isinstance(x, Integers) else part)
        start += size
    return parts


def pad(step: Step, x: Value, pads: np.ndarray, value: Value = None, axes: Value = None) -> Tensor:
    """Pad with a constant."""
    step.expect(step.attributes.get("mode", b"constant") == b"constant", "pads with the image's own values")
    x = real(x)
    amounts = [(0, 0)] * x.dim()
    places = range(x.dim()) if axes is None else axes.tolist()
    for number, place in enumerate(places):
        amounts[place] = (int(pads[number]), int(pads[number + len(pads) // 2]))
    return F.pad(x, [size for pair in amounts[::-1] for size in pair], value=0.0 if value is None else float(value))


def batch_norm(step: Step, x: Value, *statistics: Value) -> Tensor:
    """BatchNormalization."""
    gamma, beta, mean, variance = (step.constant(f"norm_{i}", value) for i, value in enumerate(statistics))
    return F.batch_norm(real(x), mean, variance, gamma, beta, eps=step.attributes.get("epsilon", 1e-5))


def layer_norm(step: Step, x: Value, gamma: Value, beta: Value = None) -> Tensor:
    """LayerNormalization."""
    shift = None if beta is None else step.constant("beta", beta)
    return F.layer_norm(
        real(x), gamma.shape, step.constant("gamma", gamma), shift, step.attributes.get("epsilon", 1e-5)
    )


def convolution(step: Step, x: Value, weight: Value, bias: Value = None) -> Tensor:
    """Conv in float."""
    step.expect(isinstance(weight, np.ndarray), "convolves with a kernel that is computed from the image")
    _, strides, pads = step.window()
    x, shift = real(x), None if bias is None else step.constant("bias", bias)
    if pads[:2] != pads[2:]:
        x, pads = F.pad(x, (pads[1], pads[3], pads[0], pads[2])), (0, 0, 0, 0)
    dilations, groups = tuple(step.attributes.get("dilations", (1, 1))), step.attributes.get("group", 1)
    return F.conv2d(x, step.constant("weight", weight), shift, strides, pads[:2], dilations, groups)


def gemm(step: Step, x: Value, weight: Value, bias: Value = None) -> Tensor:
    """Gemm with a constant weight: a linear layer."""
    known = step.attributes
    plain = known.get("alpha", 1.0) == 1.0 and known.get("beta", 1.0) == 1.0 and not known.get("transA", 0)
    step.expect(plain and isinstance(weight, np.ndarray), "is not a linear layer")
    stored = step.constant("weight", weight if known.get("transB", 0) else weight.T)
    return F.linear(real(x), stored, None if bias is None else step.constant("bias", bias))


def matmul(step: Step, x: Value, y: Value) -> Tensor:
    """MatMul; with a constant matrix a linear layer."""
    if isinstance(y, np.ndarray) and y.ndim == 2:
        return F.linear(real(x), step.constant("weight", y.T))
    return torch.matmul(*(operand(step, place, value, real_rank(value)) for place, value in enumerate((x, y))))


def hard_sigmoid(step: Step, x: Value) -> Tensor:
    """HardSigmoid."""
    slope, shift = step.attributes.get("alpha", 0.2), step.attributes.get("beta", 0.5)
    return F.hardtanh(real(x) * slope + shift, 0.0, 1.0)


def gelu(step: Step, x: Value) -> Tensor:
    """Gelu."""
    return F.gelu(real(x), approximate=step.attributes.get("approximate", b"none").decode())


def leaky_relu(step: Step, x: Value) -> Tensor:
    """LeakyRelu."""
    return F.leaky_relu(real(x), step.attributes.get("alpha", 0.01))


def elu(step: Step, x: Value) -> Tensor:
    """Elu."""
    return F.elu(real(x), step.attributes.get("alpha", 1.0))


def prelu(step: Step, x: Value, slope: np.ndarray) -> Tensor:
    """PRelu."""
    return F.prelu(real(x), step.constant("slope", slope.reshape(-1)))


def softmax(step: Step, x: Value) -> Tensor:
    """Softmax."""
    return torch.softmax(real(x), step.attributes.get("axis", -1))


def power(step: Step, x: Value, exponent: Value) -> Tensor:
    """Pow with a constant exponent."""
    return torch.pow(real(x), int(exponent) if float(exponent).is_integer() else float(exponent))


def to_float(step: Step, x: Value) -> Tensor:
    """Cast to float32, which changes nothing; Identity."""
    step.expect(step.attributes.get("to", 1) == 1, "converts values to another type than float32")
    return real(x)


OPERATORS: dict[str, Callable[..., Value]] = {
    "Add": binary(lambda x, y: x + y),
    "Sub": binary(lambda x, y: x - y),
    "Mul": binary(lambda x, y: x * y),
    "Div": binary(lambda x, y: x / y),
    "Max": binary(_maximum),
    "Min": binary(_minimum),
    "Pow": power,
    "Relu": elementwise(torch.relu),
    "Sigmoid": elementwise(torch.sigmoid),
    "Tanh": elementwise(torch.tanh),
    "Exp": elementwise(torch.exp),
    "Log": elementwise(torch.log),
    "Sqrt": elementwise(torch.sqrt),
    "Reciprocal": elementwise(torch.reciprocal),
    "Neg": elementwise(torch.neg),
    "Abs": elementwise(torch.abs),
    "Floor": elementwise(torch.floor),
    "Ceil": elementwise(torch.ceil),
    "Erf": elementwise(torch.erf),
    "HardSwish": elementwise(F.hardswish),
    "HardSigmoid": hard_sigmoid,
    "Gelu": gelu,
    "LeakyRelu": leaky_relu,
    "Elu": elu,
    "Softplus": elementwise(F.softplus),
    "Sin": elementwise(torch.sin),
    "Cos": elementwise(torch.cos),
    "PRelu": prelu,
    "Softmax": softmax,
    "Clip": clip,
    "QuantizeLinear": quantize,
    "DequantizeLinear": dequantize,
    "MaxPool": keeping(max_pool),
    "GlobalMaxPool": keeping(global_max),
    "ReduceMax": keeping(reduce(_largest)),
    "ReduceMin": keeping(reduce(lambda x, places: x.amin(places, keepdim=True))),
    "AveragePool": average_pool,
    "GlobalAveragePool": global_average,
    "ReduceMean": _mean,
    "ReduceSum": _sum,
    "Reshape": keeping(reshape),
    "Flatten": keeping(flatten),
    "Transpose": keeping(transpose),
    "Squeeze": keeping(squeeze),
    "Unsqueeze": keeping(unsqueeze),
    "Slice": keeping(cut),
    "Split": split,
    "Concat": concat,
    "Pad": pad,
    "BatchNormalization": batch_norm,
    "LayerNormalization": layer_norm,
    "Conv": convolution,
    "Gemm": gemm,
    "MatMul": matmul,
    "Cast": to_float,
    "Identity": to_float,
}
"""PyTorch function of each ONNX operator; others cannot be exported."""
