"""docs/inference.md and the README's photo: their code and commands run, their options are the command's."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from lbitcls.cli import main
from lbitcls.datasets.digits import Digits
from lbitcls.deploy import export_onnx
from lbitcls.models import build_classifier
from lbitcls.quant import build_mtransformer, calibrate
from lbitcls.utils.checkpoint import save_checkpoint
from lbitcls.utils.config import Config

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs" / "inference.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^python tools/(\w+)\.py (.+)$", TEXT.replace("\\\n", ""), re.MULTILINE)
CODE = re.findall(r"^```python\n(.*?)^```", TEXT, re.DOTALL | re.MULTILINE)
README = next(
    block
    for block in re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text("utf-8"), re.DOTALL | re.MULTILINE)
    if "inference_model" in block
)


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as a clone is after `make quickstart`, but that nothing was trained, with photos."""
    folder = tmp_path_factory.mktemp("clone")
    (folder / "configs").symlink_to(ROOT / "configs")
    cfg = Config.fromfile(folder / "configs" / "quickstart" / "digits_lsq_4w4f.py")
    torch.manual_seed(0)
    model = build_mtransformer(cfg.quant_transformer)(build_classifier(cfg.model)).eval()
    digits = Digits(split="train", pipeline=cfg.data.test.pipeline)
    calibrate(model, [torch.stack([digits[i]["img"] for i in range(50)])])
    work_dir = folder / "work_dirs" / "digits_lsq_4w4f"
    save_checkpoint(model, work_dir / "best_top-1.pth", meta={"CLASSES": digits.CLASSES})
    facts: dict[str, Any] = dict(classes=digits.CLASSES, pipeline=cfg.data.test.pipeline, config=cfg.pretty_text)
    export_onnx(model, work_dir / "model.onnx", input_shape=(1, 8, 8), **facts)
    (folder / "photos").mkdir()
    for seed, name in enumerate(("photo.jpg", "other.png", "photos/a.jpg", "photos/b.png")):
        pixels = np.random.default_rng(seed).integers(0, 256, (30, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / name)
    return folder


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    from matplotlib import pyplot

    figures: list[Any] = []
    monkeypatch.setattr(pyplot, "show", lambda: figures.append(pyplot.gcf()))
    return figures


@pytest.mark.parametrize("blocks", [CODE, [README]], ids=["docs", "readme"])
def test_the_code(clone: Path, monkeypatch: pytest.MonkeyPatch, shown: list[Any], blocks: list[str]) -> None:
    monkeypatch.chdir(clone)
    names: dict[str, Any] = {}
    for code in blocks:
        exec(code, names)
    assert names["result"]["pred_class"] in map(str, range(10)) and len(shown) == 1
    assert len([line for line in README.splitlines() if line]) == 4
    if blocks is CODE:
        assert (clone / "labelled.png").is_file() and len(names["results"]) == 2


def test_the_commands(clone: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.chdir(clone)
    for verb, arguments in COMMANDS:
        assert main(shlex.split(arguments), only=verb) == 0
    assert re.search(r"^photo\.jpg: \d \d+\.\d %$", capsys.readouterr().out, re.MULTILINE)
    records = json.loads((clone / "found.json").read_text())
    assert [record["path"] for record in records] == ["photos/a.jpg", "photos/b.png"]
    assert all(len(record["topk"]) == 3 for record in records)


def test_the_options_are_those_of_the_command() -> None:
    command = [sys.executable, str(ROOT / "tools" / "infer.py"), "--help"]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    known = set(re.findall(r"--[a-z-]+", text)) - {"--help"}
    described = "".join(line for line in TEXT.splitlines() if line.startswith("| `--"))
    assert set(re.findall(r"`(--[a-z-]+)", described)) == known
