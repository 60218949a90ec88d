"""Decoding of files of many kinds, and of arrays."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from lbitcls.datasets.pipelines import decode
from lbitcls.datasets.pipelines.decode import as_image, read_image, with_channels
from lbitcls.datasets.pipelines.pillow import UnreadableImage
from lbitcls.utils.errors import DataError

SIZE = (24, 36)


def _photo(mode: str = "RGB") -> Image.Image:
    coarse = np.random.default_rng(0).integers(0, 256, (3, 4, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize(SIZE[::-1], Image.Resampling.BICUBIC).convert(mode)


def _reference(path: Path, mode: str = "RGB") -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(ImageOps.exif_transpose(image).convert(mode)).astype(int)


@pytest.fixture(params=["native", "pillow"])
def _decoder(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "pillow":  # as if torchvision came without its decoders
        monkeypatch.setattr(decode, "_native", lambda: None)


@pytest.mark.usefixtures("_decoder")
@pytest.mark.parametrize(
    ("name", "mode"),
    [
        ("a.jpg", "RGB"),
        ("a.jpg", "L"),
        ("a.jpg", "CMYK"),
        ("a.png", "RGB"),
        ("a.png", "L"),
        ("a.png", "RGBA"),
        ("a.png", "LA"),
        ("a.png", "P"),
        ("a.png", "1"),
        ("a.gif", "P"),
        ("a.bmp", "RGB"),
        ("a.webp", "RGB"),
        ("a.tiff", "RGB"),
        ("a.ppm", "RGB"),
        ("misnamed.png.jpg", "PNG"),
    ],
)
def test_every_kind_becomes_rgb_or_gray(tmp_path: Path, name: str, mode: str) -> None:
    path = tmp_path / name
    if mode == "PNG":
        _photo().save(path, format="PNG")
    else:
        _photo(mode).save(path)
    for ours, theirs, channels in (("rgb", "RGB", 3), ("gray", "L", 1)):
        img = read_image(str(path), ours)
        assert img.shape == (channels, *SIZE) and img.dtype == torch.uint8
        expected = _reference(path, theirs).reshape(*SIZE, channels)
        difference = np.abs(img.permute(1, 2, 0).numpy().astype(int) - expected)
        assert difference.max() <= (6 if mode == "CMYK" else 2)
    unchanged = read_image(str(path), "unchanged")
    assert torch.equal(unchanged, read_image(str(path), "gray" if mode in ("L", "LA", "1") else "rgb"))


@pytest.mark.usefixtures("_decoder")
def test_sixteen_bits(tmp_path: Path) -> None:
    values = np.linspace(0, 65535, 24 * 36).reshape(SIZE).astype(np.uint16)
    Image.fromarray(values).save(tmp_path / "a.png")
    img = read_image(str(tmp_path / "a.png"))
    assert img.shape == (3, *SIZE)
    assert np.abs(img[0].numpy().astype(int) - values // 256).max() <= 1


@pytest.mark.usefixtures("_decoder")
@pytest.mark.parametrize("orientation", range(1, 9))
def test_photos_stand_upright(tmp_path: Path, orientation: int) -> None:
    path = tmp_path / "a.jpg"
    exif = Image.Exif()
    exif[0x0112] = orientation
    _photo().save(path, exif=exif, quality=95)
    upright = read_image(str(path))
    assert np.abs(upright.permute(1, 2, 0).numpy().astype(int) - _reference(path)).max() <= 2
    assert read_image(str(path), upright=False).shape == (3, *SIZE)
    assert upright.shape[1:] == (SIZE if orientation < 5 else SIZE[::-1])


@pytest.mark.usefixtures("_decoder")
@pytest.mark.parametrize("kind", ["empty", "text", "jpeg cut", "png cut", "png head", "gif cut", "folder", "missing"])
def test_what_cannot_be_read_is_named(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "broken.jpg"
    if kind == "folder":
        path.mkdir()
    elif kind != "missing":
        suffix = kind.split()[0]
        if suffix in ("jpeg", "png", "gif"):
            _photo().save(path, format=suffix)
        whole = {"empty": b"", "text": b"this is no image"}
        path.write_bytes(whole[kind] if kind in whole else path.read_bytes()[: 20 if "head" in kind else 120])
    with pytest.raises(UnreadableImage, match=r"broken\.jpg: (cannot read this image|no such file)"):
        read_image(str(path))


def test_arrays() -> None:
    rgb = np.random.default_rng(0).integers(0, 256, (*SIZE, 3), dtype=np.uint8)
    for given in (
        rgb,
        np.asarray(Image.fromarray(rgb)),
        torch.from_numpy(rgb).permute(2, 0, 1),
        Image.fromarray(rgb),
        np.dstack([rgb, rgb[..., 0]]),
    ):
        assert np.array_equal(as_image(given).permute(1, 2, 0).numpy(), rgb)
    gray = rgb[..., 0]
    for given in (gray, gray[..., None], torch.from_numpy(gray.copy()), torch.from_numpy(gray.copy())[None]):
        assert np.array_equal(as_image(given)[0].numpy(), gray)
    assert np.array_equal(as_image(rgb[:, ::-1]).permute(1, 2, 0).numpy(), rgb[:, ::-1])


@pytest.mark.parametrize(
    "given", [np.zeros((8, 8, 3)), torch.zeros(3, 8, 8), np.zeros((3, 8, 8), np.uint8), np.zeros(8, np.uint8), 7, [1]]
)
def test_what_is_no_image(given: object) -> None:
    with pytest.raises(DataError, match=r"an image must (be|have)"):
        as_image(given)


def test_channels() -> None:
    rgb = as_image(np.asarray(_photo()))
    assert with_channels(rgb, 3) is rgb
    gray = with_channels(rgb, 1)
    assert np.abs(gray[0].numpy().astype(int) - np.asarray(_photo("L")).astype(int)).max() <= 1
    assert torch.equal(with_channels(gray, 3), torch.cat([gray] * 3))
    assert torch.equal(with_channels(torch.stack([rgb, rgb]), 1)[1], gray)
