"""Unusual images: too large, 32-bit, transparent, rotated, truncated; with every decoder."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lbitcls.datasets.pipelines.decode import as_image, read_image
from lbitcls.datasets.pipelines.pillow import (
    UnreadableImage,
    as_array,
    convert_given,
    from_array,
    read_with_pillow,
)
from lbitcls.utils.errors import DataError

RGB = np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8)


def empty_png(width: int, height: int) -> bytes:
    """Return the header of a PNG file, with hardly anything after it."""
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)), (b"IDAT", zlib.compress(b"\0"))]
    parts = [struct.pack(">I", len(data)) + kind + data for kind, data in chunks]
    sums = [struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(part + check for part, check in zip(parts, sums, strict=True))


def padded_jpeg(width: int, height: int, size: int) -> bytes:
    """Return a JPEG file of `size` bytes whose header claims a false image size."""
    buffer = io.BytesIO()
    Image.fromarray(RGB).save(buffer, "JPEG")
    content = bytearray(buffer.getvalue())
    at = content.index(b"\xff\xc0") + 5
    content[at : at + 4] = struct.pack(">HH", height, width)
    return bytes(content) + b"\0" * (size - len(content))


@pytest.mark.parametrize("read", [read_image, read_with_pillow])
@pytest.mark.parametrize(("kind", "size"), [("png", 0), ("jpeg", 0), ("jpeg", 2**18 + 1)])
def test_images_with_too_many_pixels_are_refused(
    kind: str, size: int, read: Callable[[str, str], object], tmp_path: Path
) -> None:
    content = empty_png(20_000, 20_000) if kind == "png" else padded_jpeg(20_000, 20_000, size)
    (tmp_path / "huge").write_bytes(content)
    with pytest.raises(
        UnreadableImage,
        match=r"huge: Image size \(400000000 pixels\) exceeds.*Make it smaller, or raise PIL.Image.MAX_IMAGE",
    ):
        read(str(tmp_path / "huge"), "rgb")


def test_the_limit_is_pillows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.fromarray(RGB).save(tmp_path / "a.bmp")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 20)  # images are refused from twice that
    with pytest.raises(UnreadableImage, match=r"Image size \(54 pixels\) exceeds limit of 40"):
        read_image(str(tmp_path / "a.bmp"))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    assert read_image(str(tmp_path / "a.bmp")).shape == (3, 6, 9)


@pytest.mark.parametrize("mode", ["I", "F"])
def test_pixels_of_32_bits_are_refused(mode: str, tmp_path: Path) -> None:
    image = Image.new(mode, (4, 4), 70_000)
    image.save(tmp_path / "a.tiff")
    with pytest.raises(UnreadableImage, match=rf"a\.tiff: cannot read .*32 bits \(mode {mode}\) have no defined range"):
        read_image(str(tmp_path / "a.tiff"))
    with pytest.raises(UnreadableImage, match="this Pillow image cannot be read: pixels of 32 bits"):
        as_image(image)


def test_sixteen_bits_in_memory() -> None:
    values = np.linspace(0, 65535, 54).reshape(6, 9).astype(np.uint16)
    assert np.array_equal(as_image(Image.fromarray(values))[0].numpy(), values >> 8)


def test_transparency_in_a_palette_is_left_out_silently(tmp_path: Path) -> None:
    palette = Image.fromarray(RGB).quantize(8)
    palette.save(tmp_path / "a.png", transparency=bytes([0, 100, 200]))
    with Image.open(tmp_path / "a.png") as opened:
        assert opened.mode == "P" and "transparency" in opened.info
        given = as_array(convert_given(opened, "unchanged"))
    assert np.array_equal(given, np.asarray(palette.convert("RGB")))
    assert np.array_equal(as_array(read_with_pillow(str(tmp_path / "a.png"), "rgb")), given)


def test_a_photo_that_pillow_opened_stands_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(RGB).save(tmp_path / "a.png", exif=exif)
    with Image.open(tmp_path / "a.png") as opened:
        assert np.array_equal(as_image(opened).permute(1, 2, 0).numpy(), np.rot90(RGB, -1))
        assert np.array_equal(as_image(opened, upright=False).permute(1, 2, 0).numpy(), RGB)


def test_a_photo_that_is_cut_off(tmp_path: Path) -> None:
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(tmp_path / "a.jpg")
    (tmp_path / "a.jpg").write_bytes((tmp_path / "a.jpg").read_bytes()[:-500])
    with Image.open(tmp_path / "a.jpg") as opened, pytest.raises(UnreadableImage, match="cannot be read: .*truncated"):
        as_image(opened)


def test_arrays() -> None:
    for given in (RGB, RGB[:, ::-1], RGB[..., 0], RGB[..., :1], np.dstack([RGB, RGB[..., 0]]), RGB[:1, :1]):
        expected = given[..., None] if given.ndim == 2 else given[..., :3]
        assert np.array_equal(as_array(from_array(given)), expected)
    with pytest.raises(DataError, match=r"and pixels; got shape \(0, 9, 3\)"):
        from_array(RGB[:0])
