"""Uneven thresholds: the number of them below x, and the line that this staircase rounds, with its gradients.

The line goes through knots, knots[i] becomes i, and continues straight before the first and after the last. Thresholds
are the middles between knots. Rounded, the line is the number of thresholds below x, exactly: a value beside a
threshold keeps a distance from the half, so that no rounding error moves it to the other side. With the line's
gradients by x and by the knots, this is N2UQ's generalized straight-through estimator.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lbitcls.quant.kernels.elementwise import as_rows, dense, like
from lbitcls.quant.kernels.selection import fusible

MOST_COMPARISONS = 16
MARGIN = 1e-3
"""Least distance of a position from a half, in steps: more than the rounding errors of 255 steps."""


def midpoints(knots: Tensor) -> Tensor:
    """Return the thresholds (n,) between knots (n + 1,)."""
    return (knots[1:] + knots[:-1]) / 2


def steps_of(x: Tensor, thresholds: Tensor, signed: bool = False, levels: Sequence[float] | None = None) -> Tensor:
    """Return the number of thresholds below each value, in the dtype of `x`, in operators that ONNX has.

    Args:
        x: Floating-point tensor of any shape, without NaN.
        thresholds: Ascending values (n,) of the dtype of `x`.
        signed: Mirror the staircase at zero: `steps_of(-x) = -steps_of(x)`.
        levels: Values to return instead of the numbers 0 … n, (n + 1,), from 0 upward.

    Example:
        >>> steps_of(torch.tensor([0.5, 0.6, 4.0]), torch.tensor([0.5, 2.0])).tolist()
        [0.0, 1.0, 2.0]
    """
    magnitude = x.abs() if signed else x
    values = [float(value) for value in (range(len(thresholds) + 1) if levels is None else levels)]
    if not torch.compiler.is_exporting():
        number = torch.bucketize(magnitude.contiguous(), thresholds)
        steps = number.to(x.dtype) if levels is None else torch.tensor(values, dtype=x.dtype, device=x.device)[number]
    elif len(thresholds) < MOST_COMPARISONS:
        steps = torch.where(magnitude > thresholds[0], values[1], values[0])
        for i in range(1, len(thresholds)):
            steps = torch.where(magnitude > thresholds[i], values[i + 1], steps)
    else:
        number = _halving_search(magnitude, thresholds)
        steps = number.to(x.dtype) if levels is None else torch.tensor(values, dtype=x.dtype)[number]
    return torch.where(x < 0, -steps, steps) if signed else steps


def positions(x: Tensor, knots: Tensor, signed: bool = False) -> Tensor:
    """Return the position of each value between the knots, in steps, at least `MARGIN` from a half; NaN stays NaN.

    Args:
        x: Floating-point tensor of any shape.
        knots: Ascending values (n + 1,) of the dtype of `x`, n >= 1, that become 0 … n.
        signed: Mirror the function at zero: `positions(-x) = -positions(x)`.

    Example:
        >>> positions(torch.tensor([0.25, 2.5, 4.0]), torch.tensor([0.0, 1.0, 3.0])).tolist()
        [0.25, 1.75, 2.5]
    """
    if torch.compiler.is_compiling():
        return _positions(x, knots, signed)
    x = dense(x)
    return like(_positions(as_rows(x, None), knots.detach(), signed), x, None)


class Bend(torch.autograd.Function):
    """`positions` with gradients by x and by the knots."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, knots: Tensor, signed: bool) -> Tensor:
        """Return `positions(x, knots, signed)`."""
        ctx.save_for_backward(x, knots)
        ctx.signed = signed
        return positions(x, knots, signed)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        """Return the gradients by `x` and `knots`."""
        x, knots = (saved.detach() for saved in ctx.saved_tensors)
        if torch.compiler.is_compiling():
            grad_x, start, end = _gradients(grad, x, knots, ctx.signed)
        else:
            x = dense(x)
            grad = grad if grad.stride() == x.stride() else torch.empty_like(x).copy_(grad)
            grad_x, start, end = _gradients(as_rows(grad, None), as_rows(x, None), knots, ctx.signed)
            grad_x = like(grad_x, x, None)
        none = knots.new_zeros(1)
        return grad_x, torch.cat([start, none]) + torch.cat([none, end]), None


@fusible
def _positions(x: Tensor, knots: Tensor, signed: bool) -> Tensor:
    magnitude = x.abs() if signed else x
    number, middle, width = _segments(magnitude, knots)
    beyond = (magnitude - middle) / width
    beyond = torch.where(magnitude > middle, beyond.clamp(min=MARGIN), beyond.clamp(max=-MARGIN))
    found = number + 0.5 + beyond
    return torch.where(x < 0, -found, found) if signed else found


@fusible
def _gradients(grad: Tensor, x: Tensor, knots: Tensor, signed: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradient of x, and those of each segment's start and end, (n,)."""
    magnitude = x.abs() if signed else x
    number, middle, width = _segments(magnitude, knots)
    grad_x = grad / width
    by_ends = -(grad_x * torch.sign(x) if signed else grad_x)
    by_end = by_ends * ((magnitude - middle) / width + 0.5).clamp(0, 1)
    by_start = by_ends - by_end
    return grad_x, _sums(by_start, number, knots), _sums(by_end, number, knots)


def _segments(x: Tensor, knots: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the number of each value's segment, its threshold and its width."""
    inner, middles, widths = knots[1:-1], midpoints(knots), knots[1:] - knots[:-1]
    if torch.compiler.is_compiling() and len(inner) < MOST_COMPARISONS:
        number, middle, width = (torch.zeros_like(x) + first for first in (0, middles[0], widths[0]))
        for i in range(len(inner)):  # one pass over memory; a search is not
            beyond = x > inner[i]
            number = torch.where(beyond, i + 1, number)
            middle, width = torch.where(beyond, middles[i + 1], middle), torch.where(beyond, widths[i + 1], width)
        return number, middle, width
    if len(inner) < MOST_COMPARISONS:
        count = torch.zeros_like(x, dtype=torch.int32)
        for bound in inner:
            count += x > bound
    else:
        count = torch.bucketize(x, inner, out_int32=True)
    middle, width = (table.index_select(0, count.reshape(-1)).view(x.shape) for table in (middles, widths))
    return count, middle, width


def _halving_search(x: Tensor, thresholds: Tensor) -> Tensor:
    """Return the number of thresholds below each value, int64."""
    half = 2 ** len(thresholds).bit_length() // 2
    table = torch.cat([thresholds, thresholds.new_full((2 * half - 1 - len(thresholds),), torch.inf)])
    number = torch.zeros_like(x, dtype=torch.int64)
    while half:
        number = torch.where(x > table[number + (half - 1)], number + half, number)
        half //= 2
    return number


def _sums(parts: Tensor, number: Tensor, knots: Tensor) -> Tensor:
    """Return the sum of the parts of each segment."""
    segments = len(knots) - 1
    if torch.compiler.is_compiling() and segments <= MOST_COMPARISONS:
        return torch.stack([torch.where(number == i, parts, 0.0).sum() for i in range(segments)])
    sums = torch.zeros(segments, dtype=torch.float64, device=parts.device)
    return sums.index_add_(0, number.reshape(-1).to(torch.int64), parts.reshape(-1).double()).to(parts.dtype)
