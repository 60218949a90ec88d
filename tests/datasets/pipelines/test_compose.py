"""Pipelines: the tutorial's, custom steps, errors."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from lbitcls.datasets import collate
from lbitcls.datasets.pipelines import Compose
from lbitcls.registry import PIPELINES
from lbitcls.utils.errors import ConfigError, DataError

IMAGE = np.random.default_rng(0).integers(0, 256, (300, 400, 3), dtype=np.uint8)
NORM = dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], to_rgb=True)
TRAIN = [
    dict(type="LoadImageFromFile"),
    dict(type="RandomResizedCrop", size=224),
    dict(type="RandomFlip", flip_prob=0.5, direction="horizontal"),
    dict(type="Normalize", **NORM),
    dict(type="ImageToTensor", keys=["img"]),
    dict(type="ToTensor", keys=["gt_label"]),
    dict(type="Collect", keys=["img", "gt_label"]),
]
TEST = [
    dict(type="LoadImageFromFile"),
    dict(type="Resize", size=(256, -1)),
    dict(type="CenterCrop", crop_size=224),
    dict(type="Normalize", **NORM),
    dict(type="ImageToTensor", keys=["img"]),
    dict(type="Collect", keys=["img"]),
]


def test_the_tutorials_script(tmp_path: Path) -> None:
    Image.fromarray(IMAGE).save("test.jpg")
    data = Compose(TEST)(dict(img_info=dict(filename="test.jpg"), img_prefix=None))
    data = collate([data], samples_per_gpu=1)
    assert data.keys() == {"img"} and data["img"].shape == (1, 3, 224, 224) and data["img"].dtype == torch.float32
    assert torch.equal(Compose(TEST)("test.jpg")["img"], data["img"][0])


def test_the_tutorials_training_pipeline_depends_on_its_key() -> None:
    pipeline = Compose(TRAIN)
    sample = dict(img=IMAGE, gt_label=5)
    one, same, other = (pipeline(sample, key=key) for key in (1, 1, 2))
    assert one.keys() == {"img", "gt_label"} and one["gt_label"] == 5
    assert torch.equal(one["img"], same["img"]) and not torch.equal(one["img"], other["img"])


def test_without_a_key_the_global_generator_decides() -> None:
    pipeline = Compose(TRAIN)
    images = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        images.append(pipeline(dict(img=IMAGE, gt_label=0))["img"])
    assert torch.equal(images[0], images[1]) and not torch.equal(images[0], images[2])


def test_ones_own_step_is_seeded() -> None:
    @PIPELINES.register_module()
    class AddNoise:
        def __init__(self, most: int) -> None:
            self.most = most

        def __call__(self, results: dict[str, Any]) -> dict[str, Any]:
            noise = torch.randint(self.most, results["img"].shape, dtype=torch.uint8)
            results["noise"] = (np.random.rand(), random.random())
            results["img"] = results["img"] // 2 + noise
            return results

    try:
        pipeline = Compose([dict(type="AddNoise", most=20), lambda results: results])
        one, same, other = (pipeline(IMAGE, key=key) for key in (1, 1, 2))
        assert torch.equal(one["img"], same["img"]) and one["noise"] == same["noise"]
        assert not torch.equal(one["img"], other["img"]) and one["noise"][0] != other["noise"][0]
    finally:
        del PIPELINES.module_dict["AddNoise"]


def test_errors() -> None:
    with pytest.raises(ConfigError, match="no pipeline step named 'RandomFlop'. Did you mean 'RandomFlip'"):
        Compose([dict(type="RandomFlop")])
    with pytest.raises(ConfigError, match="RandomFlip does not accept 'prob'"):
        Compose([dict(type="RandomFlip", prob=0.5)])
    with pytest.raises(ConfigError, match="a pipeline step must be"):
        Compose(["RandomFlip"])
    with pytest.raises(ConfigError, match="a pipeline must be a list of steps"):
        Compose(dict(type="RandomFlip"))
    with pytest.raises(ConfigError, match="must be dict"):
        Compose([dict(flip_prob=0.5)])
    with pytest.raises(DataError, match="returned None"):
        Compose([lambda results: None])(IMAGE)


def test_it_can_be_read() -> None:
    assert repr(Compose([dict(type="RandomFlip")])) == (
        "Compose(LoadImageFromFile(color_type='unchanged'), RandomFlip(flip_prob=0.5, direction='horizontal'))"
    )
