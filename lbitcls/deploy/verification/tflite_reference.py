"""Integer reference of a `.tflite` file: the arithmetic of LiteRT's reference kernels, in exact integers.

The engine stores each tensor in 8 bits and rounds where training does not. This reference interprets the file's
operations with the rounding of the engine's reference kernels (`OpResolverType.BUILTIN_REF`), bit for bit, so that it
tells what that rounding changes, apart from any faster kernel, some of which round a value between two levels to the
other one:

    requantize(a, m, s)   a · m · 2^(s - 31), m an integer of 31 bits: rounded to nearest after the product, and again
                          after the shift; linear layers round once
    layers                requantize(bias + Σ (x - x_zero) · w) + zero
    sums                  both operands · 2^20, requantized to a common scale, added, requantized
    means                 requantize(Σ (x - x_zero)), the division by the count in the multiplier

Float operations of the file (behind a DEQUANTIZE) give float32, from sums in float64, and are the only part whose last
bits an engine may compute differently.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from lbitcls.deploy.runtime.metadata import require
from lbitcls.utils.errors import CheckpointError

Array = np.ndarray[Any, Any]
SUFFIX = ".tflite"
_HALF = 1 << 30


def multiplier_of(real: float) -> tuple[int, int]:
    """Return the integer of 31 bits and the exponent by which the engine multiplies: real ≈ m · 2^(s - 31)."""
    fraction, exponent = math.frexp(real)
    fixed = math.floor(fraction * (1 << 31) + 0.5)
    if fixed == 1 << 31:
        fixed, exponent = fixed // 2, exponent + 1
    return (0, 0) if exponent < -31 else (fixed, exponent)


def requantize(values: Array, multipliers: Sequence[tuple[int, int]]) -> Array:
    """Return int32 values times one multiplier, or one for each index of the last axis, as the engine rounds them."""
    fixed, shift = (np.array(column, np.int64) for column in zip(*multipliers, strict=True))
    left, right = np.maximum(shift, 0), np.maximum(-shift, 0)
    product = values.astype(np.int64) * (np.int64(1) << left) * fixed
    nudged = product + np.where(product >= 0, _HALF, 1 - _HALF)
    high = np.where(nudged >= 0, nudged >> 31, -(-nudged >> 31))  # rounds to 0, as a division in C does
    mask = (np.int64(1) << right) - 1
    return (high >> right) + ((high & mask) > (mask >> 1) + (high < 0))


@dataclass(frozen=True)
class _Tensor:
    """Facts about a tensor of the file."""

    name: str
    dtype: str
    scales: Array
    zero: int
    constant: Array | None
    axis: int = 0  # of several scales

    @property
    def scale(self) -> float:
        """Per-tensor scale."""
        return float(self.scales[0])


class UnknownOperationError(CheckpointError):
    """The integer reference does not know an operation, or not in float32."""


class TFLiteReference:
    """File as exact arithmetic: images (N, C, H, W), float32, to outputs.

    Args:
        path: `.tflite` file.

    Raises:
        UnknownOperationError: The file contains an operation that this reference does not know.
    """

    def __init__(self, path: str | Path) -> None:
        self.schema = require("ai_edge_litert.schema_py_generated", "litert")
        content = Path(path).read_bytes()
        model = self.schema.ModelT.InitFromObj(self.schema.Model.GetRootAs(content))
        graph = model.subgraphs[0]
        self.tensors = [self._tensor(tensor, model.buffers) for tensor in graph.tensors]
        self.inputs, self.outputs = list(graph.inputs), list(graph.outputs)
        names = {value: name for name, value in vars(self.schema.BuiltinOperator).items() if not name.startswith("_")}
        self.operations = [(names[model.operatorCodes[o.opcodeIndex].builtinCode], o) for o in graph.operators]
        unknown = sorted({kind for kind, operation in self.operations if not self._knows(kind, operation)})
        if unknown:
            raise UnknownOperationError(f"{path}: the integer reference does not know {', '.join(unknown)}.")

    def __call__(self, images: Array) -> list[Array]:
        """Return all outputs."""
        values: dict[int, Array] = {n: t.constant for n, t in enumerate(self.tensors) if t.constant is not None}
        values[self.inputs[0]] = images.transpose(0, 2, 3, 1)
        for kind, operation in self.operations:
            taken = [(self.tensors[n], values[n]) for n in operation.inputs if n >= 0]
            target = operation.outputs[0]
            values[target] = _KERNELS[kind](self, operation.builtinOptions, taken, self.tensors[target])
        found = [values[number] for number in self.outputs]
        return [a.transpose(0, 3, 1, 2) if a.ndim == 4 else a for a in found]

    def _knows(self, kind: str, operation: Any) -> bool:
        """Return True for operations that have a kernel here."""
        in_float = self.tensors[operation.outputs[0]].dtype == "float32"
        return kind in _KERNELS and not (in_float and kind == "TANH")

    def _tensor(self, tensor: Any, buffers: Any) -> _Tensor:
        types = {getattr(self.schema.TensorType, name.upper()): name for name in _TYPES}
        dtype, data, grid = types[tensor.type], buffers[tensor.buffer].data, tensor.quantization
        shape = () if tensor.shape is None else tuple(tensor.shape)
        constant = None if data is None or tensor.buffer == 0 else np.array(data, np.uint8).view(dtype).reshape(shape)
        scales = np.ones(1) if grid is None or grid.scale is None else np.array(grid.scale, np.float64)
        zero = 0 if grid is None or grid.zeroPoint is None else int(grid.zeroPoint[0])
        axis = 0 if grid is None else int(grid.quantizedDimension)
        return _Tensor(tensor.name.decode(), dtype, scales, zero, constant, axis)

    def ended(self, values: Array, options: Any, target: _Tensor) -> Array:
        """Return integers within the type's range and the fused activation's; float32 as it is."""
        if target.dtype == "float32":
            return values.astype(np.float32)
        info = np.iinfo(target.dtype)
        kinds = self.schema.ActivationFunctionType
        kind = getattr(options, "fusedActivationFunction", kinds.NONE)
        if kind not in (kinds.NONE, kinds.RELU):
            raise CheckpointError(f"{target.name}: the integer reference does not know this fused activation.")
        return values.clip(target.zero if kind == kinds.RELU else info.min, info.max).astype(target.dtype)


_TYPES = ("float32", "int8", "int16", "int32", "int64")
Rounding = Callable[[Array, Sequence[tuple[int, int]]], Array]
Taken = list[tuple[_Tensor, Array]]
Kernel = Callable[[TFLiteReference, Any, Taken, _Tensor], Array]


def _layer_result(
    run: TFLiteReference, options: Any, sums: Array, taken: Taken, target: _Tensor, rounded: Rounding = requantize
) -> Array:
    """Return a layer's sums with the bias, on the result's grid."""
    if target.dtype == "float32":
        return run.ended(sums + taken[2][1], options, target)
    step, bias, sums = taken[0][0].scale, taken[2][1].astype(np.int64), sums.astype(np.int64)
    multipliers = [multiplier_of(step * scale / target.scale) for scale in taken[1][0].scales]
    return run.ended(rounded(sums + bias, multipliers) + target.zero, options, target)


def _requantize_once(values: Array, multipliers: Sequence[tuple[int, int]]) -> Array:
    """Return sums times multipliers, rounded once, as the engine does in linear layers."""
    fixed, shift = (np.array(column, np.int64) for column in zip(*multipliers, strict=True))
    return (values * fixed + (np.int64(1) << (30 - shift))) >> (31 - shift)


def _centered(taken: tuple[_Tensor, Array]) -> torch.Tensor:
    return torch.from_numpy(taken[1].astype(np.float64) - taken[0].zero)


def _convolution(run: TFLiteReference, options: Any, taken: Taken, target: _Tensor) -> Array:
    x, weight = _centered(taken[0]).permute(0, 3, 1, 2), torch.from_numpy(taken[1][1].astype(np.float64))
    depthwise = hasattr(options, "depthMultiplier")
    weight = weight.permute(3, 0, 1, 2) if depthwise else weight.permute(0, 3, 1, 2)
    strides = (options.strideH, options.strideW)
    dilations = (options.dilationHFactor, options.dilationWFactor)
    if options.padding == run.schema.Padding.SAME:
        x = functional.pad(x, _same(x.shape[2:], weight.shape[2:], strides, dilations))
    sums = functional.conv2d(x, weight, None, strides, 0, dilations, x.shape[1] // weight.shape[1])
    return _layer_result(run, options, sums.permute(0, 2, 3, 1).numpy(), taken, target)


def _same(sizes: Sequence[int], kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int]) -> list[int]:
    """Return SAME's paddings, in the order of torch's `pad`."""
    paddings = []
    for size, k, stride, dilation in zip(sizes, kernel, strides, dilations, strict=True):
        total = max((-(-size // stride) - 1) * stride + (k - 1) * dilation + 1 - size, 0)
        paddings.append([total // 2, total - total // 2])
    return [*paddings[1], *paddings[0]]


def _linear(run: TFLiteReference, options: Any, taken: Taken, target: _Tensor) -> Array:
    sums = _centered(taken[0]) @ torch.from_numpy(taken[1][1].astype(np.float64)).T
    return _layer_result(run, options, sums.numpy(), taken, target, _requantize_once)


def _sum(run: TFLiteReference, options: Any, taken: Taken, target: _Tensor) -> Array:
    if target.dtype == "float32":
        return taken[0][1] + taken[1][1]
    largest = 2 * max(tensor.scale for tensor, _ in taken)
    total = sum(
        requantize((values.astype(np.int64) - tensor.zero) << 20, [multiplier_of(tensor.scale / largest)])
        for tensor, values in taken
    )
    scaled = requantize(np.asarray(total), [multiplier_of(largest / ((1 << 20) * target.scale))])
    return run.ended(scaled + target.zero, options, target)


def _mean(run: TFLiteReference, options: Any, taken: Taken, target: _Tensor) -> Array:
    (tensor, values), axes = taken[0], tuple(int(axis) for axis in taken[1][1])
    if target.dtype == "float32":
        return values.astype(np.float64).mean(axes, keepdims=options.keepDims).astype(np.float32)
    count = math.prod(values.shape[axis] for axis in axes)
    sums = (values.astype(np.int64) - tensor.zero).sum(axes, keepdims=options.keepDims)
    fixed, exponent = multiplier_of(tensor.scale / target.scale)
    shift = min(count.bit_length() - 1, 32, 31 + exponent)
    scaled = requantize(sums, [((fixed << shift) // count, exponent - shift)])
    return run.ended(scaled + target.zero, options, target)


def _quantize(run: TFLiteReference, options: Any, taken: Taken, target: _Tensor) -> Array:
    tensor, values = taken[0]
    if tensor.dtype == "float32":
        scaled = values / np.float32(target.scale)
        rounded = np.trunc(scaled + np.copysign(np.float32(0.5), scaled)).clip(-(2**24), 2**24).astype(np.int64)
    else:
        rounded = requantize(values.astype(np.int64) - tensor.zero, [multiplier_of(tensor.scale / target.scale)])
    return run.ended(rounded + target.zero, None, target)


def _dequantize(run: TFLiteReference, options: Any, taken: Taken, target: _Tensor) -> Array:
    tensor, values = taken[0]
    scales = tensor.scales.reshape(-1, *[1] * (values.ndim - 1 - tensor.axis)).astype(np.float32)
    return scales * (values.astype(np.int32) - tensor.zero).astype(np.float32)


def _tanh(run: TFLiteReference, options: Any, taken: Taken, target: _Tensor) -> Array:
    """Look up: the engine computes all 256 results in float32."""
    tensor, values = taken[0]
    codes = np.arange(-128, 128)
    real = np.tanh((np.float32(tensor.scale) * (codes - tensor.zero).astype(np.float32)).astype(np.float32))
    scaled = real * np.float32(1 / target.scale)
    table = run.ended(np.trunc(scaled + np.copysign(np.float32(0.5), scaled)) + target.zero, None, target)
    return table[values.astype(np.int64) + 128]


def _relu(run: TFLiteReference, options: Any, taken: Taken, target: _Tensor) -> Array:
    return np.maximum(taken[0][1], 0)


def _max_pool(run: TFLiteReference, options: Any, taken: Taken, target: _Tensor) -> Array:
    x = torch.from_numpy(taken[0][1].astype(np.float64)).permute(0, 3, 1, 2)
    kernel, strides = (options.filterHeight, options.filterWidth), (options.strideH, options.strideW)
    if options.padding == run.schema.Padding.SAME:
        x = functional.pad(x, _same(x.shape[2:], kernel, strides, (1, 1)), value=-math.inf)
    return functional.max_pool2d(x, kernel, strides).permute(0, 2, 3, 1).numpy().astype(target.dtype)


def _pad(run: TFLiteReference, options: Any, taken: Taken, target: _Tensor) -> Array:
    value = int(taken[2][1][0]) if len(taken) > 2 else target.zero
    return np.pad(taken[0][1], [tuple(pair) for pair in taken[1][1]], constant_values=value)


def _reshape(run: TFLiteReference, options: Any, taken: Taken, target: _Tensor) -> Array:
    return taken[0][1].reshape([len(taken[0][1]), *taken[1][1][1:]])


def _transpose(run: TFLiteReference, options: Any, taken: Taken, target: _Tensor) -> Array:
    return taken[0][1].transpose(taken[1][1])


def _concat(run: TFLiteReference, options: Any, taken: Taken, target: _Tensor) -> Array:
    return np.concatenate([values for _, values in taken], options.axis)


def _slice(run: TFLiteReference, options: Any, taken: Taken, target: _Tensor) -> Array:
    begin, end, step = (taken[place][1] for place in (1, 2, 3))
    free = [bool(options.endMask >> axis & 1) for axis in range(len(end))]
    places = [slice(b, None if open_end else e, s) for b, e, s, open_end in zip(begin, end, step, free, strict=True)]
    return taken[0][1][tuple(places)]


def _maximum(run: TFLiteReference, options: Any, taken: Taken, target: _Tensor) -> Array:
    return np.maximum(taken[0][1], taken[1][1])


def _minimum(run: TFLiteReference, options: Any, taken: Taken, target: _Tensor) -> Array:
    return np.minimum(taken[0][1], taken[1][1])


_KERNELS: dict[str, Kernel] = {
    "ADD": _sum,
    "CONCATENATION": _concat,
    "CONV_2D": _convolution,
    "DEPTHWISE_CONV_2D": _convolution,
    "DEQUANTIZE": _dequantize,
    "FULLY_CONNECTED": _linear,
    "MAXIMUM": _maximum,
    "MAX_POOL_2D": _max_pool,
    "MEAN": _mean,
    "MINIMUM": _minimum,
    "PAD": _pad,
    "PADV2": _pad,
    "QUANTIZE": _quantize,
    "RELU": _relu,
    "RESHAPE": _reshape,
    "STRIDED_SLICE": _slice,
    "TANH": _tanh,
    "TRANSPOSE": _transpose,
}
