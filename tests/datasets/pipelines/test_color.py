"""Normalize and RandomGrayscale."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch
from torchvision.transforms.v2 import functional as F

from lbitcls.datasets.pipelines.compose import Compose, build_transform
from lbitcls.datasets.pipelines.transform import log_once
from lbitcls.utils.errors import ConfigError, DataError

IMAGE = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, 6, 5), dtype=np.uint8))
MEAN, STD = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]


def _normalized(img: torch.Tensor = IMAGE, **cfg: object) -> torch.Tensor:
    return build_transform(dict(type="Normalize", **cfg))({"img": img})["img"]


def test_both_units_are_torchvisions() -> None:
    mean, std = [m / 255 for m in MEAN], [s / 255 for s in STD]
    expected = F.normalize(F.to_dtype(IMAGE, torch.float32, scale=True), mean, std)
    for result in (_normalized(mean=MEAN, std=STD), _normalized(mean=mean, std=std)):
        assert result.dtype == torch.float32
        torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(_normalized(IMAGE.float() / 255, mean=MEAN, std=STD), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("mean", "std", "unit"),
    [
        ([0.5], [0.5], 1),
        ([0, 0, 0], [1, 1, 1], 1),
        ([1.0], [0.5], 1),
        ([33.3], [78.6], 255),
        ([0], [255], 255),  # a mean of zero fits both units: the std decides
        ([0.2, 120, 0.1], [1, 1, 1], 255),
    ],
)
def test_the_unit_is_logged_once(mean: list, std: list, unit: int, caplog: pytest.LogCaptureFixture) -> None:
    log_once.cache_clear()
    with caplog.at_level(logging.INFO, logger="lbitcls"):
        result = _normalized(IMAGE[: len(mean)], mean=mean, std=std)
        _normalized(IMAGE[: len(mean)], mean=mean, std=std)
    assert [record.getMessage() for record in caplog.records] == [
        f"Normalize: reading mean {mean} and std {std} in units of 0-{unit}"
    ]
    values = IMAGE[0].double() * unit / 255
    torch.testing.assert_close(result[0].double(), (values - mean[0]) / std[0], rtol=1e-5, atol=1e-5)


def test_to_rgb() -> None:
    rgb = _normalized(mean=MEAN, std=STD, to_rgb=True)
    assert torch.equal(rgb, _normalized(mean=MEAN, std=STD))
    bgr = _normalized(mean=MEAN[::-1], std=STD[::-1], to_rgb=False)
    assert torch.equal(bgr, rgb.flip(0))
    assert torch.equal(
        _normalized(IMAGE[:1], mean=[99], std=[9]), _normalized(IMAGE[:1], mean=[99], std=[9], to_rgb=False)
    )


def test_channels_are_the_models() -> None:
    one, three = (
        Compose([dict(type="Normalize", mean=[0.5], std=[0.25])]),
        Compose([dict(type="Normalize", mean=[0.5] * 3, std=[0.25] * 3)]),
    )
    array = IMAGE.permute(1, 2, 0).numpy()
    assert one(array)["img"].shape == (1, 6, 5) and three(array)["img"].shape == (3, 6, 5)
    gray = one(array[..., 0].copy())["img"]
    assert torch.equal(three(array[..., 0].copy())["img"], gray.expand(3, -1, -1))


def test_grayscale() -> None:
    gray = build_transform(dict(type="RandomGrayscale", gray_prob=1.0))({"img": IMAGE})["img"]
    assert gray.shape == IMAGE.shape and torch.equal(gray[0], gray[2])
    assert (gray.int() - F.rgb_to_grayscale(IMAGE, 3).int()).abs().max() <= 1
    assert build_transform(dict(type="RandomGrayscale", gray_prob=0))({"img": IMAGE})["img"] is IMAGE


@pytest.mark.parametrize(
    ("cfg", "message"),
    [
        (dict(mean=[1, 2], std=[1]), "mean has 2 values and std 1"),
        (dict(mean=0.5, std=0.5), "mean must be a list"),
        (dict(mean=[], std=[]), "mean must be a list"),
        (dict(mean=[0.5], std=[0]), "every std must be above 0"),
        (dict(mean=[0.5]), "Normalize needs 'std'"),
    ],
)
def test_wrong_arguments(cfg: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_transform(dict(type="Normalize", **cfg))


def test_wrong_number_of_channels() -> None:
    with pytest.raises(DataError, match="Normalize has 2 means, but the image has 3 channels"):
        _normalized(mean=[1, 2], std=[3, 4])
