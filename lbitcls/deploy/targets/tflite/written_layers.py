"""Convolutions and linear layers as TFLite operations, in integers or in float32.

An integer layer computes

    accumulator = bias + Σ (x - x_zero) · w             int32, w: int8, one scale s_w for each output channel
    result      = zero + round(accumulator · s_x · s_w / s_y), within int8

The bias is an integer at the step s_x · s_w. At few bits that step is coarse: `lbitcls.deploy.targets.tflite.fitting`
chooses the integers with which the results are those of training all the same.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from lbitcls.deploy.passes.graph import attributes
from lbitcls.deploy.targets.tflite.fitting import LARGEST_WEIGHT, filled, fitted
from lbitcls.deploy.targets.tflite.flatfile import TFLiteGrid
from lbitcls.deploy.targets.tflite.reading import TFLiteLayer

if TYPE_CHECKING:
    from lbitcls.deploy.targets.tflite.writing import TFLiteWriter

_INT32 = np.iinfo(np.int32)


def integer_layer(writer: TFLiteWriter, layer: TFLiteLayer, name: str, grid: TFLiteGrid) -> int:
    """Write a layer whose input is integers, with a result on `grid`."""
    assert layer.scales is not None
    taken = writer.held(layer.taken)
    assert taken is not None
    if grid.dtype == "int16":  # such a layer has 16-bit inputs as well
        taken = writer.widened(taken)
    step = np.float64(np.float32(writer.file.grids[taken].scale))
    fit = fitted(layer.weight, layer.bias / (step * layer.scales), grid.scale / (step * layer.scales), grid)
    codes, scales = filled(layer.weight, fit), (layer.scales * fit.stretch / fit.factors).astype(np.float32)
    bias = np.clip(fit.bias, _INT32.min, _INT32.max).astype(np.int64 if grid.dtype == "int16" else np.int32)
    return _operation(writer, layer, name, taken, grid, codes, bias, scales, step * scales.astype(np.float64))


def float_layer(writer: TFLiteWriter, layer: TFLiteLayer, name: str) -> int:
    """Write a layer in float32; a quantized weight is stored as its integers."""
    taken, bias = writer.real(layer.taken), layer.bias.astype(np.float32)
    if layer.scales is None or np.abs(layer.weight).max() > LARGEST_WEIGHT:
        return _operation(writer, layer, name, taken, None, layer.floats.astype(np.float32), bias, None, None)
    scales = layer.scales.astype(np.float32)
    return _operation(writer, layer, name, taken, None, layer.weight.astype(np.int8), bias, scales, None)


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
    constant = writer.file.constant(f"{label}.weight", np.ascontiguousarray(arranged), scales, axis)
    inputs = [
        taken,
        constant if grid is not None or scales is None else writer.file.dequantized(constant),
        writer.file.constant(f"{label}.bias", bias, None if steps is None else steps.astype(np.float32)),
    ]
    kind = {"CONV_2D": "Conv2DOptions", "DEPTHWISE_CONV_2D": "DepthwiseConv2DOptions"}.get(
        code, "FullyConnectedOptions"
    )
    return writer.result(code, inputs, name, label, grid, kind, **values)


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
