"""docs/deployment.md: its commands and its Python run, its options are the command's, its picture can be drawn."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from lbitcls.apis.delivery import read_export
from lbitcls.cli import main
from lbitcls.datasets.digits import Digits
from lbitcls.models import build_backbone, build_classifier
from lbitcls.quant import build_mtransformer, calibrate, set_quantization
from lbitcls.utils.checkpoint import save_checkpoint
from lbitcls.utils.config import Config

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs" / "deployment.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^python tools/(\w+)\.py (.+)$", TEXT.replace("\\\n", ""), re.MULTILINE)
CODE = re.findall(r"^```python\n(.*?)^```", TEXT, re.DOTALL | re.MULTILINE)
CONFIG = "configs/quickstart/digits_lsq_4w4f.py"


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as a clone is after `make quickstart`, but that nothing was trained; the commands have run there."""
    folder = tmp_path_factory.mktemp("clone")
    (folder / "configs").symlink_to(ROOT / "configs")
    cfg = Config.fromfile(ROOT / CONFIG)
    torch.manual_seed(0)
    model = build_mtransformer(cfg.quant_transformer)(build_classifier(cfg.model))
    digits = Digits(split="train", pipeline=cfg.data.test.pipeline)
    images = torch.stack([digits[i]["img"] for i in range(100)])
    for _ in range(20):
        set_quantization(model.train(), False)
        model.predict(images)  # running statistics
    set_quantization(model.eval(), True)
    calibrate(model, [images])
    work_dir = folder / "work_dirs" / "digits_lsq_4w4f"
    work_dir.mkdir(parents=True)
    save_checkpoint(model, work_dir / "best_top-1.pth", meta={"CLASSES": digits.CLASSES})
    set_quantization(model, False)
    from lbitcls.deploy import export_onnx

    export_onnx(model, work_dir / "float.onnx", input_shape=(1, 8, 8))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for verb, arguments in COMMANDS:
            fewer = ["--repeats", "1", "--batch", "1"] if verb == "benchmark" else []
            assert main([*shlex.split(arguments), *fewer], only=verb) == 0, (verb, arguments)
    return folder


def test_the_commands_write_what_they_name(clone: Path) -> None:
    assert {verb for verb, _ in COMMANDS} == {"export", "test", "benchmark"}
    files = re.findall(r"--out (\S+\.onnx)", TEXT)
    assert len(files) == 3 and all((clone / file).is_file() for file in files)
    assert all((clone / file).with_suffix(".report.json").is_file() for file in files)
    assert (clone / "small.onnx").stat().st_size < (clone / "model.onnx").stat().st_size


def test_the_code_that_loads(clone: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.chdir(clone)
    names: dict[str, Any] = {}
    exec(CODE[0], names)
    assert names["logits"].shape == (3, 10)
    assert capsys.readouterr().out.startswith("LSQ W4A4 ['0', ")


def test_the_sections_of_a_config(clone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(clone)
    names: dict[str, Any] = {}
    for code in CODE[1:]:
        exec(code, names)
    cfg = Config.fromfile(CONFIG)
    cfg.export = names["export"]
    assert read_export(cfg) == names["export"]
    assert build_classifier(names["model"])(torch.zeros(2, 1, 8, 8), return_loss=False).shape == (2, 10)
    with pytest.raises(Exception, match=r"there is no checkpoint mobilenet_v2\.pth"):  # all its keys are known
        build_backbone(names["backbone"])


def test_the_options_are_those_of_the_command() -> None:
    help_text = subprocess.run(
        [sys.executable, str(ROOT / "tools" / "export.py"), "--help"], capture_output=True, text=True, check=True
    ).stdout
    known = set(re.findall(r"--[a-z-]+", help_text))
    described = set(re.findall(r"^\| `(--[a-z-]+)", TEXT, re.MULTILINE))
    general = {"--help", "--out", "--verify", "--device", "--data-root", "--options"}
    assert described == known - general


@pytest.mark.slow
def test_the_picture_is_what_the_script_draws(tmp_path: Path) -> None:
    drawn = tmp_path / "deployment.svg"
    script = ROOT / "docs" / "plot_deployment.py"
    subprocess.run([sys.executable, str(script), "--out", str(drawn)], check=True, capture_output=True)
    words = [
        re.findall(r">([^<>]+)</text>", path.read_text(encoding="utf-8"))
        for path in (drawn, script.with_name(drawn.name))
    ]
    assert {"conv1: LSQConv", "goes into the scales and the bias", "QuantizeLinear", "Clip"} <= set(words[0])
    # Which container signed inputs get is measured, and the Clip's bound may differ in its last digit.
    stable = [[word for word in said if "zero point" not in word and "…" not in word] for said in words]
    assert stable[0] == stable[1]
