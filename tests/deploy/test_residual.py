"""Skip connections in 8 bits: the quantized tensors, their grids, and engines that agree with PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lbitcls.deploy.export.residuals import carried_outputs, carry_residuals, residual_bits
from lbitcls.deploy.verification.integer import integer_model
from lbitcls.deploy.verification.placement import executed_operations
from lbitcls.models.builder import build_classifier
from lbitcls.utils.errors import ConfigError, DataError

Exports = Callable[..., Any]
Quantized = Callable[..., nn.Module]


def images(number: int = 8) -> Tensor:
    return torch.randn(number, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def resnet(quantized: Quantized, bits: int = 8) -> nn.Module:
    torch.manual_seed(0)
    model = build_classifier(
        dict(
            type="ImageClassifier",
            backbone=dict(type="ResNet_CIFAR", depth=18, base_channels=8, num_stages=2, out_indices=(1,)),
            neck=dict(type="GlobalAveragePooling"),
            head=dict(type="LinearClsHead", num_classes=5, in_channels=16),
        )
    )
    return quantized(model, "LSQ", bits, bits, images())


SKIPS = ["backbone.relu", "backbone.layer1.0", "backbone.layer2.0.downsample", "backbone.layer2.0"]


def test_what_comes_from_memory_is_carried(quantized: Quantized) -> None:
    model = resnet(quantized)
    carried, report = carry_residuals(model, [images()])
    assert sorted(name for name, _ in carried_outputs(carried)) == sorted(SKIPS) == sorted(report)
    assert (residual_bits(carried), residual_bits(model)) == (8, None)
    assert carried.state_dict().keys() == model.state_dict().keys()
    hooks = dict(carried_outputs(carried))
    own: Any = carried.get_submodule("backbone.layer1.1.conv1")
    assert hooks["backbone.layer1.0"].quantizer is own.input_quantizer
    assert report["backbone.layer1.0"] == "8 bits, on the grid of the layer that consumes it"
    assert report["backbone.layer2.0.downsample"].startswith("8 bits, signed, scale ")
    with torch.no_grad():
        values = carried.get_submodule("backbone.layer2.0.downsample")(torch.randn(2, 8, 16, 16))
    scale = hooks["backbone.layer2.0.downsample"].quantizer.qparams().scale
    assert torch.equal(torch.round(values / scale) * scale, values)


def test_four_bit_layers_get_grids_of_their_own(quantized: Quantized) -> None:
    carried, report = carry_residuals(resnet(quantized, 4), [images()])
    assert all("scale" in note for note in report.values())
    assert all(hook.quantizer.num_bits == 8 for _, hook in carried_outputs(carried))


def test_signed_grids_for_targets_without_uint8(quantized: Quantized) -> None:
    carried, _ = carry_residuals(resnet(quantized, 4), [images()], signed=True)
    assert all(hook.quantizer.signed for _, hook in carried_outputs(carried))


@pytest.mark.parametrize("bits", [4, 8])
def test_engines_agree_and_keep_integers_between_blocks(quantized: Quantized, exports: Exports, bits: int) -> None:
    model, _ = carry_residuals(resnet(quantized, bits), [images()])
    report = exports(model, images(16))
    assert report.info.residual_bits == 8
    layers = [f for f in executed_operations(report.path) if f["layerType"] == "Convolution"]
    assert len(layers) == 10 and all(f["runtimePrecision"] == "u8" for f in layers)


def test_the_integer_reference_carries_them_too(quantized: Quantized) -> None:
    model, _ = carry_residuals(resnet(quantized), [images()])
    integer: Any = integer_model(model)
    plain: Any = model.double()
    with torch.no_grad():
        expected, given = plain.predict(images().double()), integer.predict(images().double())
    torch.testing.assert_close(given, expected, rtol=1e-5, atol=1e-5)
    assert residual_bits(integer) == 8


class Functional(nn.Module):
    """Model whose added tensors come from modules that are called twice, or from no module."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.relu = nn.Conv2d(3, 3, 3, padding=1), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.conv(x))
        y = self.relu(y + self.conv(y))
        z = torch.tanh(y)
        return self.relu(z + self.conv(z)).mean((2, 3))


def test_what_cannot_be_carried_is_said() -> None:
    with pytest.raises(ConfigError, match="Functional has no skip connections that can be stored in 8 bits"):
        carry_residuals(Functional(), [images()])


def test_wrong_arguments() -> None:
    with pytest.raises(ConfigError, match="8 bits, or float; got 4"):
        carry_residuals(Functional(), [images()], bits=4)
    with pytest.raises(DataError, match="at least one batch"):
        carry_residuals(Functional(), [])
