"""Operations that compute: in integers (`INTEGER`), or in float32 (`FLOAT`); one function for each."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from lbitcls.deploy.passes.graph import attributes
from lbitcls.deploy.targets.tflite.flatfile import TFLiteGrid
from lbitcls.deploy.targets.tflite.moves import axes_of
from lbitcls.deploy.targets.tflite.writing import TFLiteWriter, UnsupportedError, stored_axis

if TYPE_CHECKING:
    from onnx import NodeProto

FIXED = {"Sigmoid": TFLiteGrid(1 / 256, -128, -128, 127), "Tanh": TFLiteGrid(1 / 128, 0, -128, 127)}
"""Grids of operations that the format defines only on one."""
_KINDS = {"Add": "ADD", "Sub": "SUB", "Mul": "MUL", "Div": "DIV"}
_CURVES = {"Sigmoid": "LOGISTIC", "Tanh": "TANH", "HardSwish": "HARD_SWISH"}
_MEANS = ("ReduceMean", "GlobalAveragePool")


def _held(writer: TFLiteWriter, node: NodeProto) -> list[int] | None:
    """Return a node's operands as integers; None if one is not kept as such."""
    numbers = [writer.held(name) for name in node.input[: 2 if node.op_type in _KINDS else 1]]
    return None if any(number is None for number in numbers) else [n for n in numbers if n is not None]


def _combined(writer: TFLiteWriter, node: NodeProto, name: str, grid: TFLiteGrid) -> int | None:
    """Write an addition, subtraction or multiplication of two tensors in integers."""
    numbers = _held(writer, node)
    if numbers is None:
        return None
    kind = node.op_type
    return writer.result(_KINDS[kind], numbers, name, node.name, grid, f"{kind}Options", fusedActivationFunction=0)


def _averaged(writer: TFLiteWriter, node: NodeProto, name: str, grid: TFLiteGrid) -> int | None:
    """Write an average pooling in integers: a convolution with ones, which can scale its result, unlike the pooling."""
    numbers = _held(writer, node)
    if numbers is None:
        return None
    number, padding, kernel, strides = _pooling(writer, node, numbers[0])
    if padding == 0 and any(attributes(node).get("pads", [0])):  # the format's own excludes what is padded
        return None
    channels, scale = writer.file.shapes[number][3], 1.0 / np.prod(kernel)
    ones = writer.file.constant("ones", np.ones((1, *kernel, channels), np.int8), np.full(channels, scale), 3)
    step = np.float32(scale) * np.float32(writer.file.grids[number].scale)
    zeros = writer.file.constant("zeros", np.zeros(channels, np.int32), np.full(channels, step))
    return writer.result(
        "DEPTHWISE_CONV_2D",
        [number, ones, zeros],
        name,
        node.name,
        grid,
        "DepthwiseConv2DOptions",
        padding=padding,
        strideH=strides[0],
        strideW=strides[1],
        depthMultiplier=1,
        fusedActivationFunction=0,
    )


def _pooling(writer: TFLiteWriter, node: NodeProto, number: int) -> tuple[int, int, list[int], list[int]]:
    """Return an average pooling's padded input, kind of padding, kernel and strides."""
    given = attributes(node)
    kernel, strides = given["kernel_shape"], given.get("strides", [1, 1])
    padded, padding = writer.padded(number, node)
    if padded != number and not given.get("count_include_pad", 0):
        raise UnsupportedError(node, "an average that excludes this padding cannot be expressed; use no padding")
    if padding == 0 and given.get("count_include_pad", 0):
        raise UnsupportedError(node, "an average that includes this padding cannot be expressed; use no padding")
    return padded, padding, list(kernel), list(strides)


def _mean(writer: TFLiteWriter, node: NodeProto, name: str, grid: TFLiteGrid | None) -> int | None:
    """Write a mean, in integers if `grid` is one."""
    numbers = [writer.real(node.input[0])] if grid is None else _held(writer, node)
    if numbers is None:
        return None
    rank = len(writer.source.shape(node.input[0]))
    axes = axes_of(writer, node) or list(range(2, rank))
    kept = node.op_type == "GlobalAveragePool" or bool(attributes(node).get("keepdims", 1))
    places = np.array(sorted(stored_axis(axis, rank) for axis in axes), np.int32)
    if 0 in places or (not kept and rank == 4 and len(places) != 2 and 3 not in places):
        raise UnsupportedError(node, "a mean over these axes cannot be expressed")
    inputs = [numbers[0], writer.file.constant("axes", places)]
    return writer.result("MEAN", inputs, name, node.name, grid, "ReducerOptions", keepDims=kept)


def _curve(writer: TFLiteWriter, node: NodeProto, name: str, grid: TFLiteGrid) -> int | None:
    """Write a sigmoid, tanh or hard swish in integers; on its fixed grid, if it has one."""
    numbers = _held(writer, node)
    if numbers is None:
        return None
    own = FIXED.get(node.op_type, grid)
    options = "HardSwishOptions" if node.op_type == "HardSwish" else ""
    return writer.moved(writer.result(_CURVES[node.op_type], numbers, name, node.name, own, options), name, grid)


INTEGER: dict[str, Callable[[TFLiteWriter, Any, str, TFLiteGrid], int | None]] = {
    **dict.fromkeys(("Add", "Sub", "Mul"), _combined),
    **dict.fromkeys(_MEANS, _mean),
    **dict.fromkeys(_CURVES, _curve),
    "AveragePool": _averaged,
}


def _real_combined(writer: TFLiteWriter, node: NodeProto, name: str) -> int:
    rank = len(writer.source.shape(name))
    numbers = [_real_operand(writer, taken, rank) for taken in node.input]
    kind = node.op_type
    return writer.result(_KINDS[kind], numbers, name, node.name, None, f"{kind}Options", fusedActivationFunction=0)


def _real_operand(writer: TFLiteWriter, name: str, rank: int) -> int:
    constant = writer.source.array(name)
    if constant is not None:
        return writer.operand(name, constant, rank)
    number = writer.real(name)
    if len(writer.file.shapes[number]) != rank:
        raise UnsupportedError(writer.source.producer(name), "operands with different numbers of axes")
    return number


def _real_curve(writer: TFLiteWriter, node: NodeProto, name: str) -> int:
    options = "HardSwishOptions" if node.op_type == "HardSwish" else ""
    return writer.result(_CURVES[node.op_type], [writer.real(node.input[0])], name, node.name, None, options)


def _bounds(writer: TFLiteWriter, node: NodeProto, name: str) -> int:
    """Write Relu or Clip in float32."""
    inner, low, high = writer.source.behind_bounds(name)
    number = writer.real(inner)
    if (low, high) in _RECTIFIERS:
        return writer.result(_RECTIFIERS[low, high], [number], name, node.name, None)
    for code, bound in (("MAXIMUM", low), ("MINIMUM", high)):
        if np.isfinite(bound):
            limit = writer.file.constant("bound", np.array([bound], np.float32))
            number = writer.result(code, [number, limit], name, node.name, None, "MaximumMinimumOptions")
    return number


_RECTIFIERS = {(0.0, np.inf): "RELU", (0.0, 6.0): "RELU6", (-1.0, 1.0): "RELU_N1_TO_1"}


def _hard_sigmoid(writer: TFLiteWriter, node: NodeProto, name: str) -> int:
    """Write min(max(alpha · x + beta, 0), 1)."""
    given = attributes(node)
    number = writer.real(node.input[0])
    steps = (
        ("MUL", given.get("alpha", 0.2), "MulOptions"),
        ("ADD", given.get("beta", 0.5), "AddOptions"),
        ("MAXIMUM", 0.0, "MaximumMinimumOptions"),
        ("MINIMUM", 1.0, "MaximumMinimumOptions"),
    )
    for code, value, options in steps:
        constant = writer.file.constant("operand", np.array([value], np.float32))
        number = writer.result(code, [number, constant], name, node.name, None, options)
    return number


def _real_average(writer: TFLiteWriter, node: NodeProto, name: str) -> int:
    number, padding, kernel, strides = _pooling(writer, node, writer.real(node.input[0]))
    return writer.result(
        "AVERAGE_POOL_2D",
        [number],
        name,
        node.name,
        None,
        "Pool2DOptions",
        padding=padding,
        filterHeight=kernel[0],
        filterWidth=kernel[1],
        strideH=strides[0],
        strideW=strides[1],
    )


def _norm(writer: TFLiteWriter, node: NodeProto, name: str) -> int:
    """Write BatchNormalization as a product and a sum."""
    gamma, beta, mean, variance = (writer.source.known(taken).astype(np.float64) for taken in node.input[1:5])
    factor = gamma / np.sqrt(variance + attributes(node).get("epsilon", 1e-5))
    number, rank = writer.real(node.input[0]), len(writer.source.shape(name))
    for code, operand in (("MUL", factor), ("ADD", beta - mean * factor)):
        constant = writer.operand(f"{node.name}.{code.lower()}", operand.reshape(-1, *[1] * (rank - 2)), rank)
        options = {"MUL": "MulOptions", "ADD": "AddOptions"}[code]
        number = writer.result(code, [number, constant], name, node.name, None, options, fusedActivationFunction=0)
    return number


def _real_mean(writer: TFLiteWriter, node: NodeProto, name: str) -> int:
    number = _mean(writer, node, name, None)
    assert number is not None
    return number


def _softmax(writer: TFLiteWriter, node: NodeProto, name: str) -> int:
    rank = len(writer.source.shape(name))
    if stored_axis(attributes(node).get("axis", -1), rank) != rank - 1:
        raise UnsupportedError(node, "a softmax over another axis than the last cannot be expressed")
    return writer.result("SOFTMAX", [writer.real(node.input[0])], name, node.name, None, "SoftmaxOptions", beta=1.0)


FLOAT: dict[str, Callable[[TFLiteWriter, Any, str], int]] = {
    **dict.fromkeys(_KINDS, _real_combined),
    **dict.fromkeys(_CURVES, _real_curve),
    **dict.fromkeys(_MEANS, _real_mean),
    **dict.fromkeys(("Relu", "Clip"), _bounds),
    "AveragePool": _real_average,
    "BatchNormalization": _norm,
    "HardSigmoid": _hard_sigmoid,
    "Softmax": _softmax,
}
