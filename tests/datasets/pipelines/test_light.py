"""Pipelines in Pillow and NumPy give the results of the PyTorch steps, and leave unsupported pipelines to them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lbitcls.datasets.pipelines import Compose
from lbitcls.datasets.pipelines.formatting import to_float
from lbitcls.datasets.pipelines.light import LightPipeline, light_pipeline
from lbitcls.utils.errors import DataError

LOAD = dict(type="LoadImageFromFile")
RGB = dict(type="Normalize", mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375])
GRAY = dict(type="Normalize", mean=[0.305], std=[0.376])
BGR = dict(type="Normalize", mean=[103.53, 116.28, 123.675], std=[57.375, 57.12, 58.395], to_rgb=False)
TENSORS = [dict(type="ImageToTensor", keys=["img"]), dict(type="Collect", keys=["img", "gt_label"])]
CROP = dict(type="CenterCrop", crop_size=24)


def photo(height: int, width: int, seed: int = 0) -> np.ndarray:
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


def by_steps(steps: list[dict[str, Any]], picture: Any) -> np.ndarray:
    start = dict(img_info=dict(filename=str(picture))) if isinstance(picture, Path) else dict(img=picture)
    return to_float(Compose(steps)({**start, "gt_label": 0})["img"]).numpy()


def light(steps: list[dict[str, Any]]) -> LightPipeline:
    found = light_pipeline(steps)
    assert found is not None
    return found


@pytest.mark.parametrize("size", [(24, 24), (23, 40), (31, 24), (7, 90), (1, 1), (25, 26)])
@pytest.mark.parametrize("normalize", [RGB, GRAY, BGR, None], ids=["rgb", "gray", "bgr", "none"])
def test_the_same_bits_without_resizing(normalize: dict[str, Any] | None, size: tuple[int, int]) -> None:
    for load in ([], [LOAD], [dict(LOAD, color_type="unchanged")]):
        steps = [*load, CROP, *([normalize] if normalize else []), *TENSORS]
        for picture in (photo(*size), photo(*size)[..., 0], Image.fromarray(photo(*size))):
            expected, given = by_steps(steps, picture), light(steps)(picture)
            assert given.dtype == np.float32 and given.flags.c_contiguous
            np.testing.assert_array_equal(given, expected)


@pytest.mark.parametrize(
    "shape",
    [
        dict(type="Resize", size=20),
        dict(type="Resize", size=(33, -1)),
        dict(type="Resize", size=(17, 44), interpolation="bilinear", backend="pillow"),
        dict(type="Fit", size=(12, 20)),
        dict(type="Fit", size=8),
        dict(type="Fit", size=[200, 100]),
    ],
    ids=str,
)
@pytest.mark.parametrize("size", [(60, 90), (91, 33), (19, 20), (3, 200)])
def test_a_resized_byte_differs_by_two_at_most(shape: dict[str, Any], size: tuple[int, int]) -> None:
    steps = [LOAD, shape]
    expected, given = (255 * run(photo(*size)) for run in (lambda picture: by_steps(steps, picture), light(steps)))
    assert given.shape == expected.shape
    difference = np.abs(given - expected)
    assert difference.max() < 2.001  # each direction is rounded
    assert difference.mean() < 0.2


@pytest.mark.parametrize(
    ("name", "mode", "most"),
    [
        ("a.jpg", "RGB", 0),
        ("a.jpg", "L", 0),
        ("a.jpg", "CMYK", 6),
        ("a.png", "RGBA", 0),
        ("a.png", "LA", 0),
        ("a.png", "P", 0),
        ("a.png", "1", 0),
        ("a.png", "I;16", 0),
        ("a.gif", "P", 0),
        ("a.bmp", "RGB", 0),
        ("a.webp", "RGB", 0),
    ],
)
def test_files(tmp_path: Path, name: str, mode: str, most: int) -> None:
    if mode == "I;16":
        image = Image.fromarray(photo(40, 50)[..., 0].astype(np.uint16) * 257)
    else:
        image = Image.fromarray(photo(40, 50)).convert(mode)
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(tmp_path / name, **({"exif": exif} if name.endswith(("jpg", "webp")) else {}))
    for color_type in ("color", "unchanged", "color_ignore_orientation"):
        steps = [dict(LOAD, color_type=color_type)]
        expected, given = by_steps(steps, tmp_path / name), light(steps)(str(tmp_path / name))
        assert np.abs(255 * (given - expected)).max() <= most + 1e-3
    turned = light([LOAD])(tmp_path / name).shape == (3, 50, 40)
    assert turned == name.endswith(("jpg", "webp"))


@pytest.mark.parametrize(
    "steps",
    [
        [LOAD, dict(type="Resize", size=8, interpolation="bicubic")],
        [LOAD, dict(type="v2.Resize", size=8)],
        [RGB, CROP],
        [CROP, LOAD],
        [RGB, RGB],
        [*TENSORS, RGB],
        [dict(type="RandomFlip")],
        [dict(type="PretrainedPreprocessing", weights="torchvision://resnet18")],
        [dict(type="Resize", size=8, siez=9)],
        [dict(type="Resize")],
        [dict(type="Resize", size=0)],
        [dict(type="Resize", size="8")],
        [dict(type="CenterCrop", crop_size=(1, 2, 3))],
        [dict(type="Normalize", mean=[1, 2], std=[1, 2])],
        [dict(type="Normalize", mean=[], std=[])],
        [dict(type="Normalize", mean=[1], std=[0])],
        [dict(LOAD, color_type="colour")],
        [dict(LOAD, file_client_args=dict(backend="petrel"))],
        [lambda results: results],
        [dict()],
        [dict(type=[[]])],
    ],
)
def test_what_is_left_to_the_steps_themselves(steps: list[Any]) -> None:
    assert light_pipeline(steps) is None


@pytest.mark.parametrize(
    "given",
    [np.zeros((8, 8, 3)), np.zeros((3, 8, 8), np.uint8), np.zeros(8, np.uint8), np.zeros((0, 4, 3), np.uint8), 7, [1]],
)
def test_what_is_no_image(given: Any) -> None:
    with pytest.raises(DataError, match=r"an image must (be|have)"):
        light([LOAD])(given)
