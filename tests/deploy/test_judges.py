"""Engines that run a file, and those that judge it; models that cannot be traced, with the reason."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn

from lbitcls.deploy.export.onnx import export_model
from lbitcls.deploy.runtime.engine import load, load_usable
from lbitcls.deploy.targets.cpu import CPU
from lbitcls.deploy.verification.verify import verify
from lbitcls.quant import build_mtransformer, calibrate
from lbitcls.utils.errors import CheckpointError, ConfigError

SHAPE = (3, 12, 12)


def images(number: int) -> Tensor:
    return torch.randn(number, *SHAPE, generator=torch.Generator().manual_seed(4))


class Deformed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.offset, self.conv = nn.Conv2d(3, 18, 3, padding=1), torchvision.ops.DeformConv2d(3, 8, 3, padding=1)
        self.fc = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.conv(x, self.offset(x)).relu().mean((2, 3)))


class Ring(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 8, 3, padding=1, padding_mode="circular"), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.conv(x).relu().mean((2, 3)))


class Plain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.conv, self.fc = nn.BatchNorm2d(3), nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.conv(self.norm(x)).relu().mean((2, 3)))


def quantized(model: nn.Module, bits: int = 7) -> nn.Module:
    torch.manual_seed(0)
    entry = dict(num_bit_w=bits, num_bit_a=bits)
    policy = dict(Conv2d=dict(type="LSQConv", **entry), Linear=dict(type="LSQLinear", **entry))
    model = build_mtransformer(dict(type="ModelTransformer", quan_policy=policy))(model).eval()
    calibrate(model, [images(16)])
    return model


@pytest.mark.parametrize("kind, operation", [(Ring, "wrap"), (Deformed, "DeformConv")])
def test_an_operation_that_openvino_lacks(
    kind: type[nn.Module], operation: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model, path = quantized(kind()), tmp_path / "model.onnx"
    with caplog.at_level(logging.WARNING, "lbitcls"):
        report = export_model(model, path, input_shape=SHAPE)
    assert list(report.cannot_run) == ["openvino"] and operation in report.cannot_run["openvino"]
    assert "openvino cannot run" in caplog.text and report.to_json()["cannot_run"] == report.cannot_run
    found = verify(model, path, images(120).split(60), threads=1)
    assert found.passed and [row.name for row in found.rows if row.name != "integer"] == ["onnxruntime"]
    assert operation in found.cannot_run["openvino"] and found.to_json()["cannot_run"] == found.cannot_run
    with pytest.raises(CheckpointError, match="openvino cannot run"):  # requested by name
        verify(model, path, [images(4)], engines=["openvino"])


def test_a_file_that_no_engine_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, path = quantized(Ring()), tmp_path / "model.onnx"
    monkeypatch.setattr(CPU, "engines", ("openvino",))
    export_model(model, path, input_shape=SHAPE)
    with pytest.raises(CheckpointError, match=r"no engine runs .*model\.onnx: openvino: Unsupported padding mode"):
        verify(model, path, [images(4)])


def test_the_judge_of_a_file_for_tensorrt(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model, path = quantized(Plain(), 4), tmp_path / "model.onnx"
    for target, judges in (("cpu", ["openvino", "onnxruntime"]), ("tensorrt", ["onnxruntime"])):
        export_model(model, path, input_shape=SHAPE, target=target)
        found = verify(model, path, images(120).split(60), threads=1)
        assert found.passed and found.cannot_run == {}
        assert [row.name for row in found.rows] == ["integer", *judges]
        assert "exported for" not in caplog.text
    load(path, "onnxruntime", threads=1)
    assert "exported for" not in caplog.text
    assert load(path, threads=1).name == "onnxruntime", "the first of its engines"
    load(path, "openvino", threads=1)
    assert "exported for tensorrt, and openvino may compute it wrongly: use onnxruntime" in caplog.text


def test_usable_engines_of_what_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"no model")
    for name in ("model.onnx", "missing.onnx"):
        with pytest.raises(CheckpointError):
            load_usable(tmp_path / name, ["onnxruntime"])


class Raising(nn.Module):
    """Model that raises an error without a message."""

    def __init__(self, error: Any, traced_only: bool) -> None:
        super().__init__()
        self.conv, self.error, self.traced_only = nn.Conv2d(3, 4, 12), error, traced_only

    def forward(self, x: Tensor) -> Tensor:
        if not self.traced_only or torch.compiler.is_exporting():
            raise self.error
        return self.conv(x).flatten(1)


@pytest.mark.parametrize("error", [AssertionError(), ValueError(""), RuntimeError("\n"), KeyError()])
@pytest.mark.parametrize("traced_only, what", [(True, "cannot be traced"), (False, "does not run on images")])
def test_errors_without_words(error: Exception, traced_only: bool, what: str, tmp_path: Path) -> None:
    model = quantized_raising(error, traced_only)
    with pytest.raises(
        ConfigError, match=rf"Raising {what}.*: {type(error).__name__} without a message \(.*, line \d+"
    ):
        export_model(model, tmp_path / "model.onnx", input_shape=SHAPE)
    assert not list(tmp_path.iterdir())


def quantized_raising(error: Exception, traced_only: bool) -> nn.Module:
    model: Any = quantized(Raising(error, True))
    model.traced_only = traced_only
    return model


# A single image, and no judge at all


class Alone(nn.Module):
    """Model that computes something else for a batch of one."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(64, 4))

    def forward(self, image: Tensor) -> Tensor:
        y = self.net(image)
        return y.flip(1) if image.shape[0] == 1 else y


def test_one_image_alone_is_judged_too(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, images = Alone(), torch.randn(2000, 1, 8, 8)
    export_model(model, tmp_path / "model.onnx", input_shape=(1, 8, 8))
    found = verify(model, tmp_path / "model.onnx", images.split(500), threads=1)
    assert found.reasons and all(reason.startswith("images one at a time: ") for reason in found.reasons)
    assert verify(model.net, tmp_path / "model.onnx", images.split(500), threads=1).passed


class Several(Alone):
    """Model that does not accept a single image."""

    def forward(self, image: Tensor) -> Tensor:
        return self.net(image if image.shape[0] > 1 else image[0, 0, 0])


def test_a_model_that_takes_no_image_alone(tmp_path: Path) -> None:
    model = Several()
    export_model(model, tmp_path / "model.onnx", input_shape=(1, 8, 8))
    with pytest.raises(ConfigError, match="verification needs the model to accept a single image, which fails: "):
        verify(model, tmp_path / "model.onnx", [torch.randn(8, 1, 8, 8)], threads=1)


def test_no_engine_is_no_verification() -> None:
    with pytest.raises(ConfigError, match="at least one engine"):
        verify(nn.Flatten(), "model.onnx", [torch.zeros(2, 1, 8, 8)], engines=[])
