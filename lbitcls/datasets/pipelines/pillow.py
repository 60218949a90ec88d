"""Files to images by Pillow alone, for the kinds that torchvision does not decode and for programs without PyTorch.

Of an animation the first frame is taken, transparency is left out, 16 bits become 8. An image of more pixels than
Pillow takes for harmless, twice `PIL.Image.MAX_IMAGE_PIXELS` (179 million), is refused, whatever decodes it: a small
file may hold it, and memory may not.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import numpy as np

from lbitcls.utils.errors import DataError

if TYPE_CHECKING:
    from PIL import Image

_PIL_MODE = {"gray": "L", "rgb": "RGB"}
_GRAY = ("1", "L", "LA", "I", "I;16", "I;16B", "I;16L", "I;16N")


class UnreadableImage(DataError):
    """An image is missing or corrupt: what `on_error='skip'` leaves out."""


def read_with_pillow(path: str, mode: str, upright: bool = True) -> Image.Image:
    """The image in a file, `'L'` or `'RGB'`.

    Args:
        path: the file.
        mode: `'rgb'`, `'gray'`, or `'unchanged'`: grayscale stays so and everything else becomes RGB.
        upright: turn the image as its EXIF orientation says.

    Raises:
        UnreadableImage: the file is missing, corrupt, no image, or too large.
    """
    from PIL import Image

    try:
        with Image.open(path) as opened:
            opened.load()
            return convert(opened, mode, upright)
    except FileNotFoundError as error:
        raise UnreadableImage(f"{path}: there is no such file.") from error
    except Image.DecompressionBombError as error:
        raise UnreadableImage(f"{path}: {too_large(error)}") from error
    # Pillow's readers raise many kinds of error on corrupt files (SyntaxError, struct.error, ValueError, …).
    except Exception as error:
        size = f"{os.path.getsize(path)} bytes" if os.path.isfile(path) else "not a file"
        raise UnreadableImage(f"{path}: cannot read this image ({size}): {error}. Mend or remove it.") from error


def too_large(error: Exception) -> str:
    """What Pillow says of an image with too many pixels, and what to do."""
    return f"{error} Make it smaller, or raise PIL.Image.MAX_IMAGE_PIXELS."


def check_pixels(path: str) -> None:
    """Raise `UnreadableImage` for a file whose header says that it has too many pixels; other files pass."""
    from PIL import Image

    try:
        with Image.open(path):
            pass
    except Image.DecompressionBombError as error:
        raise UnreadableImage(f"{path}: {too_large(error)}") from error
    except Exception:  # of many kinds; whoever decodes the file says it
        return


def convert(image: Image.Image, mode: str, upright: bool = True) -> Image.Image:
    """An image that Pillow opened, as `read_with_pillow` gives it.

    Raises:
        ValueError: its pixels have no range of their own (32-bit integers or floats).
        OSError: it is read only now, and cannot be.
    """
    from PIL import ExifTags, Image, ImageOps

    sixteen_bits = image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG")
    if image.mode in ("I", "F") and not sixteen_bits:
        raise ValueError(f"pixels of 32 bits (mode {image.mode}) have no range of their own; store 8 or 16 bits")
    if upright and image.getexif().get(ExifTags.Base.Orientation, 1) != 1:
        image = ImageOps.exif_transpose(image)
    target = ("L" if image.mode in _GRAY else "RGB") if mode == "unchanged" else _PIL_MODE[mode]
    if sixteen_bits:
        image = Image.fromarray((np.asarray(image).astype(np.int64) >> 8).astype(np.uint8))
    elif "transparency" in image.info:
        image = image.convert("RGBA")  # Pillow warns of going from a palette to RGB at once
    return image if image.mode == target else image.convert(target)


def convert_given(image: Image.Image, mode: str, upright: bool = True) -> Image.Image:
    """As `convert`, for an image that is in memory, or that Pillow opened and has not read yet.

    Raises:
        UnreadableImage: it cannot be read, or its pixels have no range of their own.
    """
    try:
        image.load()
        return convert(image, mode, upright)
    except (OSError, ValueError, SyntaxError) as error:
        raise UnreadableImage(f"this Pillow image cannot be read: {error}.") from error


def from_array(data: Any) -> Image.Image:
    """An image `'L'` or `'RGB'` of a NumPy array, uint8 (H, W), (H, W, 1), (H, W, 3) or, with alpha, (H, W, 4).

    Raises:
        DataError: another type, shape or dtype.
    """
    from PIL import Image

    if not isinstance(data, np.ndarray) or data.dtype != np.uint8 or data.ndim not in (2, 3):
        raise not_an_image(data)
    if (data.ndim == 3 and data.shape[2] not in (1, 3, 4)) or not data.size:
        raise wrong_shape(data)
    pixels = data[:, :, 0] if data.ndim == 3 and data.shape[2] == 1 else data[:, :, :3] if data.ndim == 3 else data
    return Image.fromarray(np.ascontiguousarray(pixels))


def not_an_image(data: Any) -> DataError:
    """The error for what is no image."""
    shown = f"{data.dtype} {tuple(data.shape)}" if hasattr(data, "shape") else ""
    return DataError(
        "an image is a uint8 array (H, W) or (H, W, 3) in RGB, a uint8 tensor (C, H, W), or a Pillow image; "
        f"got {f'{type(data).__name__} {shown}'.rstrip()}."
    )


def wrong_shape(data: Any) -> DataError:
    """The error for an array that has another number of channels, or nothing in it."""
    return DataError(
        f"an image has 1 or 3 channels (a NumPy array has them last) and pixels; got shape {tuple(data.shape)}."
    )


def as_array(image: Image.Image) -> np.ndarray:
    """uint8 (H, W, C) of an image `'L'` or `'RGB'`, C = 1 or 3, in memory of its own."""
    array = np.array(image)
    return array if array.ndim == 3 else array[:, :, None]
