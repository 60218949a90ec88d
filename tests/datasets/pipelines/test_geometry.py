"""Cropping, flipping, padding, resizing: against torchvision, and single images against batches."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms.v2 import functional as F

from lbitcls.datasets.pipelines.compose import Compose, build_transform
from lbitcls.datasets.pipelines.transform import FixedTransform
from lbitcls.datasets.rng import BatchDraws, Draws, sample_key
from lbitcls.utils.errors import ConfigError, DataError


def _photo(height: int, width: int, seed: int = 0) -> torch.Tensor:
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    image = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)).copy()
    return torch.from_numpy(image).permute(2, 0, 1)  # memory in (H, W, C) order, as from decoders


def _run(img: torch.Tensor, **cfg: object) -> torch.Tensor:
    return build_transform(cfg)({"img": img})["img"]


@pytest.mark.parametrize(
    ("size", "shape"),
    [(20, (20, 28)), ((20, -1), (20, 28)), ([24, 18], (24, 18)), (50, (50, 71)), ((35, 50), (35, 50))],
)
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "nearest"])
def test_resize_is_torchvisions(size: object, shape: tuple[int, int], interpolation: str) -> None:
    for img in (_photo(35, 50), _photo(35, 50).contiguous()):
        resized = _run(img, type="Resize", size=size, interpolation=interpolation)
        mode = "nearest-exact" if interpolation == "nearest" else interpolation
        expected = F.resize(img, list(shape), F.InterpolationMode(mode), antialias=True)
        assert resized.shape == (3, *shape) and resized.dtype == torch.uint8
        assert torch.equal(resized, expected)
    tall = _run(_photo(50, 35), type="Resize", size=20)
    assert tall.shape == (3, 28, 20)


def test_resize_agrees_with_pillow() -> None:
    img = _photo(60, 90)
    pillow = Image.fromarray(img.permute(1, 2, 0).numpy()).resize((40, 25), Image.Resampling.BILINEAR)
    difference = _run(img, type="Resize", size=(25, 40)).permute(1, 2, 0).int() - torch.from_numpy(np.array(pillow))
    assert difference.abs().max() <= 1


@pytest.mark.parametrize("shape", [(40, 50), (41, 51), (20, 50), (10, 12)])
def test_center_crop_is_torchvisions(shape: tuple[int, int]) -> None:
    img = _photo(*shape)
    assert torch.equal(_run(img, type="CenterCrop", crop_size=24), F.center_crop(img, [24, 24]))
    assert torch.equal(_run(img, type="CenterCrop", crop_size=(8, 30)), F.center_crop(img, [8, 30]))


def test_pad() -> None:
    img = _photo(5, 7)
    assert torch.equal(_run(img, type="Pad", padding=2), F.pad(img, [2]))
    assert torch.equal(_run(img, type="Pad", padding=(1, 2), pad_val=9), F.pad(img, [1, 2], fill=9))
    assert torch.equal(_run(img, type="Pad", padding=[1, 2, 3, 4]), F.pad(img, [1, 2, 3, 4]))
    for mode in ("edge", "reflect", "symmetric"):
        padded = _run(img, type="Pad", padding=2, padding_mode=mode)
        assert torch.equal(padded, F.pad(img, [2], padding_mode=mode))
    colored = _run(img, type="Pad", size=(6, 7), pad_val=[1, 2, 3])
    assert torch.equal(colored[:, :5], img) and colored[:, 5].tolist() == [[1] * 7, [2] * 7, [3] * 7]
    assert _run(img, type="Pad", pad_to_square=True).shape == (3, 7, 7)
    assert _run(img, type="Pad", size=4).shape == (3, 5, 7)


def test_random_crop_takes_every_window_equally_often() -> None:
    img = torch.arange(30, dtype=torch.uint8).reshape(1, 5, 6)
    step = build_transform(dict(type="RandomCrop", size=(4, 4)))
    firsts = [step.apply(img, Draws(sample_key(0, 0, i)))[0, 0, 0].item() for i in range(3000)]
    values, counts = np.unique(firsts, return_counts=True)
    assert values.tolist() == [0, 1, 2, 6, 7, 8] and np.abs(counts - 500).max() < 100


def test_random_crop_pads() -> None:
    img = torch.full((3, 4, 4), 5, dtype=torch.uint8)
    assert _run(img, type="RandomCrop", size=8, padding=2).sum() == 3 * 16 * 5
    assert _run(img, type="RandomCrop", size=8, pad_if_needed=True).shape == (3, 8, 8)
    assert _run(img, type="RandomCrop", size=8, padding=2, pad_val=5).eq(5).all()
    with pytest.raises(DataError, match=r"window \(8, 8\) is larger than an image of \(4, 4\)"):
        _run(img, type="RandomCrop", size=8)


def test_random_resized_crop_draws_area_and_ratio_evenly() -> None:
    step = build_transform(dict(type="RandomResizedCrop", size=16))
    windows = np.array([step._window(300, 400, Draws(sample_key(0, 0, i))) for i in range(4000)])
    tops, lefts, highs, wides = windows.T
    assert (tops >= 0).all() and (tops + highs <= 300).all() and (lefts + wides <= 400).all()
    torchvisions = np.array([_torchvision_window() for _ in range(4000)])
    for ours, theirs in zip(windows.T, torchvisions.T, strict=True):
        assert np.abs(np.quantile(ours, [0.1, 0.5, 0.9]) - np.quantile(theirs, [0.1, 0.5, 0.9])).max() < 12


def _torchvision_window() -> tuple[int, ...]:
    from torchvision.transforms import RandomResizedCrop

    return RandomResizedCrop.get_params(torch.empty(3, 300, 400), (0.08, 1.0), (3 / 4, 4 / 3))


def test_random_resized_crop_falls_back_on_the_middle() -> None:
    step = build_transform(dict(type="RandomResizedCrop", size=(8, 4), scale=(1, 1)))
    assert step._window(10, 100, Draws(1)) == (0, 43, 10, 13)
    assert step._window(100, 10, Draws(1)) == (43, 0, 13, 10)
    assert step({"img": _photo(10, 100)})["img"].shape == (3, 8, 4)


def test_random_resized_crop_is_a_crop_and_a_resize() -> None:
    step = build_transform(dict(type="RandomResizedCrop", size=16))
    for img in (_photo(40, 50), _photo(40, 50).contiguous(), _photo(40, 50)[:1]):
        top, left, high, wide = step._window(40, 50, Draws(7))
        expected = F.resized_crop(img, top, left, high, wide, [16, 16], antialias=True)
        assert torch.equal(step.apply(img, Draws(7)), expected)


@pytest.mark.parametrize(("direction", "dims"), [("horizontal", [2]), ("vertical", [1]), ("diagonal", [1, 2])])
def test_flip(direction: str, dims: list[int]) -> None:
    img = _photo(5, 7)
    assert torch.equal(_run(img, type="RandomFlip", flip_prob=1, direction=direction), img.flip(dims))
    assert torch.equal(_run(img, type="RandomFlip", flip_prob=0), img)


BATCHED = [
    dict(type="Resize", size=20),
    dict(type="Resize", size=(17, 31), interpolation="bicubic"),
    dict(type="Resize", size=(9, 9), interpolation="nearest"),
    dict(type="CenterCrop", crop_size=16),
    dict(type="CenterCrop", crop_size=40),
    dict(type="Pad", padding=3, padding_mode="reflect"),
    dict(type="Pad", pad_to_square=True, pad_val=(1, 2, 3)),
    dict(type="RandomCrop", size=(20, 25)),
    dict(type="RandomCrop", size=24, padding=4, pad_val=7),
    dict(type="RandomCrop", size=24, padding=4, padding_mode="reflect"),
    dict(type="RandomFlip", flip_prob=0.5),
    dict(type="RandomFlip", flip_prob=0.3, direction="diagonal"),
    dict(type="RandomGrayscale", gray_prob=0.5),
    dict(type="Normalize", mean=[120.0, 110, 100], std=[60.0, 61, 62]),
    dict(type="Normalize", mean=[0.4], std=[0.2]),
    dict(type="Normalize", mean=[0.4, 0.5, 0.6], std=[0.2, 0.3, 0.25], to_rgb=False),
    dict(type="LoadImageFromFile", color_type="grayscale"),
    dict(type="ImageToTensor", keys=["img"]),
    dict(type="ToTensor", keys=["gt_label"]),
]


@pytest.mark.parametrize("cfg", BATCHED, ids=lambda cfg: " ".join(map(str, cfg.values())))
def test_alone_and_in_a_batch(cfg: dict) -> None:
    step = build_transform(cfg)
    imgs = torch.stack([_photo(24, 30, seed).contiguous() for seed in range(12)])
    kept = imgs.clone()
    keys = [sample_key(0, 0, index) for index in range(12)]
    alone = [step.process({"img": img, "gt_label": 0}, Draws(key))["img"] for img, key in zip(imgs, keys, strict=True)]
    assert torch.equal(imgs, kept), "a single sample may lie in the data set's own memory"
    assert torch.equal(step.apply_batch(imgs, BatchDraws(np.array(keys, np.uint64))), torch.stack(alone))
    assert step.batchwise and Compose([step]).batchwise
    if not isinstance(step, FixedTransform) and "Random" in cfg["type"]:
        assert len({str(img.tolist()) for img in alone}) > 6


def test_no_batch_form() -> None:
    for cfg in (dict(type="RandomResizedCrop", size=8), dict(type="v2.Identity")):
        assert not Compose([cfg]).batchwise


@pytest.mark.parametrize(
    ("cfg", "message"),
    [
        (dict(type="Resize", size=0), "Resize: size"),
        (dict(type="Resize", size=(8, 8, 8)), "Resize: size"),
        (dict(type="Resize", size=8, interpolation="lanczos"), "interpolation must be one of"),
        (dict(type="Resize", size=8, backend="turbo"), "backend must be one of"),
        (dict(type="CenterCrop", crop_size="8"), "CenterCrop: crop_size"),
        (dict(type="RandomFlip", flip_prob=2), "flip_prob must be a probability"),
        (dict(type="RandomFlip", direction="up"), "direction must be one of"),
        (dict(type="RandomFlip", flip_ratio=0.5), "does not accept 'flip_ratio'. Did you mean 'flip_prob'"),
        (dict(type="RandomCrop", size=8, padding=(1, 2, 3)), "RandomCrop: padding"),
        (dict(type="RandomCrop", size=8, padding_mode="wrap"), "padding_mode must be one of"),
        (dict(type="RandomResizedCrop", size=8, scale=(0, 1)), "scale must be"),
        (dict(type="RandomResizedCrop", size=8, ratio=(2, 1)), "ratio must be"),
        (dict(type="Pad"), "exactly one of"),
        (dict(type="Pad", size=3, padding=2), "exactly one of"),
    ],
)
def test_wrong_arguments(cfg: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_transform(cfg)
