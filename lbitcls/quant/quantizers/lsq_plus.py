"""LSQ+: learned step and offset (Bhalgat et al., 2020, arXiv:2004.09576).

    x̄ = round(clip((x - β) / s, n, p)),   x̂ = x̄ · s + β                                          (equations 1, 2)
    ∂x̂/∂s = round(v) - v inside the range, n or p outside                                          (equation 4)
    ∂x̂/∂β = 0 inside, 1 outside                                                                   (equation 5)
    weights: symmetric, initial s = max(|μ - 3σ|, |μ + 3σ|) / 2^(b-1)                               (section 3.2)
    inputs: initial s and β minimize the mean squared error                                         (section 3.3)

Deviations:
- β is used as an integer zero point, round(-β / s): zero stays on the grid, so that padding is exact and integer
  engines can run it.
- For inputs, the gradients of s and β are multiplied by 1 / sqrt(n · (2^b - 1)), with n the number of features of one
  sample; for weights, the gradient of s is multiplied by LSQ's factor.
- 8-bit weights use -127..127, so that every integer has its negative.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from lbitcls.quant import affine, functional
from lbitcls.quant.kernels import Elementwise
from lbitcls.quant.methods import register_method
from lbitcls.quant.quantizer import Quantizer, fill
from lbitcls.quant.quantizers.lsq import LSQ
from lbitcls.quant.ranges import fill_scale, mse
from lbitcls.quant.spec import per_grid


class LSQPlusWeight(LSQ):
    """LSQ's quantizer with LSQ+'s initial values: a learned scale for the tensor, or one for each channel."""

    fixed_options = ("init",)

    def first_values(self, x: Tensor) -> None:
        rows = per_grid(x, self.channel_axis)
        mean, deviation = rows.mean(1), 3 * rows.std(1, correction=0)
        widest = torch.maximum((mean - deviation).abs(), (mean + deviation).abs())
        fill_scale(self.scale, widest / 2 ** (self.num_bits - 1), 1 / self.quant_max)


class LSQPlus(Quantizer):
    """Quantizer with a learned step and offset: integers 0 to 2^b - 1 (signed if the config asks) and a zero point."""

    formula = Elementwise(
        affine.fake_quantize,
        affine.gradients,
        affine.fake_quantize_plain,
        affine.gradients_plain,
        apart=True,
        sums=affine.sums_of_gradients,
    )

    def __init__(self, num_bits: int, signed: bool | None = False, **kwargs: Any) -> None:
        super().__init__(num_bits, signed=bool(signed), **kwargs)
        self.scale = nn.Parameter(torch.ones(()))
        self.offset = nn.Parameter(torch.zeros(()))

    def grid(self, x: Tensor) -> tuple[Tensor, ...]:
        factor = 1 / math.sqrt(max(x[:1].numel(), 1) * (2**self.num_bits - 1))
        scale = functional.positive_scale(self.scale, factor)
        return scale, functional.scale_gradient(self.offset, factor), self.low, self.high

    def zero_point(self) -> Tensor:
        scale = functional.positive_scale(self.scale)
        return affine.zero_point(scale, self.offset, self.low, self.high)

    def first_values(self, x: Tensor) -> None:
        self.set_range(*mse(per_grid(x, None), self))

    def set_range(self, lower: Tensor, upper: Tensor) -> None:
        steps = 2**self.num_bits - 1
        fill_scale(self.scale, (upper - lower) / steps, 1 / steps)
        fill(self.offset, lower - self.quant_min * self.scale)


register_method("LSQPlus", weight=LSQPlusWeight, input=LSQPlus)
