"""Piecewise linear function through knots: knots[i] becomes i, so that uneven thresholds become even ones.

Between two knots the function is linear; before the first and after the last it continues straight. With the gradients
of this function by x and by the knots, rounding it is N2UQ's generalized straight-through estimator.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lbitcls.quant.kernels.elementwise import as_rows, dense, like
from lbitcls.quant.kernels.selection import fusible

MOST_COMPARISONS = 16


def positions(x: Tensor, knots: Tensor, signed: bool = False) -> Tensor:
    """Return the position of each value between the knots, in steps; NaN stays NaN.

    Args:
        x: Floating-point tensor of any shape.
        knots: Ascending values (n + 1,) of the dtype of `x`, n >= 1, that become 0 … n.
        signed: Mirror the function at zero: `positions(-x) = -positions(x)`.

    Example:
        >>> positions(torch.tensor([0.5, 2.0, 4.0]), torch.tensor([0.0, 1.0, 3.0])).tolist()
        [0.5, 1.5, 2.5]
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
    number, start, width = _segments(magnitude, knots)
    found = number + (magnitude - start) / width
    return torch.where(x < 0, -found, found) if signed else found


@fusible
def _gradients(grad: Tensor, x: Tensor, knots: Tensor, signed: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradient of x, and those of each segment's start and end, (n,)."""
    magnitude = x.abs() if signed else x
    number, start, width = _segments(magnitude, knots)
    grad_x = grad / width
    by_end = -(grad_x * torch.sign(x) if signed else grad_x) * ((magnitude - start) / width).clamp(0, 1)
    by_start = -(grad_x * torch.sign(x) if signed else grad_x) - by_end
    return grad_x, _sums(by_start, number, knots), _sums(by_end, number, knots)


def _segments(x: Tensor, knots: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the number of each value's segment, its start and its width."""
    inner, widths = knots[1:-1], knots[1:] - knots[:-1]
    if torch.compiler.is_compiling() and len(inner) < MOST_COMPARISONS:
        number, start, width = (torch.zeros_like(x) + first for first in (0, knots[0], widths[0]))
        for i in range(len(inner)):  # one pass over memory, also in OpenVINO; a search is not
            beyond = x > inner[i]
            number = torch.where(beyond, i + 1, number)
            start, width = torch.where(beyond, inner[i], start), torch.where(beyond, widths[i + 1], width)
        return number, start, width
    if torch.compiler.is_exporting():
        count = _halving_search(x, inner)
    elif len(inner) < MOST_COMPARISONS:
        count = torch.zeros_like(x, dtype=torch.int32)
        for bound in inner:
            count += x > bound
    else:
        count = torch.bucketize(x, inner, out_int32=True)
    flat = count.reshape(-1)
    return count, knots.index_select(0, flat).view(x.shape), widths.index_select(0, flat).view(x.shape)


def _halving_search(x: Tensor, inner: Tensor) -> Tensor:
    """Return the number of `inner` values, ascending, below each value of `x`, int64; made of ONNX's operators."""
    half = 2 ** len(inner).bit_length() // 2
    table = torch.cat([inner, inner.new_full((max(2 * half - 1 - len(inner), 0),), torch.inf)])
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
