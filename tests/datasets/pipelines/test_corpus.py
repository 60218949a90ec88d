"""Broken files of every format: each becomes an image or a named error, and none ends the process."""

from __future__ import annotations

import json
import os
import socket
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from lbitcls.datasets.listing import is_image
from lbitcls.datasets.pipelines.decode import jpeg_size, read_image
from lbitcls.datasets.pipelines.pillow import UnreadableImage, read_with_pillow
from stress.images import SIZED, encoded, of_size, picture, sources, tiff

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
    files = [_broken(source, rng) for source in sources() for _ in range(COPIES)]
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
    content = bytearray(encoded("PNG", "RGB"))
    content[len(content) // 2] ^= 1
    (tmp_path / "flipped.png").write_bytes(content)
    with pytest.raises(UnreadableImage, match=r"flipped\.png: cannot read this image"):
        read_image(str(tmp_path / "flipped.png"))


@pytest.mark.parametrize("read", [read_image, read_with_pillow])
@pytest.mark.parametrize("kind", SIZED)
def test_every_format_has_the_limit_of_pixels(kind: str, read: object, tmp_path: Path) -> None:
    (tmp_path / "huge").write_bytes(of_size(kind, 16_000, 16_000))
    assert (tmp_path / "huge").stat().st_size < 5_000
    with pytest.raises(UnreadableImage, match=r"huge: Image size .* exceeds limit .* raise PIL.Image.MAX_IMAGE_PIXELS"):
        read(str(tmp_path / "huge"), "rgb")  # type: ignore[operator]


def test_a_tile_larger_than_images_may_be(tmp_path: Path) -> None:
    (tmp_path / "tile.tif").write_bytes(tiff(16, 16, tile=60_000))
    with pytest.raises(UnreadableImage, match=r"tile\.tif: Image size \(3600000000 pixels\) exceeds limit"):
        read_image(str(tmp_path / "tile.tif"))


@pytest.mark.parametrize(
    "options", [{}, {"progressive": True}, {"restart_marker_blocks": 1}, {"comment": b"\xff\xc0" * 9}]
)
def test_the_size_in_the_head_of_a_jpeg(options: dict[str, object]) -> None:
    content = encoded("JPEG", "RGB", **options)
    assert jpeg_size(content) == (40, 30)
    assert jpeg_size(content[:2] + b"\xff\xff" + content[2:]) == (40, 30)
    for end in range(3, content.index(b"\xff\xda") // 2):
        assert jpeg_size(content[:end]) in (None, (40, 30))


@pytest.mark.parametrize("between", [b"\xff\x00", b"\xff\xff\x00", b"\xff\x01\xff\x00", b"\xff\xd0\xff\x00"])
@pytest.mark.parametrize("read", [read_image, read_with_pillow])
def test_a_second_size_does_not_hide_the_first(between: bytes, read: object, tmp_path: Path) -> None:
    """Bytes that decoders skip one by one must not be taken for a segment that hides the true size."""
    content = of_size("JPEG", 16_000, 16_000)
    other = encoded("JPEG", "RGB")
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
    picture("RGB").save(tmp_path / "a.jpg")
    (tmp_path / "link.jpg").symlink_to("a.jpg")
    assert is_image("link.jpg")
    read(str(tmp_path / "link.jpg"), "rgb")  # type: ignore[operator]


def test_other_formats_of_pillow_are_not_tried(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(encoded("EPS", "RGB"))
    with pytest.raises(UnreadableImage, match="none of BMP, .*, WEBP"):
        read_image(str(tmp_path / "a.jpg"))
