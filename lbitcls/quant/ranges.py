"""Rules that find the range of a grid in data, for a quantizer's initial values.

A rule accepts a matrix (grids, values) and the quantizer, and returns the lower ends (<= 0) and upper ends (>= 0).
"""

from __future__ import annotations

import torch
from torch import Tensor

from lbitcls.quant.quantizer import Quantizer, RangeRule, fill
from lbitcls.utils.errors import ConfigError, suggest

CANDIDATES = 60
LARGEST_SEARCH = 2**16
PERCENTILE = 99.99


def minmax(rows: Tensor, quantizer: Quantizer) -> tuple[Tensor, Tensor]:
    """Return the smallest and largest value."""
    return rows.amin(1).clamp(max=0), rows.amax(1).clamp(min=0)


def percentile(rows: Tensor, quantizer: Quantizer) -> tuple[Tensor, Tensor]:
    """Return the range without the lowest 0.01 % and the highest 0.01 % of the values."""
    rows = _thinned(rows, 2**22)
    number = rows.shape[1]
    tail = int(number * (1 - PERCENTILE / 100))
    ordered = rows.sort(1).values
    return ordered[:, tail].clamp(max=0), ordered[:, number - 1 - tail].clamp(min=0)


def mse(rows: Tensor, quantizer: Quantizer) -> tuple[Tensor, Tensor]:
    """Return the fraction of the full range whose grid has the least mean squared error."""
    lower, upper = minmax(rows, quantizer)
    sample = _thinned(rows, LARGEST_SEARCH)
    best = torch.full_like(lower, float("inf"))
    kept_lower, kept_upper = lower.clone(), upper.clone()
    for fraction in torch.linspace(1, 1 / CANDIDATES, CANDIDATES).tolist():
        quantizer.set_range(lower * fraction, upper * fraction)
        error = _error(sample, quantizer)
        better = error < best
        best = torch.where(better, error, best)
        kept_lower = torch.where(better, lower * fraction, kept_lower)
        kept_upper = torch.where(better, upper * fraction, kept_upper)
    return kept_lower, kept_upper


RULES: dict[str, RangeRule] = {"minmax": minmax, "percentile": percentile, "mse": mse}


def find_rule(name: str | None) -> RangeRule | None:
    """Return the rule with this name; None for None, which stands for each method's own rule."""
    if name is not None and name not in RULES:
        raise ConfigError(
            f"calibration.method must be {', '.join(RULES)} or None; got '{name}'{suggest(str(name), RULES)}"
        )
    return None if name is None else RULES[name]


def _error(rows: Tensor, quantizer: Quantizer) -> Tensor:
    axis = None if quantizer.channel_axis is None else 0
    return (quantizer.formula.value(rows, axis, quantizer.grid(rows)) - rows).square().mean(1)


def _thinned(rows: Tensor, most: int) -> Tensor:
    """Return at most `most` evenly spaced values of each row."""
    return rows[:, :: max(1, -(-rows.shape[1] // most))]


def fill_scale(parameter: Tensor, scale: Tensor, otherwise: float) -> None:
    """Fill a scale in place; a grid of zeros only gets the mean over all grids, or `otherwise` if that is 0."""
    mean = scale.mean()
    fill(parameter, torch.where(scale > 0, scale, torch.where(mean > 0, mean, otherwise)))
