"""The model in another precision: float32 decides the grids, and values are rounded in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lbitcls.core.ema import ModelEMA
from lbitcls.deploy.verification.reference import reference_model
from lbitcls.quant import calibrate
from lbitcls.quant.layers import QuantLayer
from lbitcls.quant.methods import METHODS, build_quant_layer
from lbitcls.registry import QUANT_LAYERS

QUANT_LAYERS.names()  # imports every method


def quant_layers(model: nn.Module) -> list[QuantLayer]:
    return [m for m in model.modules() if isinstance(m, QuantLayer)]


@pytest.mark.parametrize("method", METHODS)
def test_float64_has_the_integers_and_zero_points_of_float32(method: str, make_resnet: Any) -> None:
    model = make_resnet(method, per_channel=True, fold_bn=True)
    reference = reference_model(model, torch.float64)
    for layer, fixed in zip(quant_layers(model), quant_layers(reference), strict=True):
        weight = layer.weight_to_quantize()
        expected, given = layer.weight_quantizer.qparams(weight), fixed.weight_quantizer.qparams()
        assert torch.equal(fixed.weight_quantizer.to_integer(weight), layer.weight_quantizer.to_integer(weight))
        assert given.scale.dtype is torch.float64 and torch.equal(given.scale.float(), expected.scale)
        assert torch.equal(fixed.input_quantizer.qparams().zero_point, layer.input_quantizer.qparams().zero_point)
        assert (given.quant_min, given.quant_max) == (expected.quant_min, expected.quant_max)
        assert fixed.weight_quantizer(weight).dtype is torch.float64


def test_converting_a_min_max_model_alone_would_change_its_weights(make_resnet: Any) -> None:
    """Reason for fixed integers: the weight that spans a symmetric range lies halfway between two levels."""
    model = make_resnet("TorchQAT", per_channel=True)
    in_float32 = [layer.weight_quantizer.to_integer(layer.weight) for layer in quant_layers(model)]
    in_float64 = [layer.weight_quantizer.to_integer(layer.weight) for layer in quant_layers(model.double())]
    assert sum(int((a != b).sum()) for a, b in zip(in_float32, in_float64)) > 0


def test_values_are_rounded_in_float64() -> None:
    layer = build_quant_layer(dict(type="LSQLinear", num_bit_w=8, num_bit_a=8), nn.Linear(1, 1))
    calibrate(layer, [torch.rand(100, 1)])
    x = layer.input_quantizer.scale.detach().double() * (2.5 + 1e-12) * torch.ones(1, 1).double()
    fixed = reference_model(layer, torch.float64).input_quantizer
    assert fixed.to_integer(x).item() == 3 and layer.input_quantizer.to_integer(x.float()).item() == 2


def test_float32_is_the_model_itself(make_resnet: Any, digits: Tensor) -> None:
    model = make_resnet("DSQ")
    with torch.no_grad():
        assert torch.equal(reference_model(model, torch.float32).predict(digits), model.predict(digits))


@pytest.mark.parametrize("method", METHODS)
def test_float64_is_near_float32_and_the_same_for_an_averaged_model(
    method: str, make_resnet: Any, digits: Tensor
) -> None:
    model = make_resnet(method).train()
    averaged = ModelEMA(model, 0.9).module
    with torch.no_grad():
        logits = [reference_model(m, torch.float64).predict(digits.double()) for m in (model, averaged)]
        expected = averaged.predict(digits)
    assert model.training and torch.equal(*logits) and logits[0].dtype is torch.float64
    assert (logits[0] - expected).abs().median() < 1e-5 * expected.abs().max()


def test_what_is_off_stays_off_and_uneven_inputs_keep_their_levels() -> None:
    layer = build_quant_layer(dict(type="APoTLinear", num_bit_w=4, num_bit_a=4), nn.Linear(6, 6))
    x = torch.rand(8, 6)
    calibrate(layer, [x])
    reference = reference_model(layer, torch.float64)
    assert torch.equal(reference.input_quantizer.to_integer(x.double()), layer.input_quantizer.to_integer(x))
    layer.weight_quantizer.enable(False)
    reference = reference_model(layer, torch.float64)
    assert not reference.weight_quantizer.is_enabled
    expected = nn.functional.linear(reference.input_quantizer(x.double()), layer.weight.double(), layer.bias.double())
    assert torch.equal(reference(x.double()), expected)
