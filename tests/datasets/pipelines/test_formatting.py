"""ImageToTensor, ToTensor, Collect."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lbitcls.datasets.pipelines import Compose
from lbitcls.utils.errors import ConfigError

IMAGE = np.random.default_rng(0).integers(0, 256, (6, 5, 3), dtype=np.uint8)


def test_bytes_become_floats_and_floats_stay() -> None:
    pipeline = Compose([dict(type="ImageToTensor", keys=["img"])])
    img = pipeline(IMAGE)["img"]
    assert img.dtype == torch.float32 and img.shape == (3, 6, 5)
    torch.testing.assert_close(img, torch.from_numpy(IMAGE).permute(2, 0, 1) / 255)
    normalize = dict(type="Normalize", mean=[100.0] * 3, std=[50.0] * 3)
    both = Compose([normalize, dict(type="ImageToTensor", keys=["img"])])
    assert torch.equal(both(IMAGE)["img"], Compose([normalize])(IMAGE)["img"])


def test_labels() -> None:
    results = Compose([dict(type="ToTensor", keys=["gt_label", "img"])])(dict(img=IMAGE, gt_label=np.int64(3)))
    assert results["gt_label"].dtype == torch.int64 and results["gt_label"].item() == 3
    assert results["img"].dtype == torch.float32


def test_collect() -> None:
    sample = dict(img=IMAGE, gt_label=3, other=1, filename="a.jpg")
    assert Compose([dict(type="Collect", keys=["img", "gt_label"])])(sample).keys() == {"img", "gt_label"}
    steps = [
        dict(type="CenterCrop", crop_size=4),
        dict(type="Collect", keys=["img"], meta_keys=["filename", "img_shape", "ori_shape"]),
    ]
    assert Compose(steps)(sample)["img_metas"] == {"filename": "a.jpg", "img_shape": (4, 4, 3), "ori_shape": (6, 5, 3)}


def test_keys_that_are_not_there() -> None:
    for step, key in (("Collect", "gt_labels"), ("ToTensor", "gt_lable"), ("ImageToTensor", "imgs")):
        with pytest.raises(ConfigError, match=f"{step}: a sample has no '{key}'. Did you mean '(gt_label|img)'"):
            Compose([dict(type=step, keys=["img", key])])(dict(img=IMAGE, gt_label=3))


@pytest.mark.parametrize("keys", [["gt_label"], [], "img"])
def test_collecting_without_the_image(keys: object) -> None:
    with pytest.raises(ConfigError, match="Collect: keys .*; got "):
        Compose([dict(type="Collect", keys=keys)])
