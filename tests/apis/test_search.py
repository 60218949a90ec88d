"""`lbitcls search` on the digits: the config that it writes trains, exports and is verified like any other."""

import json
from pathlib import Path

import pytest

from lbitcls.commands.main import main
from lbitcls.utils.config import Config

CONFIG = "configs/quickstart/digits_lsq_4w4f.py"
OPTIONS = ["total_epochs=4", "calibration.epoch=3", "evaluation.interval=1", "optimizer.lr=0.05", "export=none"]


@pytest.fixture(scope="module")
def float_checkpoint(tmp_path_factory: pytest.TempPathFactory, repo_root: Path) -> Path:
    """A float model of the digits, trained for three epochs."""
    folder = tmp_path_factory.mktemp("float")
    assert main(["train", str(repo_root / CONFIG), "--work-dir", str(folder), "--options", *OPTIONS]) == 0
    return folder / "best_float_top-1.pth"


def searched(config: Path, checkpoint: Path, out: Path, *more: str) -> int:
    given = ["--num-images", "48", "--bits", "2", "4", "8", "--out", str(out), *more]
    return main(["search", str(config), str(checkpoint), *given])


def test_bits_by_layer_are_found_and_the_config_is_like_any_other(
    float_checkpoint: Path, repo_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    out = tmp_path / "mixed.py"
    assert searched(repo_root / CONFIG, float_checkpoint, out, "--budget", "size=3.5bit") == 0
    printed = capsys.readouterr().out
    assert f"wrote {out}, mixed.png and mixed.json" in printed and "other class" in printed
    assert (tmp_path / "mixed.png").stat().st_size > 10_000
    numbers = json.loads((tmp_path / "mixed.json").read_text())
    special = Config.fromfile(out).quant_transformer.special_layers
    bits = {name: entry["num_bit_w"] for name, entry in zip(special["layers_name"], special["convert_type"])}
    assert numbers["bits"].items() <= bits.items() and len(set(numbers["bits"].values())) > 1
    assert bits["backbone.conv1"] == bits["head.fc"] == 8
    assert numbers["kl"] < numbers["uniform"]["2"]["kl"]
    assert f"_base_ = '{CONFIG}'" in out.read_text()
    quantized = tmp_path / "mixed.pth"
    assert main(["calibrate", str(out), str(float_checkpoint), "--out", str(quantized), "--no-test"]) == 0
    exported = ["export", str(out), str(quantized), "--out", str(tmp_path / "mixed.onnx"), "--verify"]
    assert main(exported) == 0


def test_options_are_kept_and_a_targets_rules_bound_the_choice(
    float_checkpoint: Path, repo_root: Path, tmp_path: Path
) -> None:
    """TensorRT takes no unsigned 8-bit inputs, and most inputs here are ReLU's."""
    more = ["--budget", "bops=4x", "--target", "tensorrt", "--options", "optimizer.lr=0.123"]
    out = tmp_path / "mixed.py"
    assert searched(repo_root / CONFIG, float_checkpoint, out, *more) == 0
    numbers = json.loads((tmp_path / "mixed.json").read_text())
    allowed = {name: set(map(int, errors)) for name, errors in numbers["errors"].items()}
    assert all(bits in allowed[name] for name, bits in numbers["bits"].items())
    assert {2, 4} in allowed.values()
    assert Config.fromfile(out).optimizer.lr == 0.123 and "_base_" not in out.read_text()


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--budget", "size=1bit"], "the budget is too small"),
        (["--budget", "size=4"], "--budget must be size=Nbit"),
        (["--budget", "size=4bit", "--keep", "backbone.conv7"], "--keep backbone.conv7: the config quantizes no such"),
        (["--budget", "size=4bit", "--measure", "fischer"], "'fischer'. Did you mean 'fisher'"),
        (["--budget", "size=4bit", "--num-images", "0"], "--num-images must be"),
        (["--budget", "size=4bit", "--target", "tensorr"], "Did you mean 'tensorrt'"),
    ],
)
def test_mistakes_are_answered(
    more: list[str], said: str, float_checkpoint: Path, repo_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert searched(repo_root / CONFIG, float_checkpoint, tmp_path / "mixed.py", *more) == 2
    assert said in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("config", "out", "said"),
    [("c.py", "mixed.json", "must be a config to write"), ("c.json", "c.py", "c.json would replace a file that")],
)
def test_no_input_is_replaced(
    config: str, out: str, said: str, repo_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    Config.fromfile(repo_root / CONFIG).dump(tmp_path / config)
    assert searched(tmp_path / config, Path("float.pth"), tmp_path / out, "--budget", "size=4bit") == 2
    assert said in capsys.readouterr().err and [path.name for path in tmp_path.iterdir()] == [config]


def test_a_quantized_checkpoint_is_refused(
    float_checkpoint: Path, repo_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    out, given = tmp_path / "q.pth", [str(repo_root / CONFIG), str(float_checkpoint)]
    assert main(["calibrate", *given, "--out", str(out), "--no-test"]) == 0
    assert searched(repo_root / CONFIG, out, tmp_path / "mixed.py", "--budget", "size=4bit") == 2
    assert "is quantized; a search needs the float checkpoint" in capsys.readouterr().err
    assert not (tmp_path / "mixed.py").exists()
