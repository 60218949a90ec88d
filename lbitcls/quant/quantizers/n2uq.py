"""N2UQ: nonuniform-to-uniform quantization (Liu et al., 2022, arXiv:2111.14826).

    inputs: i steps between the thresholds T_i and T_(i+1),  i = 0 … n = 2^b - 1, times one learned step
    T_i = d_(i-1) + a_i / 2,  d_i = a_1 + … + a_i,  with learned lengths a_i > 0
    backward (G-STE): the value is (i - 1 + (x - d_(i-1)) / a_i) · step in segment i, from d_(i-1) to d_i, constant
    before d_0 = 0 and after d_n; its derivatives by x and by every a_i are the gradients
    weights: w' = w · 2^(b-1) / (2^b - 1) / mean |w|, clipped to [-1, 1], rounded to 2^b levels from -1 to 1,
    which keeps the entropy of the levels high

The segments' middles are the thresholds, so the value is that line, rounded: `normalize` bends x to the line, and the
rest is rounding with the straight-through gradient. The result is exactly the number of thresholds below x times the
step (`kernels.piecewise`), so an exported model counts the same. ∂x̂/∂step is that number.

Details that the paper leaves open follow the authors' code: the weights' mean is that of the output channel
(`per_channel=True`), a constant for the gradient; levels are multiplied by it again; the gradient passes unclipped.

Deviations:
- The first segment starts at 0, where the authors' code learns its start: zero stays zero on the grid of inputs, so
  padding is exact. The authors' scale of x is left out, since the lengths contain it.
- Signed inputs mirror the thresholds at zero, with 2^(b-1) - 1 of the lengths; the paper's inputs are not negative.
- The first range has the least mean squared error with equal lengths; the authors' code starts from [0, 2].
- A length is at least a hundredth of the mean length (the authors': 0.001, where the first range is 2), and keeps its
  gradient there; if training drives it below zero, its magnitude is used.
- Gradients of step and lengths are multiplied by LSQ's factor, so that one learning rate suits all layers.
- The straight-through gradient of a weight is 1; in the authors' code it is 1 / (mean · (2^b - 1) / 2^(b-1)), which
  Adam, their optimizer, cancels.
- 8-bit weights use the 255 levels -127..127, as DoReFa's: odd integers up to 255 do not fit int8.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from lbitcls.quant import functional
from lbitcls.quant.kernels import Elementwise
from lbitcls.quant.kernels.piecewise import Bend, midpoints
from lbitcls.quant.methods import register_method
from lbitcls.quant.quantizer import Quantizer, RangeRule
from lbitcls.quant.quantizers.dorefa import OddLevels, everywhere
from lbitcls.quant.ranges import fill_scale, mse
from lbitcls.quant.spec import compute_dtype, per_grid

SHORTEST = 0.01
"""Smallest length of a segment, relative to the mean length."""


def step_gradients(grad: Tensor, x: Tensor, scale: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """Return the gradients of `fake_quantize` if the step only scales the result: `steps` for the step."""
    v = functional.late(grad, x) / scale
    inside = (v >= low) & (v <= high)
    return torch.where(inside, grad, 0.0), torch.clamp(torch.round(v), low, high) * grad


class N2UQInput(Quantizer):
    """Quantizer of inputs with learned thresholds and one learned step.

    Args:
        num_bits: Number of bits, 2 to 8.
        **kwargs: Arguments of `Quantizer`.

    Attributes:
        scale: Step of the result, ().
        lengths: Lengths of the segments from zero upward, in units of x, (2^num_bits - 1,).

    Example:
        >>> quantizer = N2UQInput(2, signed=False)
        >>> quantizer.initialize(torch.tensor([0.0, 3.0]), lambda rows, _: (rows.amin(1), rows.amax(1)))
        >>> quantizer.lengths.data.copy_(torch.tensor([1.0, 2.0, 1.0]))  # thresholds 0.5, 2, 3.5
        tensor([1., 2., 1.])
        >>> quantizer(torch.tensor([0.4, 0.6, 1.9, 2.1, 3.4, 3.6])).tolist()
        [0.0, 1.0, 1.0, 2.0, 2.0, 3.0]
    """

    formula = Elementwise(functional.fake_quantize, step_gradients, functional.fake_quantize_plain)
    bits_are_fixed = True

    def __init__(self, num_bits: int, **kwargs: Any) -> None:
        super().__init__(num_bits, narrow_range=True, **kwargs)
        self.scale = nn.Parameter(torch.ones(()))
        self.lengths = nn.Parameter(torch.ones(2**num_bits - 1))

    def normalize(self, x: Tensor) -> Tensor:
        x = super().normalize(x)
        if not self._ready:
            return x
        x = x.to(compute_dtype(x))
        bent: Tensor = Bend.apply(x, self._knots(self._factor(x)).to(x.dtype), self.signed)
        return bent * functional.positive_scale(self.scale).detach()

    @torch.no_grad()
    def thresholds(self) -> Tensor:
        return midpoints(self._knots())

    def _knots(self, factor: float = 1.0) -> Tensor:
        """Return d_0 … d_n, whose gradients are multiplied by `factor`."""
        free = functional.positive_scale(self.lengths[: self.quant_max], factor)
        bounded = torch.maximum(free, SHORTEST * free.mean()).detach() + (free - free.detach())
        return torch.cat([bounded.new_zeros(1), bounded.cumsum(0)])

    def _factor(self, x: Tensor) -> float:
        return 1 / math.sqrt(max(x[:1].numel(), 1) * self.quant_max)

    def grid(self, x: Tensor) -> tuple[Tensor, ...]:
        return functional.positive_scale(self.scale, self._factor(x)), self.low, self.high

    @torch.no_grad()
    def initialize(self, x: Tensor, rule: RangeRule | None = None) -> None:
        self._ready = False  # first values come from x itself, not from x bent by thresholds of before
        try:
            super().initialize(x, rule)
        finally:
            self.refresh()

    def first_values(self, x: Tensor) -> None:
        self.set_range(*mse(per_grid(x, None), self))

    def set_range(self, lower: Tensor, upper: Tensor) -> None:
        fill_scale(self.scale, (torch.maximum(upper, -lower) if self.signed else upper) / self.quant_max, 1.0)
        self.lengths.data.fill_(self.scale.detach())


class N2UQWeight(OddLevels):
    """Quantizer of weights to 2^num_bits levels, as far apart as the mean magnitude demands.

    Args:
        num_bits: Number of bits, 2 to 8.
        **kwargs: Arguments of `Quantizer`.
    """

    uniform = Elementwise(functional.fake_quantize, everywhere, functional.fake_quantize_plain)

    def grid(self, x: Tensor) -> tuple[Tensor, ...]:
        x = self.normalize(x.detach())
        mean = per_grid(x.to(compute_dtype(x)), self.channel_axis).abs().mean(1)
        clip = (mean * (2**self.num_bits - 1) / 2 ** (self.num_bits - 1)).clamp(min=functional.SMALLEST_SCALE)
        return (clip if self.channel_axis is not None else clip[0]) / self.high, self.low, self.high


register_method("N2UQ", weight=N2UQWeight, input=N2UQInput)
