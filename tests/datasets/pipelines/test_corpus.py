"""Broken files of every format: each becomes an image or a named error, and none ends the process."""

from __future__ import annotations

import io
import json
import os
import socket
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lbitcls.datasets.listing import is_image
from lbitcls.datasets.pipelines.decode import jpeg_size, read_image
from lbitcls.datasets.pipelines.pillow import UnreadableImage, read_with_pillow

COPIES = 60  # broken copies of each file
READ_ALL = """
import json, sys, warnings
from pathlib import Path
warnings.simplefilter("ignore")
from lbitcls.datasets.pipelines.decode import read_image
from lbitcls.datasets.pipelines.pillow import UnreadableImage, read_with_pillow

counts = {"images": 0, "errors": 0}
for path in sorted(Path(sys.argv[1]).iterdir()):
    jpeg = path.read_bytes()[:2] == b"\\xff\\xd8"
    for read in (read_image, read_with_pillow) if jpeg else (read_image,):
        try:
            read(str(path), "unchanged")
            counts["images"] += 1
        except UnreadableImage as error:
            assert str(path) in str(error)
            counts["errors"] += 1
print(json.dumps(counts))
"""


def _picture(mode: str, level: int = 0) -> Image.Image:
    coarse = np.random.default_rng(level).integers(0, 256, (3, 4, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((40, 30), Image.Resampling.BICUBIC).convert(mode)


def _encoded(kind: str, mode: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    _picture(mode).save(buffer, kind, **options)
    return buffer.getvalue()


def _sources() -> list[bytes]:
    turned = Image.Exif()
    turned[0x0112] = 6
    frames = dict(save_all=True, append_images=[_picture("RGB", 1), _picture("RGB", 2)])
    return [
        *(_encoded("PNG", mode) for mode in ("RGB", "L", "LA", "P", "RGBA", "1", "I;16")),
        _encoded("PNG", "RGB", exif=turned, **frames),
        *(_encoded("JPEG", mode, exif=turned) for mode in ("RGB", "L", "CMYK")),
        *(_encoded("JPEG", mode, progressive=True) for mode in ("RGB", "L")),
        _encoded("JPEG", "RGB", subsampling=0, restart_marker_blocks=2),
        _encoded("GIF", "P"),
        _encoded("GIF", "RGB", **frames),
        _encoded("WEBP", "RGB", exif=turned),
        _encoded("WEBP", "RGBA", lossless=True),
        _encoded("WEBP", "RGB", **frames),
        *(_encoded("BMP", mode) for mode in ("RGB", "L", "P", "1")),
        *(_encoded("PPM", mode) for mode in ("RGB", "L", "1")),
        *(_encoded("TIFF", "RGB", compression=c) for c in (None, "tiff_lzw", "tiff_deflate", "packbits", "jpeg")),
        *(_encoded("TIFF", "1", compression=c) for c in ("group3", "group4")),
        _encoded("TIFF", "RGB", exif=turned, **frames),
    ]


def _broken(source: bytes, rng: np.random.Generator) -> bytes:
    """Return the file truncated, or with bits flipped, anywhere or near its header."""
    content, kind = bytearray(source), rng.integers(0, 4)
    if kind == 0:
        return bytes(content[: rng.integers(0, len(content))])
    end = len(content) if kind < 3 else min(len(content), 200)
    for place in rng.integers(2, end, size=rng.integers(1, 5)):
        content[place] ^= 1 << int(rng.integers(0, 8))
    return bytes(content)


def test_no_broken_file_ends_the_process(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    files = [_broken(source, rng) for source in _sources() for _ in range(COPIES)]
    assert len(files) >= 2000
    for number, content in enumerate(files):
        (tmp_path / f"{number:05d}.jpg").write_bytes(content)
    # A limit below Pillow's own: flipped sizes within Pillow's could take a gigabyte.
    code = f"from PIL import Image\nImage.MAX_IMAGE_PIXELS = 20_000\n{READ_ALL}"
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, (done.returncode, done.stderr[-2000:])
    counts = json.loads(done.stdout)
    assert sum(counts.values()) > len(files) and min(counts.values()) > len(files) // 4


def test_a_png_with_a_flipped_bit_is_a_named_error(tmp_path: Path) -> None:
    content = bytearray(_encoded("PNG", "RGB"))
    content[len(content) // 2] ^= 1
    (tmp_path / "flipped.png").write_bytes(content)
    with pytest.raises(UnreadableImage, match=r"flipped\.png: cannot read this image"):
        read_image(str(tmp_path / "flipped.png"))


def _of_size(kind: str, width: int, height: int) -> bytes:
    """Return a small file of the format whose header claims a false size."""
    content = bytearray(_encoded(kind, "RGB", **({"lossless": True} if kind == "WEBP" else {})))
    if kind == "JPEG":
        at = content.index(b"\xff\xc0") + 5
        content[at : at + 4] = struct.pack(">HH", height, width)
    elif kind == "BMP":
        content[18:26] = struct.pack("<ii", width, height)
    elif kind == "GIF":
        content[6:10] = struct.pack("<HH", width, height)
    elif kind == "PPM":
        content = content.replace(b"40 30", b"%d %d" % (width, height), 1)
    elif kind == "WEBP":
        bits = int.from_bytes(content[21:25], "little") >> 28 << 28 | (height - 1) << 14 | (width - 1)
        content[21:25] = bits.to_bytes(4, "little")
    elif kind == "TIFF":
        content = bytearray(_tiff(width, height))
    return bytes(content)


def _tiff(width: int, height: int, tile: int | None = None) -> bytes:
    """Return an RGB TIFF file with one strip or one tile, all zeros, compressed by Deflate."""
    layout = {273: 8, 278: height, 279: 0} if tile is None else {322: tile, 323: tile, 324: 8, 325: 0}
    tags = {256: width, 257: height, 258: 8, 259: 8, 262: 1, 277: 1, **layout}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in sorted(tags.items()))
    return b"II*\0" + struct.pack("<I", 8) + struct.pack("<H", len(tags)) + entries + bytes(4)


@pytest.mark.parametrize("read", [read_image, read_with_pillow])
@pytest.mark.parametrize("kind", ["JPEG", "BMP", "GIF", "PPM", "WEBP", "TIFF"])
def test_every_format_has_the_limit_of_pixels(kind: str, read: object, tmp_path: Path) -> None:
    (tmp_path / "huge").write_bytes(_of_size(kind, 16_000, 16_000))
    assert (tmp_path / "huge").stat().st_size < 5_000
    with pytest.raises(UnreadableImage, match=r"huge: Image size .* exceeds limit .* raise PIL.Image.MAX_IMAGE_PIXELS"):
        read(str(tmp_path / "huge"), "rgb")  # type: ignore[operator]


def test_a_tile_larger_than_images_may_be(tmp_path: Path) -> None:
    (tmp_path / "tile.tif").write_bytes(_tiff(16, 16, tile=60_000))
    with pytest.raises(UnreadableImage, match=r"tile\.tif: Image size \(3600000000 pixels\) exceeds limit"):
        read_image(str(tmp_path / "tile.tif"))


@pytest.mark.parametrize(
    "options", [{}, {"progressive": True}, {"restart_marker_blocks": 1}, {"comment": b"\xff\xc0" * 9}]
)
def test_the_size_in_the_head_of_a_jpeg(options: dict[str, object]) -> None:
    content = _encoded("JPEG", "RGB", **options)
    assert jpeg_size(content) == (40, 30)
    assert jpeg_size(content[:2] + b"\xff\xff" + content[2:]) == (40, 30)
    for end in range(3, content.index(b"\xff\xda") // 2):
        assert jpeg_size(content[:end]) in (None, (40, 30))


@pytest.mark.parametrize("between", [b"\xff\x00", b"\xff\xff\x00", b"\xff\x01\xff\x00", b"\xff\xd0\xff\x00"])
@pytest.mark.parametrize("read", [read_image, read_with_pillow])
def test_a_second_size_does_not_hide_the_first(between: bytes, read: object, tmp_path: Path) -> None:
    """Bytes that decoders skip one by one must not be taken for a segment that hides the true size."""
    content = _of_size("JPEG", 16_000, 16_000)
    other = _encoded("JPEG", "RGB")
    second = other[other.index(b"\xff\xc0") :]
    hidden = content[:2] + between + struct.pack(">H", len(content)) + content[2:] + second
    assert jpeg_size(hidden) in (None, (16_000, 16_000))
    (tmp_path / "hidden.jpg").write_bytes(hidden)
    with pytest.raises(UnreadableImage, match=r"hidden\.jpg: "):
        read(str(tmp_path / "hidden.jpg"), "rgb")  # type: ignore[operator]


@pytest.mark.timeout(60)
@pytest.mark.parametrize("read", [read_image, read_with_pillow])
def test_only_regular_files_are_opened(read: object, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "device.jpg").symlink_to("/dev/zero")
    (tmp_path / "loop.jpg").symlink_to("loop.jpg")
    (tmp_path / "pipes.jpg").symlink_to("pipe.jpg")
    with socket.socket(socket.AF_UNIX) as server:
        here = os.getcwd()
        os.chdir(tmp_path)  # a socket's path must be short
        try:
            server.bind("socket.jpg")
        finally:
            os.chdir(here)
    for name, said in (
        ("pipe", "a named pipe"),
        ("pipes", "a named pipe"),
        ("device", "a device"),
        ("socket", "a socket"),
        ("loop", "symbolic links"),
    ):
        with pytest.raises(UnreadableImage, match=rf"/{name}\.jpg: cannot read this image: .*{said}"):
            read(str(tmp_path / f"{name}.jpg"), "rgb")  # type: ignore[operator]
    with pytest.raises(UnreadableImage, match="null"):
        read("a\0b.jpg", "rgb")  # type: ignore[operator]
    _picture("RGB").save(tmp_path / "a.jpg")
    (tmp_path / "link.jpg").symlink_to("a.jpg")
    assert is_image("link.jpg")
    read(str(tmp_path / "link.jpg"), "rgb")  # type: ignore[operator]


def test_other_formats_of_pillow_are_not_tried(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(_encoded("EPS", "RGB"))
    with pytest.raises(UnreadableImage, match="none of BMP, .*, WEBP"):
        read_image(str(tmp_path / "a.jpg"))
