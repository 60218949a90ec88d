"""The tutorial's config made small, photographs for it, and a training of it by the command."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent.parent
CONFIG = ROOT / "configs" / "LSQ" / "resnet50" / "config2_res50_lsq_2w2f.py"

# The tutorial's config, made small: what is not here is inherited from it.
SMALL = f"""
_base_ = [{str(CONFIG)!r}]
model = dict(backbone=dict(depth=18, base_channels=8), head=dict(in_channels=64))
norm = dict(type="Normalize", mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], to_rgb=True)
collect = dict(type="Collect", keys=["img", "gt_label"])
train = [dict(type="LoadImageFromFile"), dict(type="RandomResizedCrop", size=32), dict(type="RandomFlip", flip_prob=0.5,
    direction="horizontal"), norm, dict(type="ImageToTensor", keys=["img"]), dict(type="ToTensor", keys=["gt_label"]),
    collect]
test = [dict(type="LoadImageFromFile"), dict(type="Resize", size=(36, -1)), dict(type="CenterCrop", crop_size=32), norm,
    dict(type="ImageToTensor", keys=["img"]), dict(type="Collect", keys=["img"])]
data = dict(samples_per_gpu=8, workers_per_gpu=0, train=dict(pipeline=train), val=dict(pipeline=test),
    test=dict(pipeline=test))
log_config = dict(interval=2, pictures=False)
total_epochs = 1
kernels = "plain"
seed = 1
"""


def python(*arguments: Any, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, "-W", "error", *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def photos(folder: Path, number: int) -> str:
    """Writes photographs of four classes; their list file's text."""
    generator = np.random.default_rng(number)
    lines = []
    for i in range(number):
        label = i % 4
        (folder / f"n{label}").mkdir(parents=True, exist_ok=True)
        photo = generator.integers(60 * label, 60 * label + 70, (44, 52, 3), np.uint8)
        Image.fromarray(photo).save(folder / f"n{label}" / f"{i}.jpg")
        lines.append(f"n{label}/{i}.jpg {label}\n")
    return "".join(lines)


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data root as the tutorial's config wants it."""
    root = tmp_path_factory.mktemp("imagenet")
    (root / "meta").mkdir()
    for split, number in (("train", 32), ("val", 10)):
        (root / "meta" / f"{split}.txt").write_text(photos(root / split, number))
    return root


@pytest.fixture(scope="session")
def trained(images: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The small config and the work directory of its training by the command."""
    folder = tmp_path_factory.mktemp("tutorial")
    config = folder / "config2_res18_lsq_2w2f.py"
    config.write_text(SMALL)
    done = python(ROOT / "tools" / "train.py", config, "--work-dir", folder / "work", "--data-root", images)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return config, folder / "work"


@pytest.fixture(scope="session")
def run_python() -> Callable[..., subprocess.CompletedProcess[str]]:
    """`run_python(script, *arguments, cwd=…)`: a process of its own, in which warnings are errors."""
    return python


@pytest.fixture(scope="session")
def small() -> str:
    """The text of the small config."""
    return SMALL


@pytest.fixture(scope="session")
def tutorial() -> Path:
    """The tutorial's config, as it is shipped."""
    return CONFIG
