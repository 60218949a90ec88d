"""Rules for sizes and units that all implementations of the steps share, without importing PyTorch."""

from __future__ import annotations

from collections.abc import Sequence

from lbitcls.utils.errors import DataError

# color_type in configs: (mode of the decoder, apply the EXIF orientation)
COLOR_TYPES = {
    "color": ("rgb", True),
    "grayscale": ("gray", True),
    "unchanged": ("unchanged", True),
    "color_ignore_orientation": ("rgb", False),
    "grayscale_ignore_orientation": ("gray", False),
}
GRAY_WEIGHTS = (0.299, 0.587, 0.114)  # ITU-R 601, as in JPEG and Pillow
_MOST_PIXELS = 2**28


def in_proportion(short: int, height: int, width: int) -> tuple[int, int]:
    """Return (h, w) of an image scaled to short side `short`.

    Raises:
        DataError: The image is so narrow that the result would have more than 2^28 pixels.
    """
    if height <= width:
        size = short, int(short * width / height)
    else:
        size = int(short * height / width), short
    if size[0] * size[1] > _MOST_PIXELS:
        raise DataError(
            f"an image of {height}×{width} pixels (height, width) is too narrow: with a short side of {short} it would "
            f"become {size[0]}×{size[1]}; crop it first."
        )
    return size


def middle(outer: int, inner: int) -> int:
    """Return the start of a centered window of length `inner` in `outer`; negative if the window is longer."""
    return round((outer - inner) / 2) if inner <= outer else -((inner - outer) // 2)


def largest_window(height: int, width: int, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """Return (top, left, height, width) of the largest centered window with the aspect ratio of `size`."""
    high = min(height, max(1, round(width * size[0] / size[1])))
    wide = min(width, max(1, round(height * size[1] / size[0])))
    return middle(height, high), middle(width, wide), high, wide


def unit_of(mean: Sequence[float], std: Sequence[float]) -> int:
    """Return the unit of `Normalize`: 1 if every mean and every std is at most 1, else 255."""
    return 1 if max(*mean, *std) <= 1 else 255
