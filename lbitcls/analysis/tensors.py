"""Effect of quantization on a layer's weight or inputs, counted batch by batch.

A value x is measured in three forms: in its own units (`normalize(x)`, which the method divides by its scale), in steps
of the grid (`normalize(x) / scale + zero_point`, whose nearest level is the integer), and as its quantized level.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from lbitcls.analysis.measures import Histogram, Similarity, entropy_bits, parts, step_bins, value_bins
from lbitcls.quant.quantizer import Quantizer
from lbitcls.quant.spec import along, per_grid

_TOLERANCE = 1e-3  # steps: rounding may put a value at the end of the range slightly beyond it


@dataclass(frozen=True)
class Bins:
    """Histograms over common bins.

    Attributes:
        start: Lower border of the first bin.
        width: Width of each bin.
        float_model: Counts of the float model; empty if there is none.
        before: Counts before quantization.
        after: Counts after quantization; empty if nothing is quantized, or if levels are counted instead.
    """

    start: float
    width: float
    float_model: tuple[int, ...]
    before: tuple[int, ...]
    after: tuple[int, ...] = ()


@dataclass(frozen=True)
class GridReport:
    """Quantizer's grid and its usage.

    Attributes:
        quantizer: Class name.
        num_bits: Bits of the grid.
        quant_min: Smallest integer.
        quant_max: Largest integer.
        scales: Number of scales: 1 per tensor, C per channel.
        scale_min: Smallest scale.
        scale_median: Median scale.
        scale_max: Largest scale.
        zero_point_min: Smallest zero point, an integer.
        zero_point_max: Largest zero point.
        levels: Integers that can occur, if not all in the range can; else None.
        counts: Count of each level, in ascending order.
        levels_available: Number of levels.
        levels_used: Number of levels that occur.
        levels_used_per_channel: Mean over the channels; None per tensor.
        clipped: Fraction of the values beyond the outermost levels.
        clipped_noise: Fraction of the squared error due to those values; None: there is no error.
        entropy_bits: Entropy of the levels: `num_bits` if all occur equally often.
    """

    quantizer: str
    num_bits: int
    quant_min: int
    quant_max: int
    scales: int
    scale_min: float
    scale_median: float
    scale_max: float
    zero_point_min: int
    zero_point_max: int
    levels: tuple[int, ...] | None
    counts: tuple[int, ...]
    levels_available: int
    levels_used: int
    levels_used_per_channel: float | None
    clipped: float
    clipped_noise: float | None
    entropy_bits: float


@dataclass(frozen=True)
class TensorReport:
    """Statistics of a layer's weight or inputs; of the analyzed model and before quantization, unless noted.

    Attributes:
        number: Number of values.
        minimum: Smallest value.
        maximum: Largest value.
        mean: Mean of the values.
        deviation: Standard deviation of the values.
        zeros: Fraction of the values that are exactly 0.
        grid: Grid and its usage; None if nothing is quantized.
        sqnr_db: SQNR of the quantized values, in dB; None: no error.
        cosine: Cosine similarity of the values before and after quantization; None if nothing is quantized.
        values: Histograms of the values.
        steps: Histograms in steps of the grid; None if nothing is quantized.
    """

    number: int
    minimum: float
    maximum: float
    mean: float
    deviation: float
    zeros: float
    grid: GridReport | None
    sqnr_db: float | None
    cosine: float | None
    values: Bins
    steps: Bins | None


@dataclass
class Extent:
    """Range of the values seen: of both models in their own units, and in steps."""

    lowest: float = float("inf")
    highest: float = float("-inf")
    lowest_step: float = float("inf")
    highest_step: float = float("-inf")

    def add(self, x: Tensor, quantizer: Quantizer | None) -> None:
        """Count a tensor, as the quantizer sees it."""
        value = x.detach() if quantizer is None else quantizer.normalize(x.detach()).detach()
        self.lowest = min(self.lowest, float(value.min()))
        self.highest = max(self.highest, float(value.max()))
        if quantizer is not None:
            steps = _in_steps(value, x, quantizer)
            self.lowest_step = min(self.lowest_step, float(steps.min()))
            self.highest_step = max(self.highest_step, float(steps.max()))


class TensorWatch:
    """Counter of tensors at one place of a model, before and after quantization.

    Args:
        quantizer: Quantizer at this place; None: the values stay float.
        extent: Range of all values that will be seen.
    """

    def __init__(self, quantizer: Quantizer | None, extent: Extent) -> None:
        self.quantizer = quantizer
        self._similarity = Similarity()
        self._before = value_bins(extent.lowest, extent.highest)
        self._float, self._after = self._before.empty_copy(), self._before.empty_copy()
        self._number = self._zeros = self._clipped = 0
        self._sum = self._squares = self._clipped_noise = 0.0
        self._lowest, self._highest = float("inf"), float("-inf")
        if quantizer is not None:
            low, high = quantizer.quant_min, quantizer.quant_max
            self._steps = step_bins(low, high, extent.lowest_step, extent.highest_step)
            self._float_steps = self._steps.empty_copy()
            self._codes = torch.zeros(high - low + 1, dtype=torch.int64)
            self._used_per_channel: float | None = None

    @torch.no_grad()
    def add_float(self, x: Tensor) -> None:
        """Count a tensor of the float model."""
        for part in self._split(x):
            value = self._normalized(part)
            self._float.add(value)
            if self.quantizer is not None:
                self._float_steps.add(_in_steps(value, part, self.quantizer))

    @torch.no_grad()
    def add(self, x: Tensor) -> None:
        """Count a tensor before and after quantization."""
        for part in self._split(x):
            self._add(part)

    def _split(self, x: Tensor) -> Iterable[Tensor]:
        """Return inputs in parts, since each value is quantized by itself; a weight as a whole."""
        whole = self.quantizer is not None and self.quantizer.role == "weight"
        return [x] if whole else parts(x)

    def _add(self, x: Tensor) -> None:
        value = self._normalized(x)
        self._before.add(value)
        self._number += value.numel()
        self._zeros += int((value == 0).sum())
        self._sum += float(value.sum(dtype=torch.float64))
        self._squares += float(value.square().sum(dtype=torch.float64))
        self._lowest, self._highest = min(self._lowest, float(value.min())), max(self._highest, float(value.max()))
        if self.quantizer is not None:
            self._add_quantized(x, value, self.quantizer)

    def _add_quantized(self, x: Tensor, value: Tensor, quantizer: Quantizer) -> None:
        quantized = quantizer(x)
        self._similarity.add(value, quantized)
        if quantizer.channel_axis is not None:
            self._after.add(quantized)
        steps = _in_steps(value, x, quantizer)
        self._steps.add(steps)
        low, high = quantizer.quant_min, quantizer.quant_max
        beyond = (steps < low - _TOLERANCE) | (steps > high + _TOLERANCE)
        self._clipped += int(beyond.sum())
        self._clipped_noise += float((value - quantized)[beyond].square().sum(dtype=torch.float64))
        codes = _in_steps(quantized, x, quantizer).round().clamp(low, high).long() - low
        self._codes += torch.bincount(codes.flatten(), minlength=high - low + 1).cpu()
        if quantizer.channel_axis is not None:
            rows = per_grid(codes, quantizer.channel_axis)
            occurs = torch.zeros(len(rows), high - low + 1, device=rows.device).scatter_(1, rows, 1.0)
            self._used_per_channel = occurs.sum(1).mean().item()

    def _normalized(self, x: Tensor) -> Tensor:
        return x.detach() if self.quantizer is None else self.quantizer.normalize(x.detach())

    def report(self, x: Tensor | None = None) -> TensorReport:
        """Return the statistics of everything counted; `x` is the weight, if the grid depends on it."""
        if self.quantizer is not None and self.quantizer.channel_axis is None:
            qparams = self.quantizer.qparams(x)
            integers = torch.arange(qparams.quant_min, qparams.quant_max + 1, device=qparams.scale.device)
            self._after = self._before.empty_copy()
            self._after.add_counted(qparams.dequantize(integers), self._codes)
        mean = self._sum / self._number
        variance = max(self._squares / self._number - mean * mean, 0.0)
        return TensorReport(
            number=self._number,
            minimum=self._lowest,
            maximum=self._highest,
            mean=mean,
            deviation=variance**0.5,
            zeros=self._zeros / self._number,
            grid=None if self.quantizer is None else self._grid(self.quantizer, x),
            sqnr_db=self._similarity.sqnr_db,
            cosine=self._similarity.cosine,
            values=_bins(self._before, self._float, None if self.quantizer is None else self._after),
            steps=None if self.quantizer is None else _bins(self._steps, self._float_steps),
        )

    def _grid(self, quantizer: Quantizer, x: Tensor | None) -> GridReport:
        qparams = quantizer.qparams(x)
        levels = qparams.levels
        counts = self._codes if levels is None else self._codes[levels.cpu().long() - qparams.quant_min]
        scale = qparams.scale.detach().float().flatten()
        return GridReport(
            quantizer=type(quantizer).__name__,
            num_bits=quantizer.num_bits,
            quant_min=qparams.quant_min,
            quant_max=qparams.quant_max,
            scales=scale.numel(),
            scale_min=scale.min().item(),
            scale_median=scale.median().item(),
            scale_max=scale.max().item(),
            zero_point_min=int(qparams.zero_point.min()),
            zero_point_max=int(qparams.zero_point.max()),
            levels=None if levels is None else tuple(levels.tolist()),
            counts=tuple(counts.tolist()),
            levels_available=len(counts),
            levels_used=int((counts > 0).sum()),
            levels_used_per_channel=self._used_per_channel,
            clipped=self._clipped / self._number,
            clipped_noise=self._clipped_noise / self._similarity.noise if self._similarity.noise else None,
            entropy_bits=entropy_bits(counts),
        )


def _in_steps(value: Tensor, x: Tensor, quantizer: Quantizer) -> Tensor:
    """Return `value`, on the scale of the normalized `x`, in steps from integer 0."""
    scale, zero = quantizer.grid(x)[0].detach(), quantizer.zero_point().detach()
    axis = quantizer.channel_axis
    return value / along(scale, value.dim(), axis) + along(zero, value.dim(), axis)


def _bins(before: Histogram, of_float: Histogram, after: Histogram | None = None) -> Bins:
    counted = bool(of_float.counts.any())
    return Bins(
        before.start,
        before.width,
        tuple(of_float.counts.tolist()) if counted else (),
        tuple(before.counts.tolist()),
        () if after is None else tuple(after.counts.tolist()),
    )


def watch_weight(quantizer: Quantizer | None, weight: Tensor, float_weight: Tensor | None) -> TensorReport:
    """Return the report of a weight; `float_weight` is the float model's, None if there is none."""
    extent = Extent()
    for tensor in (weight, float_weight):
        if tensor is not None:
            extent.add(tensor, quantizer)
    watch = TensorWatch(quantizer, extent)
    watch.add(weight)
    if float_weight is not None:
        watch.add_float(float_weight)
    return watch.report(weight)
