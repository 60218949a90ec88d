"""DoReFa-Net (Zhou et al., 2016, arXiv:1606.06160).

    weights: w' = tanh(w) / max |tanh(w)|,   w_q = 2 · quantize_b((w' + 1) / 2) - 1                   (equation 9)
    1-bit weights: w_q = sign(w) · mean |w|                                                         (equation 7)
    inputs: quantize_b(clip(x, 0, 1)),   quantize_b(r) = round((2^b - 1) · r) / (2^b - 1)      (equations 11, 5)
    rounding has the straight-through gradient

The levels of weights are the odd integers from -(2^b - 1) to 2^b - 1, times 1 / (2^b - 1); zero is not among them.

Deviations:
- 8-bit weights use the 255 levels -127..127 times 1/127, including zero: odd integers up to 255 do not fit int8.
- Signed inputs have the range [-1, 1] on a symmetric grid; the paper's [0, 1] would set negative values to zero.
- `per_channel` uses the maximum of each output channel; the paper uses one for the whole tensor.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from lbitcls.quant import functional
from lbitcls.quant.kernels import Elementwise
from lbitcls.quant.methods import register_method
from lbitcls.quant.quantizer import Quantizer
from lbitcls.quant.spec import compute_dtype, per_channel, per_grid


def odd_levels(x: Tensor, scale: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Round to the nearest odd number of steps from `low` to `high`."""
    return (2 * torch.round((torch.clamp(x / scale, low, high) - low) / 2) + low) * scale


def everywhere(grad: Tensor, x: Tensor, scale: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor]:
    """Return `grad`: a normalized weight never leaves the range (rounding errors aside), and 1 bit has no range."""
    return (grad,)


UNIFORM = Elementwise(
    functional.fake_quantize, functional.straight_through, functional.fake_quantize_plain, sums=functional.no_sums
)
ODD = Elementwise(odd_levels, everywhere)


class OddLevels(Quantizer):
    """Quantizer of weights to odd levels (255 levels with zero at 8 bits), on a grid that needs no first values.

    Args:
        num_bits: Number of bits.
        **kwargs: Arguments of `Quantizer`.
    """

    uniform: ClassVar[Elementwise] = UNIFORM
    """Formula at 8 bits."""
    bits_leave_range = True
    fixed_options = ("narrow_range",)
    needs_data = False

    @property
    def formula(self) -> Elementwise:  # type: ignore[override]
        """Odd levels; uniform levels at 8 bits."""
        return self.uniform if self.num_bits == 8 else ODD

    def integer_range(self) -> tuple[int, int]:
        largest = 127 if self.num_bits == 8 else 2**self.num_bits - 1
        return -largest, largest

    def levels(self) -> Tensor | None:
        if self.num_bits == 8:
            return None
        return torch.arange(self.quant_min, self.quant_max + 1, 2, dtype=torch.int32, device=self.low.device)

    def first_values(self, x: Tensor) -> None:
        """Do nothing: there is nothing to initialize."""

    def set_range(self, lower: Tensor, upper: Tensor) -> None:
        """Do nothing: there is nothing to initialize."""


class DoReFaWeight(OddLevels):
    """Quantizer of weights, normalized by tanh and their maximum, to odd levels (255 levels with zero at 8 bits).

    Args:
        num_bits: Number of bits, 1 to 8.
        **kwargs: Arguments of `Quantizer`.
    """

    lowest_bits = 1

    def normalize(self, x: Tensor) -> Tensor:
        x = super().normalize(x)
        if self.num_bits == 1:
            return x
        bent = torch.tanh(x.to(compute_dtype(x)))
        return bent / self._widest(bent)

    def denormalize(self, y: Tensor, x: Tensor) -> Tensor:
        if self.num_bits == 1:
            return super().denormalize(y, x)
        bent = y * self._widest(torch.tanh(super().normalize(x).to(compute_dtype(x))))
        limit = 1 - torch.finfo(bent.dtype).eps  # atanh(1) is infinite
        return super().denormalize(torch.atanh(bent.clamp(-limit, limit)), x)

    def _widest(self, bent: Tensor) -> Tensor:
        widest = per_grid(bent, self.channel_axis).abs().amax(1).clamp(min=functional.SMALLEST_SCALE)
        return per_channel(widest, bent, self.channel_axis)

    def grid(self, x: Tensor) -> tuple[Tensor, ...]:
        if self.num_bits == 1:
            scale = (
                per_grid(self.normalize(x.detach()), self.channel_axis)
                .abs()
                .mean(1)
                .clamp(min=functional.SMALLEST_SCALE)
            )
            return (scale if self.channel_axis is not None else scale[0]), self.low, self.high
        return 1 / self.high, self.low, self.high


class DoReFaInput(Quantizer):
    """Quantizer of inputs in [0, 1], or in [-1, 1] if they are signed."""

    formula = UNIFORM
    bits_leave_range = True

    def __init__(self, num_bits: int, **kwargs: Any) -> None:
        super().__init__(num_bits, narrow_range=True, **kwargs)
        self.needs_data = self._signed_by_config is None
        self.refresh()

    def grid(self, x: Tensor) -> tuple[Tensor, ...]:
        return 1 / self.high, self.low, self.high

    def first_values(self, x: Tensor) -> None:
        """Do nothing: the grid is constant; only its sign is read from data."""

    def set_range(self, lower: Tensor, upper: Tensor) -> None:
        """Do nothing: the grid is constant."""


register_method("DoReFa", weight=DoReFaWeight, input=DoReFaInput)
