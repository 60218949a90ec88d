"""PyTorch's QAT: observed ranges instead of learned ones (torch.ao.quantization, Jacob et al., arXiv:1712.05877).

    min, max: moving averages, m ← m + c · (batch value - m), c = 0.01, with 0 inside the range
    inputs: scale = (max - min) / (quant_max - quant_min), zero_point = clip(quant_min - round(min / scale))
    weights: scale = max(-min, max) / ((quant_max - quant_min) / 2), zero_point = 0
    straight-through gradient inside the range, 0 outside; nothing is learned

With `step_from_max=True`, weights w of the APoT authors' first and last layers (arXiv:1909.13144, their code):

    w_q = round(w / max(w) · quant_max) / quant_max · max(w): scale = max(w) / quant_max, zero_point = 0, not clipped
    the gradient of w_q passes straight through

max(w) is the largest weight, not the largest magnitude, so integers below -quant_max occur where min(w) < -max(w).

Both averages are updated in training and fixed in eval, as in torch's FakeQuantize with its observer. The defaults
are 0-255 and -128..127; `reduce_range=True` gives inputs 0-127, as torch's default configuration does.

Deviations:
- x is divided by the scale; torch multiplies by its rounded inverse, so a value within an ulp of a tie may differ.
- With `step_from_max=True`, max(w) is an average as above; `averaging_constant=1` gives that of the current weights.
- A range of width 0 gets the scale 1 / (quant_max - quant_min); torch uses the smallest positive scale.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lbitcls.quant import functional
from lbitcls.quant.kernels import Elementwise
from lbitcls.quant.methods import register_method
from lbitcls.quant.quantizer import Quantizer
from lbitcls.quant.spec import extremes
from lbitcls.utils.errors import ConfigError

SMALLEST_INTEGER = -(2**15)  # int16, the widest container of a weight: no weight of a trained layer reaches it


def whole_steps(x: Tensor, scale: Tensor, low: Tensor, high: Tensor, largest: Tensor) -> Tensor:
    """Round to whole steps of `largest / high`, without clipping, in the APoT authors' order of operations."""
    return torch.round(x / largest * high) / high * largest


def unclipped_gradients(grad: Tensor, x: Tensor, *parameters: Tensor) -> tuple[Tensor]:
    """Return `grad`: no value is clipped."""
    return (grad,)


CLIPPED = Elementwise(
    functional.fake_quantize, functional.straight_through, functional.fake_quantize_plain, sums=functional.no_sums
)
UNCLIPPED = Elementwise(whole_steps, unclipped_gradients)


class MinMax(Quantizer):
    """Quantizer to a grid over the observed range: symmetric for weights, with a zero point for inputs.

    Args:
        num_bits: Number of bits, 2 to 8.
        averaging_constant: Weight c of a batch's extremes in the moving average; 1: the last batch's extremes only.
        reduce_range: Use one bit fewer, as torch does by default for inputs on x86 engines.
        step_from_max: Weights only: the step is the largest weight / quant_max, whatever the smallest weight, and no
            weight is clipped. Integers below the `num_bits` range are stored in 16 bits.
        **kwargs: Arguments of `Quantizer`.
    """

    lowest: Tensor
    highest: Tensor

    bits_leave_range = True

    def __init__(
        self,
        num_bits: int,
        averaging_constant: float = 0.01,
        reduce_range: bool = False,
        step_from_max: bool = False,
        **kwargs: Any,
    ) -> None:
        self.reduced = int(reduce_range)
        self.step_from_max = step_from_max
        if step_from_max and kwargs.get("role", "input") != "weight":
            raise ConfigError("MinMax: step_from_max needs role='weight'; got role='input'. Leave it out.")
        kwargs.setdefault("narrow_range", False)
        if kwargs.get("role", "input") == "input" and kwargs.get("signed") is None:
            kwargs["signed"] = False
        super().__init__(num_bits, **kwargs)
        self.averaging_constant = averaging_constant
        shape = () if self.num_channels is None else (self.num_channels,)
        self.register_buffer("lowest", torch.zeros(shape))
        self.register_buffer("highest", torch.zeros(shape))

    @property
    def formula(self) -> Elementwise:  # type: ignore[override]
        """Values clipped to the range, or, with `step_from_max`, not clipped."""
        return UNCLIPPED if self.step_from_max else CLIPPED

    def integer_range(self) -> tuple[int, int]:
        lowest, highest = super().integer_range()
        if self.step_from_max:
            return SMALLEST_INTEGER, highest
        return (lowest // 2, highest // 2) if self.reduced else (lowest, highest)

    def grid(self, x: Tensor) -> tuple[Tensor, ...]:
        scale = self._scale()
        if self.step_from_max:
            return scale, self.low, self.high, self._width()
        zero = self.zero_point()
        return scale, self.low - zero, self.high - zero

    def zero_point(self) -> Tensor:
        if self.symmetric:
            return torch.zeros_like(self.lowest)
        return torch.clamp(self.low - torch.round(self.lowest / self._scale()), self.low, self.high)

    @property
    def symmetric(self) -> bool:
        """True if the range is the same on both sides of zero."""
        return self.role == "weight"

    @torch.no_grad()
    def observe(self, x: Tensor) -> None:
        """Move the averages toward the extremes of `x`."""
        for average, value in zip(
            (self.lowest, self.highest), extremes(self.normalize(x.detach()), self.channel_axis), strict=True
        ):
            average.lerp_(value.to(average.dtype), self.averaging_constant)

    def first_values(self, x: Tensor) -> None:
        self.set_range(*extremes(x, self.channel_axis))

    def set_range(self, lower: Tensor, upper: Tensor) -> None:
        self.lowest.copy_(lower.reshape(self.lowest.shape))
        self.highest.copy_(upper.reshape(self.highest.shape))

    def _scale(self) -> Tensor:
        return self._width() / (self.high if self.step_from_max else self.high - self.low)

    def _width(self) -> Tensor:
        """Return the width of the range, above zero alone with `step_from_max`; 1 for an empty range."""
        lowest, highest = self.lowest.clamp(max=0), self.highest.clamp(min=0)
        width = 2 * torch.maximum(-lowest, highest) if self.symmetric else highest - lowest
        width = highest if self.step_from_max else width
        return torch.where(width == 0, torch.ones_like(width), width)  # NaN stays NaN


register_method("TorchQAT", weight=MinMax, input=MinMax)
