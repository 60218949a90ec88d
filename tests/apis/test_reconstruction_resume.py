"""`lbitcls calibrate --rounding`: the checkpoint is an ordinary one, and an interrupted calibration continues."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from lbitcls.commands.main import main
from lbitcls.models import build_classifier
from lbitcls.quant.reconstruction.reconstruct import Reconstruction
from lbitcls.utils.checkpoint import read_checkpoint, save_checkpoint
from lbitcls.utils.config import Config
from lbitcls.workflows.calibrating import calibrate_checkpoint
from lbitcls.workflows.testing import test_classifier as classify

PIPELINE = [dict(type="Normalize", mean=[0.3], std=[0.3]), dict(type="ImageToTensor", keys=["img"])]
PIPELINE.append(dict(type="Collect", keys=["img", "gt_label"]))
DATA = dict(type="Digits", pipeline=PIPELINE)


@pytest.fixture
def cfg() -> Config:
    entries = {k: dict(type=f"LSQ{s}", num_bit_w=3, num_bit_a=4) for k, s in (("Conv2d", "Conv"), ("Linear", "Linear"))}
    return Config(
        dict(
            model=dict(
                type="ImageClassifier",
                backbone=dict(type="ResNetCIFAROptionA", depth=8, in_channels=1, base_channels=4),
                neck=dict(type="GlobalAveragePooling"),
                head=dict(type="LinearClsHead", num_classes=10, in_channels=16, topk=(1,)),
            ),
            data=dict(samples_per_gpu=16, train=DATA, test=DATA),
            quant_transformer=dict(type="ModelTransformer", quan_policy=entries),
            calibration=dict(reconstruct=dict(rounding="qdrop", iterations=4, batch_size=8, equalize=True)),
        )
    )


@pytest.fixture
def weights(cfg: Config, tmp_path: Path) -> Path:
    torch.manual_seed(0)
    save_checkpoint(build_classifier(cfg.model), tmp_path / "float.pth")
    return tmp_path / "float.pth"


def calibrated(cfg: Config, weights: Path, name: str, **options: Any) -> Path:
    out = weights.parent / name
    calibrate_checkpoint(cfg, weights, out, num_images=24, test=False, **options)
    return out


def state(path: Path) -> dict[str, torch.Tensor]:
    return read_checkpoint(path)["state_dict"]


def same(a: Path, b: Path) -> bool:
    left, right = state(a), state(b)
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


@pytest.fixture
def killed(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Calibrations end before the third unit; the units that were reconstructed."""
    done: list[int] = []
    advance = Reconstruction.advance

    def stop(self: Reconstruction, number: int) -> None:
        if number == 2 and 2 not in done:
            done.append(2)
            raise KeyboardInterrupt
        done.append(number)
        advance(self, number)

    monkeypatch.setattr(Reconstruction, "advance", stop)
    yield done


@pytest.mark.parametrize("rounding", ["adaround", "qdrop"])
def test_a_killed_calibration_ends_bit_identical(cfg: Config, weights: Path, killed: list[int], rounding: str) -> None:
    out = weights.parent / "resumed.pth"
    with pytest.raises(KeyboardInterrupt):
        calibrated(cfg, weights, "resumed.pth", rounding=rounding)
    assert Path(f"{out}.progress").exists() and not out.exists()
    calibrated(cfg, weights, "resumed.pth", rounding=rounding)
    assert killed == [0, 1, 2, 2, 3, 4] and not Path(f"{out}.progress").exists()
    assert same(out, calibrated(cfg, weights, "whole.pth", rounding=rounding))


def test_a_file_of_another_calibration_is_not_resumed(
    cfg: Config, weights: Path, killed: list[int], capsys: Any
) -> None:
    with pytest.raises(KeyboardInterrupt):
        calibrated(cfg, weights, "out.pth")
    cfg.calibration.reconstruct.seed = 1
    out = calibrated(cfg, weights, "out.pth")
    assert "out.pth.progress is of another calibration; starting from scratch." in capsys.readouterr().out
    assert same(out, calibrated(cfg, weights, "whole.pth"))
    Path(f"{out}.progress").write_bytes(b"damaged")
    assert same(out, calibrated(cfg, weights, "out.pth"))


def test_the_checkpoint_is_an_ordinary_one_and_its_export_agrees(cfg: Config, weights: Path) -> None:
    pytest.importorskip("onnxruntime")
    from lbitcls.workflows.exporting import export_checkpoint

    path = calibrated(cfg, weights, "quantized.pth", rounding="adaround")
    assert not same(path, calibrated(cfg, weights, "nearest.pth", rounding="nearest"))
    accuracy = classify(cfg, path)["top-1"]
    exported = weights.parent / "model.onnx"
    export_checkpoint(cfg, path, exported)
    assert classify(None, exported)["top-1"] == pytest.approx(accuracy, abs=0.2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--rounding", "adaruond"], r"calibration.reconstruct.rounding must be .*'adaround'.*got 'adaruond'"),
        (["--options", "calibration.reconstruct.iterations=0"], r"calibration.reconstruct.iterations must be .*got 0"),
    ],
)
def test_mistakes_are_errors_in_one_line(
    cfg: Config, weights: Path, options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file = weights.parent / "config.py"
    file.write_text(cfg.pretty_text)
    code = main(["calibrate", str(file), str(weights), "--out", str(weights.parent / "out.pth"), *options])
    shown = capsys.readouterr().err.strip()
    assert code in (1, 2) and "Traceback" not in shown
    assert re.search(message, shown) and len(shown.splitlines()) == 1, shown


def test_a_quantized_checkpoint_is_refused(cfg: Config, weights: Path) -> None:
    path = calibrated(cfg, weights, "quantized.pth", rounding="adaround")
    from lbitcls.utils.errors import ConfigError

    with pytest.raises(ConfigError, match="needs a float checkpoint, whose weights are not rounded yet"):
        calibrated(cfg, path, "again.pth")


def test_training_refuses_the_section(cfg: Config) -> None:
    from lbitcls.assembly.run_hooks import _calibration
    from lbitcls.settings.sections import read_settings
    from lbitcls.utils.errors import ConfigError

    with pytest.raises(ConfigError, match=r"calibration\.reconstruct .* in lbitcls calibrate; remove it to train"):
        _calibration(read_settings(cfg))
