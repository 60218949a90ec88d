"""torchvision's and mmcv's transforms in a pipeline."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from torchvision.transforms.v2 import functional as F

from lbitcls.datasets.pipelines import Compose
from lbitcls.utils.errors import ConfigError, DependencyError

IMAGE = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
TENSOR = torch.from_numpy(IMAGE).permute(2, 0, 1)


@pytest.mark.parametrize(
    "cfg",
    [
        dict(type="ColorJitter", brightness=0.4, contrast=(0.5, 1.5), saturation=0.4, hue=0.1),
        dict(type="AutoAugment"),
        dict(type="AutoAugment", policy="cifar10"),
        dict(type="RandAugment", num_ops=3, magnitude=7),
        dict(type="RandomErasing", erase_prob=1.0),
        dict(type="v2.TrivialAugmentWide", interpolation="bilinear"),
        dict(type="v2.RandomPerspective", distortion_scale=0.3, p=1.0),
        dict(type="v2.RandomApply", transforms=[dict(type="v2.GaussianBlur", kernel_size=3)], p=0.5),
    ],
    ids=lambda cfg: cfg["type"],
)
def test_random_ones_follow_the_key(cfg: dict) -> None:
    pipeline = Compose([cfg])
    before = torch.get_rng_state()
    results = [pipeline(IMAGE, key=key)["img"] for key in range(8)]
    assert all(torch.equal(pipeline(IMAGE, key=key)["img"], results[key]) for key in range(8))
    assert len({str(img.tolist()) for img in results}) > 1 and results[0].dtype == torch.uint8
    assert torch.equal(torch.get_rng_state(), before) and not pipeline.batchwise


def test_arguments_reach_torchvision() -> None:
    assert torch.equal(Compose([dict(type="v2.RandomInvert", p=1.0)])(IMAGE)["img"], F.invert(TENSOR))
    scaled = Compose([dict(type="v2.ToDtype", dtype="float32", scale=True)])(IMAGE)["img"]
    assert scaled.dtype == torch.float32 and scaled.max() <= 1
    erased = Compose([dict(type="RandomErasing", erase_prob=1.0, fill_color=(1, 2, 3))])(IMAGE)["img"]
    changed = (erased != TENSOR).any(0)
    assert 0.01 < changed.float().mean() < 0.45
    assert erased[:, changed].float().mean(1).tolist() == [1, 2, 3]
    assert Compose([dict(type="RandomErasing", erase_prob=1.0, mode="rand", aspect_range=0.5)])(IMAGE) is not None


@pytest.mark.parametrize(
    ("cfg", "message"),
    [
        (dict(type="v2.RandomInvrt"), "v2 has no transform 'RandomInvrt'. Did you mean 'RandomInvert'"),
        (dict(type="v2.functional"), "v2 has no transform 'functional'"),
        (dict(type="v2.RandomInvert", q=1), "RandomInvert does not accept 'q'"),
        (dict(type="v2.RandomInvert", p=7), "v2.RandomInvert: "),
        (dict(type="v2.RandomResizedCrop", size=8, interpolation="best"), "interpolation must be one of"),
        (dict(type="v2.MixUp", num_classes=10), "mixes the images of a batch"),
        (dict(type="ColorJitter", brightness=-1), "v2.ColorJitter: "),
        (dict(type="ColorJitter", gamma=1), "ColorJitter does not accept 'gamma'"),
        (dict(type="AutoAugment", policy="imagnet"), "Did you mean 'imagenet'"),
        (dict(type="RandomErasing", mode="noise"), "mode must be one of"),
    ],
)
def test_wrong_ones(cfg: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Compose([cfg])


def test_without_mmcv_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mmcv.transforms", None)
    with pytest.raises(DependencyError, match=r"'mmcv\.Resize' needs mmcv 2\.x: pip install 'lbitcls\[mmcv\]'"):
        Compose([dict(type="mmcv.Resize", scale=(8, 8))])


def test_mmcv_between_ours() -> None:
    pytest.importorskip("mmcv.transforms", exc_type=ImportError)  # OpenCV needs system libraries
    steps = [
        dict(type="mmcv.Resize", scale=(24, 16)),
        dict(type="RandomFlip", flip_prob=1.0),
        dict(type="mmcv.RandomFlip", prob=0.5),
        dict(type="Normalize", mean=[1.0, 2, 3], std=[2.0, 2, 2]),
    ]
    pipeline = Compose(steps)
    results = [pipeline(IMAGE, key=key)["img"] for key in range(8)]
    assert results[0].shape == (3, 16, 24) and results[0].dtype == torch.float32
    assert torch.equal(pipeline(IMAGE, key=3)["img"], results[3])
    assert len({str(img.tolist()) for img in results}) == 2
    kept = Compose([dict(type="mmcv.RandomFlip", prob=0.0)])
    assert torch.equal(kept(IMAGE)["img"], TENSOR) and kept(IMAGE[..., 0].copy())["img"].shape == (1, 30, 40)


@pytest.mark.parametrize("to_rgb", [True, False])
def test_mmcvs_normalize_is_ours(to_rgb: bool) -> None:
    pytest.importorskip("mmcv.transforms", exc_type=ImportError)  # OpenCV needs system libraries
    numbers = dict(mean=[103.0, 116, 123], std=[57.0, 58, 59], to_rgb=to_rgb)
    theirs = Compose([dict(type="mmcv.Normalize", **numbers)])(IMAGE)["img"]
    torch.testing.assert_close(theirs, Compose([dict(type="Normalize", **numbers)])(IMAGE)["img"])


def test_mmcvs_mistakes() -> None:
    with pytest.raises(ConfigError, match="use LoadImageFromFile to read files"):
        Compose([dict(type="mmcv.LoadImageFromFile")])
    pytest.importorskip("mmcv.transforms", exc_type=ImportError)  # OpenCV needs system libraries
    with pytest.raises(ConfigError, match="'Resiz'. Did you mean 'Resize'"):
        Compose([dict(type="mmcv.Resiz")])
