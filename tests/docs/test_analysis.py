"""docs/analysis.md: its options are the command's, its Python runs, its pictures are there and small."""

from __future__ import annotations

import argparse
import copy
import re
from pathlib import Path

import pytest
import torch
from PIL import Image

from lbitcls.cli_arguments import compare_arguments
from lbitcls.datasets import build_dataset
from lbitcls.models import build_classifier
from lbitcls.quant import build_mtransformer, calibrate
from lbitcls.utils import Config
from lbitcls.utils.checkpoint import save_checkpoint

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs" / "analysis.md").read_text(encoding="utf-8")


def test_options_are_those_of_the_command() -> None:
    parser = argparse.ArgumentParser()
    compare_arguments(parser)
    known = {option for action in parser._actions for option in action.option_strings} - {"-h", "--help"}
    assert set(re.findall(r"^\| `(--[a-z-]+)", TEXT, re.MULTILINE)) == known
    assert f"always the same ({parser.get_default('num_images')})" in TEXT
    assert f"(`{parser.get_default('save_path')}`)" in TEXT


@pytest.mark.parametrize("name", re.findall(r"!\[.*?\]\((.*?)\)", TEXT))
def test_pictures_are_small(name: str) -> None:
    path = ROOT / "docs" / name
    assert path.stat().st_size < 200_000
    with Image.open(path) as image:
        assert image.size[0] > 600


def test_its_python_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    cfg = Config.fromfile(ROOT / "configs" / "quickstart" / "digits_lsq_4w4f.py")
    dataset = build_dataset(cfg.data.test)
    model = build_classifier(cfg.model).eval()
    quantized = build_mtransformer(cfg.quant_transformer)(copy.deepcopy(model))
    calibrate(quantized, [torch.stack([dataset[i]["img"] for i in range(20)])])
    monkeypatch.chdir(tmp_path)
    cfg.dump("float.py")
    cfg.dump("int.py")
    save_checkpoint(model, "float.pth")
    save_checkpoint(quantized, "int.pth")
    Path("images").mkdir()
    for index in range(4):
        Image.fromarray(dataset.images[index, 0].numpy()).save(f"images/{index}.png")
    (code,) = re.findall(r"^```python\n(.*?)^```", TEXT, re.DOTALL | re.MULTILINE)
    exec(compile(code, "docs/analysis.md", "exec"), {})
    said = capsys.readouterr().out.splitlines()[-3:]
    assert all(re.fullmatch(r"\S+ [\d.e-]+ [\d.]+ [\d.e-]+", line) for line in said), said
    assert Path("report.html").exists() and Path("report.json").exists()
