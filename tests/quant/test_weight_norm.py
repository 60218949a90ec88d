"""The option `weight_norm`: any method quantizes (w - mean) / std of each grid's weights."""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lbitcls.quant import build_mtransformer
from lbitcls.quant.kernels import machine, selection
from lbitcls.quant.layers import QuantConv2d
from lbitcls.quant.methods import METHODS, build_quant_layer
from lbitcls.quant.quantizers.apot import UQ, APoT
from lbitcls.quant.quantizers.dorefa import DoReFaWeight
from lbitcls.quant.quantizers.ewgs import EWGS
from lbitcls.quant.quantizers.lsq import LSQ
from lbitcls.quant.quantizers.minmax import MinMax
from lbitcls.registry import QUANT_LAYERS
from lbitcls.utils.errors import ConfigError

QUANT_LAYERS.names()  # imports every method
OTHERS = [name for name in METHODS if not METHODS[name].weight.norm_of_method]


@pytest.fixture(autouse=True)
def kernels_afterwards() -> Iterator[None]:
    with selection.restored_kernels():
        yield


def weight(seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 0.03 * torch.randn(3, 4, 2, 2, dtype=torch.float64, generator=generator) + 0.01


def rows(w: Tensor, per_channel: bool) -> Tensor:
    return w.reshape(3 if per_channel else 1, -1)


@pytest.mark.parametrize("per_channel", [False, True])
def test_lsq_is_the_papers_formula(per_channel: bool) -> None:
    """ŵ = (w - mean) / std; LSQ's step 2 E|ŵ| / sqrt(q), rounding and gradients of ŵ; ∂ŵ/∂w = 1 / std."""
    quantizer = LSQ(3, role="weight", num_channels=3 if per_channel else None, weight_norm=True, init="paper").double()
    w = weight().requires_grad_(True)
    y = quantizer(w)
    grad = torch.linspace(-1, 1, w.numel(), dtype=torch.float64).view_as(w)
    y.backward(grad)
    flat, g = rows(w.detach(), per_channel), rows(grad, per_channel)
    n = flat.shape[1]
    mean = flat.sum(1, keepdim=True) / n
    std = ((flat - mean).square().sum(1, keepdim=True) / n).sqrt()
    scale = 2 * ((flat - mean) / std).abs().mean(1, keepdim=True) / math.sqrt(3)
    v = (flat - mean) / std / scale
    inside = (v >= -4) & (v <= 3)
    steps = v.round().clamp(-4, 3)
    torch.testing.assert_close(rows(y.detach(), per_channel), steps * scale, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(rows(w.grad, per_channel), torch.where(inside, g, 0.0) / std, rtol=1e-6, atol=1e-9)
    of_scale = (torch.where(inside, steps - v, steps) * g).sum(1) / math.sqrt(n * 3)
    torch.testing.assert_close(quantizer.scale.grad.reshape(-1), of_scale, rtol=1e-5, atol=1e-6)
    assert torch.equal(quantizer.to_integer(w), steps.view_as(w).int())


def test_dorefa_bends_the_normalized_weight() -> None:
    w = weight()
    v = (w - w.mean()) / w.std(correction=0)
    bent = v.tanh() / v.tanh().abs().max()
    quantizer = DoReFaWeight(2, role="weight", weight_norm=True).double()
    torch.testing.assert_close(quantizer(w), 2 / 3 * ((bent + 1) / 2 * 3).round() - 1, rtol=1e-6, atol=1e-7)
    one_bit = DoReFaWeight(1, role="weight", weight_norm=True).double()
    torch.testing.assert_close(one_bit(w), v.sign() * v.abs().mean(), rtol=1e-6, atol=1e-7)


def test_an_observed_range_is_that_of_the_normalized_weight() -> None:
    quantizer = MinMax(8, role="weight", averaging_constant=1.0, weight_norm=True).double().train()
    quantizer(weight())
    w = weight(1) * 7
    quantizer(w)  # observes
    v = (w - w.mean()) / w.std(correction=0)
    torch.testing.assert_close(torch.stack([quantizer.lowest, quantizer.highest]), torch.stack([v.min(), v.max()]))


@pytest.mark.parametrize("method", [APoT, UQ])
def test_the_methods_of_the_paper_normalize_by_default(method: type) -> None:
    default, asked, off = (method(4, role="weight", weight_norm=norm) for norm in (None, True, False))
    w = weight()
    assert torch.equal(default.normalize(w), asked.normalize(w)) and off.normalize(w) is w
    assert default.grid_facts() == asked.grid_facts() and "weight_norm" not in default.grid_facts()
    off.initialize(w)
    assert "weight_norm=False there" in str(default.misfit(off.state_dict(), ""))
    assert "weight_norm" not in method(4, role="input").grid_facts()


@pytest.mark.parametrize("name", OTHERS)
def test_it_is_off_by_default_and_recorded_when_on(name: str) -> None:
    off, on = (METHODS[name].weight(4, role="weight", **options) for options in ({}, dict(weight_norm=True)))
    w = weight().float()
    assert "weight_norm" not in off.grid_facts()
    for quantizer in (off, on):
        quantizer.initialize(w)
    assert "weight_norm=True there" in str(off.misfit(on.state_dict(), ""))
    with pytest.raises(RuntimeError, match="is for another grid"):
        on.load_state_dict(off.state_dict())
    # Neither a factor nor an offset of the weight changes its integers: the option does what its name says.
    assert torch.equal(on.to_integer(w), on.to_integer(4 * w + 0.25))


def layers(name: str, **options: Any) -> nn.Module:
    torch.manual_seed(0)
    entry = dict(type=f"{name}Conv", num_bit_w=4, num_bit_a=4, weight_norm=True, **options)
    convs = [build_quant_layer(entry, nn.Conv2d(i, 8, 3, padding=1, bias=False)) for i in (4, 8)]
    return nn.Sequential(convs[0], nn.BatchNorm2d(8), nn.ReLU(), convs[1], nn.BatchNorm2d(8)).train()


@pytest.mark.skipif(bool(machine.find_obstacle()), reason="this machine multiplies no 8-bit integers")
@pytest.mark.parametrize("name", list(METHODS))
def test_integer_kernels_compute_the_simulation(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selection, "fused_now", lambda: False)
    model = layers(name, per_channel=name in ("LSQ", "UQ"))
    x = torch.randn(4, 4, 6, 6)
    with torch.no_grad():
        model(x)
    results = []
    for kind in ("plain", "integer"):
        monkeypatch.setattr(selection, "_active", kind)
        own = copy.deepcopy(model)
        y = own(x)
        y.square().mean().backward()
        results.append([y.detach(), *(p.grad for p in own.parameters())])
    for simulated, integer in zip(*results):
        torch.testing.assert_close(integer, simulated, rtol=2e-3, atol=1e-4 * max(1.0, float(simulated.abs().max())))


def test_fold_bn_is_refused() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    policy = dict(Conv2d=dict(type="LSQConv", num_bit_w=4, num_bit_a=4, weight_norm=True))
    with pytest.raises(ConfigError, match="fold_bn and weight_norm exclude each other"):
        build_mtransformer(dict(type="ModelTransformer", quan_policy=policy, fold_bn=True))(model)


def test_a_linear_layer_is_refused_unless_the_paper_normalizes() -> None:
    options = dict(num_bit_w=4, num_bit_a=4, weight_norm=True)
    with pytest.raises(ConfigError, match="LSQLinear: weight_norm .* a Linear has none"):
        build_quant_layer(dict(type="LSQLinear", **options), nn.Linear(4, 4))
    assert build_quant_layer(dict(type="APoTLinear", **options), nn.Linear(4, 4)).weight_quantizer.weight_norm


def test_inputs_are_not_normalized() -> None:
    with pytest.raises(ConfigError, match="needs role='weight'"):
        EWGS(4, role="input", weight_norm=True)
    layer = build_quant_layer(dict(type="LSQConv", num_bit_w=4, num_bit_a=4, weight_norm=True), nn.Conv2d(3, 4, 3))
    assert isinstance(layer, QuantConv2d)
    assert layer.weight_quantizer.weight_norm and not layer.input_quantizer.weight_norm


def test_a_layer_that_no_norm_follows_is_named(caplog: pytest.LogCaptureFixture) -> None:
    def quantize(**options: bool) -> None:
        caplog.clear()
        net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3), nn.ReLU())
        policy = dict(Conv2d=dict(type="LSQConv", num_bit_w=4, num_bit_a=4, **options))
        build_mtransformer(dict(type="ModelTransformer", quan_policy=policy))(net, logger=logging.getLogger("test"))

    quantize(weight_norm=True)
    assert "No normalization layer is defined after 2. " in caplog.text
    quantize()
    assert "weight_norm" not in caplog.text


def test_training_stays_the_same_when_the_weight_is_scaled() -> None:
    """With BatchNorm behind it, a layer's function depends on the direction of the centered weight alone."""
    one, two = layers("LSQ"), layers("LSQ")
    with torch.no_grad():
        two[0].weight.mul_(8).add_(0.5)
    x = torch.randn(4, 4, 6, 6)
    torch.testing.assert_close(one(x), two(x), rtol=1e-4, atol=1e-4)
