"""APoT: additive powers of two, and UQ, the uniform baseline of its paper (Li et al., 2020, arXiv:1909.13144).

    Q = γ · {Σ_i p_i},  p_i in {0, 2^-i, 2^-(i+n), 2^-(i+2n)},  i = 0 … n - 1,  n terms of 2 bits        (equation 5)
    weights: w_n = (w - mean w) / std w, then clipped and projected                                  (section 2.3)
    x̂ = α · project(clip(x / α, -1, 1)),  ∂x̂/∂α = project(x / α) - x / α inside, sign(x) outside       (equation 7)

An odd number of bits adds a term of one bit, {0, 2^-2n}, and the last powers become 2^-(i+2n+1). Levels are stored
as integers times one scale, α / largest integer. Values round to the nearest level, ties toward zero (UQ: to even).

Deviations:
- The initial α minimizes the mean squared error on the data; the paper starts from 3 for weights and 8 for inputs.
- The gradient of α is multiplied by LSQ's factor, here 1 / sqrt(n · (2^b - 1)), so that one learning rate suits all
  layers.
- Signed inputs use the levels of one bit fewer on each side of zero. Unsigned inputs are clipped to [0, α]; below 0,
  ∂x̂/∂α is 0.
- UQ weights of b bits use -(2^(b-1) - 1) … 2^(b-1) - 1, symmetric as in the paper.
- std divides by n; the authors' code divides by n - 1, as `unbiased=True` does here.
- x̂ is an integer times the scale. The authors' code computes (level / largest level) · α, and rounds x / α at midpoints
  of such fractions, as `fractional_levels=True` does here. The levels are the same, but values differ in their last
  bit, and so an input beside a midpoint may change its level; in 4-bit ResNet-20 this moves the logits of one image
  in six.

With `unbiased=True, fractional_levels=True, signed=False`, weights and inputs equal the authors' bit for bit. Their
first and last layers are TorchQAT's weights with `step_from_max=True` (`minmax.py`).
"""

from __future__ import annotations

import math
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn

from lbitcls.quant import functional
from lbitcls.quant.kernels import Elementwise
from lbitcls.quant.methods import register_method
from lbitcls.quant.quantizer import Quantizer
from lbitcls.quant.ranges import fill_scale, mse
from lbitcls.quant.spec import per_grid

MOST_COMPARISONS = 16
_UNITS = 4  # in the last place: two roundings move a value by fewer


def magnitudes(num_bits: int) -> list[int]:
    """Return the 2^num_bits levels from 0 upward, as integers (1 to 8 bits).

    Example:
        >>> magnitudes(3)
        [0, 1, 2, 3, 4, 6, 8, 10]
    """
    terms, single = divmod(num_bits, 2)
    exponents = [list(range(i, 2 * terms, terms)) for i in range(terms)]
    for i in range(terms):
        exponents[i].append(2 * terms + single + i)
    if single:
        exponents.append([2 * terms])
    largest = 3 * terms + single - 1
    return sorted({sum(term) for term in product(*([0, *(2 ** (largest - e) for e in es)] for es in exponents))})


def project(
    x: Tensor, scale: Tensor, low: Tensor, high: Tensor, bounds: Tensor, levels: Tensor, lookup: Tensor
) -> Tensor:
    """Round to the nearest level.

    Args:
        x: Tensor of any shape.
        scale: Size of one step.
        low: Smallest level, in steps, as are all arguments below.
        high: Largest level.
        bounds: Midpoints between adjacent `levels`.
        levels: Magnitudes, ascending.
        lookup: Level of each half step, 0, ½, 1, … (bounds are multiples of ½, so no level changes in between).
    """
    v = torch.clamp(x / scale, low, high)
    return torch.copysign(_nearest(v, bounds, levels), v) * scale


def project_plain(
    x: Tensor, scale: Tensor, low: Tensor, high: Tensor, bounds: Tensor, levels: Tensor, lookup: Tensor
) -> Tensor:
    """Compute `project` with a lookup table, for uncompiled code."""
    v = x.div(scale).clamp_(low, high)
    return torch.copysign(_look_up(v, lookup), v).add_(v.mul_(0)).mul_(scale)  # + 0, or NaN for NaN


def project_gradients(
    grad: Tensor,
    x: Tensor,
    scale: Tensor,
    low: Tensor,
    high: Tensor,
    bounds: Tensor,
    levels: Tensor,
    lookup: Tensor,
) -> tuple[Tensor, Tensor]:
    """Return straight-through gradients: for the scale, `level - v` inside the range and the bound outside."""
    v = x / scale
    inside = (v >= low) & (v <= high)
    clipped = torch.clamp(v, low, high)
    steps = torch.copysign(_nearest(clipped, bounds, levels), v)
    return torch.where(inside, grad, 0.0), torch.where(inside, steps - v, clipped) * grad


def project_gradients_plain(
    grad: Tensor,
    x: Tensor,
    scale: Tensor,
    low: Tensor,
    high: Tensor,
    bounds: Tensor,
    levels: Tensor,
    lookup: Tensor,
) -> tuple[Tensor, Tensor]:
    """Compute `project_gradients` with a lookup table, for uncompiled code."""
    if not functional.bounds_are_numbers(low, high):
        return project_gradients(grad, x, scale, low, high, bounds, levels, lookup)
    v = x / scale
    clipped = torch.clamp(v, low, high)
    steps = torch.copysign(_look_up(clipped, lookup), clipped)
    return functional.clipped_gradients(grad, v, steps, low, high)


def project_fractions(
    x: Tensor, scale: Tensor, low: Tensor, high: Tensor, clip: Tensor, bounds: Tensor, levels: Tensor, lookup: Tensor
) -> Tensor:
    """Round `x / clip` to the nearest fraction `level / largest level`, in the authors' order of operations.

    Args:
        clip: α, `scale` times the largest level up to rounding.
        bounds: Midpoints between adjacent fractions.
        levels: Fractions, 0 to 1, ascending. The other arguments are those of `project`.
    """
    v = torch.clamp(x / clip, low / high, high / high)
    return torch.copysign(_nearest(v, bounds, levels), v) * clip


def project_fractions_plain(
    x: Tensor, scale: Tensor, low: Tensor, high: Tensor, clip: Tensor, bounds: Tensor, levels: Tensor, lookup: Tensor
) -> Tensor:
    """Compute `project_fractions` with a search, for uncompiled code."""
    v = x.div(clip).clamp_(low / high, high / high)
    found = torch.bucketize(v.abs().reshape(-1), bounds, out_int32=True)
    nearest = levels.index_select(0, found).view(v.shape)
    return torch.copysign(nearest, v).add_(v.mul_(0)).mul_(clip)  # + 0, or NaN for NaN


def fraction_gradients(
    grad: Tensor,
    x: Tensor,
    scale: Tensor,
    low: Tensor,
    high: Tensor,
    clip: Tensor,
    bounds: Tensor,
    levels: Tensor,
    lookup: Tensor,
) -> tuple[Tensor, Tensor]:
    """Return the gradients of `project_gradients`."""
    return project_gradients(grad, x, scale, low, high, bounds * high, levels * high, lookup)


def _look_up(v: Tensor, lookup: Tensor) -> Tensor:
    """Return the level of each magnitude, 0 for NaN."""
    halves = v.abs().mul_(2).ceil_().to(torch.int32).clamp_(0, len(lookup) - 1)
    return lookup.index_select(0, halves.reshape(-1)).view(v.shape)


def _nearest(v: Tensor, bounds: Tensor, levels: Tensor) -> Tensor:
    """Return the level nearest to the magnitude of `v`, which is finite or NaN; NaN for NaN."""
    magnitude = v.abs()
    if len(bounds) > MOST_COMPARISONS:
        steps = levels[torch.bucketize(magnitude.reshape(-1), bounds)].view(v.shape)
        return torch.where(magnitude.isnan(), magnitude, steps)
    steps = magnitude * 0
    for i in range(len(bounds)):  # compiles to one pass over memory; a search does not
        steps = torch.where(magnitude > bounds[i], levels[i + 1], steps)
    return steps


def last_below(divisor: Tensor, bounds: Tensor) -> Tensor:
    """Return the largest values whose quotients by `divisor` do not exceed `bounds`, exactly, in their dtype.

    Args:
        divisor: Positive value of shape ().
        bounds: Positive values (n,), the largest quotients before the next level.

    Example:
        >>> last_below(torch.tensor(0.1), torch.tensor([1.5]))
        tensor([0.1500])
    """
    found = bounds * divisor  # right up to the roundings of this product and of the quotient
    infinity = torch.full_like(found, torch.inf)
    for _ in range(_UNITS):
        found = torch.where(found / divisor > bounds, found.nextafter(-infinity), found)
    for _ in range(_UNITS):
        following = found.nextafter(infinity)
        found = torch.where(following / divisor > bounds, found, following)
    return found


INTEGERS = Elementwise(project, project_gradients, project_plain, project_gradients_plain, tables=3, apart=True)
FRACTIONS = Elementwise(project_fractions, fraction_gradients, project_fractions_plain, tables=3, apart=True)


class _Clipped(Quantizer):
    """Quantizer with a learned clip α; weights are normalized first.

    Args:
        num_bits: Number of bits, 2 to 8.
        unbiased: Weights only: normalize by the unbiased standard deviation of each grid's n weights, which divides by
            n - 1, as the authors' code does; False: by n.
        **kwargs: Arguments of `Quantizer`.
    """

    fixed_options = ("narrow_range",)
    norm_of_method = True
    bits_leave_range = True

    def __init__(self, num_bits: int, unbiased: bool = False, **kwargs: Any) -> None:
        super().__init__(num_bits, narrow_range=True, **kwargs)
        self.unbiased = unbiased
        self.clip = nn.Parameter(torch.ones(() if self.num_channels is None else (self.num_channels,)))

    def grid(self, x: Tensor) -> tuple[Tensor, ...]:
        n = x.numel() // self.clip.numel() if self.role == "weight" else x[:1].numel()
        factor = 1 / math.sqrt(max(n, 1) * (2**self.num_bits - 1))
        return functional.positive_scale(self.clip, factor) / self.quant_max, self.low, self.high

    @property
    def _span(self) -> Tensor:
        """α > 0, without a gradient."""
        return functional.positive_scale(self.clip).detach()

    def grid_facts(self, signed: bool | None = None) -> dict[str, Any]:
        return super().grid_facts(signed) | ({"unbiased": True} if self.unbiased else {})

    def first_values(self, x: Tensor) -> None:
        self.set_range(*mse(per_grid(x, self.channel_axis), self))

    def set_range(self, lower: Tensor, upper: Tensor) -> None:
        fill_scale(self.clip, torch.maximum(upper, -lower) if self.signed else upper, 1.0)


class UQ(_Clipped):
    """Uniform levels with a learned clip."""

    formula = Elementwise(
        functional.fake_quantize,
        functional.learned_step_gradients,
        functional.fake_quantize_plain,
        functional.learned_step_gradients_plain,
        sums=functional.learned_step_sums,
    )


class APoT(_Clipped):
    """Levels that are sums of powers of two, with a learned clip.

    Args:
        num_bits: Number of bits, 2 to 8.
        fractional_levels: Compute levels as fractions of α, in the authors' order of operations, so that values equal
            theirs bit for bit; False: as integers times one scale. The exported integers are the same.
        **kwargs: Arguments of `Quantizer`, and `unbiased`: normalize weights by the deviation that divides by n - 1.

    Example:
        >>> w = torch.tensor([-1.0, 0.0, 1.0])  # deviation 1 if unbiased, 0.816 else
        >>> APoT(4, role="weight", unbiased=True).normalize(w)
        tensor([-1.,  0.,  1.])
    """

    bounds: Tensor
    magnitudes: Tensor

    lookup: Tensor

    def __init__(self, num_bits: int, fractional_levels: bool = False, **kwargs: Any) -> None:
        super().__init__(num_bits, **kwargs)
        self.fractional_levels = fractional_levels

    @property
    def formula(self) -> Elementwise:  # type: ignore[override]
        """Levels as integers times one scale, or as fractions of α."""
        return FRACTIONS if self.fractional_levels else INTEGERS

    def refresh(self) -> None:
        self._negative = bool(self.negative)
        levels = torch.tensor(self._magnitudes(), dtype=self.low.dtype, device=self.low.device)
        self.register_buffer("magnitudes", levels, persistent=False)
        bounds = (levels[1:] + levels[:-1]) / 2
        halves = torch.arange(2 * int(levels[-1]) + 1, dtype=levels.dtype, device=levels.device) / 2
        self.register_buffer("bounds", bounds, persistent=False)
        self.register_buffer("lookup", levels[torch.bucketize(halves, bounds)], persistent=False)
        super().refresh()

    def _magnitudes(self) -> list[int]:
        return magnitudes(self.num_bits - int(self.signed))

    def integer_range(self) -> tuple[int, int]:
        largest = self._magnitudes()[-1]
        return (-largest if self.signed else 0), largest

    def levels(self) -> Tensor:
        positive = self.magnitudes.to(torch.int32)
        return torch.cat([-positive.flip(0)[:-1], positive]) if self.signed else positive

    @torch.no_grad()
    def thresholds(self) -> Tensor | None:
        if self.role == "weight":
            return None  # they are those of the normalized weight
        scale, _, _, *rest = self.grid(self.low.new_zeros((1, 1, 1, 1)))
        return last_below(*(rest[:2] if self.fractional_levels else (scale, rest[0])))

    def grid(self, x: Tensor) -> tuple[Tensor, ...]:
        scale, low, high = super().grid(x)
        if not self.fractional_levels:
            return scale, low, high, self.bounds, self.magnitudes, self.lookup
        fractions = self.magnitudes / self.high
        return scale, low, high, self._span, (fractions[1:] + fractions[:-1]) / 2, fractions, self.lookup


register_method("UQ", weight=UQ, input=UQ)
register_method("APoT", weight=APoT, input=APoT)
