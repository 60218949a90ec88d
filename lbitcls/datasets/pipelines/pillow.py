"""Decoding with Pillow alone, for formats that torchvision does not decode and for programs without PyTorch.

The first frame of an animation is used, transparency is dropped, 16 bits become 8. An image with more pixels than
Pillow considers harmless, twice `PIL.Image.MAX_IMAGE_PIXELS` (179 million), is refused, whichever decoder is used: it
may fit in a small file, but not in memory. Files are read only as one of the formats in `FORMATS`: Pillow supports
others that start programs (EPS) or whose decoders are little tested.
"""

from __future__ import annotations

import io
import os
from typing import TYPE_CHECKING, Any

import numpy as np

from lbitcls.utils.errors import DataError
from lbitcls.utils.files import open_regular

if TYPE_CHECKING:
    from PIL import Image

FORMATS = ("BMP", "DIB", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
_PIL_MODE = {"gray": "L", "rgb": "RGB"}
_GRAY = ("1", "L", "LA", "I", "I;16", "I;16B", "I;16L", "I;16N")
_TILE = (322, 323)  # of TIFF: TileWidth, TileLength


class UnreadableImage(DataError):
    """An image is missing or corrupt; `on_error='skip'` skips it."""


def read_with_pillow(path: str, mode: str, upright: bool = True) -> Image.Image:
    """Return the image in a file, `'L'` or `'RGB'`.

    Args:
        path: Image file.
        mode: `'rgb'`, `'gray'`, or `'unchanged'`: grayscale is kept and everything else becomes RGB.
        upright: Apply the EXIF orientation.

    Raises:
        UnreadableImage: The file is missing, corrupt, not an image, not a regular file, or too large.
    """
    file = open_image(path)
    with file:
        return decode_with_pillow(file, path, mode, upright)


def open_image(path: str) -> io.FileIO:
    """Open an image file; raise `UnreadableImage` if there is none."""
    try:
        return open_regular(path)
    except FileNotFoundError as error:
        raise UnreadableImage(f"{path}: no such file.") from error
    except OSError as error:
        raise UnreadableImage(f"{path}: cannot read this image: {error.strerror}. Repair or remove it.") from error


def decode_with_pillow(file: io.FileIO, path: str, mode: str, upright: bool = True) -> Image.Image:
    """Do as `read_with_pillow`, for an open file, which is closed at the end; `path` is for messages."""
    # These two by name: Pillow would find them by loading all its plugins, which takes a tenth of a second.
    from PIL import Image, TiffImagePlugin, UnidentifiedImageError, WebPImagePlugin  # noqa: F401

    size = os.fstat(file.fileno()).st_size
    try:
        with io.BufferedReader(file) as buffered, Image.open(buffered, formats=FORMATS) as opened:
            _check_parts(opened)
            opened.load()
            check_pixels(*opened.size)  # some formats know their size only now
            return convert(opened, mode, upright)
    except Image.DecompressionBombError as error:
        raise UnreadableImage(f"{path}: {too_large(error)}") from error
    except UnidentifiedImageError as error:
        raise UnreadableImage(
            f"{path}: cannot read this image ({size} bytes): it is none of {', '.join(FORMATS)}. Repair or remove it."
        ) from error
    # Pillow's readers raise many kinds of error on corrupt files (SyntaxError, struct.error, ValueError, …).
    except Exception as error:
        raise UnreadableImage(
            f"{path}: cannot read this image ({size} bytes): {error or type(error).__name__}. Repair or remove it."
        ) from error


def too_large(error: Exception) -> str:
    """Return the message about an image with too many pixels, and what to do."""
    said = str(error).replace(", could be decompression bomb DOS attack", "")  # Pillow's guess
    return f"{said} Make it smaller, or raise PIL.Image.MAX_IMAGE_PIXELS."


def check_pixels(width: int, height: int) -> None:
    """Raise Pillow's `DecompressionBombError` for a size above the limit, twice `PIL.Image.MAX_IMAGE_PIXELS`."""
    from PIL import Image

    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and width * height > 2 * limit:
        raise Image.DecompressionBombError(f"Image size ({width * height} pixels) exceeds limit of {2 * limit} pixels.")


def _check_parts(opened: Image.Image) -> None:
    """Raise `DecompressionBombError` if a part of an image claims a size above the limit for images."""
    tags = getattr(opened, "tag_v2", {})
    sides = [tags.get(tag, 1) for tag in _TILE]
    if all(isinstance(side, int) for side in sides):
        check_pixels(*sides)


def convert(image: Image.Image, mode: str, upright: bool = True) -> Image.Image:
    """Convert an image that Pillow opened to the form that `read_with_pillow` returns.

    Raises:
        ValueError: Its pixels have no defined range (32-bit integers or floats).
        OSError: It is read only now, and cannot be.
    """
    from PIL import ExifTags, Image, ImageOps

    sixteen_bits = image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG")
    if image.mode in ("I", "F") and not sixteen_bits:
        raise ValueError(f"pixels of 32 bits (mode {image.mode}) have no defined range; store 8 or 16 bits")
    if upright and image.getexif().get(ExifTags.Base.Orientation, 1) != 1:
        image = ImageOps.exif_transpose(image)
    target = ("L" if image.mode in _GRAY else "RGB") if mode == "unchanged" else _PIL_MODE[mode]
    if sixteen_bits:
        image = Image.fromarray((np.asarray(image).astype(np.int64) >> 8).astype(np.uint8))
    elif "transparency" in image.info:
        image = image.convert("RGBA")  # Pillow warns on direct conversion from a palette to RGB
    return image if image.mode == target else image.convert(target)


def convert_given(image: Image.Image, mode: str, upright: bool = True) -> Image.Image:
    """Do as `convert`, for an image that is in memory, or that Pillow opened and has not read yet.

    Raises:
        UnreadableImage: It cannot be read, or its pixels have no defined range.
    """
    try:
        image.load()
        return convert(image, mode, upright)
    except Exception as error:  # as many kinds as for files
        raise UnreadableImage(f"this Pillow image cannot be read: {error or type(error).__name__}.") from error


def from_array(data: Any) -> Image.Image:
    """Return an image `'L'` or `'RGB'` from a NumPy array, uint8 (H, W), (H, W, 1), (H, W, 3) or (H, W, 4) with alpha.

    Raises:
        DataError: Another type, shape or dtype.
    """
    from PIL import Image

    if not isinstance(data, np.ndarray) or data.dtype != np.uint8 or data.ndim not in (2, 3):
        raise not_an_image(data)
    if (data.ndim == 3 and data.shape[2] not in (1, 3, 4)) or not data.size:
        raise wrong_shape(data)
    pixels = data[:, :, 0] if data.ndim == 3 and data.shape[2] == 1 else data[:, :, :3] if data.ndim == 3 else data
    return Image.fromarray(np.ascontiguousarray(pixels))


def not_an_image(data: Any) -> DataError:
    """Return the error for a value that is not an image."""
    shown = f"{data.dtype} {tuple(data.shape)}" if hasattr(data, "shape") else ""
    return DataError(
        "an image must be a uint8 array (H, W) or (H, W, 3) in RGB, a uint8 tensor (C, H, W), or a Pillow image; "
        f"got {f'{type(data).__name__} {shown}'.rstrip()}."
    )


def wrong_shape(data: Any) -> DataError:
    """Return the error for an array that has another number of channels, or is empty."""
    return DataError(
        f"an image must have 1 or 3 channels (last in a NumPy array) and pixels; got shape {tuple(data.shape)}."
    )


def as_array(image: Image.Image) -> np.ndarray:
    """Return an image `'L'` or `'RGB'` as uint8 (H, W, C), C = 1 or 3, in new memory."""
    array = np.array(image)
    return array if array.ndim == 3 else array[:, :, None]
