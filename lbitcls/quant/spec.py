"""What the integers are: `QParams`, the description of a quantizer that exporters read, and integer ranges."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lbitcls.utils.errors import ConfigError

FLOAT_BITS = 32
"""Bits of a tensor that is not quantized, as configs write it."""


@dataclass(frozen=True)
class QParams:
    """A quantization grid: `value = (integer - zero_point) * scale`, `quant_min <= integer <= quant_max`.

    Attributes:
        scale: float32, shape () or (C,); one step of the grid, > 0.
        zero_point: int32, shape of `scale`; the integer that stands for 0.
        quant_min: smallest integer.
        quant_max: largest integer.
        channel_axis: the axis of the tensor that the C scales belong to; None: one scale for the tensor.
        levels: the integers that occur, ascending, int32, where not every one in the range does; else None.
    """

    scale: Tensor
    zero_point: Tensor
    quant_min: int
    quant_max: int
    channel_axis: int | None = None
    levels: Tensor | None = None

    @property
    def signed(self) -> bool:
        """Whether a negative integer occurs."""
        return self.quant_min < 0

    def dequantize(self, integers: Tensor) -> Tensor:
        """The float values of `integers` (any integer dtype; the shape the grid belongs to), in the scale's dtype."""
        scale, zero_point = (along(t, integers.dim(), self.channel_axis) for t in (self.scale, self.zero_point))
        return (integers - zero_point).to(scale.dtype) * scale


def along(parameter: Tensor, dim: int, channel_axis: int | None) -> Tensor:
    """`parameter` of shape () or (C,), shaped to broadcast along `channel_axis` of a tensor with `dim` axes."""
    if channel_axis is None or parameter.dim() == 0:
        return parameter
    shape = [1] * dim
    shape[channel_axis] = -1
    return parameter.view(shape)


def integer_range(num_bits: int, signed: bool, narrow_range: bool = False) -> tuple[int, int]:
    """Smallest and largest integer of a grid.

    Args:
        num_bits: 1 to 8.
        signed: two's complement range instead of one from 0.
        narrow_range: leave out the most negative integer, so that every one has its negative.

    Example:
        >>> integer_range(4, signed=True), integer_range(8, signed=True, narrow_range=True)
        ((-8, 7), (-127, 127))
    """
    if not signed:
        return 0, 2**num_bits - 1
    return -(2 ** (num_bits - 1)) + int(narrow_range), 2 ** (num_bits - 1) - 1


def check_num_bits(num_bits: int, owner: str, lowest: int = 2) -> int:
    """`num_bits` when it is a whole number from `lowest` to 8, else `ConfigError`."""
    if not isinstance(num_bits, int) or isinstance(num_bits, bool) or not lowest <= num_bits <= 8:
        raise ConfigError(f"{owner} quantizes to {lowest} to 8 bits (32: float); got {num_bits!r}.")
    return num_bits


def compute_dtype(x: Tensor) -> torch.dtype:
    """The dtype a quantizer computes in: float64 stays, everything narrower becomes float32."""
    return torch.float64 if x.dtype is torch.float64 else torch.float32
