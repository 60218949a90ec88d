"""Effect of a quantizer on weights and inputs, checked by hand and for every method."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from lbitcls.analysis.tensors import Extent, TensorReport, TensorWatch, watch_weight
from lbitcls.quant.methods import METHODS
from lbitcls.quant.quantizer import Quantizer
from lbitcls.quant.quantizers.apot import APoT
from lbitcls.quant.quantizers.dorefa import DoReFaWeight
from lbitcls.quant.quantizers.lsq import LSQ
from lbitcls.quant.quantizers.lsq_plus import LSQPlus
from lbitcls.registry import QUANT_LAYERS


def lsq(num_bits: int, role: str, scale: float | Tensor, channels: int | None = None) -> LSQ:
    quantizer = LSQ(num_bits, role=role, signed=None if role == "weight" else False, num_channels=channels)
    quantizer.initialized.fill_(True)
    with torch.no_grad():
        quantizer.scale.copy_(torch.as_tensor(scale))
    quantizer.refresh()
    return quantizer.eval()


def watch_inputs(quantizer: Quantizer | None, *batches: Tensor) -> TensorReport:
    extent = Extent()
    for batch in batches:
        extent.add(batch, quantizer)
    watch = TensorWatch(quantizer, extent)
    for batch in batches:
        watch.add(batch)
    return watch.report()


def test_weight_by_hand() -> None:
    weight = torch.tensor([-2.0, -1.1, -0.5, 0.0, 0.2, 0.3, 0.5, 0.9])  # in steps: -4 -2.2 -1 0 .4 .6 1 1.8
    report = watch_weight(lsq(2, "weight", 0.5), weight, None)
    grid = report.grid
    assert grid is not None
    assert (grid.quant_min, grid.quant_max, grid.num_bits, grid.quantizer) == (-2, 1, 2, "LSQ")
    assert grid.counts == (2, 1, 2, 3)  # -1, -1 | -0.5 | 0, 0 | 0.5, 0.5, 0.5
    assert grid.clipped == 3 / 8  # -2, -1.1 and 0.9
    assert grid.clipped_noise == pytest.approx((1 + 0.01 + 0.16) / (1 + 0.01 + 0.16 + 0.04 + 0.04), rel=1e-4)
    assert (grid.levels_available, grid.levels_used, grid.levels_used_per_channel) == (4, 4, None)
    assert (grid.scales, grid.scale_min, grid.scale_median, grid.scale_max) == (1, 0.5, 0.5, 0.5)
    assert (grid.zero_point_min, grid.zero_point_max) == (0, 0)
    quantized = torch.tensor([-1.0, -1.0, -0.5, 0.0, 0.0, 0.5, 0.5, 0.5])
    noise = (weight - quantized).square().sum().item()
    assert report.sqnr_db == pytest.approx(10 * math.log10(weight.square().sum().item() / noise), rel=1e-5)
    assert report.cosine == pytest.approx(torch.cosine_similarity(weight, quantized, 0).item(), rel=1e-5)
    assert (report.number, report.minimum, report.zeros) == (8, -2.0, 1 / 8)
    assert report.maximum == pytest.approx(0.9)
    assert report.mean == pytest.approx(weight.mean().item(), rel=1e-5)
    assert report.deviation == pytest.approx(weight.std(correction=0).item(), rel=1e-5)
    assert sum(report.values.before) == sum(report.values.after) == 8 and report.values.float_model == ()


def test_weight_per_channel() -> None:
    weight = torch.tensor([[0.1, 0.2, 0.3, -0.4], [10.0, 0.0, 0.0, 20.0]])
    report = watch_weight(lsq(3, "weight", torch.tensor([0.1, 10.0]), channels=2), weight, None)
    grid = report.grid
    assert grid is not None
    assert grid.counts == (1, 0, 0, 0, 2, 2, 2, 1)  # -4 | | | | 0 0 | 1 1 | 2 2 | 3
    assert grid.levels_used == 5 and grid.levels_used_per_channel == 3.5  # {1, 2, 3, -4} and {0, 1, 2}
    assert (grid.scales, grid.clipped) == (2, 0.0)
    assert grid.scale_min == pytest.approx(0.1) and grid.scale_max == 10.0
    assert report.sqnr_db is None or report.sqnr_db > 100


def test_inputs_with_a_zero_point() -> None:
    quantizer = LSQPlus(2)
    quantizer.initialize(torch.tensor([-1.0, 2.0]), lambda rows, q: (torch.tensor([-1.0]), torch.tensor([2.0])))
    report = watch_inputs(quantizer.eval(), torch.tensor([[-1.0, 0.0]]), torch.tensor([[2.0, 5.0]]))
    grid = report.grid
    assert grid is not None
    assert (grid.zero_point_min, grid.zero_point_max) == (1, 1) and grid.scale_min == pytest.approx(1.0)
    assert grid.counts == (1, 1, 0, 2) and grid.clipped == 0.25
    assert report.steps is not None
    steps = [report.steps.start + (i + 0.5) * report.steps.width for i in range(len(report.steps.before))]
    seen = [step for step, count in zip(steps, report.steps.before, strict=True) if count]
    # 0, 1, 3 and 6 on the axis of the integers; 6 is in the last bin, which includes everything beyond
    for place, expected in zip(seen, (0, 1, 3), strict=False):
        assert abs(place - expected) <= report.steps.width


def test_levels_that_are_not_uniform() -> None:
    quantizer = APoT(3, role="input", signed=False)
    quantizer.initialize(torch.tensor([0.0, 1.0]), lambda rows, q: (torch.tensor([0.0]), torch.tensor([1.0])))
    grid = watch_inputs(quantizer.eval(), torch.linspace(0, 1, 101)).grid
    assert grid is not None
    assert grid.levels == (0, 1, 2, 3, 4, 6, 8, 10)
    assert grid.levels_available == grid.levels_used == 8 and sum(grid.counts) == 101
    assert grid.counts == (6, 10, 10, 10, 15, 20, 20, 10)  # ties are rounded towards zero

    weight = DoReFaWeight(2, role="weight").eval()
    grid = watch_weight(weight, torch.tensor([-1.0, -0.1, 0.1, 1.0]), None).grid
    assert grid is not None
    assert grid.levels == (-3, -1, 1, 3) and grid.counts == (1, 1, 1, 1) and grid.clipped == 0


def test_a_float_tensor_has_values_alone() -> None:
    report = watch_inputs(None, torch.tensor([0.0, 1.0]), torch.tensor([3.0, 0.0]))
    assert report.grid is None and report.steps is None and report.sqnr_db is None and report.cosine is None
    assert (report.minimum, report.maximum, report.mean, report.zeros) == (0.0, 3.0, 1.0, 0.5)
    assert sum(report.values.before) == 4 and report.values.after == ()


def test_the_float_model_is_counted_on_the_same_bins() -> None:
    report = watch_weight(lsq(2, "weight", 1.0), torch.tensor([0.0, 1.0]), torch.tensor([-3.0, 0.0, 3.0]))
    assert report.steps is not None
    assert sum(report.values.float_model) == sum(report.steps.float_model) == 3
    assert report.values.start == -3.0
    assert report.maximum == 1.0, "the figures are of the quantized model"


def every_quantizer() -> list[tuple[str, str]]:
    QUANT_LAYERS.names()
    return [(n, role) for n, m in sorted(METHODS.items()) for role in ("weight", "input") if getattr(m, role)]


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize(("name", "role"), every_quantizer())
def test_every_method(name: str, role: str, bits: int) -> None:
    """Counts, levels and SQNR agree with the quantizer's own integers."""
    channels = 6 if role == "weight" else None
    quantizer = getattr(METHODS[name], role)(bits, role=role, num_channels=channels)
    x = torch.randn(6, 4, 5, 5) if role == "weight" else torch.randn(6, 4, 5, 5).relu()
    quantizer.initialize(x)
    quantizer.eval()
    report = watch_weight(quantizer, x, None) if role == "weight" else watch_inputs(quantizer, x[:2], x[2:])
    grid, integers = report.grid, quantizer.to_integer(x)
    assert grid is not None
    levels = grid.levels or range(grid.quant_min, grid.quant_max + 1)
    assert [int((integers == level).sum()) for level in levels] == list(grid.counts)
    assert grid.levels_used == len(integers.unique()) <= grid.levels_available <= 2**bits
    with torch.no_grad():
        value = quantizer.normalize(x)
        noise = (value - quantizer(x)).square().sum()
    assert report.sqnr_db == pytest.approx(float(10 * torch.log10(value.square().sum() / noise)), rel=1e-4)
    assert 0 <= grid.clipped < 0.5 and 0 < grid.entropy_bits <= bits + 1e-9
