"""ONNX's operators that change a tensor's shape, as PyTorch functions; see `operators`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lbitcls.deploy.targets.xnnpack.steps import Step
from lbitcls.deploy.targets.xnnpack.values import Integers, Value, operand, real, real_rank


def without(shape: Sequence[int], places: Sequence[int]) -> list[int]:
    """Return the sizes at all other places."""
    return [size for place, size in enumerate(shape) if place not in places]


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
    return x.reshape(without(x.shape, places))


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
