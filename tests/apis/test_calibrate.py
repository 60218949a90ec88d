"""`lbitcls plan` and `lbitcls calibrate` on the digits that the package carries."""

from pathlib import Path

import pytest
import torch

from lbitcls.commands.main import main
from lbitcls.utils.checkpoint import read_checkpoint

CONFIG = "configs/quickstart/digits_lsq_4w4f.py"


@pytest.fixture(scope="module")
def float_checkpoint(tmp_path_factory: pytest.TempPathFactory, repo_root: Path) -> Path:
    """A float model of the digits, trained for three epochs."""
    folder = tmp_path_factory.mktemp("float")
    options = ["total_epochs=3", "calibration.epoch=2", "evaluation.interval=1", "optimizer.lr=0.05", "export=none"]
    code = main(["train", str(repo_root / CONFIG), "--work-dir", str(folder), "--options", *options])
    assert code == 0
    return folder / "best_float_top-1.pth"


@pytest.mark.parametrize("method", ["mse", "percentile", "minmax", "own"])
def test_a_float_checkpoint_becomes_a_quantized_one(
    method: str, float_checkpoint: Path, repo_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    out = tmp_path / "quantized.pth"
    options = ["quant_transformer.quan_policy.Conv2d.num_bit_w=8", "quant_transformer.quan_policy.Conv2d.num_bit_a=8"]
    arguments = [str(repo_root / CONFIG), str(float_checkpoint), "--out", str(out), "--method", method]
    assert main(["calibrate", *arguments, "--options", *options]) == 0
    assert (
        main(["test", str(repo_root / CONFIG), str(out), "--out", str(tmp_path / "m.json"), "--options", *options]) == 0
    )
    printed = capsys.readouterr().out
    values = {line.split("│")[1].strip(): line.split("│")[2].strip() for line in printed.splitlines() if "│" in line}
    assert float(values["quantized top-1"]) > float(values["float top-1"]) - 3
    assert float(values["top-1"]) == pytest.approx(float(values["quantized top-1"]), abs=0.01)
    state = read_checkpoint(out)["state_dict"]
    assert all(bool(v) for k, v in state.items() if k.endswith(("initialized", "enabled")))
    assert all(torch.isfinite(v).all() for v in state.values() if v.is_floating_point())


def test_a_checkpoint_that_is_quantized_already_says_so(
    float_checkpoint: Path, repo_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    once, twice = tmp_path / "once.pth", tmp_path / "twice.pth"
    arguments = ["calibrate", str(repo_root / CONFIG)]
    assert main([*arguments, str(float_checkpoint), "--out", str(once), "--num-images", "50"]) == 0
    printed = capsys.readouterr()
    assert "quantizers from 50 images" in printed.out + printed.err
    assert "already quantized" not in printed.out + printed.err
    assert main([*arguments, str(once), "--out", str(twice), "--num-images", "60"]) == 0
    printed = capsys.readouterr()
    said = printed.out + printed.err
    assert f"{once} is already quantized: 16 of its 16 quantizers have values and keep them; nothing was" in said
    assert "calibrate the float checkpoint that it was made from" in said and "Initialized" not in said
    first, second = read_checkpoint(once), read_checkpoint(twice)
    assert first["meta"]["calibrated_on"] == second["meta"]["calibrated_on"] == 50
    assert all(torch.equal(value, second["state_dict"][name]) for name, value in first["state_dict"].items())


def test_mistakes_are_answered(
    float_checkpoint: Path, repo_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    arguments = ["calibrate", str(repo_root / CONFIG), str(float_checkpoint), "--out", str(tmp_path / "q.pth")]
    assert main([*arguments, "--method", "mze"]) == 2
    assert "'mze'. Did you mean 'mse'" in capsys.readouterr().err
    assert main([*arguments, "--num-images", "0"]) == 2
    before = float_checkpoint.read_bytes()
    assert main([*arguments[:-1], str(float_checkpoint)]) == 2
    assert "would replace a file that this command uses" in capsys.readouterr().err
    assert float_checkpoint.read_bytes() == before
    (tmp_path / "model.onnx").write_bytes(b"\x08\x0a")
    assert main([*arguments[:2], str(tmp_path / "model.onnx"), *arguments[3:]]) == 1
    assert "model.onnx is an exported model" in capsys.readouterr().err
    assert not (tmp_path / "q.pth").exists()


def test_the_test_set_has_the_checkpoints_classes_and_fewer_images_are_counted(
    float_checkpoint: Path, repo_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    out = tmp_path / "q.pth"
    arguments = ["calibrate", str(repo_root / CONFIG), str(float_checkpoint), "--out", str(out)]
    assert main([*arguments, "--options", "+data.train.indices=[1,2,3]"]) == 0
    meta = read_checkpoint(out)["meta"]
    assert meta["calibrated_on"] == 3 and len(meta["CLASSES"]) == 10
    content = read_checkpoint(float_checkpoint)
    content["meta"]["CLASSES"] = meta["CLASSES"][::-1]
    torch.save(content, tmp_path / "reversed.pth")
    arguments[2:] = [str(tmp_path / "reversed.pth"), "--out", str(tmp_path / "none.pth")]
    capsys.readouterr()
    assert main(arguments) == 1
    assert "data.test does not number the classes as the checkpoint" in capsys.readouterr().err
    assert not (tmp_path / "none.pth").exists()


def test_the_plan_of_a_config_is_printed(repo_root: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["plan", str(repo_root / CONFIG)]) == 0
    printed = capsys.readouterr().out
    line = next(line for line in printed.splitlines() if line.startswith("backbone.layer1.0.conv1"))
    macs = 16 * 16 * 9 * 64
    assert line.split()[2:6] == ["16×16×3×3", "LSQConv", "4", "4"] and f"{macs / 1e6:.2f}" in line
    assert "7       BatchNorm2d" in printed and "parameters, KiB" in printed


def test_the_plan_of_a_float_config_shows_each_layer(repo_root: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["plan", str(repo_root / CONFIG), "--options", "quant_transformer=none"]) == 0
    lines = capsys.readouterr().out.splitlines()
    row = next(line for line in lines if line.startswith("backbone.layer1.0.conv1")).split()
    assert row == ["backbone.layer1.0.conv1", "Conv2d", "16×16×3×3", "2,304", f"{16 * 16 * 9 * 64 / 1e6:.2f}", "9.0"]
    total = next(line for line in lines if line.startswith("total")).split()
    assert any(line.startswith(f"parameters: {total[1]} in all, {total[1]} trained; backbone: ") for line in lines)
