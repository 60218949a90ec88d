"""First step of a pipeline: loading of the image."""

from __future__ import annotations

import os
from typing import Any

from torch import Tensor

from lbitcls.datasets.pipelines.decode import as_image, read_image, with_channels
from lbitcls.datasets.pipelines.rules import COLOR_TYPES
from lbitcls.datasets.pipelines.transform import BatchDraw, Draw, Transform, log_once, one_of
from lbitcls.registry import PIPELINES
from lbitcls.utils.errors import ConfigError, DataError

_CHANNELS = {"rgb": 3, "gray": 1}


@PIPELINES.register_module()
class LoadImageFromFile(Transform):
    """Decode an image file, or use the array that the sample already contains.

    Images are uint8 tensors (C, H, W), RGB (never BGR), whichever decoder is used. A photo is rotated by its EXIF
    orientation, like mmcv's `'color'`; `'color_ignore_orientation'` does not rotate, like torchvision's
    ImageFolder.

    Args:
        color_type: `'color'` (3 channels), `'grayscale'` (1), `'unchanged'` (1 or 3, as in the file), or
            `'color_ignore_orientation'`, `'grayscale_ignore_orientation'`.
        to_float32: Accepted; images stay bytes until `Normalize`, which computes in float32.
        file_client_args: `dict(backend='disk')`, the only supported storage.
        imdecode_backend: Accepted; the decoder is torchvision's for JPEG, else Pillow.

    The sample's dict must contain either `img` (an array: see `as_image`), or `img_info=dict(filename=…)` with
    `img_prefix` (a folder or None). The step writes `img`, `filename` and `ori_shape` (H, W, C).
    """

    batchwise = True
    deterministic = True

    def __init__(
        self,
        color_type: str = "color",
        to_float32: bool = False,
        file_client_args: dict | None = None,
        imdecode_backend: str | None = None,
    ) -> None:
        one_of("LoadImageFromFile", "color_type", color_type, tuple(COLOR_TYPES))
        self.color_type = color_type
        if file_client_args not in (None, {"backend": "disk"}):
            raise ConfigError(
                "LoadImageFromFile reads files from disk: file_client_args must be dict(backend='disk') or left "
                f"out; got {file_client_args!r}."
            )
        if to_float32 or imdecode_backend:
            log_once(
                "LoadImageFromFile: to_float32 and imdecode_backend have no effect: images are decoded "
                "by torchvision (or Pillow) and stay bytes until Normalize, which computes in float32"
            )
        self._mode, self._upright = COLOR_TYPES[color_type]

    def process(self, results: dict[str, Any], draw: Draw) -> dict[str, Any]:
        given = results.get("img")
        if given is None:
            results["filename"] = filename = _path(results)
            img = self.load(filename)
        else:
            img = self._recolor(as_image(given, self._upright))
        results["img"] = img
        channels, height, width = img.shape
        results["ori_shape"] = (height, width, channels)
        return results

    def load(self, path: str) -> Tensor:
        """Decode a file: uint8 (C, H, W)."""
        return read_image(path, self._mode, self._upright)

    def apply_batch(self, imgs: Tensor, draw: BatchDraw) -> Tensor:
        return self._recolor(imgs)

    def _recolor(self, img: Tensor) -> Tensor:
        return with_channels(img, _CHANNELS[self._mode]) if self._mode in _CHANNELS else img


def _path(results: dict[str, Any]) -> str:
    info = results.get("img_info")
    if not isinstance(info, dict) or "filename" not in info:
        raise DataError(
            "a sample must be a file name, an array, dict(img_info=dict(filename=…), img_prefix=… or None) or "
            f"dict(img=array); got a dict with {', '.join(map(repr, results)) or 'no keys'}."
        )
    prefix = results.get("img_prefix")
    return os.path.join(prefix, info["filename"]) if prefix else os.fspath(info["filename"])


@PIPELINES.register_module()
class LoadImageFromNori:
    """Step that always raises `ConfigError`: the storage it read from is private."""

    def __init__(self, **kwargs: Any) -> None:
        raise ConfigError(
            "LoadImageFromNori reads private storage that is not available; use dict(type='LoadImageFromFile') "
            "with the images in a folder (data_prefix) and, if you have one, a list file (ann_file)."
        )
