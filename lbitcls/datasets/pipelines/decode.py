"""Decoding of files and arrays to uint8 image tensors (C, H, W), RGB or grayscale.

JPEG files are decoded by torchvision's operator, called directly: its Python wrapper warns on every call that it is
deprecated in favor of torchcodec. Everything else (PNG, GIF, BMP, WebP, TIFF, a JPEG that the operator rejects), or a
torchvision without the operator, goes through Pillow: torchvision's PNG decoder ends the process on a corrupt file.
"""

from __future__ import annotations

import io
import os
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lbitcls.datasets.pipelines.pillow import (
    UnreadableImage,
    as_array,
    check_pixels,
    convert_given,
    decode_with_pillow,
    not_an_image,
    open_image,
    too_large,
    wrong_shape,
)
from lbitcls.datasets.pipelines.rules import GRAY_WEIGHTS

MODES = ("rgb", "gray", "unchanged")
_NATIVE_MODE = {"unchanged": 0, "gray": 1, "rgb": 3}  # torchvision's ImageReadMode
_LARGEST_JPEG = 2**30  # bytes read at once; Pillow reads a larger file in parts
_BARE = frozenset((0x01, *range(0xD0, 0xD9)))  # JPEG markers without a length
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # JPEG markers that carry the image size


@cache
def _native() -> Any:
    """Return torchvision's operator decode_jpeg, or None if there is none."""
    import torchvision  # noqa: F401  (loads the library of operators)

    try:
        return torch.ops.image.decode_jpeg.default
    except AttributeError:
        return None


def read_image(path: str, mode: str = "rgb", upright: bool = True) -> Tensor:
    """Decode an image file.

    Args:
        path: Image file.
        mode: `'rgb'`, `'gray'`, or `'unchanged'`: grayscale is kept and everything else becomes RGB.
        upright: Apply the EXIF orientation.

    Returns:
        uint8 (C, H, W), C = 3 or 1. Its memory layout may be (H, W, C), as decoders write it.

    Raises:
        UnreadableImage: The file is missing, corrupt, not an image, not a regular file, or too large.
    """
    file = open_image(path)
    with file:
        img = _by_torchvision(file, path, mode, upright)
        if img is None:
            img = torch.from_numpy(as_array(decode_with_pillow(file, path, mode, upright))).permute(2, 0, 1)
    return img


def _by_torchvision(file: io.FileIO, path: str, mode: str, upright: bool) -> Tensor | None:
    """Decode a JPEG file with torchvision; return None if torchvision cannot."""
    from PIL.Image import DecompressionBombError

    decode = _native()
    size = os.fstat(file.fileno()).st_size
    if decode is None or size > _LARGEST_JPEG or os.pread(file.fileno(), 3, 0) != b"\xff\xd8\xff":
        return None
    data = torch.empty(size, dtype=torch.uint8)
    content = data.numpy().data
    try:
        if os.preadv(file.fileno(), [content], 0) < size:
            return None
        sides = jpeg_size(content)
        if sides is None:
            return None
        check_pixels(*sides)
        img = decode(data, _NATIVE_MODE[mode], upright)
        return img if img.size(0) < 4 else decode(data, _NATIVE_MODE["rgb"], upright)  # CMYK, unchanged
    except DecompressionBombError as error:
        raise UnreadableImage(f"{path}: {too_large(error)}") from error
    except (RuntimeError, OSError):
        return None  # Pillow supports more kinds of JPEG, and describes the fault better


def jpeg_size(data: Any) -> tuple[int, int] | None:
    """Return (width, height) from the header of a JPEG file, or None if the header is broken.

    Args:
        data: Bytes of the file, or any indexable view of them.
    """
    at, end = 2, len(data) - 9
    while at < end and data[at] == 0xFF:
        marker = data[at + 1]
        if marker in _FRAMES:
            return data[at + 7] << 8 | data[at + 8], data[at + 5] << 8 | data[at + 6]
        if marker == 0xFF:  # fill byte
            at += 1
        elif marker in _BARE:
            at += 2
        elif not marker:  # decoders skip only these two bytes, and would find another size than after a whole segment
            return None
        else:
            at += 2 + (data[at + 2] << 8 | data[at + 3])
    return None


def as_image(data: Any, upright: bool = True) -> Tensor:
    """Convert an array, tensor or Pillow image to a uint8 tensor (C, H, W).

    Args:
        data: uint8 NumPy array (H, W), (H, W, 1), (H, W, 3), RGB; uint8 tensor (H, W), (C, H, W); or a Pillow
            image.
        upright: Apply a Pillow image's EXIF orientation.

    Raises:
        DataError: Another type, shape or dtype.
        UnreadableImage: A Pillow image cannot be read.
    """
    if isinstance(data, np.ndarray) and data.dtype == np.uint8 and data.ndim in (2, 3):
        image = torch.from_numpy(np.require(data, requirements=["C", "W"]))
        image = image[None] if data.ndim == 2 else image.permute(2, 0, 1)
    elif isinstance(data, Tensor) and data.dtype == torch.uint8 and data.dim() in (2, 3):
        image = data[None] if data.dim() == 2 else data
    elif hasattr(data, "convert"):
        return torch.from_numpy(as_array(convert_given(data, "unchanged", upright))).permute(2, 0, 1)
    else:
        raise not_an_image(data)
    if image.size(0) not in (1, 3, 4) or not image.numel():
        raise wrong_shape(data)
    return image[:3] if image.size(0) == 4 else image


def with_channels(img: Tensor, channels: int) -> Tensor:
    """Return the image or images (..., C, H, W) with 1 or 3 channels: gray by luminance, RGB by repetition."""
    have = img.size(-3)
    if have == channels:
        return img
    if have == 1:
        return img.expand(*img.shape[:-3], channels, *img.shape[-2:]).contiguous()
    red, green, blue = (weight * img.select(-3, c) for c, weight in enumerate(GRAY_WEIGHTS))
    gray = (red + green + blue).unsqueeze(-3)
    return gray.round_().to(torch.uint8) if img.dtype == torch.uint8 else gray
