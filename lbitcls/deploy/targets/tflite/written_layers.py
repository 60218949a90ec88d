"""Convolutions and linear layers as TFLite operations, in integers or in float32.

An integer layer computes

    accumulator = bias + Σ (x - x_zero) · w             int32, w: int8, one scale s_w for each output channel
    result      = zero + round(accumulator · s_x · s_w / s_y), within int8

The bias is an integer at the step s_x · s_w. At few bits that step is coarse: rounding to it would shift every result
of a channel. So the integers of each channel's weight are multiplied by the largest power of two that int8 has room
for, and s_w is divided by it, which changes no product, and makes the bias's step up to 64 times smaller.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from lbitcls.deploy.passes.graph import attributes
from lbitcls.deploy.targets.tflite.flatfile import TFLiteGrid, schema
from lbitcls.deploy.targets.tflite.reading import TFLiteLayer

if TYPE_CHECKING:
    from lbitcls.deploy.targets.tflite.writing import TFLiteWriter

LARGEST_WEIGHT = 127
"""The format excludes -128: two products of it overflow the 16-bit sums of some kernels for Arm."""
_INT32 = np.iinfo(np.int32)


def filled(weight: np.ndarray, scales: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return a layer's integers and scales with each channel's integers as large as int8 permits."""
    rows = weight.reshape(len(weight), -1)
    largest = np.maximum(np.abs(rows).max(1), 1)
    factor = np.exp2(np.floor(np.log2(np.maximum(LARGEST_WEIGHT / largest, 1))))
    codes = np.clip(rows * factor[:, None], -LARGEST_WEIGHT, LARGEST_WEIGHT)
    return codes.reshape(weight.shape).astype(np.int8), (scales / factor).astype(np.float32)


def integer_layer(writer: TFLiteWriter, layer: TFLiteLayer, name: str, grid: TFLiteGrid) -> int:
    """Write a layer whose input is integers, with a result on `grid`."""
    assert layer.scales is not None
    taken = writer.held(layer.taken)
    assert taken is not None
    codes, scales = filled(layer.weight, layer.scales)
    if grid.dtype == "int16":  # such a layer has 16-bit inputs as well
        taken = writer.widened(taken)
    of_input = writer.file.grids[taken]
    steps = np.float64(np.float32(of_input.scale)) * scales.astype(np.float64)
    bias = np.rint(layer.bias / steps)
    bias = np.clip(bias, _INT32.min, _INT32.max)
    return _operation(writer, layer, name, taken, grid, codes, bias, scales, steps)


def float_layer(writer: TFLiteWriter, layer: TFLiteLayer, name: str) -> int:
    """Write a layer in float32."""
    taken = writer.real(layer.taken)
    weight, bias = layer.floats.astype(np.float32), layer.bias.astype(np.float32)
    return _operation(writer, layer, name, taken, None, weight, bias, None, None)


def _operation(
    writer: TFLiteWriter,
    layer: TFLiteLayer,
    name: str,
    taken: int,
    grid: TFLiteGrid | None,
    weight: np.ndarray,
    bias: np.ndarray,
    scales: np.ndarray | None,
    steps: np.ndarray | None,
) -> int:
    is_conv = layer.node.op_type == "Conv"
    code, arranged, axis, options = (_convolution if is_conv else _linear)(writer, layer, weight)
    values: dict[str, Any] = {**options, "fusedActivationFunction": 0}
    if is_conv:
        taken, values["padding"] = writer.padded(taken, layer.node)
    label = layer.node.name
    if steps is not None:
        bias = bias.astype(np.int32)
        if grid is not None and grid.dtype == "int16":
            bias = _bias_of_16_bits(code, bias, values)
    inputs = [
        taken,
        writer.file.constant(f"{label}.weight", np.ascontiguousarray(arranged), scales, axis),
        writer.file.constant(f"{label}.bias", bias, None if steps is None else steps.astype(np.float32)),
    ]
    kind = {"CONV_2D": "Conv2DOptions", "DEPTHWISE_CONV_2D": "DepthwiseConv2DOptions"}.get(
        code, "FullyConnectedOptions"
    )
    return writer.result(code, inputs, name, label, grid, kind, **values)


def _bias_of_16_bits(code: str, bias: np.ndarray, values: dict[str, Any]) -> np.ndarray:
    """Return the bias of a layer with 16-bit activations: int32, whose kernels are fast, or int64, as the format has it."""
    if code == "DEPTHWISE_CONV_2D":  # the format leaves it no choice
        return bias.astype(np.int64)
    values["quantizedBiasType"] = schema().TensorType.INT32
    return bias


def _convolution(
    writer: TFLiteWriter, layer: TFLiteLayer, weight: np.ndarray
) -> tuple[str, np.ndarray, int, dict[str, Any]]:
    """Return the operation of a convolution, its weight as TFLite arranges it, the channels' axis, and the options."""
    given = attributes(layer.node)
    strides, dilations = given.get("strides", [1, 1]), given.get("dilations", [1, 1])
    options = {
        "strideH": strides[0],
        "strideW": strides[1],
        "dilationHFactor": dilations[0],
        "dilationWFactor": dilations[1],
    }
    channels = writer.source.shape(layer.taken)[1]
    groups = given.get("group", 1)
    if groups == channels and groups > 1:  # (O, 1, H, W) -> (1, H, W, O)
        options["depthMultiplier"] = len(weight) // groups
        return "DEPTHWISE_CONV_2D", weight.transpose(1, 2, 3, 0), 3, options
    return "CONV_2D", weight.transpose(0, 2, 3, 1), 0, options


def _linear(
    writer: TFLiteWriter, layer: TFLiteLayer, weight: np.ndarray
) -> tuple[str, np.ndarray, int, dict[str, Any]]:
    """Return the same of a linear layer."""
    return "FULLY_CONNECTED", weight, 0, {"keepNumDims": len(writer.source.shape(layer.taken)) > 2}
