"""Image files of every format, whole and damaged, through both readers."""

from __future__ import annotations

import io
import random
import struct
import warnings
from pathlib import Path

import numpy as np
from PIL import Image

from lbitcls.datasets.pipelines.decode import read_image
from lbitcls.datasets.pipelines.pillow import UnreadableImage, read_with_pillow
from stress.damage import damaged
from stress.verdicts import Kind

SUFFIXES = (".jpg", ".png", ".gif", ".webp", ".bmp", ".tif", ".ppm")
_MODES = ("rgb", "gray", "unchanged")
_SIDES = (0, 1, 2, 1000, 1001, 16_000, 32_767, 65_535)
MOST_PIXELS = 1_000_000
"""Limit in these runs, below Pillow's own: what is within that limit may rightly take a gigabyte."""


def picture(mode: str, level: int = 0) -> Image.Image:
    """Return a smooth image of 40 × 30 pixels."""
    coarse = np.random.default_rng(level).integers(0, 256, (3, 4, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((40, 30), Image.Resampling.BICUBIC).convert(mode)


def encoded(kind: str, mode: str, **options: object) -> bytes:
    """Return an image file of Pillow's format `kind`."""
    buffer = io.BytesIO()
    picture(mode).save(buffer, kind, **options)
    return buffer.getvalue()


def sources() -> list[bytes]:
    """Return a file of each format and variant that is read."""
    turned = Image.Exif()
    turned[0x0112] = 6
    frames = dict(save_all=True, append_images=[picture("RGB", 1), picture("RGB", 2)])
    return [
        *(encoded("PNG", mode) for mode in ("RGB", "L", "LA", "P", "RGBA", "1", "I;16")),
        encoded("PNG", "RGB", exif=turned, **frames),
        *(encoded("JPEG", mode, exif=turned) for mode in ("RGB", "L", "CMYK")),
        *(encoded("JPEG", mode, progressive=True) for mode in ("RGB", "L")),
        encoded("JPEG", "RGB", subsampling=0, restart_marker_blocks=2),
        encoded("GIF", "P"),
        encoded("GIF", "RGB", **frames),
        encoded("WEBP", "RGB", exif=turned),
        encoded("WEBP", "RGBA", lossless=True),
        encoded("WEBP", "RGB", **frames),
        *(encoded("BMP", mode) for mode in ("RGB", "L", "P", "1")),
        *(encoded("PPM", mode) for mode in ("RGB", "L", "1")),
        *(encoded("TIFF", "RGB", compression=c) for c in (None, "tiff_lzw", "tiff_deflate", "packbits", "jpeg")),
        *(encoded("TIFF", "1", compression=c) for c in ("group3", "group4")),
        encoded("TIFF", "RGB", exif=turned, **frames),
    ]


def of_size(kind: str, width: int, height: int) -> bytes:
    """Return a small file of the format whose header claims a false size."""
    content = bytearray(encoded(kind, "RGB", **({"lossless": True} if kind == "WEBP" else {})))
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
        content[21:25] = (bits & 0xFFFFFFFF).to_bytes(4, "little")
    elif kind == "TIFF":
        content = bytearray(tiff(width, height))
    return bytes(content)


SIZED = ("JPEG", "BMP", "GIF", "PPM", "WEBP", "TIFF")
"""Formats for which `of_size` can claim a size."""


def tiff(width: int, height: int, tile: int | None = None) -> bytes:
    """Return an RGB TIFF file with one strip or one tile, all zeros, compressed by Deflate."""
    layout = {273: 8, 278: height, 279: 0} if tile is None else {322: tile, 323: tile, 324: 8, 325: 0}
    tags = {256: width, 257: height, 258: 8, 259: 8, 262: 1, 277: 1, **layout}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in sorted(tags.items()))
    return b"II*\0" + struct.pack("<I", 8) + struct.pack("<H", len(tags)) + entries + bytes(4)


class Images(Kind):
    """One image file per case: damaged, or with a size in its header that is not its own."""

    name = "images"
    count = 60_000

    def prepare(self, folder: Path) -> None:
        self.sources = sources()
        Image.MAX_IMAGE_PIXELS = MOST_PIXELS

    def draw(self, number: int, folder: Path) -> str:
        draw = random.Random(f"image {number}")
        if draw.random() < 0.1:
            kind, width, height = draw.choice(SIZED), draw.choice(_SIDES), draw.choice(_SIDES)
            said, content = f"{kind} of {width} × {height}", of_size(kind, width, max(height, 1) if width else height)
        else:
            place = draw.randrange(len(self.sources))
            said, content = damaged(self.sources[place], draw, self.sources)
            said = f"source {place} {said}"
        (folder / f"x{draw.choice(SUFFIXES)}").write_bytes(content)
        return said

    def read(self, number: int, folder: Path) -> object:
        (path,) = folder.iterdir()
        mode = _MODES[number % len(_MODES)]
        errors = []
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for read in (read_image, read_with_pillow):
                try:
                    read(str(path), mode)
                except UnreadableImage as error:
                    errors.append(error)
        if errors:
            raise errors[0]
        return path
