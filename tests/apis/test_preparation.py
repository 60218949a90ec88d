"""A picture of any size and colour becomes what the model takes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from PIL import Image

from lbitcls.assembly.image_sizes import natural_size, section_size
from lbitcls.datasets.pipelines import Compose
from lbitcls.inference.preparation import fitting_steps, preparation

LOAD = dict(type="LoadImageFromFile")
GRAY = dict(type="Normalize", mean=[0.5], std=[0.5])
RGB = dict(type="Normalize", mean=[0.5] * 3, std=[0.5] * 3)
PHOTO = [LOAD, dict(type="Resize", size=(20, -1)), dict(type="CenterCrop", crop_size=16), RGB]
SIZES = [(30, 40), (40, 30), (8, 8), (1, 1), (3, 100), (16, 16), (500, 700)]


@pytest.fixture(params=[True, False], ids=["light", "steps"])
def light(request: pytest.FixtureRequest) -> bool:
    return request.param


def picture(height: int, width: int, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, channels), dtype=np.uint8)


@pytest.mark.parametrize(
    ("steps", "shape"),
    [
        (PHOTO, (3, 16, 16)),
        ([GRAY], (1, 8, 8)),
        ([RGB], (3, 8, 8)),
        ([], (1, 8, 8)),
        ([], (3, 12, 20)),
        ([LOAD], (1, 8, 8)),
        ([LOAD, dict(type="Resize", size=(16, 16))], (1, 16, 16)),
        ([dict(LOAD, color_type="unchanged")], (3, 8, 8)),
        ([LOAD, dict(type="Resize", size=20), RGB], (3, 20, 20)),
        ([dict(type="v2.Resize", size=20), dict(type="v2.CenterCrop", size=16), GRAY], (1, 16, 16)),
        ([GRAY, dict(type="Collect", keys=["img", "gt_label"], meta_keys=["filename"])], (1, 8, 8)),
    ],
    ids=str,
)
def test_every_picture_becomes_the_models_input(steps: list[Any], shape: tuple[int, int, int], light: bool) -> None:
    prepare = preparation(steps, shape, light=light)
    for size in SIZES:
        for given in (picture(*size), picture(*size, channels=1), Image.fromarray(picture(*size)).convert("CMYK")):
            image = prepare(given)
            assert image.shape == shape and image.dtype == np.float32 and np.isfinite(image).all()


@pytest.mark.parametrize("steps", [PHOTO, [GRAY]], ids=["photos", "digits"])
def test_images_of_the_data_set_are_prepared_as_in_a_test(steps: list[Any], light: bool) -> None:
    shape, given = ((3, 16, 16), picture(20, 25)) if steps is PHOTO else ((1, 8, 8), picture(8, 8, 1))
    expected = Compose(steps)(given)["img"].numpy()
    np.testing.assert_array_equal(preparation(steps, shape, light=light)(given), expected)


@pytest.mark.parametrize("steps", [PHOTO, [GRAY], [RGB]], ids=["photos", "gray", "colour"])
def test_the_steps_do_what_the_preparation_does(steps: list[Any]) -> None:
    shape = (1 if steps == [GRAY] else 3, None, None)
    chosen = fitting_steps(steps, shape, (8, 8))
    expected = preparation(steps, shape, (8, 8), light=False)
    assert (chosen == steps) == (steps is PHOTO)
    for size in SIZES:
        np.testing.assert_array_equal(Compose(chosen)(picture(*size))["img"].numpy(), expected(picture(*size)))


def test_the_middle_of_a_photo_is_resized(light: bool) -> None:
    """To the digits' 8×8 a photo loses its sides, and keeps its proportions."""
    wide = np.zeros((40, 80, 3), np.uint8)
    wide[:, 20:60] = 255
    assert preparation([GRAY], (1, 8, 8), light=light)(wide).min() == 1


def test_a_free_size_stays_free_unless_the_data_has_one(light: bool) -> None:
    free = (3, None, None)
    assert preparation([RGB], free, light=light)(picture(30, 41)).shape == (3, 30, 41)
    assert preparation([RGB], free, (8, 8), light=light)(picture(30, 41)).shape == (3, 8, 8)
    sized = [dict(type="Resize", size=20), RGB]
    assert preparation(sized, free, (20, 20), light=light)(picture(30, 45)).shape == (3, 20, 30)
    assert preparation([], (1, None, None), light=light)(picture(30, 41)).shape == (1, 30, 41)


def test_steps_of_ones_own_that_cannot_be_tried(light: bool) -> None:
    """They get what they would in a test, and the model says what is wrong."""

    def stubborn(results: dict[str, Any]) -> dict[str, Any]:
        if not results["img"].any():
            raise RuntimeError("nothing is in it")
        return results

    assert preparation([stubborn], (1, 8, 8), light=light)(picture(9, 9)).shape == (3, 9, 9)


def test_sizes_that_a_config_says() -> None:
    assert section_size(dict(type="Digits", pipeline=[GRAY])) == (8, 8)
    assert section_size(dict(type="ImageFolder", pipeline=PHOTO)) == (16, 16)
    assert section_size(dict(type="ImageFolder", pipeline=[dict(type="Resize", size=(20, -1))])) == (20, 20)
    assert section_size(dict(type="ImageFolder", pipeline=[lambda r: r])) is None
    assert section_size(dict(pipeline=[dict(type="PretrainedPreprocessing", weights="torchvision://resnet18")])) == (
        *(224, 224),
    )
    folder = dict(type="ImageFolder", pipeline=[RGB])
    train = dict(type="ImageFolder", pipeline=[dict(type="RandomCrop", size=32, padding=4), RGB])
    assert natural_size(dict(data=dict(test=folder, train=train))) == (32, 32)
    assert natural_size(dict(data=dict(test=folder))) is None and natural_size(None) is None
