"""What `lbitcls init` writes: the sections of each backbone and method, and what depends on installed packages."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from lbitcls.models import build_classifier
from lbitcls.quant import build_mtransformer, calibrate
from lbitcls.quant.methods import METHODS as REGISTERED
from lbitcls.registry import QUANT_LAYERS
from lbitcls.starter import first_config as module
from lbitcls.starter.quantization import METHODS, find_recipe
from lbitcls.starter.recipe import find_network
from lbitcls.utils import Config

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.fixture(autouse=True)
def _photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a folder with `p`, three large photos of two classes each; weights are published, but not fetched."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(module, "fetch_weights", lambda name: Path(name))
    for label, kind in enumerate("ab"):
        Path("p", kind).mkdir(parents=True)
        for i in range(3):
            Image.fromarray(np.full((200, 220, 3), 10 * i + label, np.uint8)).save(f"p/{kind}/{i}.png")


def assert_formatted(path: Path) -> None:
    check = subprocess.run(
        [sys.executable, "-m", "ruff", "format", "--check", "--config", str(ROOT / "pyproject.toml"), str(path)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert check.returncode == 0, check.stdout + check.stderr


def planned(cfg: Config, model: Any) -> dict[str, tuple[str, int | None, int | None]]:
    """Entry and bits of each quantized layer, by its name."""
    rows = build_mtransformer(cfg.quant_transformer).plan(model)
    return {row.name: (str(row.entry), row.num_bit_w, row.num_bit_a) for row in rows if row.quantized}


@pytest.mark.parametrize("backbone", ["mobilenet_v2", "resnet18", "squeezenet1_1", "shufflenet_v2_x0_5"])
@pytest.mark.parametrize("quantize", [None, "lsq-4w4f", "int8"])
def test_every_recipe_builds(backbone: str, quantize: str | None) -> None:
    path = module.init_config("p", backbone=backbone, quantize=quantize)
    cfg = Config.fromfile(path)
    assert cfg.model.backbone.pop("pretrained") == f"torchvision://{backbone}"
    model = build_classifier(cfg.model)
    assert_formatted(path)
    assert cfg.train_pipeline[1]["size"] == 224
    if quantize is None:
        assert cfg.get("quant_transformer") is None and cfg.get("export") is None
        return
    assert 0 < cfg.calibration.epoch < cfg.total_epochs
    ends = (find_network(backbone).first, "head.conv" if backbone.startswith("squeeze") else "head.fc")
    inner = 4 if quantize == "lsq-4w4f" else 8
    bits = {name: row[1:] for name, row in planned(cfg, model).items()}
    assert {name for name, found in bits.items() if found == (8, 8)} >= set(ends)
    assert {bits[name] for name in bits if name not in ends} == {(inner, inner)}


def test_recipes_are_those_of_the_library() -> None:
    QUANT_LAYERS.names()
    assert {method.entry for method in METHODS.values()} == set(REGISTERED)
    assert {find_recipe(name) for name in ("LSQ+-2w3f", "lsqplus-2w3f")} == {find_recipe("lsqplus-2w3f")}
    assert find_recipe("torchqat-8w8f") == find_recipe("int8") and find_recipe("int4") == find_recipe("lsq-4w4f")


@pytest.mark.parametrize("method", METHODS)
def test_every_method(method: str) -> None:
    """The inner layers have the recipe's bits, the ends those of the library's configs; a step trains."""
    path = module.init_config("p", backbone="resnet18", quantize=f"{method}-3w5f", pretrained="none")
    assert_formatted(path)
    cfg = Config.fromfile(path)
    model = build_classifier(cfg.model)
    entry = METHODS[method].entry
    found = planned(cfg, model)
    ends = {name: found.pop(name, None) for name in ("backbone.conv1", "head.fc")}
    assert len(found) == 19 and set(found.values()) == {(f"{entry}Conv", 3, 5)}
    base = ROOT / "configs" / "_base_" / "methods" / f"{entry.lower()}.py"
    if base.exists() and method != "qat":  # which quantizes all layers alike
        library = Config.fromfile(base)
        library.quant_transformer.quan_policy.Conv2d.update(num_bit_w=3, num_bit_a=5)
        assert ends == {name: planned(library, model).get(name) for name in ends}
    model = build_mtransformer(cfg.quant_transformer)(model).train()
    images = torch.randn(2, 3, 64, 64)
    calibrate(model, [images], "minmax")
    model(images, gt_label=torch.tensor([0, 1]))["loss"].backward()
    assert all(value.grad is None or value.grad.isfinite().all() for value in model.parameters())


def test_what_is_not_installed_is_a_comment(monkeypatch: Any) -> None:
    """The config then runs without TensorBoard and without an export, and says how to get them."""
    every, none = (write_with(monkeypatch, name, there) for name, there in (("a.py", True), ("b.py", False)))
    assert every.export == dict(verify=True) and none.get("export") is None
    kinds = [[hook["type"] for hook in cfg.log_config.hooks] for cfg in (every, none)]
    assert kinds == [["TextLoggerHook", "TensorboardLoggerHook"], ["TextLoggerHook"]]
    text = Path("b.py").read_text()
    assert "pip install lbitcls[deploy]" in text and "pip install tensorboard" in text
    assert "    lbitcls export b.py work_dirs/b/best_top-1.pth" in text
    assert "    lbitcls benchmark work_dirs/a/model.onnx work_dirs/a/float.onnx" in Path("a.py").read_text()


def write_with(monkeypatch: Any, name: str, there: bool) -> Config:
    monkeypatch.setattr(module, "installed", lambda package: there)
    path = module.init_config("p", backbone="squeezenet1_1", quantize="int4", pretrained="none", out=name)
    assert_formatted(path)
    return Config.fromfile(path)
