"""TFLite file under construction: tensors, operations and constants, by the schema that ai-edge-litert carries.

Format: https://www.tensorflow.org/lite/performance/quantization_spec and `schema.fbs` of TensorFlow Lite.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from lbitcls.deploy.runtime.metadata import require

_IDENTIFIER = b"TFL3"
_VERSION = 3  # of the schema
_TYPES = {"float32": "FLOAT32", "int8": "INT8", "int16": "INT16", "int32": "INT32", "int64": "INT64"}
_VERSIONS = {  # of operations on integers, as the format's converter writes them; others are 1
    "ADD": 2,
    "AVERAGE_POOL_2D": 2,
    "CONCATENATION": 2,
    "CONV_2D": 3,
    "DEPTHWISE_CONV_2D": 3,
    "DEQUANTIZE": 2,
    "FULLY_CONNECTED": 4,
    "LOGISTIC": 2,
    "MAX_POOL_2D": 2,
    "MAXIMUM": 2,
    "MEAN": 2,
    "MINIMUM": 2,
    "MUL": 2,
    "PAD": 2,
    "PADV2": 2,
    "QUANTIZE": 2,
    "RELU": 2,
    "SPLIT": 2,
    "STRIDED_SLICE": 2,
    "TANH": 2,
    "TRANSPOSE": 2,
}
_NEWER = {"QUANTIZE": 3, "DEQUANTIZE": 3}  # with 16-bit integers


@cache
def schema() -> Any:
    """Return the module of the schema's objects."""
    return require("ai_edge_litert.schema_py_generated")


@dataclass(frozen=True)
class TFLiteGrid:
    """Integers of a tensor: value = scale * (integer - zero); only integers from low to high occur.

    Attributes:
        scale: Distance of two levels.
        zero: Integer that represents 0.
        low: Smallest integer.
        high: Largest integer.
        dtype: `int8`, or `int16`, whose zero point is 0.
    """

    scale: float
    zero: int
    low: int
    high: int
    dtype: str = "int8"

    @classmethod
    def of_levels(cls, scale: float, low: int, high: int) -> TFLiteGrid:
        """Return the grid of the levels low·scale to high·scale, low ≤ 0 ≤ high, stored as int8 or int16.

        The largest level is the largest integer of int8, where the engine's arithmetic ends by itself, so that at most
        the smallest level needs an operation that ends the range.
        """
        if high - low > 255:
            return cls(scale, 0, low, high, "int16")
        return cls(scale, 127 - high, 127 - high + low, 127)

    @property
    def ends(self) -> tuple[int, int]:
        """Smallest and largest integer of the type."""
        info = np.iinfo(self.dtype)
        return int(info.min), int(info.max)

    def narrowed(self, low: float, high: float) -> TFLiteGrid:
        """Return the same integers, but only those from round(low / scale) to round(high / scale)."""
        ends = [self.zero + float(np.rint(np.float32(bound) / np.float32(self.scale))) for bound in (low, high)]
        lowest, highest = int(max(self.low, ends[0])), int(min(self.high, ends[1]))
        return TFLiteGrid(self.scale, self.zero, lowest, max(lowest, highest), self.dtype)


class FlatFile:
    """TFLite file with one subgraph. Tensors are known by their number; the first axis of activations is the batch."""

    def __init__(self, name: str) -> None:
        s = schema()
        self._graph, self._model = s.SubGraphT(), s.ModelT()
        self._graph.name = name.encode()
        self._graph.tensors, self._graph.operators = [], []
        self._model.version, self._model.operatorCodes, self._model.buffers = _VERSION, [], [s.BufferT()]
        self._codes: dict[tuple[str, int], int] = {}
        self._constants: dict[tuple[Any, ...], int] = {}
        self.grids: dict[int, TFLiteGrid] = {}
        self.shapes: dict[int, tuple[int, ...]] = {}

    def tensor(self, name: str, shape: Sequence[int], grid: TFLiteGrid | None = None) -> int:
        """Add an activation; `shape` is that of one image, its batch axis 1. Without a grid it is float32."""
        dtype = "float32" if grid is None else grid.dtype
        number = self._add(name, shape, dtype, 0)
        self._graph.tensors[number].shapeSignature = [-1, *map(int, shape[1:])]
        if grid is not None:
            self.grids[number] = grid
            self._quantize(number, np.array([grid.scale]), [grid.zero], 0)
        return number

    def constant(self, name: str, value: np.ndarray, scales: np.ndarray | None = None, axis: int = 0) -> int:
        """Add a constant; integers have one scale, or one for each index of `axis`, and the zero point 0."""
        key = (value.dtype.name, value.shape, value.tobytes(), None if scales is None else scales.tobytes(), axis)
        if key not in self._constants:
            buffer = schema().BufferT()
            buffer.data = np.frombuffer(value.tobytes(), np.uint8)
            self._model.buffers.append(buffer)
            number = self._add(name, value.shape, value.dtype.name, len(self._model.buffers) - 1)
            if scales is not None:
                self._quantize(number, scales.reshape(-1), [0] * scales.size, axis)
            self._constants[key] = number
        return self._constants[key]

    def dequantized(self, constant: int) -> int:
        """Return an integer constant as float32; the engines compute it once."""
        output = self._add("dequantized", self.shapes[constant], "float32", 0)
        return self.operation("DEQUANTIZE", [constant], output, "DequantizeOptions")

    def scalar(self, name: str, value: int, grid: TFLiteGrid) -> int:
        """Add an integer constant on a grid."""
        buffer = schema().BufferT()
        buffer.data = np.frombuffer(np.array([value], grid.dtype).tobytes(), np.uint8)
        self._model.buffers.append(buffer)
        number = self._add(name, (1,), grid.dtype, len(self._model.buffers) - 1)
        self._quantize(number, np.array([grid.scale]), [grid.zero], 0)
        return number

    def operation(self, code: str, inputs: Sequence[int], output: int, options: str = "", **values: Any) -> int:
        """Add an operation with its options, `options` the schema's name of them, and return its output."""
        s = schema()
        operator = s.OperatorT()
        operator.opcodeIndex = self._code(code, [*inputs, output])
        operator.inputs, operator.outputs = list(inputs), [output]
        if options:
            operator.builtinOptionsType = getattr(s.BuiltinOptions, options)
            operator.builtinOptions = getattr(s, f"{options}T")()
            for name, value in values.items():
                setattr(operator.builtinOptions, name, value)
        self._graph.operators.append(operator)
        return output

    def bytes(self, inputs: dict[str, int], outputs: dict[str, int]) -> bytes:
        """Return the finished file; inputs and outputs by name."""
        flatbuffers = require("flatbuffers")
        self._graph.inputs, self._graph.outputs = list(inputs.values()), list(outputs.values())
        self._model.subgraphs = [self._graph]
        self._model.description = b"lbitcls"
        self._model.signatureDefs = [self._signature(inputs, outputs)]
        builder = flatbuffers.Builder(1 << 20)
        builder.Finish(self._model.Pack(builder), _IDENTIFIER)
        return bytes(builder.Output())

    def _signature(self, inputs: dict[str, int], outputs: dict[str, int]) -> Any:
        s = schema()
        signature = s.SignatureDefT()
        signature.signatureKey, signature.subgraphIndex = b"serving_default", 0
        for field, tensors in (("inputs", inputs), ("outputs", outputs)):
            entries = []
            for name, number in tensors.items():
                entry = s.TensorMapT()
                entry.name, entry.tensorIndex = name.encode(), number
                entries.append(entry)
            setattr(signature, field, entries)
        return signature

    def _add(self, name: str, shape: Sequence[int], dtype: str, buffer: int) -> int:
        s = schema()
        tensor = s.TensorT()
        tensor.name, tensor.shape, tensor.buffer = name.encode(), [int(size) for size in shape], buffer
        tensor.type, tensor.hasRank = getattr(s.TensorType, _TYPES[dtype]), True
        self._graph.tensors.append(tensor)
        number = len(self._graph.tensors) - 1
        self.shapes[number] = tuple(tensor.shape)
        return number

    def _quantize(self, number: int, scales: np.ndarray, zeros: list[int], axis: int) -> None:
        quantization = schema().QuantizationParametersT()
        quantization.scale = scales.astype(np.float32)
        quantization.zeroPoint = np.array(zeros, np.int64)
        quantization.quantizedDimension = axis
        self._graph.tensors[number].quantization = quantization

    def _code(self, code: str, tensors: Sequence[int]) -> int:
        s = schema()
        types = {self._graph.tensors[number].type for number in tensors if number >= 0}
        version = _VERSIONS.get(code, 1) if types & {s.TensorType.INT8, s.TensorType.INT16} else 1
        if s.TensorType.INT16 in types:
            version = _NEWER.get(code, version)
        key = (code, version)
        if key not in self._codes:
            entry = s.OperatorCodeT()
            entry.builtinCode = getattr(s.BuiltinOperator, code)
            entry.deprecatedBuiltinCode, entry.version = min(entry.builtinCode, 127), version
            self._model.operatorCodes.append(entry)
            self._codes[key] = len(self._model.operatorCodes) - 1
        return self._codes[key]
