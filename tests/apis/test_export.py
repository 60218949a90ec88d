"""`lbitcls export`: from a config and a checkpoint to a file, its report, and a verdict."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from PIL import Image
from torch import nn

from lbitcls.assembly.session import open_session
from lbitcls.commands.main import main
from lbitcls.datasets import build_dataset
from lbitcls.deploy.export import onnx as exporter
from lbitcls.deploy.runtime.engine import load
from lbitcls.models import build_classifier
from lbitcls.registry import TARGETS
from lbitcls.settings.sections import read_settings
from lbitcls.utils.checkpoint import save_checkpoint
from lbitcls.utils.config import Config
from lbitcls.utils.errors import CheckpointError, ConfigError
from lbitcls.workflows.calibrating import calibrate_checkpoint
from lbitcls.workflows.exporting import RejectedError, _verification_images, export_checkpoint
from lbitcls.workflows.run_export import check_export
from lbitcls.workflows.testing import test_classifier as measure

MakeConfig = Callable[..., Config]
WriteConfig = Callable[..., Path]

MODEL = dict(
    type="ImageClassifier",
    backbone=dict(type="ResNetCIFAROptionA", depth=8, in_channels=1, base_channels=8),
    neck=dict(type="GlobalAveragePooling"),
    head=dict(type="LinearClsHead", num_classes=10, in_channels=32),
)


PADDED = {"(no module)": "stays float: the added tensor is not a module's output"}  # option A: padded with zeros


def transformer(method: str = "LSQ", bits: int = 4) -> dict[str, Any]:
    policy = {
        kind: dict(type=f"{method}{suffix}", num_bit_w=bits, num_bit_a=bits)
        for kind, suffix in (("Conv2d", "Conv"), ("Linear", "Linear"))
    }
    return dict(type="ModelTransformer", quan_policy=policy)


MADE: dict[str, tuple[bytes, bytes]] = {}
"""The float and the quantized checkpoint of a model and its transformer."""


def calibrated(cfg: Config, folder: Path) -> Path:
    """A checkpoint of the config's model with random weights, whose quantizers have their values."""
    paths = folder / "float.pth", folder / "quantized.pth"
    key = repr((cfg.model, cfg.quant_transformer, cfg.data))
    if key not in MADE:
        calibrate_anew(cfg, *paths)
        MADE[key] = (paths[0].read_bytes(), paths[1].read_bytes())
    for path, content in zip(paths, MADE[key]):
        path.write_bytes(content)
    return paths[1]


def calibrate_anew(cfg: Config, plain: Path, quantized: Path) -> None:
    torch.manual_seed(0)
    model = build_classifier(cfg.model)
    torch.nn.init.normal_(model.head.fc.weight)
    model.CLASSES = tuple(str(digit) for digit in range(10))
    save_checkpoint(model, plain)
    calibrate_checkpoint(cfg, plain, quantized, num_images=100, test=False)


@pytest.fixture
def cfg(make_config: MakeConfig) -> Config:
    return make_config(model=MODEL, quant_transformer=transformer())


def test_export_and_verify(cfg: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint, out = calibrated(cfg, tmp_path), tmp_path / "out" / "model.onnx"
    report = export_checkpoint(cfg, checkpoint, out, verify=True, num_images=128)
    shown = capsys.readouterr().out
    assert "LSQ W4A4, 8 quantized layers" in shown and "7 of 7" in shown and "128 images: passed" in shown
    assert re.search(r"Of 128 images, \d+ changed their class.*; logits differ by at most", shown)
    assert "changed images" not in shown
    assert sorted(p.name for p in out.parent.iterdir()) == ["model.onnx", "model.report.json"]
    record = json.loads((out.parent / "model.report.json").read_text())
    assert record["verification"]["passed"] and record["verification"]["images"] == 128
    assert record["layers"]["convolutions"] == {"integer": 7, "total": 7, "float": {}}
    assert record["export"]["size"] == out.stat().st_size == report.size
    info = load(out).info
    assert info is not None and info.input_shape == (1, 8, 8) and info.num_classes == 10
    assert info.classes == [str(digit) for digit in range(10)] and info.pipeline == list(cfg.data.test.pipeline)
    assert "ResNetCIFAROptionA" in info.config
    of_file, of_checkpoint = (measure(cfg, path)["top-1"] for path in (out, checkpoint))
    assert abs(of_file - of_checkpoint) <= 100 * 3 / 360  # logits on a grid of 4 bits are often exactly equal


def test_a_pipeline_without_a_size(make_config: MakeConfig, tmp_path: Path) -> None:
    """The first validation image sets the image size."""
    model = dict(MODEL, backbone=dict(MODEL["backbone"], in_channels=3), head=dict(MODEL["head"], num_classes=2))
    for number, name in enumerate(("ant", "bee")):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i in range(8):
            pixels = np.random.default_rng(8 * number + i).integers(0, 255, (12, 20, 3), np.uint8)
            Image.fromarray(pixels).save(tmp_path / "photos" / name / f"{i}.png")
    steps = [dict(type="LoadImageFromFile"), dict(type="Normalize", mean=[0.5] * 3, std=[0.2] * 3)]
    steps += [dict(type="ImageToTensor", keys=["img"]), dict(type="Collect", keys=["img", "gt_label"])]
    photos = dict(type="ImageFolder", data_prefix=str(tmp_path / "photos"), pipeline=steps)
    data = dict(samples_per_gpu=8, workers_per_gpu=0, train=photos, val=photos, test=photos)
    cfg = make_config(model=model, data=data, quant_transformer=transformer())
    torch.manual_seed(0)
    save_checkpoint(build_classifier(cfg.model), tmp_path / "float.pth")
    calibrate_checkpoint(cfg, tmp_path / "float.pth", tmp_path / "quantized.pth", num_images=16, test=False)
    report = export_checkpoint(cfg, tmp_path / "quantized.pth", tmp_path / "model.onnx", verify=True, num_images=16)
    assert report.info.input_shape == (3, 12, 20)
    assert measure(cfg, tmp_path / "model.onnx")["top-1"] == measure(cfg, tmp_path / "quantized.pth")["top-1"]


@pytest.mark.parametrize(
    ("here", "asked", "expected"), [(70, 200, 100), (70, 90, 90), (70, 60, 60), (130, 200, 130), (99, 100, 100)]
)
def test_a_small_validation_set_is_completed_from_the_training_set(
    here: int, asked: int, expected: int, make_config: MakeConfig, caplog: pytest.LogCaptureFixture
) -> None:
    """Up to 100 images, prepared as in a test; the log says so. A training set that is missing stops nothing."""
    step = dict(type="v2.RandomRotation", degrees=(90, 90))
    cfg = make_config()
    cfg.data.val.indices = list(range(here))
    cfg.data.train.pipeline = [step, *cfg.data.train.pipeline]
    cfg.data.drop_last, cfg.data.samples_per_gpu = True, 2000
    settings = read_settings(cfg)
    caplog.set_level("INFO", "lbitcls")
    with open_session(settings) as session:
        session.logger.propagate = True
        found = torch.cat(list(_verification_images(settings, session, asked, None)))
        assert len(found) == expected
        said = [record.getMessage() for record in caplog.records if "from data.train" in record.getMessage()]
        assert len(said) == (expected > here) and all(f"adding {expected - here} from" in text for text in said)
        train = build_dataset({**cfg.data.train, "pipeline": cfg.data.val.pipeline})
        known = {train[index]["img"].numpy().tobytes() for index in range(len(train))}
        assert all(image.numpy().tobytes() in known for image in found[here:])
        settings = settings.changed(data={"train": {"type": "MNIST", "data_prefix": "nowhere"}})
        alone = torch.cat(list(_verification_images(settings, session, asked, None)))
        assert len(alone) == min(asked, here)


@pytest.mark.parametrize("images", [100, 12])
def test_a_file_that_differs_is_renamed(
    images: int, cfg: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint, finished = calibrated(cfg, tmp_path), exporter._finished

    def wrong(proto: onnx.ModelProto, *arguments: Any) -> bytes:
        (add,) = (n for n in proto.graph.node if n.output[0] == "logits")
        bias = next(t for t in proto.graph.initializer if t.name in add.input)
        bias.CopyFrom(onnx.numpy_helper.from_array(np.arange(10, dtype=np.float32), bias.name))
        return finished(proto, *arguments)

    for name in ("model.onnx", "model.report.json"):
        (tmp_path / name).write_text("of before")
    monkeypatch.setattr(exporter, "_finished", wrong)
    with pytest.raises(RejectedError, match=r"is named .*model\.rejected\.onnx:\n  .*openvino"):
        export_checkpoint(cfg, checkpoint, tmp_path / "model.onnx", verify=True, num_images=images)
    assert RejectedError.exit_code == 1
    assert (tmp_path / "model.rejected.onnx").is_file()
    report = json.loads((tmp_path / "model.rejected.report.json").read_text())
    assert not report["verification"]["passed"] and report["export"]["path"] == str(tmp_path / "model.rejected.onnx")
    assert {(tmp_path / name).read_text() for name in ("model.onnx", "model.report.json")} == {"of before"}


def test_an_export_that_is_stopped_leaves_the_older_file(
    cfg: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The new file has its name only when it is verified."""
    checkpoint, out = calibrated(cfg, tmp_path), tmp_path / "out" / "model.onnx"
    out.parent.mkdir()
    out.write_text("of before")

    def stopped(model: nn.Module, path: Path, batches: Any) -> None:
        assert path.is_file() and path != out
        raise KeyboardInterrupt

    monkeypatch.setattr("lbitcls.deploy.verification.verify.verify", stopped)
    with pytest.raises(KeyboardInterrupt):
        export_checkpoint(cfg, checkpoint, out, verify=True)
    assert [path.name for path in out.parent.iterdir()] == ["model.onnx"] and out.read_text() == "of before"


def test_values_that_are_not_finite_are_refused(cfg: Config, tmp_path: Path) -> None:
    saved = torch.load(calibrated(cfg, tmp_path), weights_only=True)
    name = next(key for key in saved["state_dict"] if key.endswith("conv1.weight"))
    saved["state_dict"][name].view(-1)[3] = float("nan")
    torch.save(saved, tmp_path / "broken.pth")
    with pytest.raises(CheckpointError, match=rf"not all finite.*{name}"):
        export_checkpoint(cfg, tmp_path / "broken.pth", tmp_path / "model.onnx")
    assert not list(tmp_path.glob("*.onnx"))


@pytest.mark.parametrize(
    "section, message",
    [
        (dict(opset=25), "export.opset must be an integer from 17 to 21; got 25"),
        (dict(residual_bits=4), "export.residual_bits must be 8; got 4"),
        (dict(num_images=0), "export.num_images must be an integer ≥ 1; got 0"),
        (dict(pack=True, opset=17), "packed"),
        (dict(target="trt"), "no target named 'trt'"),
        (dict(verify="no"), "verify must be True or False"),
    ],
)
def test_a_wrong_export_section_is_known_before_the_run(cfg: Config, section: dict[str, Any], message: str) -> None:
    cfg.export = section
    with pytest.raises(ConfigError, match=message):
        check_export(read_settings(cfg))


def test_residuals_packed(cfg: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "model.onnx"
    report = export_checkpoint(
        cfg, calibrated(cfg, tmp_path), out, verify=True, num_images=100, pack=True, residual_bits=8
    )
    assert report.info.residual_bits == 8 and report.size < report.unpacked_size
    assert "size in int8" in capsys.readouterr().out
    record = json.loads((tmp_path / "model.report.json").read_text())
    assert record["residuals"] == {"backbone.relu": record["residuals"]["backbone.relu"], **PADDED}
    assert record["residuals"]["backbone.relu"].startswith("8 bits, unsigned, scale ")


def test_the_command_line(cfg: Config, write_config: WriteConfig, tmp_path: Path) -> None:
    checkpoint = calibrated(cfg, tmp_path)
    path = write_config(model=MODEL, quant_transformer=transformer())
    out = tmp_path / "backbone.onnx"
    arguments = ["export", str(path), str(checkpoint), "--out", str(out), "--part", "backbone", "--opset", "18"]
    assert main(arguments) == 0
    info = load(out).info
    assert info is not None and info.part == "backbone" and info.feature_shapes == [[32, 2, 2]]


def test_what_cannot_be_expressed_exits_with_2(
    make_config: MakeConfig, write_config: WriteConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sections = dict(model=MODEL, quant_transformer=transformer("APoT", 6))
    checkpoint = calibrated(make_config(**sections), tmp_path)
    out = tmp_path / "model.onnx"
    assert main(["export", str(write_config(**sections)), str(checkpoint), "--out", str(out)]) == 2
    assert "integers beyond 8 bits: backbone." in capsys.readouterr().err
    assert not out.exists() and not (tmp_path / "model.report.json").exists()


@pytest.mark.parametrize(
    "options, match",
    [
        (dict(out="gone/model.onnx/x.onnx"), r"--out .*x\.onnx cannot be written: Not a directory"),
        (dict(out="reported.onnx"), r"--out must name a file to write; .*reported\.report\.json is a folder"),
        (dict(out="model.txt"), r"--out must be an \.onnx file, such as model\.onnx; got '.*model\.txt'"),
        (dict(num_images=0), "--num-images must be an integer ≥ 1"),
        (dict(residual_bits=4), "--residual-bits must be 8"),
    ],
)
def test_wrong_arguments(cfg: Config, tmp_path: Path, options: dict[str, Any], match: str) -> None:
    out = tmp_path / options.pop("out", "model.onnx")
    (tmp_path / "gone").mkdir()
    (tmp_path / "gone" / "model.onnx").touch()
    (tmp_path / "reported.report.json").mkdir()
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ConfigError, match=match):
        export_checkpoint(cfg, tmp_path / "no.pth", out, **options)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_wrong_key_of_the_section_is_known_to_the_command_too(cfg: Config, tmp_path: Path) -> None:
    cfg.export = dict(verfy=True)
    with pytest.raises(ConfigError, match="export does not accept 'verfy'. Did you mean 'verify'"):
        export_checkpoint(cfg, tmp_path / "no.pth", tmp_path / "model.onnx")


def test_what_is_no_checkpoint_of_the_config(
    cfg: Config, make_config: MakeConfig, write_config: WriteConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One message, exit code 1, and no file; and what the message advises for float weights works."""
    quantized = calibrated(cfg, tmp_path)
    (tmp_path / "cut.pth").write_bytes(quantized.read_bytes()[:20_000])
    (tmp_path / "old.onnx").write_bytes(b"\x08\x0a")
    (tmp_path / "folder").mkdir()
    configs = {
        "quantized": str(write_config("quantized.py", model=MODEL, quant_transformer=transformer())),
        "float": str(write_config("float.py", model=MODEL)),
        "dsq": str(write_config("dsq.py", model=MODEL, quant_transformer=transformer("DSQ"))),
    }
    out = tmp_path / "model.onnx"
    for config, name, message in (
        ("quantized", "float.pth", "it has float weights.*\n.*calibrate.*--options quant_transformer=none\n"),
        ("float", "quantized.pth", "it is from a quantized model.*has no quant_transformer.*\n.*use the config"),
        ("dsq", "quantized.pth", "made with other quantizers.*\n.*: LSQ, .* DSQ, .*\n(.*\n)*.*give the config"),
        ("quantized", "cut.pth", "checkpoint .*cut.pth is damaged .*or copied only in part"),
        ("quantized", "old.onnx", "old.onnx is an exported model.*give the checkpoint"),
        ("quantized", "folder", "folder is a folder, not a checkpoint; it contains no .pth file"),
    ):
        assert main(["export", configs[config], str(tmp_path / name), "--out", str(out)]) == 1
        error = capsys.readouterr().err
        assert re.search(message, error) and error.count("CheckpointError") == 1 and "Traceback" not in error
        assert not out.exists()
    as_float = ["--options", "quant_transformer=none"]
    assert main(["export", configs["quantized"], str(tmp_path / "float.pth"), "--out", str(out), *as_float]) == 0
    assert "float, no quantized layers" in capsys.readouterr().out
    info = load(out).info
    assert info is not None and info.is_float and info.quantization == "float"


def test_a_link_stays_one(cfg: Config, tmp_path: Path) -> None:
    checkpoint, link, target = calibrated(cfg, tmp_path), tmp_path / "model.onnx", tmp_path / "store" / "v1.onnx"
    link.symlink_to(target)
    report = export_checkpoint(cfg, checkpoint, link)
    assert link.is_symlink() and report.path == target and target.stat().st_size == report.size
    assert sorted(p.name for p in target.parent.iterdir()) == ["v1.onnx", "v1.report.json"]


TARGET = """
from lbitcls.deploy.targets.base import LayerFacts, Target
from lbitcls.registry import TARGETS


@TARGETS.register_module(name="mine", force=True)
class Mine(Target):
    containers = ("int8",)

    def problems(self, layer: LayerFacts, opset: int) -> list[str]:
        narrow = layer.weight_bits is not None and layer.weight_bits < 4
        return [*super().problems(layer, opset), *(["it has fewer than 4 bits; train it with 4"] if narrow else [])]
"""


def test_a_target_of_ones_own(
    write_config: WriteConfig, cfg: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """A module that the config imports registers it; its rules refuse, and shape the file that is verified."""
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "module_with_a_target.py").write_text(TARGET)
    out, custom = tmp_path / "model.onnx", dict(imports=["module_with_a_target"])
    arguments = ["--out", str(out), "--verify", "--num-images", "100"]
    try:
        for bits in (3, 4):
            quantizers = transformer(bits=bits)
            checkpoint = calibrated(Config({**cfg.to_dict(), "quant_transformer": quantizers}), tmp_path)
            config = write_config(model=MODEL, quant_transformer=quantizers, custom_imports=custom)
            code = main(["export", str(config), str(checkpoint), *arguments, "--target", "mine"])
            said = capsys.readouterr()
            assert code == (2 if bits == 3 else 0), said.err
            assert ("head.fc: it has fewer than 4 bits" in said.err) == (bits == 3) == (not out.exists())
        info = load(out, "onnxruntime").info
        assert info is not None and info.target == "mine" and info.engines == ["onnxruntime"]
        assert {layer["container"] for layer in info.layers} == {"int8"}
        assert main(["export", str(config), str(checkpoint), *arguments, "--target", "min"]) == 2
        assert "no target named 'min'. Did you mean 'mine'" in capsys.readouterr().err
    finally:
        TARGETS.module_dict.pop("mine", None)
        sys.modules.pop("module_with_a_target", None)
