"""Files and arrays to uint8 image tensors (C, H, W), RGB or grayscale.

JPEG and PNG files are decoded by torchvision's operators, called directly: its Python functions say with
every call that they are deprecated in favour of torchcodec. Everything else (GIF, BMP, WebP, TIFF, a JPEG
they refuse) and a torchvision without the operators go through Pillow.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lbitcls.datasets.pipelines.pillow import (
    as_array,
    check_pixels,
    convert_given,
    not_an_image,
    read_with_pillow,
    wrong_shape,
)
from lbitcls.datasets.pipelines.rules import GRAY_WEIGHTS

MODES = ("rgb", "gray", "unchanged")
_NATIVE_MODE = {"unchanged": 0, "gray": 1, "rgb": 3}  # torchvision's ImageReadMode
_LARGE_JPEG = 2**18  # bytes; a smaller one has fewer pixels than are too many, at a bit for each block of 64
_LARGE_PNG = 2**26  # pixels


@cache
def _native() -> Any:
    """torchvision's operators (read_file, decode_jpeg, decode_png), or None without them."""
    import torchvision  # noqa: F401  (loads the library of operators)

    try:
        ops = torch.ops.image
        return ops.read_file.default, ops.decode_jpeg.default, ops.decode_png.default
    except AttributeError:
        return None


def read_image(path: str, mode: str = "rgb", upright: bool = True) -> Tensor:
    """Decode an image file.

    Args:
        path: the file.
        mode: `'rgb'`, `'gray'`, or `'unchanged'`: grayscale stays so and everything else becomes RGB.
        upright: turn the image as its EXIF orientation says.

    Returns:
        uint8 (C, H, W), C = 3 or 1. Its memory may be ordered (H, W, C), as decoders write it.

    Raises:
        UnreadableImage: the file is missing, corrupt, no image, or too large.
    """
    native = _native()
    if native is None:
        return _by_pillow(path, mode, upright)
    read_file, decode_jpeg, decode_png = native
    try:
        data = read_file(path)
        head = bytes(data[:26].tolist())
        if _may_be_too_large(head, data.numel()):
            check_pixels(path)
        if head[:3] == b"\xff\xd8\xff":
            img = decode_jpeg(data, _NATIVE_MODE[mode], upright)
            return img if img.size(0) < 4 else decode_jpeg(data, _NATIVE_MODE["rgb"], upright)  # CMYK, unchanged
        if head[:4] == b"\x89PNG":
            return _eight_bits(decode_png(data, _NATIVE_MODE[_png_mode(head, mode)], upright))
    except (RuntimeError, IndexError):
        pass  # Pillow knows more kinds of JPEG, and says better what is wrong
    return _by_pillow(path, mode, upright)


def _may_be_too_large(head: bytes, size: int) -> bool:
    """Whether the pixels of a file should be counted before it is decoded."""
    if head[:4] == b"\x89PNG":
        return int.from_bytes(head[16:20], "big") * int.from_bytes(head[20:24], "big") > _LARGE_PNG
    return size > _LARGE_JPEG


def _png_mode(head: bytes, mode: str) -> str:
    """What to ask of the PNG decoder, whose own 'unchanged' gives alpha channels and palette indices."""
    if mode != "unchanged":
        return mode
    return "gray" if head[25] in (0, 4) else "rgb"  # the colour type: 0 and 4 are grayscale


def _eight_bits(img: Tensor) -> Tensor:
    return img if img.dtype == torch.uint8 else (img.to(torch.int32) >> 8).to(torch.uint8)


def _by_pillow(path: str, mode: str, upright: bool) -> Tensor:
    return torch.from_numpy(as_array(read_with_pillow(path, mode, upright))).permute(2, 0, 1)


def as_image(data: Any, upright: bool = True) -> Tensor:
    """An image given as an array: uint8 (C, H, W).

    Args:
        data: NumPy array (H, W), (H, W, 1), (H, W, 3), RGB; tensor (H, W), (C, H, W); or a Pillow image.
            uint8.
        upright: turn a Pillow image as its EXIF orientation says.

    Raises:
        DataError: another type, shape or dtype.
        UnreadableImage: a Pillow image cannot be read.
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
    """The image or images (..., C, H, W) with 1 or 3 channels: gray by luminance, RGB by repetition."""
    have = img.size(-3)
    if have == channels:
        return img
    if have == 1:
        return img.expand(*img.shape[:-3], channels, *img.shape[-2:]).contiguous()
    red, green, blue = (weight * img.select(-3, c) for c, weight in enumerate(GRAY_WEIGHTS))
    gray = (red + green + blue).unsqueeze(-3)
    return gray.round_().to(torch.uint8) if img.dtype == torch.uint8 else gray
