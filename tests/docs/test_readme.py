"""The README: its config builds a model that trains, its commands take the options that it lists."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import torch
from blocks import ROOT
from pages import blocks_of
from prepare.materials import image_folders

from lbitcls.datasets import build_dataset
from lbitcls.models import build_classifier
from lbitcls.quant import build_mtransformer
from lbitcls.settings.export import ExportOptions


def test_its_config_trains(tmp_path: Path) -> None:
    image_folders(tmp_path / "my_images")
    cfg: dict[str, Any] = {}
    exec(next(block.code for block in blocks_of("README.md") if block.language == "python"), cfg)
    model = build_mtransformer(cfg["quant_transformer"])(build_classifier(cfg["model"]))
    train = build_dataset(cfg["data"]["train"], data_root=tmp_path)
    assert train.CLASSES == ("ant", "bee")
    losses = model(torch.stack([train[i]["img"] for i in range(4)]), gt_label=torch.from_numpy(train.labels))
    assert losses["loss"].isfinite()
    test = build_dataset(cfg["data"]["test"], data_root=tmp_path)
    assert test[0]["img"].shape == (3, 224, 224)


def test_its_commands_have_their_options() -> None:
    (usage,) = (block.code for block in blocks_of("README.md") if block.first.startswith("python tools/train.py"))
    lines = [line.partition("#")[0] for line in usage.splitlines()]
    assert len(lines) >= 10
    arguments = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "lbitcls/commands").glob("*.py"))
    arguments += "".join(f'"--{field.name.replace("_", "-")}"' for field in dataclasses.fields(ExportOptions))
    for line in lines:
        (tool,) = re.findall(r"^(?:python )?(tools/\w+\.(?:py|sh))", line)
        assert (ROOT / tool).is_file()
        assert all(f'"{option}"' in arguments for option in re.findall(r"--[a-z-]+", line)), line
