"""Test pipelines in Pillow and NumPy, so that prediction need not import PyTorch, which takes seconds.

The supported steps make up nearly every test pipeline, in this order: loading, `Resize` or `Fit` (bilinear) and
`CenterCrop`, `Normalize`, and conversion to tensors. On the same bytes, all but resizing gives bit-identical results to
the steps themselves. Resizing rounds twice, so a byte may differ by 1 or 2; in photos, one in 200 does.
`light_pipeline` returns None for any other pipeline, which `Compose` then runs.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from lbitcls.datasets.pipelines.pillow import as_array, convert_given, from_array, read_with_pillow
from lbitcls.datasets.pipelines.rules import (
    COLOR_TYPES,
    GRAY_WEIGHTS,
    in_proportion,
    largest_window,
    middle,
    unit_of,
)

if TYPE_CHECKING:
    from PIL import Image

Shape = Callable[["Image.Image"], "Image.Image"]
Finish = Callable[[np.ndarray], np.ndarray]

_ORDER = ("load", "shape", "normalize", "collect")
_STAGES = {
    "LoadImageFromFile": "load",
    "Resize": "shape",
    "Fit": "shape",
    "CenterCrop": "shape",
    "Normalize": "normalize",
    "ImageToTensor": "collect",
    "ToTensor": "collect",
    "Collect": "collect",
}


class LightPipeline:
    """Test pipeline in Pillow and NumPy; built by `light_pipeline`.

    Args:
        mode: Mode of the loaded images: `'rgb'`, `'gray'` or `'unchanged'`.
        upright: Apply the EXIF orientation.
        shapes: Functions that crop and resize the image.
        finish: Function from bytes (H, W, C) to float32 (C, H, W).
    """

    def __init__(self, mode: str, upright: bool, shapes: Sequence[Shape], finish: Finish) -> None:
        self.mode, self.upright = mode, upright
        self._shapes, self._finish = tuple(shapes), finish

    def __call__(self, picture: Any) -> np.ndarray:
        """Return the model's input, float32 (C, H, W), for a path, uint8 array (H, W, 3) or (H, W), or Pillow image.

        Raises:
            UnreadableImage: The file is missing, corrupt, not an image, or too large.
            DataError: An array of another type or shape, or an image that is too narrow.
        """
        image = self._read(picture)
        for shape in self._shapes:
            image = shape(image)
        return self._finish(as_array(image))

    def _read(self, picture: Any) -> Image.Image:
        if isinstance(picture, (str, os.PathLike)):
            return read_with_pillow(os.fspath(picture), self.mode, self.upright)
        if hasattr(picture, "convert"):
            return convert_given(picture, self.mode, self.upright)
        return convert_given(from_array(picture), self.mode, upright=False)


def light_pipeline(steps: Sequence[Any]) -> LightPipeline | None:
    """Build the pipeline of a config or an exported model; None if a step is unsupported or written unusually."""
    if not all(isinstance(step, Mapping) and isinstance(step.get("type"), str) for step in steps):
        return None
    if not all(step["type"] in _STAGES for step in steps):
        return None
    stages = [_STAGES[step["type"]] for step in steps]
    if stages != sorted(stages, key=_ORDER.index) or stages.count("load") > 1 or stages.count("normalize") > 1:
        return None
    try:
        parts = [_BUILDERS[step["type"]](**{key: step[key] for key in step if key != "type"}) for step in steps]
    except (TypeError, ValueError):  # another key, or an unsupported value
        return None
    of_stage = {stage: [part for part, at in zip(parts, stages, strict=True) if at == stage] for stage in _ORDER}
    mode, upright = next(iter(of_stage["load"]), COLOR_TYPES["unchanged"])
    return LightPipeline(mode, upright, of_stage["shape"], next(iter(of_stage["normalize"]), _to_unit))


def _load(
    color_type: str = "color",
    to_float32: bool = False,
    file_client_args: Mapping[str, Any] | None = None,
    imdecode_backend: str | None = None,
) -> tuple[str, bool]:
    _require(color_type in COLOR_TYPES and file_client_args in (None, {"backend": "disk"}))
    return COLOR_TYPES[color_type]


def _resize(size: Any, interpolation: str = "bilinear", backend: str | None = None) -> Shape:
    short, exact = size, None
    if not isinstance(size, int):
        short, exact = (size[0], None) if len(size) == 2 and size[1] == -1 else (1, _pair(size))
    _require(_is_length(short) and interpolation == "bilinear" and backend in (None, "cv2", "pillow"))
    return lambda image: _resized(image, exact or in_proportion(short, image.height, image.width))


def _fit(size: Any) -> Shape:
    target = _pair(size)

    def fit(image: Image.Image) -> Image.Image:
        top, left, high, wide = largest_window(image.height, image.width, target)
        return _resized(image.crop((left, top, left + wide, top + high)), target)

    return fit


def _center_crop(crop_size: Any) -> Shape:
    high, wide = _pair(crop_size)

    def crop(image: Image.Image) -> Image.Image:
        top, left = middle(image.height, high), middle(image.width, wide)
        return image.crop((left, top, left + wide, top + high))  # zeros outside the image

    return crop


def _normalize(mean: Sequence[float], std: Sequence[float], to_rgb: bool = True) -> Finish:
    _require(len(mean) == len(std) and len(mean) in (1, 3) and min(std) > 0)
    scale = 255 / unit_of(mean, std)
    center, spread = (np.array(values, np.float32).reshape(-1, 1, 1) * scale for values in (mean, std))

    def finish(pixels: np.ndarray) -> np.ndarray:
        planes = _planes(_with_channels(pixels, len(mean)))
        values = (planes if to_rgb else planes[::-1]).astype(np.float32)
        values -= center
        values /= spread
        return values

    return finish


def _to_unit(pixels: np.ndarray) -> np.ndarray:
    values = _planes(pixels).astype(np.float32)
    values /= 255
    return values


def _nothing(keys: Sequence[str] = ("img",), meta_keys: Sequence[str] = ()) -> None:
    """Do nothing, for the steps that select the model's inputs: here the image is the only one."""


_BUILDERS: dict[str, Callable[..., Any]] = {
    "LoadImageFromFile": _load,
    "Resize": _resize,
    "Fit": _fit,
    "CenterCrop": _center_crop,
    "Normalize": _normalize,
    "ImageToTensor": _nothing,
    "ToTensor": _nothing,
    "Collect": _nothing,
}


def _resized(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    from PIL import Image

    return image if (image.height, image.width) == size else image.resize(size[::-1], Image.Resampling.BILINEAR)


def _planes(pixels: np.ndarray) -> np.ndarray:
    """Return (H, W, C) as (C, H, W)."""
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))


def _with_channels(pixels: np.ndarray, channels: int) -> np.ndarray:
    """Return (H, W, C) with 1 or 3 channels: gray by luminance, RGB by repetition."""
    if pixels.shape[2] == channels:
        return pixels
    if channels == 3:
        return np.broadcast_to(pixels, (*pixels.shape[:2], 3))
    red, green, blue = (pixels[:, :, i].astype(np.float32) * weight for i, weight in enumerate(GRAY_WEIGHTS))
    return np.rint(red + green + blue).astype(np.uint8)[:, :, None]


def _pair(size: Any) -> tuple[int, int]:
    """Return (h, w) from an int (a square) or a pair."""
    pair = (size, size) if isinstance(size, int) else tuple(size)
    _require(len(pair) == 2 and all(map(_is_length, pair)))
    return pair


def _is_length(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _require(known: bool) -> None:
    if not known:
        raise ValueError("left to the steps themselves to check")
