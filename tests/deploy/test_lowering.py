"""Lowering of layers, refusals, and the facts that a target gets about the layers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from lbitcls.deploy.export.lowering import LoweredInput, layer_facts, lower
from lbitcls.deploy.export.onnx import export_model
from lbitcls.quant import build_mtransformer, calibrate
from lbitcls.quant.quantizer_errors import NotInitializedError
from lbitcls.quant.quantizers.apot import APoT
from lbitcls.quant.spec import QParams
from lbitcls.utils.errors import ConfigError

Quantized = Callable[..., nn.Module]


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 1), nn.Flatten())


def images() -> torch.Tensor:
    return torch.randn(4, 3, 5, 5)


def test_integers_beyond_8_bits_are_refused_by_name_before_anything_is_written(
    quantized: Quantized, tmp_path: Path
) -> None:
    model = quantized(net(), "APoT", 4, 6, images())
    with pytest.raises(ConfigError, match=r"beyond 8 bits: 3 \(APoT, 0 to 448\)\. Train with .*UQ .* or LSQ"):
        export_model(model, tmp_path / "model.onnx", input_shape=(3, 5, 5))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("fractional", [False, True])
@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("bits", [2, 4, 5])
def test_uneven_levels_are_decided_exactly(bits: int, signed: bool, fractional: bool) -> None:
    """Also for the values on both sides of each threshold; those of fractions differ in the last bit."""
    quantizer = APoT(bits, role="input", signed=signed, fractional_levels=fractional).eval()
    quantizer.initialize(torch.rand(500) * 0.37)
    ends = quantizer.qparams().thresholds
    assert ends is not None and len(ends) == 2 ** (bits - signed) - 1
    infinity = torch.full_like(ends, torch.inf)
    x = torch.cat([ends, ends.nextafter(infinity), ends.nextafter(-infinity), torch.rand(500)])
    x = torch.cat([x, -x])
    lowered, expected = LoweredInput(quantizer.qparams())(x), quantizer(x)
    assert len(expected.unique()) == len(quantizer.levels())
    torch.testing.assert_close(lowered, expected, rtol=1e-6 if fractional else 0, atol=0)


def test_quantizers_without_values_name_the_remedy() -> None:
    policy = dict(Conv2d=dict(type="LSQConv", num_bit_w=4, num_bit_a=4))
    model = build_mtransformer(dict(type="ModelTransformer", quan_policy=policy))(net())
    with pytest.raises(
        NotInitializedError, match="quantizer of '0' never saw data.* load the checkpoint of a quantized"
    ):
        lower(model)


def test_each_layer_has_the_form_it_needs(quantized: Quantized) -> None:
    model: Any = quantized(net(), "LSQ", 4, 4, images())
    model[0].weight_quantizer = None
    lowered: Any = lower(model)
    assert isinstance(lowered[0].input, LoweredInput) and not hasattr(lowered[0], "codes")
    assert isinstance(lowered[3].input, LoweredInput) and lowered[3].codes.dtype is torch.int8
    model[0].input_quantizer.enable(False)
    assert type(lower(model)[0]) is nn.Conv2d
    assert [fact.name for fact in layer_facts(model)] == ["3"]


def test_a_layer_under_two_names_stays_one() -> None:
    layer = nn.Conv2d(3, 3, 1)
    model = nn.ModuleDict(dict(a=layer, b=nn.Sequential(layer)))
    policy = dict(Conv2d=dict(type="LSQConv", num_bit_w=4, num_bit_a=4))
    model = build_mtransformer(dict(type="ModelTransformer", quan_policy=policy))(model)
    for quantizer in (model["a"].weight_quantizer, model["a"].input_quantizer):
        quantizer.initialize(torch.randn(3, 3, 1, 1))
    lowered: Any = lower(model.eval())
    assert hasattr(lowered["a"], "codes") and lowered["a"] is lowered["b"][0]


def test_codes_and_scales(quantized: Quantized) -> None:
    model: Any = quantized(net(), "LSQ", 4, 4, images(), per_channel=True)
    layer, lowered = model[0], lower(model)[0]
    weight = lowered.codes.float() * lowered.scale.view(-1, 1, 1, 1)
    assert lowered.codes.dtype == torch.int8
    assert torch.equal(weight, layer.weight_quantizer(layer.weight))
    assert layer.weight.requires_grad and layer.weight_quantizer is not None  # the model itself is unchanged


@pytest.mark.parametrize(
    "grid, container, bounds",
    [
        ((0, 255, 0), "uint8", None),
        ((0, 15, 0), "uint8", (0.0, 7.5)),
        ((0, 255, 7), "uint8", None),
        ((0, 15, 3), "uint8", (-1.5, 6.0)),
        ((-128, 127, 0), "int8", None),
        ((-127, 127, 0), "int8", (-63.5, 63.5)),
        ((-8, 7, 0), "int8", (-4.0, 3.5)),
    ],
)
def test_containers_and_bounds(grid: tuple[int, int, int], container: str, bounds: tuple[float, float] | None) -> None:
    low, high, zero = grid
    lowered = LoweredInput(QParams(torch.tensor(0.5), torch.tensor(zero), low, high))
    assert (lowered.container, lowered.bounds) == (container, bounds)
    assert lowered.zero_point.dtype == (torch.uint8 if container == "uint8" else torch.int8)


def test_facts(quantized: Quantized) -> None:
    model = quantized(net(), "LSQ", 3, 8, images())
    first, second = layer_facts(model)
    assert (first.name, first.kind, first.method, first.weight_bits, first.input_bits) == ("0", "Conv2d", "LSQ", 3, 8)
    assert (first.container, first.signed) == ("int8", True)
    assert (second.container, second.signed) == ("uint8", False)
    assert calibrate(model, [images()]) == 0  # nothing was reset
