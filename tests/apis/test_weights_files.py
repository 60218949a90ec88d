"""safetensors wherever a checkpoint is read: convert, test, infer, init_model, export, load_from, teacher."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lbitcls.apis import inference_model, init_model, train_classifier
from lbitcls.commands.main import main
from lbitcls.utils.checkpoint import read_checkpoint

pytest.importorskip("safetensors")


@pytest.fixture
def weights(delivered: Any, tmp_path: Path, capsys: Any) -> Path:
    """The quantized model's checkpoint, as `lbitcls convert` writes it."""
    path = tmp_path / "model.safetensors"
    assert main(["convert", str(delivered.checkpoint), str(path)]) == 0
    assert f"wrote {path}; its model is" in capsys.readouterr().out
    return path


def test_convert_goes_there_and_back(weights: Path, delivered: Any, tmp_path: Path) -> None:
    assert main(["convert", str(weights), str(tmp_path / "back.pth")]) == 0
    one, other = read_checkpoint(delivered.checkpoint), read_checkpoint(tmp_path / "back.pth")
    assert one["state_dict"].keys() == other["state_dict"].keys()
    assert all(torch.equal(value, other["state_dict"][name]) for name, value in one["state_dict"].items())
    assert other["meta"]["config"] == one["meta"]["config"]
    assert other["meta"]["calibrated_on"] == one["meta"]["calibrated_on"]
    assert tuple(other["meta"]["CLASSES"]) == tuple(one["meta"]["CLASSES"])


def test_init_model_needs_no_config(weights: Path, delivered: Any) -> None:
    image = np.random.default_rng(0).integers(0, 255, (8, 8), np.uint8)
    found, wanted = (inference_model(init_model(None, path), image) for path in (weights, delivered.checkpoint))
    assert found == wanted and found["pred_class"].startswith("digit ")


def test_commands_read_it(weights: Path, delivered: Any, tmp_path: Path, capsys: Any) -> None:
    assert main(["test", str(weights)]) == 0
    first = capsys.readouterr().out
    assert main(["test", str(delivered.config), str(delivered.checkpoint)]) == 0
    lines = [[line for line in text.splitlines() if "top-1" in line] for text in (first, capsys.readouterr().out)]
    assert lines[0] == lines[1] != []
    out = tmp_path / "model.onnx"
    assert main(["export", str(delivered.config), str(weights), "--out", str(out)]) == 0 and out.is_file()


def test_quantizers_of_other_bits_are_refused(weights: Path, delivered: Any, capsys: Any) -> None:
    options = ["--options", "quant_transformer.quan_policy.Conv2d.num_bit_w=2"]
    assert main(["test", str(delivered.config), str(weights), *options]) == 1
    assert "was made with other quantizers than the config has" in capsys.readouterr().err


def test_a_run_starts_from_it_and_learns_from_it(make_config: Any, tmp_path: Path) -> None:
    first = make_config("first", total_epochs=1)
    train_classifier(first)
    path = tmp_path / "start.safetensors"
    assert main(["convert", str(tmp_path / "first" / "latest.pth"), str(path)]) == 0
    teacher = dict(checkpoint=str(path))  # whose config it records
    second = make_config(
        "second", total_epochs=1, load_from=str(path), distill=dict(teacher=teacher), options={"optimizer.lr": 0.0}
    )
    train_classifier(second)
    before, after = (read_checkpoint(path)["state_dict"] for path in (path, tmp_path / "second" / "latest.pth"))
    assert torch.equal(before["backbone.conv1.weight"], after["backbone.conv1.weight"])
    second.resume_from, second.load_from = str(path), None
    with pytest.raises(Exception, match="contains weights only, not a run to resume"):
        train_classifier(second)


def test_calibration_writes_it(delivered: Any, tmp_path: Path) -> None:
    out, source = tmp_path / "quantized.safetensors", delivered.config.with_name("float.pth")
    assert main(["calibrate", str(delivered.config), str(source), "--out", str(out), "--num-images", "20"]) == 0
    assert read_checkpoint(out)["meta"]["calibrated_on"] == 20


def test_a_target_that_cannot_be_written_is_told_first(delivered: Any, tmp_path: Path, capsys: Any) -> None:
    assert main(["convert", str(delivered.checkpoint), str(tmp_path)]) == 2
    assert "TARGET must name a file to write" in capsys.readouterr().err
