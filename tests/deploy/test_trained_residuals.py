"""Skip connections trained in 8 bits: the exported file computes them, in integers throughout, in every engine."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lbitcls.deploy.export import residuals
from lbitcls.deploy.export.onnx import export_model
from lbitcls.deploy.passes import guards
from lbitcls.deploy.runtime.engine import load
from lbitcls.deploy.targets import cpu
from lbitcls.deploy.verification.integer import integer_model
from lbitcls.deploy.verification.placement import executed_operations
from lbitcls.models.builder import build_classifier
from lbitcls.quant import build_mtransformer, calibrate
from lbitcls.quant.quantized_sums import quantized_additions
from lbitcls.quant.quantizer import NotInitializedError
from lbitcls.utils.errors import ConfigError

Exports = Callable[..., Any]
FAMILIES: dict[str, tuple[dict[str, Any], int]] = {
    "resnet": (dict(type="ResNet_CIFAR", depth=18, base_channels=8, num_stages=2, out_indices=(1,)), 16),
    "bottleneck": (dict(type="ResNet_CIFAR", depth=50, base_channels=4, num_stages=1, out_indices=(0,)), 16),
    "option A": (dict(type="ResNetCIFAROptionA", depth=8, base_channels=8, out_indices=(1,)), 16),
    "mobilenet": (dict(type="MobileNetV2", widen_factor=0.25, out_indices=(1,)), 8),
}


def images(number: int = 16, seed: int = 1) -> Tensor:
    return torch.randn(number, 3, 16, 16, generator=torch.Generator().manual_seed(seed))


def untrained(family: str, bits: int = 8, signed: bool | None = None, floats: tuple[str, ...] = ()) -> Any:
    torch.manual_seed(0)
    backbone, channels = FAMILIES[family]
    head = dict(type="LinearClsHead", num_classes=5, in_channels=channels)
    neck = dict(type="GlobalAveragePooling")
    model: Any = build_classifier(dict(type="ImageClassifier", backbone=backbone, neck=neck, head=head))
    for norm in (m for m in model.modules() if isinstance(m, nn.BatchNorm2d)):
        norm.momentum = None
    with torch.no_grad():
        model.train().predict(images(64))  # statistics
    options = dict(num_bit_w=bits, num_bit_a=bits) | ({} if signed is None else dict(signed=signed))
    policy = dict(Conv2d=dict(type="LSQConv", **options), Linear=dict(type="LSQLinear", **options))
    more: dict[str, Any] = dict(exclude_layers=floats, residual_bits=8)
    return build_mtransformer(dict(type="ModelTransformer", quan_policy=policy, **more))(model)


def trained(family: str, bits: int = 8, **options: Any) -> nn.Module:
    """Return a model whose grids differ from each other, as after training."""
    model = untrained(family, bits, **options).eval()
    calibrate(model, [images(64)])
    operands: list[Any] = [q for _, addition in quantized_additions(model) for _, q in addition.quantizers()]
    for number, quantizer in enumerate(operands):
        quantizer.scale.data.mul_(1 + 0.03 * number)
    return model


FAST = [("resnet", 4), ("mobilenet", 8), ("option A", 8)]
SLOW = [(family, bits) for family in FAMILIES for bits in (4, 8) if (family, bits) not in FAST]


def test_a_float_layer_in_a_block_keeps_its_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It reads the block's 8-bit input; its result is quantized by the next layer, whose integers may have a sign."""
    monkeypatch.setattr(cpu, "_latencies", lambda models, shape: {"int8": 1.0, "uint8": 2.0})
    model: Any = trained("option A", floats=("backbone.layer1.0.conv1", "backbone.layer2.0.conv2")).eval()
    export_model(model, tmp_path / "x.onnx", input_shape=(3, 16, 16))
    with torch.no_grad():
        expected = model.predict(images()).numpy()
    given: Any = load(tmp_path / "x.onnx", "onnxruntime", threads=1).predict(images().numpy())
    assert np.abs(given - expected).max() < 1e-3 * expected.std()


@pytest.mark.parametrize("family, bits", [*FAST, *(pytest.param(*case, marks=pytest.mark.slow) for case in SLOW)])
def test_engines_agree_and_add_in_integers(exports: Exports, family: str, bits: int) -> None:
    report = exports(trained(family, bits), images())
    assert report.info.residual_bits == 8
    executed = executed_operations(report.path)
    layers = [f for f in executed if f["layerType"] == "Convolution"]
    assert layers and all(f["runtimePrecision"] == "u8" for f in layers)
    alone = [f for f in executed if "/Add" in f["originalLayersNames"] and f["layerType"] != "Convolution"]
    assert not alone  # each sum is part of a convolution


def test_without_the_guards_openvino_omits_a_rounding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reason for `guard_sums`; if this fails, OpenVINO rounds everywhere, and the guards can go."""
    model = trained("resnet")
    for _, addition in quantized_additions(model):
        own: Any = addition.own_quantizer
        own.scale.data.mul_(8)  # so coarse that the rounding shows
    differences: list[float] = []
    for guard in (guards.guard_sums, lambda graph: None):
        monkeypatch.setattr(cpu, "guard_sums", guard)
        path = tmp_path / f"{len(differences)}.onnx"
        export_model(model, path, input_shape=(3, 16, 16))
        given: list[Any] = [load(path, engine=name).predict(images().numpy()) for name in ("openvino", "onnxruntime")]
        differences.append(float(np.abs(given[0] - given[1]).mean()))
    assert differences[1] > 5 * differences[0]


def test_the_integer_reference_adds_on_the_same_grids() -> None:
    model: Any = trained("resnet")
    integer: Any = integer_model(model)
    with torch.no_grad():
        expected, given = model.double().predict(images().double()), integer.predict(images().double())
    torch.testing.assert_close(given, expected, rtol=1e-5, atol=1e-5)


def test_tensorrt_takes_signed_grids_only(tmp_path: Path) -> None:
    message = r"tensorrt does not support .* backbone\.layer1\.0\.add\.skip_quantizer, .* Train without residual_bits"
    with pytest.raises(ConfigError, match=message):
        export_model(trained("resnet", 4), tmp_path / "m.onnx", input_shape=(3, 16, 16), target="tensorrt")
    export_model(trained("resnet", 8, signed=True), tmp_path / "m.onnx", input_shape=(3, 16, 16), target="tensorrt")


def test_uninitialized_operands_are_named(tmp_path: Path) -> None:
    model = trained("resnet")
    operand = model.get_submodule("backbone.layer1.0.add.own_quantizer")
    operand.load_state_dict({**operand.state_dict(), "initialized": torch.tensor(False)})
    with pytest.raises(NotInitializedError, match=r"'backbone\.layer1\.0\.add' never saw data"):
        export_model(model, tmp_path / "m.onnx", input_shape=(3, 16, 16))


def test_they_are_not_quantized_twice() -> None:
    with pytest.raises(ConfigError, match="were trained in 8 bits, and are exported so; omit the option"):
        residuals.carry_residuals(trained("resnet"), [images()])
