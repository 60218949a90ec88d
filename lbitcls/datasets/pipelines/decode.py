"""Files and arrays to uint8 image tensors (C, H, W), RGB or grayscale.

JPEG and PNG files are decoded by torchvision's operators, called directly: its Python functions say with
every call that they are deprecated in favour of torchcodec. Everything else (GIF, BMP, WebP, TIFF, a JPEG
they refuse) and a torchvision without the operators go through Pillow; of an animation the first frame is
taken.
"""

from __future__ import annotations

import os
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lbitcls.utils.errors import DataError

MODES = ("rgb", "gray", "unchanged")
_NATIVE_MODE = {"unchanged": 0, "gray": 1, "rgb": 3}  # torchvision's ImageReadMode
_PIL_MODE = {"gray": "L", "rgb": "RGB"}
_GRAY_WEIGHTS = (0.299, 0.587, 0.114)  # ITU-R 601, as JPEG and Pillow use them


class UnreadableImage(DataError):
    """An image is missing or corrupt: what `on_error='skip'` leaves out."""


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
        UnreadableImage: the file is missing, corrupt, or no image.
    """
    native = _native()
    if native is None:
        return _read_with_pillow(path, mode, upright)
    read_file, decode_jpeg, decode_png = native
    try:
        data = read_file(path)
        head = bytes(data[:26].tolist())
        if head[:3] == b"\xff\xd8\xff":
            img = decode_jpeg(data, _NATIVE_MODE[mode], upright)
            return img if img.size(0) < 4 else decode_jpeg(data, _NATIVE_MODE["rgb"], upright)  # CMYK, unchanged
        if head[:4] == b"\x89PNG":
            return _eight_bits(decode_png(data, _NATIVE_MODE[_png_mode(head, mode)], upright))
    except (RuntimeError, IndexError):
        pass  # Pillow knows more kinds of JPEG, and says better what is wrong
    return _read_with_pillow(path, mode, upright)


def _png_mode(head: bytes, mode: str) -> str:
    """What to ask of the PNG decoder, whose own 'unchanged' gives alpha channels and palette indices."""
    if mode != "unchanged":
        return mode
    return "gray" if head[25] in (0, 4) else "rgb"  # the colour type: 0 and 4 are grayscale


def _eight_bits(img: Tensor) -> Tensor:
    return img if img.dtype == torch.uint8 else (img.to(torch.int32) >> 8).to(torch.uint8)


def _read_with_pillow(path: str, mode: str, upright: bool) -> Tensor:
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as opened:
            image = ImageOps.exif_transpose(opened) if upright else opened
            return _from_pillow(image, mode)
    except FileNotFoundError as error:
        raise UnreadableImage(f"{path}: there is no such file.") from error
    # Pillow's readers raise many kinds of error on corrupt files (SyntaxError, struct.error, ValueError, …).
    except Exception as error:
        size = f"{os.path.getsize(path)} bytes" if os.path.isfile(path) else "not a file"
        raise UnreadableImage(
            f"{path}: cannot read this image ({size}): {error}. Mend or remove it, or let the data set leave "
            "such images out with on_error='skip'."
        ) from error


def _from_pillow(image: Any, mode: str) -> Tensor:
    if image.mode.startswith("I;16"):
        image = image.point(lambda value: value / 256).convert("L")
    gray = image.mode in ("1", "L", "LA")
    target = ("L" if gray else "RGB") if mode == "unchanged" else _PIL_MODE[mode]
    array = np.array(image.convert(target))
    return torch.from_numpy(array if array.ndim == 3 else array[:, :, None]).permute(2, 0, 1)


def as_image(data: Any) -> Tensor:
    """An image given as an array: uint8 (C, H, W).

    Args:
        data: NumPy array (H, W), (H, W, 1), (H, W, 3), RGB; tensor (H, W), (C, H, W); or a Pillow image.
            uint8.

    Raises:
        DataError: another type, shape or dtype.
    """
    if isinstance(data, Tensor) and data.dtype == torch.uint8 and data.dim() == 3 and data.size(0) in (1, 3):
        return data
    if isinstance(data, np.ndarray) and data.dtype == np.uint8 and data.ndim in (2, 3):
        image = torch.from_numpy(np.require(data, requirements=["C", "W"]))
        image = image[None] if data.ndim == 2 else image.permute(2, 0, 1)
    elif isinstance(data, Tensor) and data.dtype == torch.uint8 and data.dim() == 2:
        image = data[None]
    elif hasattr(data, "convert"):
        return _from_pillow(data, "unchanged")
    else:
        shown = f"{data.dtype} {tuple(data.shape)}" if hasattr(data, "shape") else ""
        raise DataError(
            "an image is a uint8 array (H, W) or (H, W, 3) in RGB, a uint8 tensor (C, H, W), or a Pillow image; "
            f"got {f'{type(data).__name__} {shown}'.rstrip()}."
        )
    if image.size(0) not in (1, 3, 4):
        raise DataError(f"an image has 1 or 3 channels (a NumPy array has them last); got shape {tuple(data.shape)}.")
    return image[:3] if image.size(0) == 4 else image


def with_channels(img: Tensor, channels: int) -> Tensor:
    """The image or images (..., C, H, W) with 1 or 3 channels: gray by luminance, RGB by repetition."""
    have = img.size(-3)
    if have == channels:
        return img
    if have == 1:
        return img.expand(*img.shape[:-3], channels, *img.shape[-2:]).contiguous()
    red, green, blue = (weight * img.select(-3, c) for c, weight in enumerate(_GRAY_WEIGHTS))
    gray = (red + green + blue).unsqueeze(-3)
    return gray.round_().to(torch.uint8) if img.dtype == torch.uint8 else gray
