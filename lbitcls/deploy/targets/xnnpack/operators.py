"""ONNX's operators as PyTorch functions, in the forms that XNNPACK computes.

Each function gets a node's `Step` and its inputs, and returns its output. An input is a float tensor computed from the
image, an `Integers` (a quantized one), or an array (a constant); None if it is omitted.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lbitcls.deploy.targets.xnnpack import shape_operators as shapes
from lbitcls.deploy.targets.xnnpack.steps import Step
from lbitcls.deploy.targets.xnnpack.values import Integers, Value, keeping, operand, quantized, real, real_rank

_MOST_NEGATIVE = -3.0e38  # instead of minus infinity, which XNNPACK's file format cannot express


def elementwise(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Make a function of one float tensor an operator."""
    return lambda step, x: function(real(x))


def binary(function: Callable[[Any, Any], Tensor]) -> Callable[..., Tensor]:
    """Make a function of two operands an operator; either may be a constant."""

    def of_operands(step: Step, *inputs: Value) -> Tensor:
        rank = max(real_rank(value) for value in inputs)
        return function(*(operand(step, place, value, rank) for place, value in enumerate(inputs)))

    return of_operands


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
        return kept if step.attributes.get("keepdims", 1) else kept.reshape(shapes.without(kept.shape, places))

    return over_axes


def _largest(x: Tensor, places: list[int]) -> Tensor:
    return F.max_pool2d(x, tuple(x.shape[2:])) if places == [2, 3] and x.dim() == 4 else x.amax(places, keepdim=True)


def _mean(step: Step, x: Value, axes: Value = None) -> Tensor:
    return reduce(lambda y, places: y.mean(places, keepdim=True))(step, real(x), axes)


def _sum(step: Step, x: Value, axes: Value = None) -> Tensor:
    return reduce(lambda y, places: y.sum(places, keepdim=True))(step, real(x), axes)


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
    "Reshape": keeping(shapes.reshape),
    "Flatten": keeping(shapes.flatten),
    "Transpose": keeping(shapes.transpose),
    "Squeeze": keeping(shapes.squeeze),
    "Unsqueeze": keeping(shapes.unsqueeze),
    "Slice": keeping(shapes.cut),
    "Split": shapes.split,
    "Concat": shapes.concat,
    "Pad": shapes.pad,
    "BatchNormalization": batch_norm,
    "LayerNormalization": layer_norm,
    "Conv": convolution,
    "Gemm": gemm,
    "MatMul": matmul,
    "Cast": to_float,
    "Identity": to_float,
}
"""PyTorch function of each ONNX operator; others cannot be exported."""
