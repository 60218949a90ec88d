"""What README and CONTRIBUTING show works as it is written there."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from lbitcls.datasets import build_dataset
from lbitcls.models import build_backbone, build_classifier
from lbitcls.quant import build_mtransformer, build_quant_layer
from lbitcls.utils import Config

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = [
    *sorted(ROOT.glob("*.md")),
    *sorted(path for folder in ("docs", "configs") for path in (ROOT / folder).rglob("*.md")),
]


def python_blocks(document: str) -> list[str]:
    text = (ROOT / document).read_text(encoding="utf-8")
    return [textwrap.dedent(block) for block in re.findall(r"^ *```python\n(.*?)^ *```", text, re.DOTALL | re.M)]


def run(code: str) -> dict[str, Any]:
    names: dict[str, Any] = {"__name__": "recipe"}
    exec(compile(code, "recipe", "exec"), names)
    return names


def write_images(folder: Path, names: list[str]) -> None:
    folder.mkdir(parents=True)
    for name in names:
        Image.fromarray(np.random.randint(0, 255, (40, 50, 3), np.uint8)).save(folder / name)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(document: Path) -> None:
    links = re.findall(r"\]\(([^)#]+)[^)]*\)", document.read_text(encoding="utf-8"))
    broken = [link for link in links if "://" not in link and not (document.parent / link).exists()]
    assert not broken


@pytest.fixture
def recipes(forget_registrations: None) -> list[dict[str, Any]]:
    return [run(code) for code in python_blocks("CONTRIBUTING.md")]


def test_recipe_for_a_quantizer(recipes: list[dict[str, Any]]) -> None:
    layer = build_quant_layer(dict(type="PowerOfTwoConv", num_bit_w=4, num_bit_a=4), nn.Conv2d(8, 8, 3))
    layer(torch.rand(2, 8, 6, 6)).sum().backward()
    assert isinstance(layer.weight_quantizer, recipes[0]["PowerOfTwo"])
    step = layer.weight_quantizer.qparams().scale
    assert torch.equal(torch.log2(step), torch.log2(step).round())
    assert layer.weight_quantizer.scale.grad.abs() > 0


def test_recipe_for_a_backbone(recipes: list[dict[str, Any]]) -> None:
    backbone = build_backbone(dict(type="TwoConvs", width=64))
    assert isinstance(backbone, recipes[1]["TwoConvs"])
    assert backbone(torch.rand(2, 3, 32, 32))[-1].shape == (2, 64, 8, 8)


def test_recipe_for_a_data_set(recipes: list[dict[str, Any]], tmp_path: Path) -> None:
    write_images(tmp_path / "pets", ["cat.0.jpg", "dog.0.jpg", "cat.1.jpg"])
    pipeline = [dict(type="LoadImageFromFile"), dict(type="ImageToTensor", keys=["img"])]
    pets = build_dataset(dict(type="CatsAndDogs", data_prefix="pets", pipeline=pipeline), data_root=tmp_path)
    assert isinstance(pets, recipes[2]["CatsAndDogs"])
    assert pets.labels.tolist() == [0, 0, 1]
    assert pets[2]["img"].shape == (3, 40, 50)


def test_config_of_the_readme(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "config.py").write_text(python_blocks("README.md")[0], encoding="utf-8")
    for folder in ("train/ant", "train/bee", "val/ant", "val/bee"):
        write_images(tmp_path / "my_images" / folder, ["1.jpg", "2.jpg"])
    cfg = Config.fromfile(tmp_path / "config.py")
    model = build_mtransformer(cfg.quant_transformer)(build_classifier(cfg.model))
    train = build_dataset(cfg.data.train, data_root=tmp_path)
    assert train.CLASSES == ("ant", "bee")
    losses = model(torch.stack([train[i]["img"] for i in range(4)]), gt_label=torch.from_numpy(train.labels))
    assert losses["loss"].isfinite()
    test = build_dataset(cfg.data.test, data_root=tmp_path)
    assert test[0]["img"].shape == (3, 224, 224)
