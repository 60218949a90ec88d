"""Operations that move or choose values, in any form: each is a function of the writer, its node and a form."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np

from lbitcls.deploy.passes.graph import attributes
from lbitcls.deploy.targets.tflite.writing import Form, TFLiteWriter, UnsupportedError, stored, stored_axis

if TYPE_CHECKING:
    from onnx import NodeProto

_NHWC, _NCHW = (0, 2, 3, 1), (0, 3, 1, 2)


def _alike(writer: TFLiteWriter, number: int, name: str, shape: tuple[int, ...]) -> int:
    """Return a new tensor on the same grid."""
    return writer.file.tensor(name, shape, writer.file.grids.get(number))


def _transposed(writer: TFLiteWriter, number: int, order: tuple[int, ...]) -> int:
    shape = writer.file.shapes[number]
    moved = tuple(shape[axis] for axis in order)
    movable = [axis for axis in order if shape[axis] != 1]
    if movable == sorted(movable):  # only axes of size 1 change places
        return _reshaped(writer, number, moved)
    output = _alike(writer, number, "transposed", moved)
    return writer.file.operation(
        "TRANSPOSE", [number, writer.file.constant("order", np.array(order, np.int32))], output, "TransposeOptions"
    )


def _reshaped(writer: TFLiteWriter, number: int, shape: tuple[int, ...]) -> int:
    if shape == writer.file.shapes[number]:
        return number
    output = _alike(writer, number, "reshaped", shape)
    wanted = np.array([-1, *shape[1:]], np.int32)
    sizes = writer.file.constant("shape", wanted)
    return writer.file.operation("RESHAPE", [number, sizes], output, "ReshapeOptions", newShape=wanted.tolist())


def reshape(writer: TFLiteWriter, node: NodeProto, name: str, form: Form) -> int:
    """Write Reshape, Flatten, Squeeze or Unsqueeze; the batch axis stays."""
    number, shape = form(node.input[0]), writer.source.shape(name)
    before = writer.source.shape(node.input[0])
    if not shape or prod(shape) != prod(before):
        raise UnsupportedError(node, "it moves images to another axis, or to unknown sizes")
    if len(before) == 4 and before[2:] != (1, 1):
        number = _transposed(writer, number, _NCHW)
    if len(shape) == 4 and shape[2:] == (1, 1):
        return _reshaped(writer, number, stored(shape))
    number = _reshaped(writer, number, shape)
    return _transposed(writer, number, _NHWC) if len(shape) == 4 else number


def transpose(writer: TFLiteWriter, node: NodeProto, name: str, form: Form) -> int:
    """Write Transpose."""
    number, order = form(node.input[0]), tuple(attributes(node)["perm"])
    if order[0] != 0:
        raise UnsupportedError(node, "it moves the batch axis")
    if len(order) == 4:
        order = tuple(stored_axis(axis, 4) for axis in stored(order))
    return _transposed(writer, number, order)


def concat(writer: TFLiteWriter, node: NodeProto, name: str, form: Form) -> int:
    """Write Concat."""
    numbers = [form(taken) for taken in node.input]
    shape = writer.shape(node, name)
    axis = stored_axis(attributes(node)["axis"], len(shape))
    output = _alike(writer, numbers[0], node.name, shape)
    return writer.file.operation("CONCATENATION", numbers, output, "ConcatenationOptions", axis=axis)


def max_pool(writer: TFLiteWriter, node: NodeProto, name: str, form: Form) -> int:
    """Write MaxPool."""
    given = attributes(node)
    if any(d != 1 for d in given.get("dilations", [1])):
        raise UnsupportedError(node, "a dilated pooling cannot be expressed")
    number, padding = writer.padded(form(node.input[0]), node, lowest=True)
    return _pooled(writer, number, name, node, given["kernel_shape"], given.get("strides", [1, 1]), padding)


def global_max(writer: TFLiteWriter, node: NodeProto, name: str, form: Form) -> int:
    """Write GlobalMaxPool, or ReduceMax over height and width."""
    number = form(node.input[0])
    if node.op_type == "ReduceMax" and sorted(a % 4 for a in axes_of(writer, node)) != [2, 3]:
        raise UnsupportedError(node, "a maximum over other axes than height and width cannot be expressed")
    shape = writer.file.shapes[number]
    pooled = _pooled(writer, number, name, node, shape[1:3], [1, 1], 1, (1, 1, 1, shape[3]))
    return _reshaped(writer, pooled, writer.shape(node, name))


def _pooled(
    writer: TFLiteWriter,
    number: int,
    name: str,
    node: NodeProto,
    kernel: Any,
    strides: Any,
    padding: int,
    shape: tuple[int, ...] | None = None,
) -> int:
    output = _alike(writer, number, node.name, shape or writer.shape(node, name))
    return writer.file.operation(
        "MAX_POOL_2D",
        [number],
        output,
        "Pool2DOptions",
        padding=padding,
        filterHeight=kernel[0],
        filterWidth=kernel[1],
        strideH=strides[0],
        strideW=strides[1],
    )


def pad(writer: TFLiteWriter, node: NodeProto, name: str, form: Form) -> int:
    """Write Pad with zeros."""
    given, shape = attributes(node), writer.shape(node, name)
    value = writer.source.array(node.input[2]) if len(node.input) > 2 and node.input[2] else None
    amounts = writer.source.array(node.input[1])
    if given.get("mode", b"constant") != b"constant" or amounts is None or (value is not None and value.any()):
        raise UnsupportedError(node, "only a padding with zeros can be expressed")
    rank = len(shape)
    axes = writer.source.array(node.input[3]) if len(node.input) > 3 and node.input[3] else np.arange(rank)
    rows = np.zeros((rank, 2), np.int32)
    assert axes is not None
    for axis, pair in zip(axes, amounts.reshape(2, -1).T, strict=True):
        rows[stored_axis(int(axis), rank)] = pair
    number = form(node.input[0])
    if (rows < 0).any() or rows[0].any():
        raise UnsupportedError(node, "a padding that removes values, or adds images, cannot be expressed")
    output = _alike(writer, number, node.name, shape)
    return writer.file.operation("PAD", [number, writer.file.constant("paddings", rows)], output, "PadOptions")


def slices(writer: TFLiteWriter, node: NodeProto, name: str, form: Form) -> int:
    """Write Slice with constant bounds and positive steps."""
    arrays = [writer.source.array(taken) if taken else None for taken in node.input[1:]]
    if any(a is None for a, taken in zip(arrays, node.input[1:], strict=True) if taken):
        raise UnsupportedError(node, "bounds that are computed cannot be expressed")
    starts, ends = (np.asarray(a) for a in arrays[:2])
    axes, steps = ([*arrays, None, None][i] for i in (2, 3))
    axes = np.arange(len(starts)) if axes is None else axes
    steps = np.ones(len(starts), np.int64) if steps is None else steps
    number = form(node.input[0])
    return _strided(writer, node, name, number, list(zip(axes, starts, ends, steps, strict=True)))


def _strided(
    writer: TFLiteWriter, node: NodeProto, name: str, number: int, parts: list[tuple[Any, Any, Any, Any]]
) -> int:
    shape = writer.file.shapes[number]
    bounds = [[0, size, 1] for size in shape]
    open_ends = 1  # the batch axis, whose size is free
    for axis, start, end, step in parts:
        place = stored_axis(int(axis), len(shape))
        if place == 0 and (start, step) == (0, 1) and end >= 2**31 - 1:
            continue
        if step < 1 or place == 0:
            raise UnsupportedError(node, "a slice of the batch, or in reverse order, cannot be expressed")
        low, high, _ = slice(int(start), int(end)).indices(shape[place])
        bounds[place] = [low, high, int(step)]
    constants = [writer.file.constant("bounds", np.array(column, np.int32)) for column in zip(*bounds, strict=True)]
    output = _alike(writer, number, node.name, writer.shape(node, name))
    return writer.file.operation(
        "STRIDED_SLICE", [number, *constants], output, "StridedSliceOptions", endMask=open_ends
    )


def split(writer: TFLiteWriter, node: NodeProto, name: str, form: Form) -> int:
    """Write the part of a Split that `name` is, as a slice."""
    axis = attributes(node).get("axis", 0)
    sizes = [writer.source.shape(output)[axis] for output in node.output]
    place = list(node.output).index(name)
    start = sum(sizes[:place])
    return _strided(writer, node, name, form(node.input[0]), [(axis, start, start + sizes[place], 1)])


def identity(writer: TFLiteWriter, node: NodeProto, name: str, form: Form) -> int:
    """Return the input."""
    return form(node.input[0])


def axes_of(writer: TFLiteWriter, node: NodeProto) -> list[int]:
    """Return the axes of a reduction."""
    given = attributes(node).get("axes")
    if given is None and len(node.input) > 1 and node.input[1]:
        given = writer.source.array(node.input[1])
    return [] if given is None else [int(axis) for axis in given]


MOVES = {
    "Concat": concat,
    "Flatten": reshape,
    "GlobalMaxPool": global_max,
    "Identity": identity,
    "MaxPool": max_pool,
    "Pad": pad,
    "ReduceMax": global_max,
    "Reshape": reshape,
    "Slice": slices,
    "Split": split,
    "Squeeze": reshape,
    "Transpose": transpose,
    "Unsqueeze": reshape,
}
