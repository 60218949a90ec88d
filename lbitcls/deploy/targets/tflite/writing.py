"""Writes an ONNX graph with QuantizeLinear and DequantizeLinear nodes as a TFLite file.

A tensor of the graph can have several forms in the file: float32, and integers on one or more grids. Each form is
written when an operation first asks for it:

    codes(name, grid)    integers: computed in integers where the operands are, else quantized from float32
    real(name)           float32: dequantized, or computed in float32
    held(name)           integers that the graph itself keeps, behind a DequantizeLinear

So the graph decides what runs in integers: an operation between two quantized tensors does, and gives its result
directly on the grid of the layer that reads it.

Activations of four axes are stored as (N, H, W, C), others as the graph has them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from lbitcls.deploy.passes.graph import attributes
from lbitcls.deploy.targets.tflite.flatfile import FlatFile, TFLiteGrid, schema
from lbitcls.deploy.targets.tflite.reading import MOVING, Source, TFLiteLayer
from lbitcls.utils.errors import ConfigError

if TYPE_CHECKING:
    from onnx import NodeProto

Form = Callable[[str], int]
"""From a tensor's name to its number in the file, in one form."""


class UnsupportedError(ConfigError):
    """An operation has no counterpart in the format."""

    def __init__(self, node: NodeProto | None, why: str) -> None:
        label = "the graph" if node is None else node.name or node.op_type
        super().__init__(f"{label}: {why}")


@dataclass(frozen=True)
class Kinds:
    """Functions that write operations, by the graph's name of each.

    Attributes:
        moves: Operations that move values, in any form.
        integers: Operations that compute in integers; None: they cannot here.
        floats: Operations that compute in float32.
        integer_layer: TFLiteLayer whose input is integers, with its result on a grid.
        float_layer: TFLiteLayer in float32.
    """

    moves: Mapping[str, Callable[[TFLiteWriter, Any, str, Form], int]]
    integers: Mapping[str, Callable[[TFLiteWriter, Any, str, TFLiteGrid], int | None]]
    floats: Mapping[str, Callable[[TFLiteWriter, Any, str], int]]
    integer_layer: Callable[[TFLiteWriter, TFLiteLayer, str, TFLiteGrid], int]
    float_layer: Callable[[TFLiteWriter, TFLiteLayer, str], int]


def stored(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape in the file of a tensor of the graph."""
    return (shape[0], *shape[2:], shape[1]) if len(shape) == 4 else shape


def stored_axis(axis: int, rank: int) -> int:
    """Return the axis in the file of an axis in the graph."""
    axis %= rank
    return {0: 0, 1: 3, 2: 1, 3: 2}[axis] if rank == 4 else axis


class TFLiteWriter:
    """File that grows as tensors are asked for."""

    def __init__(self, source: Source, kinds: Kinds) -> None:
        self.source = source
        self.file = FlatFile("model")
        self._kinds = kinds
        self._codes: dict[tuple[str, TFLiteGrid], int] = {}
        self._held: dict[str, int] = {}
        self._real: dict[str, int] = {}

    def bytes(self) -> bytes:
        """Write all outputs, and return the file."""
        image = self.source.image
        self._real[image] = self.file.tensor(image, stored(self.source.shape(image)))
        for node in self.source.nodes:
            if node.op_type == "QuantizeLinear":
                self.codes(node.input[0], self.source.grid(node))
        return self.file.bytes({image: self._real[image]}, {name: self.real(name) for name in self.source.outputs})

    def codes(self, name: str, grid: TFLiteGrid) -> int:
        """Return a tensor as integers on `grid`."""
        name, low, high = self.source.behind_bounds(name)
        grid = grid.narrowed(low, high)
        if (name, grid) not in self._codes:
            self._codes[name, grid] = self._made(name, grid)
        return self._codes[name, grid]

    def _made(self, name: str, grid: TFLiteGrid) -> int:
        held = self.held(name)
        if held is not None:
            return self.moved(held, name, grid)
        layer = self.source.layer(name)
        if layer is not None:
            in_integers = layer.scales is not None and self.held(layer.taken) is not None
            in_integers = in_integers and not self.source.is_used_in_float(name)
            return self._kinds.integer_layer(self, layer, name, grid) if in_integers else self._quantized(name, grid)
        node = self.source.producer(name)
        integer, moves = self._kinds.integers, self._kinds.moves
        if node is not None and node.op_type in MOVING and grid.low <= grid.zero <= grid.high:
            return moves[node.op_type](self, node, name, partial(self.codes, grid=grid))
        made = integer[node.op_type](self, node, name, grid) if node is not None and node.op_type in integer else None
        return self._quantized(name, grid) if made is None else made

    def held(self, name: str) -> int | None:
        """Return the integers of a DequantizeLinear's result, moved or not; None for any other tensor."""
        if not self.source.is_held(name):
            return None
        if name not in self._held:
            self._held[name] = self._held_made(name)
        return self._held[name]

    def _held_made(self, name: str) -> int:
        node = self.source.producer(name)
        assert node is not None
        if node.op_type != "DequantizeLinear":
            return self._kinds.moves[node.op_type](self, node, name, self._held_made)
        quantize = self.source.quantize_of(node.input[0])
        assert quantize is not None, name
        return self._kept(node.input[0], self.source.grid(quantize))

    def _kept(self, name: str, grid: TFLiteGrid) -> int:
        node = self.source.producer(name)
        assert node is not None
        if node.op_type == "QuantizeLinear":
            return self.codes(node.input[0], grid)
        return self._kinds.moves[node.op_type](self, node, name, partial(self._kept, grid=grid))

    def real(self, name: str) -> int:
        """Return a tensor as float32."""
        if name not in self._real:
            self._real[name] = self._real_made(name)
        return self._real[name]

    def _real_made(self, name: str) -> int:
        constant = self.source.array(name)
        if constant is not None:
            return self.operand(name, constant, 0)
        held = self.held(name)
        if held is not None:
            output = self.file.tensor(name, self.file.shapes[held])
            return self.file.operation("DEQUANTIZE", [held], output, "DequantizeOptions")
        layer = self.source.layer(name)
        if layer is not None:
            return self._kinds.float_layer(self, layer, name)
        node = self.source.producer(name)
        floats, moves = self._kinds.floats, self._kinds.moves
        if node is not None and node.op_type in MOVING:
            return moves[node.op_type](self, node, name, self.real)
        if node is None or node.op_type not in floats:
            raise UnsupportedError(node, f"{'an input' if node is None else node.op_type} cannot be expressed")
        return floats[node.op_type](self, node, name)

    def operand(self, name: str, constant: np.ndarray, rank: int) -> int:
        """Return a float32 constant, arranged like a tensor of `rank` axes with which it is combined."""
        value = constant.astype(np.float32)
        value = value.reshape(*[1] * (rank - value.ndim), *value.shape) if rank > value.ndim else value
        return self.file.constant(name, np.ascontiguousarray(value.transpose(0, 2, 3, 1) if value.ndim == 4 else value))

    def shape(self, node: NodeProto | None, name: str) -> tuple[int, ...]:
        """Return the shape in the file of a tensor of the graph."""
        shape = self.source.shape(name)
        if not shape:
            raise UnsupportedError(node, "the sizes of its result are not known before it runs; use fixed sizes")
        return stored(shape)

    def result(
        self,
        code: str,
        inputs: list[int],
        name: str,
        label: str,
        grid: TFLiteGrid | None,
        options: str = "",
        **values: Any,
    ) -> int:
        """Write an operation that can end its result's range below 0 by itself, and what else ends it.

        Args:
            code: TFLite operation.
            inputs: Numbers of its inputs.
            name: Tensor of the graph that it computes.
            label: Name of its result in the file.
            grid: TFLiteGrid of the result; None: float32.
            options: Schema's name of its options, which have `fusedActivationFunction`; empty: none.
            values: Values of the options.
        """
        output = self.file.tensor(label, self.shape(self.source.producer(name), name), grid)
        kinds = schema().ActivationFunctionType
        ends_at_zero = grid is not None and grid.low == grid.zero > grid.ends[0]
        if "fusedActivationFunction" in values:
            values["fusedActivationFunction"] = kinds.RELU if ends_at_zero else kinds.NONE
        self.file.operation(code, inputs, output, options, **values)
        if grid is None:
            return output
        return self.bounded(output, grid, skip_low=ends_at_zero and "fusedActivationFunction" in values)

    def bounded(self, number: int, grid: TFLiteGrid, skip_low: bool = False) -> int:
        """Write the operations that end a range that neither the type nor the operation before ends."""
        low = [("MAXIMUM", grid.low)] if grid.low > grid.ends[0] and not skip_low else []
        high = [("MINIMUM", grid.high)] if grid.high < grid.ends[1] else []
        for code, bound in (*low, *high):
            output = self.file.tensor(f"{code.lower()}_{bound}", self.file.shapes[number], grid)
            limit = self.file.scalar(f"bound_{bound}", bound, grid)
            number = self.file.operation(code, [number, limit], output, "MaximumMinimumOptions")
        return number

    def moved(self, number: int, name: str, grid: TFLiteGrid) -> int:
        """Return integers on another grid."""
        given = self.file.grids[number]
        if (given.scale, given.zero, given.dtype) == (grid.scale, grid.zero, grid.dtype):
            return self.bounded(number, grid, given.low >= grid.low) if given != grid else number
        output = self.file.tensor(f"{name}_quantized", self.file.shapes[number], grid)
        self.file.operation("QUANTIZE", [number], output, "QuantizeOptions")
        above = given.low >= given.zero and grid.low == grid.zero  # then nothing lies below
        return self.bounded(output, grid, skip_low=above)

    def widened(self, number: int) -> int:
        """Return the same integers in 16 bits, whose zero point is 0."""
        given = self.file.grids[number]
        grid = TFLiteGrid(given.scale, 0, given.low - given.zero, given.high - given.zero, "int16")
        output = self.file.tensor("widened", self.file.shapes[number], grid)
        return self.file.operation("QUANTIZE", [number], output, "QuantizeOptions")

    def _quantized(self, name: str, grid: TFLiteGrid) -> int:
        taken = self.real(name)
        ends_at_zero = grid.low == grid.zero > grid.ends[0]
        if ends_at_zero:
            taken = self.file.operation("RELU", [taken], self.file.tensor(f"{name}_relu", self.file.shapes[taken]))
        output = self.file.tensor(f"{name}_quantized", self.file.shapes[taken], grid)
        self.file.operation("QUANTIZE", [taken], output, "QuantizeOptions")
        return self.bounded(output, grid, skip_low=ends_at_zero)

    def padded(self, number: int, node: NodeProto, lowest: bool = False) -> tuple[int, int]:
        """Return the input of a convolution or pooling and TFLite's kind of padding; pads it if neither kind fits.

        Args:
            number: Input, (N, H, W, C).
            node: Operation of the graph, with its kernel, strides and paddings.
            lowest: Pad with the lowest value, as a maximum needs it, not with 0.
        """
        before, after = self._paddings(number, node)
        kinds = schema().Padding
        if not any((*before, *after)):
            return number, kinds.VALID
        if [*before, *after] == self._same(number, node):
            return number, kinds.SAME
        _, height, width, channels = self.file.shapes[number]
        grid = self.file.grids.get(number)
        shape = (1, height + before[0] + after[0], width + before[1] + after[1], channels)
        output = self.file.tensor(f"{node.name}_padded", shape, grid)
        amounts = np.array([[0, 0], [before[0], after[0]], [before[1], after[1]], [0, 0]], np.int32)
        paddings = self.file.constant("paddings", amounts)
        if not lowest or (grid is not None and grid.low == grid.zero):
            return self.file.operation("PAD", [number, paddings], output, "PadOptions"), kinds.VALID
        if grid is None:
            value = self.file.constant("lowest", np.array([np.finfo(np.float32).min], np.float32))
        else:
            value = self.file.scalar("lowest", grid.low, grid)
        return self.file.operation("PADV2", [number, paddings, value], output, "PadV2Options"), kinds.VALID

    def _paddings(self, number: int, node: NodeProto) -> tuple[list[int], list[int]]:
        """Return the paddings before and after height and width, those for a rounded up size of the result included."""
        given = attributes(node)
        if given.get("auto_pad", b"NOTSET") != b"NOTSET":
            raise UnsupportedError(node, "automatic padding cannot be expressed; use numbers")
        pads = list(given.get("pads", [0, 0, 0, 0]))
        sizes, results = self.file.shapes[number][1:3], self.shape(node, node.output[0])[1:3]
        for axis, (size, result, reach, stride) in enumerate(zip(sizes, results, *_reach(self, node), strict=True)):
            missing = (result - 1) * stride + reach - size - pads[axis] - pads[axis + 2]
            pads[axis + 2] += max(missing, 0)
        return pads[:2], pads[2:]

    def _same(self, number: int, node: NodeProto) -> list[int]:
        """Return the paddings that TFLite's SAME means."""
        totals = [
            max((-(-size // stride) - 1) * stride + reach - size, 0)
            for size, reach, stride in zip(self.file.shapes[number][1:3], *_reach(self, node), strict=True)
        ]
        return [*(total // 2 for total in totals), *(total - total // 2 for total in totals)]


def _reach(writer: TFLiteWriter, node: NodeProto) -> tuple[list[int], list[int]]:
    """Return how many pixels a kernel spans in height and width, and its strides."""
    given = attributes(node)
    kernel = given.get("kernel_shape") or writer.source.shape(node.input[1])[2:]
    dilations = given.get("dilations", [1, 1])
    return [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)], list(given.get("strides", [1, 1]))
