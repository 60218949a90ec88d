"""Integer grids: `QParams`, the description of a quantizer that exporters read, integer ranges, tensors by grid."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from lbitcls.utils.errors import ConfigError

FLOAT_BITS = 32
"""Number of bits that stands for a float tensor in configs."""


@dataclass(frozen=True)
class QParams:
    """Quantization grid: `value = (integer - zero_point) * scale`, `quant_min <= integer <= quant_max`.

    Attributes:
        scale: One step of the grid, > 0; float32 of shape () or (C,).
        zero_point: Integer that stands for 0; int32 of the shape of `scale`.
        quant_min: Smallest integer.
        quant_max: Largest integer.
        channel_axis: Axis of the tensor that the C scales belong to; None: one scale for the tensor.
        levels: Integers that occur, ascending, int32; None: all integers in the range occur.
        thresholds: Values above which an input, its magnitude if signed, becomes 1, 2, … steps, or the next of `levels`
            (`piecewise.steps_of`); None: they lie in the middle between two steps.
    """

    scale: Tensor
    zero_point: Tensor
    quant_min: int
    quant_max: int
    channel_axis: int | None = None
    levels: Tensor | None = None
    thresholds: Tensor | None = None

    @property
    def signed(self) -> bool:
        """True if negative integers occur."""
        return self.quant_min < 0

    @property
    def magnitudes(self) -> list[int] | None:
        """Integers from 0 upward that occur, one more than `thresholds`; None: all integers in the range occur."""
        return None if self.levels is None else [level for level in self.levels.tolist() if level >= 0]

    def dequantize(self, integers: Tensor) -> Tensor:
        """Return the float values of `integers` (any integer dtype, the grid's tensor shape) in the scale's dtype."""
        scale, zero_point = (along(t, integers.dim(), self.channel_axis) for t in (self.scale, self.zero_point))
        return (integers - zero_point).to(scale.dtype) * scale


Parameter = TypeVar("Parameter", Tensor, Tensor | float)


def along(parameter: Parameter, dim: int, channel_axis: int | None) -> Parameter:
    """Return `parameter` of shape () or (C,), shaped to broadcast along `channel_axis` of a tensor with `dim` axes."""
    if channel_axis is None or not isinstance(parameter, Tensor) or parameter.dim() == 0:
        return parameter
    shape = [1] * dim
    shape[channel_axis] = -1
    return parameter.view(shape)


def per_grid(x: Tensor, channel_axis: int | None) -> Tensor:
    """Return `x` as a matrix (grids, elements of each): (1, n) per-tensor, (C, n / C) per-channel."""
    if channel_axis is None:
        return x.reshape(1, -1)
    return x.movedim(channel_axis, 0).reshape(x.shape[channel_axis], -1)


def extremes(x: Tensor, channel_axis: int | None) -> tuple[Tensor, Tensor]:
    """Return the smallest and largest value of each grid: shape () per-tensor, (C,) per-channel."""
    # Read a whole tensor in memory order: one row of `per_grid` would be read across its memory format.
    both = torch.aminmax(x) if channel_axis is None else torch.aminmax(per_grid(x, channel_axis), dim=1)
    return both.min, both.max


def per_channel(values: Tensor, x: Tensor, channel_axis: int | None) -> Tensor:
    """Return the values (grids,) of `per_grid` rows, shaped to broadcast against `x`."""
    return values[0] if channel_axis is None else along(values, x.dim(), channel_axis)


def integer_range(num_bits: int, signed: bool, narrow_range: bool = False) -> tuple[int, int]:
    """Return the smallest and largest integer of a grid.

    Args:
        num_bits: Number of bits, 1 to 8.
        signed: Use the two's complement range instead of a range from 0.
        narrow_range: Leave out the most negative integer, so that every integer has its negative.

    Example:
        >>> integer_range(4, signed=True), integer_range(8, signed=True, narrow_range=True)
        ((-8, 7), (-127, 127))
    """
    if not signed:
        return 0, 2**num_bits - 1
    return -(2 ** (num_bits - 1)) + int(narrow_range), 2 ** (num_bits - 1) - 1


def check_num_bits(num_bits: int, owner: str, lowest: int = 2) -> int:
    """Return `num_bits`; raise `ConfigError` unless it is an integer from `lowest` to 8."""
    if not isinstance(num_bits, int) or isinstance(num_bits, bool) or not lowest <= num_bits <= 8:
        raise ConfigError(f"{owner}: bits must be an integer from {lowest} to 8 (32: float); got {num_bits!r}.")
    return num_bits


def compute_dtype(x: Tensor) -> torch.dtype:
    """Return the dtype a quantizer computes in: float64 for float64, float32 for everything narrower."""
    return torch.float64 if x.dtype is torch.float64 else torch.float32
