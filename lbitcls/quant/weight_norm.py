"""Weight normalization before quantization (APoT, Li et al., 2020, arXiv:1909.13144, section 3.3).

    ŵ = (w - mean w) / std w,   then quantized by any method: steps = round(clip(ŵ / scale, …))

Each grid normalizes the weights that share it: the tensor, or every output channel with `per_channel`. As in the
authors' code no gradient passes through mean and std, so ∂ŵ/∂w = 1 / std. The std is not multiplied back: the layer
computes with ŵ, and a normalization layer after it removes the factor.
"""

from __future__ import annotations

from torch import Tensor

from lbitcls.quant.functional import SMALLEST_SCALE
from lbitcls.quant.spec import compute_dtype, per_channel, per_grid
from lbitcls.utils.errors import ConfigError


def chosen(given: bool | None, of_weight: bool, of_method: bool) -> bool:
    """Return whether a quantizer normalizes.

    Args:
        given: Its option `weight_norm`; None: as in the paper.
        of_weight: It is a weight's quantizer.
        of_method: The method's paper normalizes weights.

    Raises:
        ConfigError: An input's quantizer is to normalize.
    """
    if given and not of_weight:
        raise ConfigError("weight_norm normalizes weights, so it needs role='weight'; got role='input'. Leave it out.")
    return (of_weight and of_method) if given is None else given


def norm_fact(weight_norm: bool, default: bool) -> dict[str, bool]:
    """Return the entry of a grid's facts, none for the default: files of earlier versions still fit."""
    return {} if weight_norm == default else {"weight_norm": weight_norm}


def standardize(x: Tensor, channel_axis: int | None, unbiased: bool = False) -> Tensor:
    """Return `x` with mean 0 and standard deviation 1 in each grid, in `compute_dtype`; constant weights become 0.

    Args:
        x: Weight of any shape.
        channel_axis: Axis of the grids; None: one grid for the tensor.
        unbiased: The variance of a grid's n weights divides by n - 1 instead of n.
    """
    mean, deviation = _statistics(x, channel_axis, unbiased)
    return (x.to(mean.dtype) - mean) / deviation


def restore(y: Tensor, x: Tensor, channel_axis: int | None, unbiased: bool = False) -> Tensor:
    """Return the weight that `standardize` turns into `y`, with mean and deviation of the weight `x`."""
    mean, deviation = _statistics(x, channel_axis, unbiased)
    return y * deviation + mean


def _statistics(x: Tensor, channel_axis: int | None, unbiased: bool) -> tuple[Tensor, Tensor]:
    """Return mean and deviation of each grid, shaped to broadcast against `x`, without gradients."""
    rows = per_grid(x.detach().to(compute_dtype(x)), channel_axis)
    correction = int(unbiased and rows.shape[1] > 1)  # one weight has no unbiased deviation
    mean, deviation = rows.mean(1), rows.std(1, correction=correction).clamp(min=SMALLEST_SCALE)
    return per_channel(mean, x, channel_axis), per_channel(deviation, x, channel_axis)
